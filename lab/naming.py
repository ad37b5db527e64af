"""Names on this machine, and whose they are.

Everything that a node makes outside of its namespaces carries the node's name, `lrp-PID-NUMBER`: its directory, its
cgroup, and (followed by the pod's name) its namespaces. So what a killed run left behind can be found by its name
alone. Process numbers come again, so the directory also holds the owner's time of birth.
"""

import itertools
import os
import re
from pathlib import Path

STATE = Path("/run/lrp-lab")
NETNS = Path("/run/netns")
PREFIX = "lrp"

_numbers = itertools.count(1)
_PATTERN = re.compile(rf"({PREFIX}-(\d+)-\d+)(-.+)?")


def new_name() -> str:
    """A name that no other node on this machine has."""
    return f"{PREFIX}-{os.getpid()}-{next(_numbers)}"


def node_of(name: str) -> str | None:
    """The node's part of a name, or None if the name is not of our making."""
    match = _PATTERN.fullmatch(name)
    return match[1] if match else None


def born(pid: int) -> str | None:
    """When a process was born, in the kernel's ticks; None if there is no such process."""
    try:
        # The command's name may hold spaces and parentheses; the fields after its last one are safe to split.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None


def claim(node: str) -> Path:
    """Make a node's directory, marked as this process's own."""
    directory = STATE / node
    directory.mkdir(parents=True)
    (directory / "owner").write_text(born(os.getpid()) or "")
    return directory


def is_owned(node: str) -> bool:
    """Whether the process that made a node lives."""
    match = _PATTERN.fullmatch(node)
    alive = born(int(match[2])) if match else None
    if alive is None:
        return False
    try:
        return (STATE / node / "owner").read_text() in {alive, ""}  # empty: it is being written
    except FileNotFoundError:
        return (STATE / node).is_dir()  # its maker lives, and is just about to mark it
