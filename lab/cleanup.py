"""Removing a node: its processes, its bpffs, its namespaces' names, its cgroups, its directory.

A node that is closed in good order and one whose run was killed go the same way, found by name alone. `sweep` removes
every node whose maker is dead; each run does so before it makes its first node, and so does `python -m lab.cleanup`.
"""

import contextlib
import ctypes
import errno
import os
import sys
import time
from pathlib import Path

from lab.naming import NETNS, STATE, is_owned, node_of
from lrp_operator.kernel.cgroup import find_root

MNT_DETACH = 2
_PATIENCE = 5.0  # seconds that killed processes get to leave their cgroup

_libc = ctypes.CDLL(None, use_errno=True)


def unmount(path: Path) -> None:
    """Unmount what is mounted there; nothing mounted, or no such place, is fine."""
    if _libc.umount2(os.fsencode(path), MNT_DETACH) and ctypes.get_errno() not in {errno.EINVAL, errno.ENOENT}:
        raise OSError(ctypes.get_errno(), f"can't unmount {path}: {os.strerror(ctypes.get_errno())}")


def remove_netns(name: str) -> None:
    """Take a namespace's name away; it ends when the last process in it has."""
    unmount(NETNS / name)
    (NETNS / name).unlink(missing_ok=True)


def kill_cgroup(path: Path) -> None:
    """End every process in a cgroup and below. Returns when they are gone."""
    if not path.exists():
        return
    (path / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + _PATIENCE
    while "populated 1" in (path / "cgroup.events").read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes in {path} don't end though they were killed")
        time.sleep(0.001)


def remove_cgroup(path: Path) -> None:
    """End a cgroup's processes and remove it with all below it."""
    kill_cgroup(path)
    for directory, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(FileNotFoundError):
            Path(directory).rmdir()


def remove_node(node: str) -> None:
    """Remove all that carries a node's name."""
    # Processes first: they hold everything else.
    remove_cgroup(find_root().path / node)
    state = STATE / node
    unmount(state / "bpf")
    for name in _names(NETNS):
        if node_of(name) == node:
            remove_netns(name)
    for directory, _, files in os.walk(state, topdown=False):
        for file in files:
            (Path(directory) / file).unlink()
        Path(directory).rmdir()


def sweep() -> list[str]:
    """Remove every node whose maker is dead. Returns their names."""
    seen = {node_of(name) for place in (STATE, NETNS, find_root().path) for name in _names(place)}
    dead = sorted(node for node in seen if node and not is_owned(node))
    for node in dead:
        remove_node(node)
    return dead


def _names(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir()] if directory.is_dir() else []


if __name__ == "__main__":
    for swept in sweep():
        print(f"removed {swept}", file=sys.stderr)
