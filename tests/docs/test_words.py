"""What the pages name exists: settings, flags, metrics, make's targets, files, reasons. So they can't drift apart.

Looked at is code: in sentences (`like this`) and in blocks.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from lrp_operator.agent.config import BY_KEY, DEPRECATED
from lrp_operator.api.annotations import KNOWN
from lrp_operator.cli.doctor.examine import NEEDED
from tests.docs.pages import ROOT, WORDED, page

CHART = ROOT / "deploy" / "helm" / "lrp-operator"
PROGRAMS = ("lrpctl", "lrp-agent", "lrp-controller")
FOLDERS = ("src", "deploy", "docs", "examples", "tests", "bpf", "lab", "demo", "benchmarks")

FOREIGN = {"preStop"}
"""Names of Kubernetes' own that pages speak of."""

Word = tuple[str, str]
"""Where a word is, and the word."""


def spans() -> Iterator[Word]:
    """Code in sentences."""
    for path in WORDED:
        for line, text in page(path).spans:
            yield f"{path.relative_to(ROOT)}:{line}", text


def lines() -> Iterator[Word]:
    """Code in sentences, and lines of blocks; a command that goes on in the next line is one."""
    yield from spans()
    for path in WORDED:
        for block in page(path).blocks:
            text = block.text.replace("\\\n", " ")
            for number, line in enumerate(text.splitlines(), block.start + 1):
                yield f"{path.relative_to(ROOT)}:{number}", line


@cache
def values() -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


@cache
def source() -> str:
    """Everything that a word may come from."""
    kinds = ("*.py", "*.c", "*.h", "*.yaml", "*.tpl", "*.json")
    files = [
        file
        for folder in ("src", "bpf", "deploy", "examples")
        for kind in kinds
        for file in (ROOT / folder).rglob(kind)
    ]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def is_value(key: str) -> bool:
    """Whether the chart, or an agent's settings, have a key; what is below a mapping without keys is free."""
    if key in BY_KEY or key in DEPRECATED:
        return True
    tree: Any = values()
    for part in key.split("."):
        if tree == {}:
            return True
        if not isinstance(tree, Mapping) or part not in tree:
            return False
        tree = tree[part]
    return True


def test_settings() -> None:
    """A dotted name that begins as one of the chart's values does is one; so is what --set sets."""
    wrong = [f"{place}: {key}" for place, text in lines() for key in _keys(text) if not is_value(key)]
    assert wrong == []


def _keys(text: str) -> list[str]:
    dotted = re.findall(r"(?<![\w./-])([a-z]\w*(?:\.\w+)+)(?=[:`=,; )]|$)", text)
    ours = [key for key in dotted if key.split(".")[0] in values()]
    return [*re.findall(r"--set(?:-string|-json)?[ =]'?([\w.]+)=", text), *ours]


def test_names() -> None:
    """What is written in camelCase or CamelCase in a sentence is in the sources; so are our metrics and functions."""
    pattern = re.compile(r"[A-Za-z]*[a-z][A-Z]\w*|lrp_\w+")
    wrong = [
        f"{place}: {text}"
        for place, text in spans()
        if pattern.fullmatch(text) and text not in FOREIGN and not _is_in_source(text)
    ]
    assert wrong == []


def _is_in_source(name: str) -> bool:
    # prometheus_client adds the suffix to a counter's name.
    names = {name, name.removesuffix("_total")}
    return any(re.search(rf"\b{re.escape(one)}\b", source()) for one in names) or (
        # Names of metrics that are made of parts: f"lrp_{...}".
        name.removesuffix("_total") in {f"lrp_{part}" for part in ("redirected", "refused", "skipped", "failed")}
    )


def test_annotations() -> None:
    wrong = [
        f"{place}: {name}"
        for place, text in lines()
        for name in re.findall(r"lrp-operator\.io/[a-z-]+", text)
        if name not in KNOWN and not re.search(rf"{re.escape(name)}\b", source())
    ]
    assert wrong == []


