"""`python -m tests.kernels`: does the product run on Debian's kernels, old and new? (make test-kernels)"""

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.kernels import machine, rows
from tests.kernels.archive import (
    NEWEST,
    SERIES,
    Archive,
    NoKernelError,
    NotInArchiveError,
    UnpackedKernel,
    busybox,
    find,
    series_of,
)
from tests.kernels.checks import CHECKS
from tests.kernels.table import Outcome, render

_PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "modprobe": "kmod"}
_EPILOG = """\
Each kernel boots in QEMU without KVM, with this machine's files below a layer of memory, and does the checks. The table
on standard output is the README's; progress is told on standard error. Exit code 1: a check failed that should not, or
a guest did not come to its end; what a kernel lacks where the product says so is no failure. Exit code 2: nothing ran.

Kernels are downloaded once and kept in ~/.cache/lrp-operator/kernels (300 MB). It takes root.
"""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = partial(str.split, sep=",")
    parser.add_argument(
        "--kernels", type=names, default=list(SERIES), help=f"series, such as 5.10,6.1; {NEWEST} is the newest of all"
    )
    parser.add_argument("--checks", type=names, default=list(CHECKS), help=f"some of {','.join(CHECKS)}")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="guests at once")
    arguments = parser.parse_args()
    if unknown := set(arguments.checks) - CHECKS.keys():
        parser.error(f"there is no check {', '.join(sorted(unknown))}: there are {', '.join(CHECKS)}")
    return arguments


class _Teller:
    """Says what goes on, with the time since the start."""

    def __init__(self) -> None:
        self._started, self._lock = time.monotonic(), threading.Lock()

    def __call__(self, line: str) -> None:
        with self._lock:
            print(f"{time.monotonic() - self._started:5.0f} s  {line}", file=sys.stderr, flush=True)


def _install(tell: _Teller) -> None:
    """Install what is missing. Raises CalledProcessError."""
    missing = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        tell(f"installing {' '.join(missing)}")
        _apt("install", "-y", "-qq", "--no-install-recommends", *missing)
    if not machine.sharer():  # in a package of its own since Debian 13
        tell("installing virtiofsd")
        _apt("install", "-y", "-qq", "--no-install-recommends", "virtiofsd")


def _apt(*args: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, stdout=subprocess.DEVNULL, env=environment)
    subprocess.run(["apt-get", *args], check=True, stdout=subprocess.DEVNULL, env=environment)


def _archive(tell: _Teller) -> Archive | None:
    try:
        return Archive.of_this_machine(tell)
    except NoKernelError as error:
        tell(str(error))
        return None


def _collect(series: Sequence[str], tell: _Teller) -> tuple[list[UnpackedKernel], list[Outcome]]:
    """Fetch the kernels, each once; an outcome for each that there is not."""
    archive, kernels, missing = _archive(tell), {}, []
    for name in series:
        try:
            kernel = find(name, archive, tell)
        except NoKernelError as error:
            tell(str(error))
            missing.append(Outcome(name, lost=str(error), had=not isinstance(error, NotInArchiveError)))
        else:
            kernels[kernel.release] = kernel
    return list(kernels.values()), missing


def _try(kernel: UnpackedKernel, shell: Path, checks: Sequence[str], tell: _Teller) -> Outcome:
    """Boot a kernel and collect what it tells."""
    outcome = Outcome(series_of(kernel.release))
    tell(f"{kernel.release}: booting")
    try:
        for said in machine.run(kernel, shell, checks, machine.Limits()):
            if isinstance(said, rows.Kernel):
                outcome.name = said.version.partition("-")[0]
                tell(f"{kernel.release}: up")
            if isinstance(said, rows.Row):
                outcome.rows.append(said)
                _tell_row(outcome.name, said, tell)
    except machine.MachineError as error:
        tell(f"{kernel.release}: {error}")
        outcome.lost = str(error)
    return outcome


def _tell_row(name: str, row: rows.Row, tell: _Teller) -> None:
    if row.check != "features" or row.verdict is not rows.Verdict.WORKS:
        words = row.told.partition("\n")[0]  # the rest of a verifier's log comes below the table
        tell(f"{name}: {row.check}: {row.subject}: {row.verdict}{f': {words}' if words else ''}")


def main() -> int:
    """Run, print the table, and judge."""
    arguments, tell = _arguments(), _Teller()
    if os.geteuid():
        print("this takes root: guests are given this machine's files by virtiofsd", file=sys.stderr)
        return 2
    _install(tell)
    kernels, missing = _collect(arguments.kernels, tell)
    try:
        shell = busybox(tell)
    except NoKernelError as error:
        tell(str(error))
        return 2
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = missing + list(pool.map(lambda kernel: _try(kernel, shell, arguments.checks, tell), kernels))
    print(render(outcomes, arguments.checks))
    if not kernels:
        return 2
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
