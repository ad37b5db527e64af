"""Network namespaces: which ones the node has, which cookie each carries, and running a function inside one.

A namespace belongs to a thread, not to a process, and Python 3.11 has no os.setns. So whatever must happen inside a
namespace happens in a thread that lives for that one visit: it enters, works, hands back the result and ends. It is
never given back to a pool, where it would run somebody else's work in the wrong namespace, and where it would keep a
deleted pod's namespace alive.

What is opened or started inside stays inside: a netlink socket made during a visit serves its namespace for as long
as it is open, and a process started there is born there.

A namespace is known by device and inode (`NetnsRef`). Paths are only ways to reach it: a process may end, and its
number be given to another; `NetnsRef.open` therefore looks again at what it has opened.
"""

import ctypes
import errno
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

SO_NETNS_COOKIE = 71
CLONE_NEWNET = 0x40000000
PROC = Path("/proc")
NAMED = (Path("/run/netns"), Path("/var/run/netns"))

_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


class NetnsError(Exception):
    """A network namespace could not be used; the text is one sentence for people."""


class NetnsGoneError(NetnsError):
    """The namespace ended, or its path leads elsewhere now."""


class NetnsCookieUnsupportedError(NetnsError):
    """The kernel has no SO_NETNS_COOKIE, so a pod can't be told by its namespace."""


@dataclass(frozen=True, slots=True)
class NetnsRef:
    """A namespace and one way to reach it. Two refs are equal when they name the same namespace."""

    device: int
    inode: int
    path: str = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetnsRef) and (self.device, self.inode) == (other.device, other.inode)

    def __hash__(self) -> int:
        return hash((self.device, self.inode))

    def __str__(self) -> str:
        return f"net:[{self.inode}]"

    @contextmanager
    def open(self) -> Iterator[int]:
        """Lend a descriptor of the namespace. It keeps the namespace alive: hold it only while working there.

        Raises NetnsGoneError when the path is gone or leads to another namespace.
        """
        with open_netns(self.path) as fd:
            if identity(fd) != self:
                raise NetnsGoneError(f"{self.path} no longer leads to network namespace {self}")
            yield fd


@dataclass(frozen=True, slots=True)
class NetnsListing:
    """Every namespace found. unreadable: a sentence for each place that could not be looked at."""

    namespaces: tuple[NetnsRef, ...]
    unreadable: tuple[str, ...] = ()


Where = int | str | Path | NetnsRef
"""A namespace: an open descriptor, a path such as /proc/1/ns/net, or a ref from `list_netns`."""