@cache
def help_of(*words: str) -> str:
    program = Path(sys.executable).with_name(words[0])
    done = subprocess.run(
        [program, *words[1:], "--help"],
        env={**os.environ, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout if done.returncode == 0 else ""


def _commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each call of a program of ours in a line: its help, and its flags."""
    text = text.replace("kubectl lrp ", "lrpctl ")
    for call in re.split(r"\s(?:\||&&|#)\s|\s-- (?=lrp)|\$ ", text):
        words = call.split()
        if words and words[0] in PROGRAMS:
            path = [words[0]]
            for word in words[1:3]:
                if not re.fullmatch(r"[a-z]+", word) or not help_of(*path, word):
                    break
                path.append(word)
            yield help_of(*path), re.findall(r"(?<!\S)(--?[a-z][a-z0-9-]*)", call)


def test_flags_of_our_programs() -> None:
    wrong = []
    for place, text in lines():
        for shown, flags in _commands(text):
            wrong += [f"{place}: {flag}: {text}" for flag in flags if not re.search(rf"(?<!\S){flag}\b", shown)]
    for place, text in spans():
        if re.fullmatch(r"--[a-z][a-z0-9-]*", text):
            known = [help_of("lrp-agent"), help_of("lrp-controller"), *(help_of("lrpctl", c) for c in COMMANDS)]
            wrong += [] if any(text in one for one in known) or text in OTHERS_FLAGS else [f"{place}: {text}"]
    assert wrong == []


COMMANDS = ("resolve", "doctor", "status", "observe", "get", "describe", "explain", "why")
OTHERS_FLAGS = {"--timeout", "--set", "--cluster-dns", "--reuse-values", "--reset-then-reuse-values", "--regenerate"}


def test_commands_of_lrpctl() -> None:
    """A word after `lrpctl` is a command."""
    wrong = [
        f"{place}: {text}"
        for place, text in lines()
        for command in re.findall(r"(?:^|[\s$])(?:lrpctl|kubectl lrp) ([a-z]+)(?=\s|$)", text)
        if not help_of("lrpctl", command) and not text.startswith("#")
    ]
    assert wrong == []


def test_make_targets() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong = [
        f"{place}: make {target}"
        for place, text in lines()
        for target in re.findall(r"(?:^|[$(] ?)make (?:-n )?([a-z][a-z0-9-]*)(?=\s|$|\))", text)
        if target not in targets
    ]
    assert wrong == []


def test_files() -> None:
    """A path that begins with one of the project's folders is there."""
    wrong = [
        f"{place}: {path}"
        for place, text in lines()
        for path in re.findall(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[\w./*-]*)", text)
        if not list(ROOT.glob(path.rstrip("./") or "."))
    ]
    assert wrong == []


def test_sentences() -> None:
    """What the page on troubleshooting says that a program says is what it says."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    table = re.search(r"\| it says \|.*\n\|.*\n((?:\|.*\n)+)", text)
    assert table is not None
    quoted = re.findall(r"`([^`]+)`", "".join(line.split(" | ")[0] for line in table[1].splitlines()))
    said = re.sub(r'"\s*\n\s*f?"', "", source())  # one text over several lines
    fragments = [part.strip() for sentence in quoted for part in sentence.split("...") if part.strip()]
    assert [fragment for fragment in fragments if fragment not in said] == []
    assert len(fragments) >= 7


def test_capabilities() -> None:
    """The page on security has a reason for each capability that the agent's container gets, and no other."""
    manifest = (CHART / "templates" / "agent" / "daemonset.yaml").read_text()
    given = re.search(r"\n( +)add:\n((?:\1  .*\n)+)", manifest)
    assert given is not None
    wanted = set(re.findall(r"- ([A-Z_]+)", given[2]))
    told = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE))
    assert told == wanted
    assert set(NEEDED) | {"SYS_RESOURCE"} == wanted  # what the doctor looks for


@pytest.mark.parametrize("key", sorted(BY_KEY))
def test_every_setting_is_told(key: str) -> None:
    """The page on modes names every setting that an agent has."""
    assert f"`{key}`" in (ROOT / "docs" / "modes.md").read_text()
