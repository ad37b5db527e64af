"""Scenarios: text files that show what a node's table is, step by step, and are held to it.

A file starts with its story (lines with #) and perhaps `options:`, the flags --address-matcher-cidr and --cluster-ips.
Each step has a title (==), what happens, and what is expected after it:

    == A second pod comes
    apply:                          manifests, as for kubectl apply
    patch Pod default/web-1:        what changes in an object that is there: a JSON merge patch, in YAML
    delete Pod default/web-1:
    expect:                         the whole table and all verdicts

`pytest tests/scenarios --regenerate` writes what is expected from what is; then read the diff. At every step the
resolution that was kept up to date is also compared with one from scratch.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from lrp_operator.api.objects import ClusterObject
from lrp_operator.resolve.engine import ClusterIPs, ResolveOptions, Resolver, resolve
from lrp_operator.resolve.model import FrontendEntry, PolicyVerdict, Resolution, SkipEntry
from lrp_operator.sources.documents import documents
from lrp_operator.sources.manifests import read_manifests

NODE = "n1"
FILES = sorted(Path(__file__).parent.glob("*.txt"))
HEADER = re.compile(r"(?:== .+|options:.*|(?:apply|expect|(?:patch|delete) \w+ \S+):)\n")
COLUMNS = ("FRONTEND", "TYPE", "POLICY", "SERVICE", "BACKENDS")


@dataclass
class Section:
    """A header line and what follows until the next; the story has an empty header."""

    header: str
    body: str = ""

    @property
    def words(self) -> list[str]:
        return self.header.rstrip("\n").removesuffix(":").split()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path, regenerate: bool) -> None:
    sections = list(read_sections(path.read_text()))
    world = World(options_of(sections))
    title = ""
    for section in sections:
        if section.header.startswith("== "):
            title = section.header.strip("=\n ")
        elif section.header == "expect:\n":
            found = world.settle()
            if regenerate:
                section.body = f"{found}\n"
            assert f"{title}\n{section.body.strip()}" == f"{title}\n{found.strip()}"
        else:
            world.take(section)
    if regenerate:
        path.write_text("".join(section.header + section.body for section in sections).rstrip("\n") + "\n")


def read_sections(text: str) -> Iterator[Section]:
    section = Section("")
    for line in text.splitlines(keepends=True):
        if HEADER.fullmatch(line):
            yield section
            section = Section(line)
        else:
            section.body += line
    yield section


def options_of(sections: list[Section]) -> ResolveOptions:
    words = next((section.header.split()[1:] for section in sections if section.header.startswith("options:")), [])
    flags = dict(zip(words[::2], words[1::2], strict=True))
    cidrs = tuple(ip_network(text) for text in flags.pop("--address-matcher-cidr", "").split(",") if text)
    mode = ClusterIPs(flags.pop("--cluster-ips", "omit"))
    assert not flags, f"unknown options {flags}"
    return ResolveOptions(cidrs, mode)


@dataclass
class World:
    """The manifests as they are, and the resolver that follows them."""

    options: ResolveOptions
    manifests: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    objects: dict[tuple[type[ClusterObject], str], ClusterObject] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.resolver = Resolver(NODE, self.options)

    def take(self, section: Section) -> None:
        match section.words:
            case ["apply"]:
                for document in documents(section.body.encode()):
                    assert document.fault is None, document.fault
                    self.apply(document.value)
            case ["patch", kind, name]:
                (document,) = documents(section.body.encode())
                self.apply(merged(self.manifests[kind, name], document.value))
            case ["delete", kind, name]:
                (key,) = decoded(self.manifests.pop((kind, name)))
                del self.objects[key]
                self.resolver.delete(*key)

    def apply(self, manifest: dict[str, Any]) -> None:
        ((key, obj),) = decoded(manifest).items()
        self.manifests[manifest["kind"], key[1]] = manifest
        self.objects[key] = obj
        self.resolver.upsert(obj)

    def settle(self) -> str:
        self.resolver.resolve()
        found = self.resolver.resolution()
        assert found == resolve(self.objects.values(), NODE, self.options)
        assert found == resolve(reversed(self.objects.values()), NODE, self.options)
        return render(found)


def decoded(manifest: dict[str, Any]) -> dict[tuple[type[ClusterObject], str], ClusterObject]:
    objects, problems = read_manifests("scenario", json.dumps(manifest).encode())
    assert not problems, problems
    return objects


def merged(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    base = target if isinstance(target, dict) else {}
    changed = {key: merged(base.get(key), value) for key, value in patch.items() if value is not None}
    return {key: value for key, value in base.items() if key not in patch} | changed


def render(resolution: Resolution) -> str:
    rows = [COLUMNS, *(row_of(entry) for entry in resolution.frontends)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    blocks = [lines if resolution.frontends else ["no frontends"]]
    blocks += [list(verdict_lines(verdict)) for verdict in resolution.verdicts]
    blocks += [list(skip_lines(skip)) for skip in resolution.skips]
    return "\n".join("\n".join(block) for block in blocks) + "\n"


def row_of(entry: FrontendEntry) -> tuple[str, ...]:
    backends = ", ".join(map(str, entry.backends)) or ("refused" if entry.refuse else "none")
    if entry.affinity_seconds:
        backends += f" (a client stays for {entry.affinity_seconds} s)"
    if entry.original:
        backends += f"; exempt pods: {row_of(entry.original)[-1]}"
    return str(entry.frontend), entry.type.value, entry.policy or "-", entry.service or "-", backends


def verdict_lines(verdict: PolicyVerdict) -> Iterator[str]:
    yield f"policy {verdict.policy}: {verdict.reason.value}. {verdict.message}"
    for found in verdict.frontends:
        if not found.redirected:
            yield f"  {found.frontend} {found.reason}: {found.message}"


def skip_lines(skip: SkipEntry) -> Iterator[str]:
    where = " (and the whole host network)" if skip.host_network else ""
    yield f"exempt {skip.pod}{where}: {', '.join(map(str, skip.frontends))}"
