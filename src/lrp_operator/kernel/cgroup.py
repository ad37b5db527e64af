"""Cgroups: where version 2 is mounted, which cgroup a process is in, and what a mount of it covers.

The socket-level programs are attached to one cgroup and meet the sockets of every process below it. So two questions
decide whether redirection is in force: is cgroup v2 mounted at all (it may stand beside version 1), and does the
cgroup that we attach to cover the pods? It may not: a mount that was made inside a nested cgroup namespace shows only a
subtree, and its topmost directory looks like the root.

/proc/PID/cgroup tells where a process is, as seen from the reader's cgroup namespace: "/" is that namespace's root,
"/.." the cgroup above it. A mount tells in the same way, in mountinfo, which cgroup its topmost directory is. So an
agent in a namespace of its own that was given the host's mount sees it as "/../../..": it reaches that far up.

A cgroup's id, as eBPF programs know it, is the inode number of its directory.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
_ALL = 1 << 30


class CgroupError(Exception):
    """A cgroup could not be found or used; the text is one sentence for people."""


class NoCgroup2Error(CgroupError):
    """There is no cgroup v2 hierarchy where one is needed."""


@dataclass(frozen=True, slots=True)
class CgroupRoot:
    """A cgroup v2 directory that programs are attached to.

    cgroup: which one it is, as seen from this process's cgroup namespace.
    """

    path: Path
    cgroup: PurePosixPath


def find_root(proc: Path = PROC) -> CgroupRoot:
    """Find where cgroup v2 is mounted; of several mounts, the one that covers the most.

    Raises NoCgroup2Error, with what to do about it.
    """
    found = list(_mounts(proc))
    if not found:
        raise NoCgroup2Error(
            "cgroup v2 is not mounted, so programs for sockets have nowhere to be attached; "
            "mount it (mount -t cgroup2 none DIRECTORY) or pass the place where it is with --cgroup-root"
        )
    return min(found, key=lambda root: (-_ups(root.cgroup), len(root.cgroup.parts), len(root.path.parts)))


def root_at(path: Path, proc: Path = PROC) -> CgroupRoot:
    """Tell which cgroup a directory is. Raises NoCgroup2Error if it is none of version 2."""
    # Before links are followed, "does not exist" is the clearer thing to say.
    if not path.is_dir():
        raise NoCgroup2Error(f"{path} is not a directory, so it can't be the cgroup to attach to")
    resolved = path.resolve()
    # The mount that a path lies in is the one with the longest mount point; the last of several hides the others.
    mounts = [mount for mount in _mounts(proc) if resolved.is_relative_to(mount.path)]
    inside = max(enumerate(mounts), key=lambda found: (len(found[1].path.parts), found[0]), default=None)
    if inside is None or not (path / "cgroup.procs").exists():
        raise NoCgroup2Error(f"{path} is not a cgroup v2 directory: nothing of the kind is mounted there")
    mount = inside[1]
    return CgroupRoot(path, mount.cgroup / resolved.relative_to(mount.path))


def cgroup_of(pid: int | str = "self", proc: Path = PROC) -> PurePosixPath:
    """Tell which v2 cgroup a process is in, as seen from this process's cgroup namespace.

    Raises CgroupError if there is no such process, or if it is in none.
    """
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise CgroupError(f"there is no process {pid} (any more)") from error
    for line in lines:
        hierarchy, _, path = line.split(":", 2)
        if hierarchy == "0":
            return PurePosixPath(path.removesuffix(" (deleted)"))
    raise NoCgroup2Error(f"process {pid} is in no cgroup v2: this kernel uses version 1 only")


def find_process(root: CgroupRoot, pid: int, proc: Path = PROC) -> Path | None:
    """The directory, at or below the root, of the cgroup that a process is in; None if the root does not cover it.

    Raises CgroupError if there is no such process.
    """
    cgroup = cgroup_of(pid, proc)
    if _ups(cgroup) == _ups(root.cgroup) == 0:
        return root.path / cgroup.relative_to(root.cgroup) if cgroup.is_relative_to(root.cgroup) else None
    # Seen from a nested namespace, the way up has no names, so the way down again can't be told: look.
    return next((directory for directory in below(root.path, limit=_ALL) if pid in _members(directory)), None)


def cgroup_id(directory: Path) -> int:
    """A cgroup's id, as bpf_get_current_cgroup_id tells it."""
    return directory.stat().st_ino


def below(directory: Path, limit: int = 64) -> Iterator[Path]:
    """Some cgroups with processes in them, the given one and those below it, shallow ones first, at most `limit`.

    For asking the kernel which programs are in force there. Those that go meanwhile are passed over.
    """
    waiting = [directory]
    for cgroup in waiting:  # grows as it goes
        if limit and _members(cgroup):
            limit -= 1
            yield cgroup
        if not limit:
            return
        with contextlib.suppress(FileNotFoundError):
            waiting += sorted(Path(entry.path) for entry in os.scandir(cgroup) if entry.is_dir(follow_symlinks=False))


def processes(directory: Path) -> set[int]:
    """Every process in a cgroup and below, as far as this process's PID namespace shows them."""
    return {pid for cgroup in below(directory, limit=_ALL) for pid in _members(cgroup) if pid}


def _members(cgroup: Path) -> list[int]:
    """The processes of one cgroup; 0 stands for one that this PID namespace does not show."""
    try:
        return [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]
    except FileNotFoundError:
        return []
    except OSError as error:
        # A cgroup that holds single threads has no list of processes; a parent of it has them. Or it has just gone.
        if error.errno in {errno.EOPNOTSUPP, errno.ENODEV}:
            return []
        raise


def version_1_mounts(proc: Path = PROC) -> list[Path]:
    """Where hierarchies of cgroup version 1 are mounted; none where a node has version 2 alone."""
    return [Path(point) for kind, _, point in _mount_lines(proc) if kind == "cgroup"]


def _mounts(proc: Path) -> Iterator[CgroupRoot]:
    for kind, root, point in _mount_lines(proc):
        if kind == "cgroup2":
            yield CgroupRoot(Path(point), PurePosixPath(root))


def _mount_lines(proc: Path) -> Iterator[tuple[str, str, str]]:
    """Kind, root and mount point of everything that is mounted."""
    for line in (proc / "self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        yield after.split(" ", 1)[0], _unescape(root), _unescape(point)


def _ups(cgroup: PurePosixPath) -> int:
    """How many steps above the namespace's root a path begins."""
    return cgroup.parts.count("..")


def _unescape(text: str) -> str:
    r"""Blanks and backslashes in a mount's paths are written as octal numbers: \040."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text