@contextmanager
def open_netns(where: Where) -> Iterator[int]:
    """Lend a descriptor of a namespace; a descriptor given stays the giver's to close."""
    if isinstance(where, int):
        yield where
        return
    if isinstance(where, NetnsRef):
        with where.open() as fd:
            yield fd
        return
    try:
        fd = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NetnsGoneError(f"there is no network namespace at {where} (any more)") from error
    except OSError as error:
        raise NetnsError(f"the network namespace at {where} can't be opened: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def identity(where: Where) -> NetnsRef:
    """Tell which namespace a descriptor or path stands for."""
    if isinstance(where, NetnsRef):
        return where
    with open_netns(where) as fd:
        found = os.fstat(fd)
        return NetnsRef(found.st_dev, found.st_ino, f"/proc/self/fd/{fd}" if isinstance(where, int) else str(where))


def own_netns() -> NetnsRef:
    """The calling thread's namespace. Its path leads there as long as the thread lives."""
    path = f"/proc/self/task/{threading.get_native_id()}/ns/net"
    found = os.stat(path)  # noqa: PTH116 (a Path costs more than the call)
    return NetnsRef(found.st_dev, found.st_ino, path)


def enter(fd: int) -> None:
    """Move the calling thread into a namespace, for good. For threads and forked children made for it only."""
    if _libc.setns(fd, CLONE_NEWNET):
        code = ctypes.get_errno()
        hint = " (it takes root, or CAP_SYS_ADMIN)" if code == errno.EPERM else ""
        raise NetnsError(f"a network namespace can't be entered: {os.strerror(code)}{hint}")


class _Visit(threading.Thread, Generic[T]):
    """One thread for one visit: it carries the result, or what was raised, out of the namespace."""

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__(name="netns-visit", daemon=True)
        self.work = work
        self.results: list[T] = []
        self.raised: BaseException | None = None

    def run(self) -> None:
        try:
            self.results.append(self.work())
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            self.raised = error

    def result(self) -> T:
        self.start()
        self.join()
        if self.raised is not None:
            try:
                raise self.raised
            finally:
                self.raised = None  # else the error's traceback and this frame keep each other alive
        return self.results[0]


def in_netns(where: Where, function: Callable[[], T]) -> T:
    """Run a function inside a namespace and return its result, or raise what it raised.

    The calling thread waits and stays where it is. Never call it on an event loop's thread for long work.
    """
    with open_netns(where) as fd:

        def work() -> T:
            enter(fd)
            return function()

        return _Visit(work).result()


def in_each_netns(places: Iterable[NetnsRef], function: Callable[[NetnsRef], T]) -> list[tuple[NetnsRef, T]]:
    """Run a function inside one namespace after the other, all in one thread.

    Those that ended meanwhile are left out of the answer.
    """

    def work() -> list[tuple[NetnsRef, T]]:
        results = []
        for place in places:
            try:
                with place.open() as fd:
                    enter(fd)
                    results.append((place, function(place)))
            except NetnsGoneError:
                continue
        return results

    return _Visit(work).result()


def own_netns_cookie() -> int:
    """The cookie of the calling thread's namespace: what bpf_get_netns_cookie returns for its sockets.

    Raises NetnsCookieUnsupportedError where the kernel does not tell cookies.
    """
    # A unix socket: it exists in every namespace, whatever address families the kernel was built with.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            raise NetnsCookieUnsupportedError(
                "this kernel does not tell network namespace cookies (SO_NETNS_COOKIE, Linux 5.14): "
                "pods can't be exempted from redirection"
            ) from error


def netns_cookie(where: Where) -> int:
    """The cookie of a namespace."""
    return in_netns(where, own_netns_cookie)


def list_netns(proc: Path = PROC, named: Iterable[Path] = NAMED) -> NetnsListing:
    """Find every namespace that a process lives in or that has a name, each once.

    A namespace that is held by nothing but a thread, a socket or an open descriptor is not found. Cheap: one stat
    for each process. Processes that end meanwhile are passed over; what may not be looked at is reported.
    """
    survey = _Survey(os.stat(proc / "self/ns/net").st_dev)  # noqa: PTH116 (as above)
    for directory in named:
        for name in survey.entries(directory):
            survey.look(f"{directory}/{name}")
    for name in survey.entries(proc):
        if name.isdigit():
            survey.look(f"{proc}/{name}/ns/net")
    return NetnsListing(tuple(survey.found.values()), tuple(survey.unreadable()))


class _Survey:
    """What one listing has found so far."""

    def __init__(self, nsfs: int) -> None:
        self.nsfs = nsfs
        self.found: dict[tuple[int, int], NetnsRef] = {}
        self.refused: list[tuple[str, OSError]] = []

    def entries(self, directory: Path) -> list[str]:
        try:
            return os.listdir(directory)  # noqa: PTH208 (names are all that is needed, a thousand at a time)
        except FileNotFoundError:
            return []
        except OSError as error:
            self.refused.append((str(directory), error))
            return []

    def look(self, path: str) -> None:
        try:
            seen = os.stat(path)  # noqa: PTH116 (as above)
        except (FileNotFoundError, ProcessLookupError):
            return  # it ended while we looked, or is a kernel thread's zombie
        except OSError as error:
            self.refused.append((path, error))
            return
        # A name without its mount is a plain file, left by whoever failed to remove it.
        if seen.st_dev == self.nsfs and stat.S_ISREG(seen.st_mode):
            self.found.setdefault((seen.st_dev, seen.st_ino), NetnsRef(seen.st_dev, seen.st_ino, path))

    def unreadable(self) -> Iterator[str]:
        """One sentence for each kind of refusal: a thousand processes of another user are one fact, not a thousand."""
        kinds: dict[str, list[str]] = {}
        for path, error in self.refused:
            kinds.setdefault(error.strerror or str(error), []).append(path)
        for reason, paths in kinds.items():
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            yield f"network namespaces may be missing: {paths[0]}{more} can't be looked at: {reason}"
