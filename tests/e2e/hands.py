"""What one can do to the node that is up: run commands on it, stop and start its units, pull its plug.

Any process may, whoever made the node: all it takes is the node's directory.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 120.0


class HandsError(Exception):
    """A command on the node failed, or a unit does not do what it was told; the text has its words."""


@dataclass(frozen=True)
class Hands:
    """Hands on a node. room: its directory."""

    room: Path

    @property
    def pid(self) -> int:
        """The node's first process, as the machine counts."""
        return int((self.room / "pid").read_text())

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command on the node, as its root. Returns what it printed."""
        inside = ["nsenter", "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--target", str(self.pid)]
        done = subprocess.run([*inside, *command], capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise HandsError(f"on the node, {' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def stop(self, unit: str) -> None:
        """Stop a unit for good; returns when it has ended."""
        (self.room / "stopped" / unit).touch()
        if pid := self._pid_of(unit):
            self.run("kill", pid, check=False)  # it may just have ended
        self._until(lambda: not self._pid_of(unit), f"{unit} does not stop")

    def start(self, unit: str) -> None:
        """Start a unit that was stopped."""
        (self.room / "stopped" / unit).unlink(missing_ok=True)
        self._until(lambda: self._pid_of(unit), f"{unit} does not start")

    def restart(self, unit: str) -> None:
        """Stop a unit and start it."""
        self.stop(unit)
        self.start(unit)

    def reboot(self) -> None:
        """Pull the plug, and wait until the node is up anew, with nothing but its disk."""
        before = self.pid
        os.kill(before, signal.SIGKILL)
        self._until(lambda: self.pid != before and (self.room / "up").exists(), "the node does not boot")

    def log(self, unit: str) -> str:
        """All that a unit has said."""
        return (self.room / "log" / f"{unit}.log").read_text(errors="replace")

    def _pid_of(self, unit: str) -> str:
        try:
            return (self.room / "pids" / unit).read_text()
        except FileNotFoundError:
            return ""

    def _until(self, reached: Callable[[], object], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            if time.monotonic() > deadline:
                raise HandsError(otherwise)
            time.sleep(0.05)
