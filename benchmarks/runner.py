"""The process that runs packets through programs (testrun.c), as Python sees it."""

import subprocess
from pathlib import Path

from benchmarks.packets import Case
from benchmarks.topology import BenchmarkError
from lab import Node

EMPTY = 0
"""The case of the empty program."""


class Runner:
    """It sleeps until it is told to go on. Cases go by numbers."""

    def __init__(self, node: Node, program: Path) -> None:
        self._process: subprocess.Popen[str] = node.popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        self._read()

    def add(self, number: int, case: Case, pin: Path, ifindex: int) -> None:
        """Make a case known."""
        self._write(case.line(number, pin, ifindex))

    def once(self, number: int, times: int) -> int:
        """Run a case's packet, as it was each time; the mean of the middle half, in picoseconds."""
        return self._ask(f"once {number} {times}\n")

    def all_of(self, number: int, times: int) -> int:
        """The same; the mean of all."""
        return self._ask(f"all {number} {times}\n")

    def row(self, number: int, times: int) -> int:
        """Run it on what the time before has left; the mean in picoseconds."""
        return self._ask(f"row {number} {times}\n")

    def _ask(self, line: str) -> int:
        self._write(line)
        return int(self._read())

    def _write(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line)

    def _read(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            _, why = self._process.communicate()
            raise BenchmarkError(f"packets can't be run: {why.strip()}")
        return line

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
