"""Backends' own addresses as frontends: what the TC level needs besides what the node redirects.

A pod may talk to a backend through a frontend and to the backend itself, from one source port. Their replies look the
same, so the TC level must know both flows, and a flow begins at a frontend (bpf/flow.h). Hence each backend's address
is one that leads to itself, flagged so that it is neither counted nor told, and means nothing to sockets. An address
that is a frontend by itself stays what it is.
"""

from collections import Counter
from collections.abc import Iterator

from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath.layout import FLAG_DIRECT
from lrp_operator.datapath.tables import Content
from lrp_operator.resolve.model import FrontendEntry


class DirectFrontends:
    """Follows entries; tells what changes for backends' own addresses."""

    def __init__(self) -> None:
        self._entries: dict[L4Addr, FrontendEntry] = {}
        self._uses: Counter[L4Addr] = Counter()

    def change(self, address: L4Addr, entry: FrontendEntry | None) -> Iterator[tuple[L4Addr, Content | None]]:
        """Take in an entry; yield what other addresses are now: a backend's own, or (None) nothing of ours."""
        before = self._entries.pop(address, None)
        if entry is not None:
            self._entries[address] = entry
        old = set(before.backends) if before else set()
        new = set(entry.backends) if entry else set()
        self._uses.update(new - old)
        self._uses.subtract(old - new)
        touched = old ^ new
        if entry is None:
            touched.add(address)  # it may be a backend, which its being a frontend hid
        for backend in touched:
            if not self._uses[backend]:
                del self._uses[backend]
            if backend not in self._entries:
                yield backend, Content((backend,), FLAG_DIRECT, 0) if backend in self._uses else None
