"""Ending sockets whose backend has left their frontend.

A connected UDP socket would keep sending to a pod that is gone, and a resolver would wait for its timeout. Ended
(SOCK_DESTROY), its owner sees an error at once, connects anew, and is sent to a backend that lives. TCP notices by
itself; it is ended too where the settings ask for it.

Level-triggered: a socket is stale when it remembers a backend that its frontend has not (any more), whenever and by
whomever the maps were changed; an agent that was killed between the change and the ending is made up for by the next.
What sockets remember is read from the kernel (`remembered`); one that its owner connected to the pod's own address
remembers nothing and is left alone. Where somebody is exempt from a policy, its frontend has the original's backends
besides, and a socket does not tell whose it has: it is left alone while its backend is one of either.

Where the kernel can't list what sockets remember, sockets are ended by their remote address instead, once no frontend
has that backend any more; then a socket connected to the pod's own address is ended as well.
"""

import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath.model import DatapathError, Feature
from lrp_operator.datapath.remembered import Pair, Remembered
from lrp_operator.kernel.grace import wait_for_readers
from lrp_operator.kernel.netns import NetnsError
from lrp_operator.kernel.sockdiag import SockDiagError, SocketInfo, end_sockets_everywhere
from lrp_operator.kernel.sockstorage import StorageUnreadableError

log = logging.getLogger(__name__)

_NUMBERS = {Protocol.UDP: socket.IPPROTO_UDP, Protocol.TCP: socket.IPPROTO_TCP}

Stands = Callable[[L4Addr, L4Addr], bool]
"""Whether a frontend has a backend, as the maps are now."""


def listing(*, available: bool) -> Feature:
    """Whether the kernel lists what sockets remember, as people are told."""
    consequence = "a pod that stops being a backend loses the sockets connected to its own address, too"
    return Feature("listing of socket storage", available, "" if available else consequence)


class Ender:
    """Ends stale sockets. folders: the pins of the socket storages, of every version that there is; ours first.

    The constructor raises DatapathError, OSError.
    """

    def __init__(self, folders: Iterable[Path], *, tcp: bool) -> None:
        self._protocols = (Protocol.UDP, Protocol.TCP) if tcp else (Protocol.UDP,)
        self._storages: list[Remembered] = []
        self.unreadable = ""
        ours, *others = folders
        try:
            self._storages.append(Remembered(ours))
            for folder in others:
                self._add_other(folder)
        except StorageUnreadableError as error:
            self.close()
            self.unreadable = str(error)
        except BaseException:
            self.close()
            raise

    def _add_other(self, folder: Path) -> None:
        """Add an earlier version's storages. Raises StorageUnreadableError, OSError."""
        try:
            self._storages.append(Remembered(folder))
        except DatapathError as error:
            log.warning("sockets from before an upgrade are not ended when their backend leaves: %s", error)

    def close(self) -> None:
        """Let go of the storages; the maps stay."""
        for storage in self._storages:
            storage.close()
        self._storages.clear()

    def feature(self) -> Feature:
        """Tell people what this kernel can do, and what is worse where it can't."""
        return listing(available=not self.unreadable)

    def end_stale(self, stands: Stands) -> tuple[int, list[str]]:
        """End connected sockets that remember what does not stand; return how many, and what could not be done.

        A stale entry of a socket that is not connected does no harm: its next send chooses anew. Raises OSError where
        the storages can't be read.
        """
        stale = {
            (cookie, pair.backend)
            for pair, cookies in self._remembered()
            if not stands(pair.frontend, pair.backend)
            for cookie in cookies
        }
        wanted = {(cookie, backend.ip, backend.port) for cookie, backend in stale}
        return self._end({backend for _, backend in stale}, lambda found: (found.cookie, *found.remote) in wanted)

    def _remembered(self) -> Iterator[tuple[Pair, set[int]]]:
        for storage in self._storages:
            for pair, cookies in storage.sockets().items():
                if pair.frontend.protocol in self._protocols:
                    yield pair, cookies

    def any_remembered(self) -> bool:
        """Whether some socket remembers where it was sent; so, too, where that can't be read. Raises OSError."""
        return not self._storages or any(storage.any() for storage in self._storages)

    def release_unused(self) -> list[Path]:
        """Let go of earlier versions' storages that no socket has an entry in; return their folders. Raises OSError."""
        if not self._storages[1:]:
            return []
        wait_for_readers()  # a program that has just been replaced may be writing an entry now
        unused = [storage for storage in self._storages[1:] if not storage.any()]
        for storage in unused:
            storage.close()
            self._storages.remove(storage)
        return [storage.folder for storage in unused]

    def end_all_of(self, backends: set[L4Addr]) -> tuple[int, list[str]]:
        """End every socket that is connected to one of these, redirected or not."""
        return self._end(backends, None)

    def _end(self, backends: set[L4Addr], confirm: Callable[[SocketInfo], bool] | None) -> tuple[int, list[str]]:
        ended, problems = 0, []
        for protocol in self._protocols:
            remotes = {(backend.ip, backend.port) for backend in backends if backend.protocol is protocol}
            if not remotes:
                continue
            try:
                report = end_sockets_everywhere(_NUMBERS[protocol], remotes, confirm)
            except (SockDiagError, NetnsError) as error:
                problems.append(f"sockets connected to backends that left could not be ended: {error}")
                continue
            for problem in report.problems:
                log.info("clients of backends that left may not notice at once: %s", problem)
            ended += report.ended
        return ended, problems
