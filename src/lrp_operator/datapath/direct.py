"""Backends' own addresses as frontends: what the TC level needs besides what the node redirects.

A pod may talk to a backend through a frontend and to the backend itself, from one source port. Their replies look the
same, so the TC level must know both flows, and a flow begins at a frontend (bpf/flow.h). Hence each backend's address
is one that leads to itself, flagged so that it is neither counted nor told, and means nothing to sockets. An address
that is a frontend by itself stays what it is.

A backend that has left keeps its address for a while, for its flows are still known (`LINGER_SECONDS`, and as long as a
connection to it stands): whoever talks to it directly then, from a port that was used for the frontend, is to be told
from them.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator

from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath.layout import FLAG_DIRECT
from lrp_operator.datapath.tables import Content
from lrp_operator.resolve.model import FrontendEntry

LINGER_SECONDS = 120.0
"""More than a UDP flow or a half-open connection lives (bpf/config.h)."""


class DirectFrontends:
    """Follows entries; tells what changes for backends' own addresses. clock: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: dict[L4Addr, float] = {}  # backends that have left -> when
        self._entries: dict[L4Addr, FrontendEntry] = {}
        self._uses: Counter[L4Addr] = Counter()

    def change(self, address: L4Addr, entry: FrontendEntry | None) -> Iterator[tuple[L4Addr, Content]]:
        """Take in an entry; yield what other addresses are now. What is a backend no more stays as it is: `expired`."""
        before = self._entries.pop(address, None)
        if entry is not None:
            self._entries[address] = entry
            self.forget(address)
        old, new = _destinations(before), _destinations(entry)
        self._uses.update(new - old)
        self._uses.subtract(old - new)
        touched = old ^ new
        if entry is None:
            touched.add(address)  # it may be a backend, which its being a frontend hid
        for backend in touched:
            if not self._uses[backend]:
                del self._uses[backend]
            if backend in self._entries:
                self._left.pop(backend, None)
            elif backend in self._uses:
                self._left.pop(backend, None)
                yield backend, itself(backend)
            elif backend in old or backend in self._left:
                self._left.setdefault(backend, self._clock())
                yield backend, itself(backend)

    def forget(self, address: L4Addr) -> None:
        """It is a frontend by itself now, whatever it was."""
        self._left.pop(address, None)

    def adopt(self, address: L4Addr) -> bool:
        """An earlier agent has left this address there as a backend's own; whether it is to stay for a while."""
        if address in self._entries or address in self._uses:
            return False
        self._left[address] = self._clock()
        return True

    def expired(self, in_use: Callable[[], set[L4Addr]]) -> list[L4Addr]:
        """Addresses that may go now; in_use: asked if there are any, backends that connections still go to."""
        before = self._clock() - LINGER_SECONDS
        ready = [address for address, left in self._left.items() if left < before]
        gone = [address for address in ready if address not in in_use()] if ready else []
        for address in gone:
            del self._left[address]
        return gone


def _destinations(entry: FrontendEntry | None) -> set[L4Addr]:
    """Everybody that an entry sends somebody to, those who are exempt included."""
    if entry is None:
        return set()
    return {*entry.backends, *(entry.original.backends if entry.original else ())}


def itself(backend: L4Addr) -> Content:
    """What a backend's own address leads to."""
    return Content((backend,), FLAG_DIRECT, 0)
