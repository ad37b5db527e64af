"""Runs the commands of a block as a reader would, and compares what they print with what the page shows.

Only programs that read and print are run, in the project's folder. What differs from day to day (versions, ages) counts
as equal. `pytest tests/docs --regenerate` writes what is printed into the pages; then read the diff.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lrp_operator import __version__
from tests.cluster import binaries
from tests.docs.pages import ROOT, Block

READERS = {"lrpctl", "lrp-agent", "lrp-controller", "helm", "make", "grep", "sort"}
"""What may be run: programs that change nothing, as long as make is only asked what it would do."""

_VARYING = [(re.compile(r"\b\d+(\.\d+)?[smhd] ago"), "AGE ago"), (re.compile(re.escape(__version__)), "VERSION")]


@dataclass(frozen=True)
class Step:
    """A command as it is written, and what the page shows after it."""

    written: str
    shown: str

    @property
    def command(self) -> str:
        """What the shell is given."""
        return self.written.removeprefix("$ ")

    @property
    def programs(self) -> list[str]:
        """The first words of its parts."""
        parts = re.split(r"\s*(?:\||&&|;)\s*", self.command.replace("\\\n", " "))
        return [shlex.split(part)[0] for part in parts if part]


def steps(block: Block) -> list[Step]:
    """Take a block apart. A command goes on in the next line after a backslash."""
    found = re.findall(r"^(\$ (?:[^\n]*\\\n)*[^\n]*\n)((?:(?!\$ )[^\n]*\n)*)", block.text, re.MULTILINE)
    assert "".join(written + shown for written, shown in found) == block.text, f"{block}: begins without a command"
    return [Step(written.removesuffix("\n"), shown) for written, shown in found]


def why_not_run(step: Step) -> str:
    """Say why a command must not be run here; empty if it may."""
    foreign = [program for program in step.programs if program not in READERS]
    if foreign:
        return f"{foreign[0]} is not run here"
    if "make" in step.programs and " -n" not in step.command:
        return "make is only asked what it would do: make -n"
    return ""


def run(step: Step, code: int) -> str:
    """Run a command and return what it prints; it must end with this exit code."""
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if "helm" in step.programs:
        path.insert(0, str(binaries.program("helm").parent))
    environment = {"PATH": ":".join(path), "HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "COLUMNS": "100"}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", step.command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, f"{step.command}: ends with {done.returncode}:\n{done.stderr}"
    return done.stdout + (done.stderr if code else "")


def alike(text: str, other: str) -> bool:
    """Whether two outputs are the same but for what varies."""
    return steady(text) == steady(other)


def steady(text: str) -> str:
    """Replace what varies; blanks at the end of lines are no concern of a reader's."""
    for pattern, word in _VARYING:
        text = pattern.sub(word, text)
    return "\n".join(line.rstrip() for line in text.splitlines())
