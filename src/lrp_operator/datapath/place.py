"""Where the datapath stands: whether the node's file systems are what it needs, and which namespace is whose.

Everything that can be missing on a node is told in one sentence that says how to mend it.
"""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from lrp_operator.datapath.model import DatapathError, DatapathSettings
from lrp_operator.kernel.cgroup import CgroupError, find_process, root_at
from lrp_operator.kernel.netns import NetnsError, own_netns_cookie
from lrp_operator.kernel.podlink import PodLinks
from lrp_operator.resolve.model import SkipEntry

_BPF_FS_MAGIC = 0xCAFE4A11  # include/uapi/linux/magic.h
_CGROUP2_MAGIC = 0x63677270
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Place:
    """What was found. host_cookie: of this process's network namespace, the node's; None where the kernel has none."""

    host_cookie: int | None


def check_place(settings: DatapathSettings) -> Place:
    """Check the file systems. Raises DatapathError."""
    root = settings.bpf_root
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DatapathError(
            f"the folder {root} for pins can't be made ({error.strerror}): is a bpffs mounted there?"
        ) from error
    if not is_bpffs(root):
        raise DatapathError(f"{root} is not on a bpffs: mount one (mount -t bpf bpf /sys/fs/bpf) or give --bpf-root")
    if not is_cgroup2(settings.cgroup_root):
        raise DatapathError(f"{settings.cgroup_root} is no cgroup v2: give --cgroup-root where the node's is mounted")
    try:
        cookie: int | None = own_netns_cookie()
    except NetnsError:
        cookie = None  # told with the kernel's features; only exemptions and hostNamespaceOnly need it
    return Place(cookie)


def why_not_covered(cgroup_root: Path) -> str:
    """Say why sockets of this node's processes would not meet programs on a cgroup; empty if they do.

    A cgroup2 that was mounted inside a cgroup namespace covers only that container's subtree: then process 1 of the
    node, which is outside of it, is not below the mount.
    """
    try:
        if not cgroup_root.is_mount():
            return ""  # a cgroup below the mount was asked for on purpose
        mounted = root_at(cgroup_root)
        covered = find_process(mounted, 1) is not None
    except (CgroupError, OSError):
        return ""  # not to be seen from here: PROG_QUERY has told that the programs are effective below this cgroup
    if covered:
        return ""
    return (
        f"the cgroup {cgroup_root} covers only a part of the node (it was mounted in a cgroup namespace): mount the"
        " host's cgroup v2 root into the agent and give it as --cgroup-root"
    )


def is_bpffs(path: Path) -> bool:
    """Whether a path is on a BPF file system."""
    return _file_system(path) == _BPF_FS_MAGIC


def is_cgroup2(path: Path) -> bool:
    """Whether a path is a directory of cgroup v2."""
    return path.is_dir() and _file_system(path) == _CGROUP2_MAGIC


def _file_system(path: Path) -> int:
    """Return the magic number of the file system that a path is on (statfs(2)); os.statvfs does not tell it."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer) < 0:
        return 0
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


class PodLocator:
    """Finds the namespace cookie of a pod that is to be exempt."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._links: PodLinks | None = None

    def cookie(self, entry: SkipEntry) -> int | None:
        """Return the cookie; None while the pod's link is not there (or the kernel has no cookies).

        That of a pod on the node's own network is the node's.

        Raises OSError where the kernel can't be asked just now.
        """
        if self._place.host_cookie is None:
            return None
        if entry.host_network:
            return self._place.host_cookie
        try:
            if self._links is None:
                self._links = PodLinks()
            link = self._links.locate(entry.ips)
        except NetnsError as error:
            raise OSError(str(error)) from error
        return None if link is None else link.cookie

    def close(self) -> None:
        """Let go of netlink sockets."""
        if self._links is not None:
            self._links.close()
            self._links = None
