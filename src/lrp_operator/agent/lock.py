"""One agent on a node's pins: a second one refuses to start, and says who is there.

The lock is a flock on the pins' directory itself, because bpffs holds no regular files; the kernel drops it when its
holder dies, so it is never stale. Who holds it is read from /proc/locks, or asked of the agent behind the API socket
where the holder is not in sight (another pid namespace).
"""

import contextlib
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Self


class LockHeldError(Exception):
    """Another agent has the pins; the text says which."""


class PinsLock:
    """The right to change what is pinned below a directory, held until `release` or the end of the process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def take(cls, bpf_root: Path, api_socket: Path | None = None) -> Self:
        """Take the lock. Raises LockHeldError if another process has it, OSError if there is no such directory."""
        fd = os.open(bpf_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(os.fstat(fd), api_socket)
            os.close(fd)
            raise LockHeldError(
                f"another agent has the pins in {bpf_root}: {holder}. Stop it first, or give this one --bpf-root."
            ) from None
        except OSError:
            os.close(fd)
            raise
        return cls(fd)

    def release(self) -> None:
        """Let another agent have the pins."""
        os.close(self._fd)


def _holder(directory: os.stat_result, api_socket: Path | None) -> str:
    """Name the process that has the lock on a directory, as well as can be."""
    pid = _pid_in_proc_locks(directory) or (_pid_behind(api_socket) if api_socket else None)
    if not pid:
        return "a process that can't be seen from here (in another pid namespace?)"
    return f"pid {pid}{_command_line(pid)}"


def _pid_in_proc_locks(directory: os.stat_result) -> int | None:
    """Find who has a flock on this inode. /proc/locks: `1: FLOCK  ADVISORY  WRITE 708 00:1b:1234 0 EOF`."""
    wanted = (os.major(directory.st_dev), os.minor(directory.st_dev), directory.st_ino)
    with contextlib.suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            _, kind, *rest = line.split()
            if kind != "FLOCK":
                continue
            pid, place = rest[2], rest[3]
            major, minor, inode = place.split(":")
            if (int(major, 16), int(minor, 16), int(inode)) == wanted:
                return max(int(pid), 0) or None
    return None


def _pid_behind(api_socket: Path) -> int | None:
    """Ask the kernel whose process listens on a socket."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        client.connect(str(api_socket))
        pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        return int(pid) or None
    return None


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        return f" ({b' '.join(words).decode(errors='replace')})"
    return ""
