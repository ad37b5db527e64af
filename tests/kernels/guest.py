"""Inside the guest: `python -m tests.kernels.guest CHECK...` runs checks and tells what they find on a serial port.

Each check runs in a process of its own (`--one CHECK`), so that one which dies or leaves things behind spoils neither
the others nor the story; for one which hangs the host has a limit. The machine is thrown away afterwards: nothing is
cleaned up.
"""

import os
import platform
import re
import subprocess
import sys
import termios
import tty
from pathlib import Path

from tests.kernels import rows

_PORT = Path("/dev/ttyS1")
_LINES = 12


def _version() -> str:
    """The distribution's version of the kernel, else the kernel's release."""
    found = re.search(r"Debian (\S+)", platform.version())
    return found[1] if found else platform.release()


def _forward(check: str, port: int) -> rows.Row | None:
    """Run one check and pass on what it says as it says it; return a row if it came to no good end."""
    command = [sys.executable, "-B", "-m", "tests.kernels.guest", "--one", check]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        words: list[str] = []
        for line in process.stdout:
            if line.startswith("{"):
                os.write(port, line.encode())
            else:
                words.append(line)
                print(line, end="", flush=True)
        code = process.wait()
    if not code:
        return None
    return rows.Row(check, rows.ITS_END, rows.Verdict.FAILS, f"exit code {code}: {''.join(words[-_LINES:]).strip()}")


def _one(check: str) -> None:
    """Run a check here; its rows are lines on standard output."""
    from tests.kernels.checks import CHECKS  # noqa: PLC0415 - imports the whole product: a second here, for each check

    for row in CHECKS[check]():
        sys.stdout.buffer.write(rows.encode(row) + b"\n")
        sys.stdout.flush()


def _all(checks: list[str]) -> None:
    port = os.open(_PORT, os.O_WRONLY | os.O_NOCTTY)
    tty.setraw(port, termios.TCSANOW)
    os.write(port, rows.encode(rows.Kernel(platform.release(), _version())) + b"\n")
    for check in checks:
        if (row := _forward(check, port)) is not None:
            os.write(port, rows.encode(row) + b"\n")
    os.write(port, rows.encode(rows.End()) + b"\n")
    termios.tcdrain(port)


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        _one(sys.argv[2])
    else:
        _all(sys.argv[1:])
