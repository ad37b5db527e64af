"""What sockets remember, read back: which socket was sent through which frontend to which backend.

The kernel keeps it in a table of sockets, or with the socket (bpf/socket_state.h). After an upgrade that changes the
layout, sockets from before keep what they have in the maps of the old version, so all versions that are pinned are
read; where a field stands is taken from each map's own BTF.
"""

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath.model import DatapathError
from lrp_operator.kernel import bpf, btf
from lrp_operator.kernel.sockstorage import SocketStorage


@dataclass(frozen=True, slots=True)
class Pair:
    """A frontend, and the backend that a socket was sent to for it."""

    frontend: L4Addr
    backend: L4Addr


class Remembered:
    """The storages of one version, in a folder of pins. The constructor raises StorageUnreadableError, DatapathError.

    OSError where a pin can't be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._storages: list[tuple[SocketStorage | SocketTable, _PeerLayout]] = []
        try:
            for path in sorted(path for path in folder.iterdir() if not path.is_dir()):
                opened = bpf.Map.open(path)
                with ExitStack() as stack:
                    stack.callback(opened.close)
                    layout = _PeerLayout.of(path.name, opened)
                    if opened.info.type == bpf.MapType.ARRAY:
                        self._storages.append((SocketTable(opened), layout))
                        stack.pop_all()  # the table goes on using the map
                    else:
                        self._storages.append((SocketStorage(opened), layout))
        except BaseException:
            self.close()
            raise

    def sockets(self) -> dict[Pair, set[int]]:
        """Who remembers what: the sockets' cookies by pair, but for what they have forgotten. Raises OSError."""
        found: defaultdict[Pair, set[int]] = defaultdict(set)
        for storage, layout in self._storages:
            for pair, cookies in layout.sort(storage.items()):
                found[pair] |= cookies
        return found

    def any(self) -> bool:
        """Whether any socket remembers anything here. Raises OSError."""
        return any(storage.any() for storage, _ in self._storages)

    def close(self) -> None:
        """Let go; the maps stay."""
        for storage, _ in self._storages:
            storage.close()
        self._storages.clear()


_STRETCH = 64


class SocketTable:
    """The table of sockets: an array of places, each with its owner's cookie and a peer. Like SocketStorage to use."""

    def __init__(self, places: bpf.Map) -> None:
        self._places = places
        self._place = struct.Struct(f"=Q{places.info.value_size - 8}s")

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Yield (socket cookie, peer) of every place that is taken. Raises OSError."""
        stretch = self._place.size * _STRETCH
        empty = bytes(stretch)
        for _, values in self._places.batches():
            for start in range(0, len(values), stretch):
                places = values[start : start + stretch]
                if places != empty:  # most are: a free place is all zeros
                    yield from (place for place in self._place.iter_unpack(places) if place[0])

    def any(self) -> bool:
        """Whether any place is taken. Raises OSError."""
        return next(self.items(), None) is not None

    def close(self) -> None:
        """Let go of the map."""
        self._places.close()


_PROTOCOLS = frozenset((Protocol.TCP, Protocol.UDP))
_FIELDS = ("frontend_ip", "frontend_port", "backend_ip", "backend_port", "protocol", "replies")


class _PeerLayout:
    """Where the fields of struct peer4 or peer6 stand in a map's values, which start with an array of those."""

    def __init__(self, name: str, size: int, fields: tuple[btf.Field, ...]) -> None:
        """Raise DatapathError where a field is missing."""
        found = sorted((field for field in fields if field.name in _FIELDS), key=lambda field: field.offset)
        if len(found) < len(_FIELDS):
            raise DatapathError(f"socket storage {name} was made by others: its entries are not what we write")
        code, at = "=", 0
        for field in found:
            code += f"{field.offset - at}x{field.size}s"
            at = field.offset + field.size
        self._struct = struct.Struct(f"{code}{size - at}x")
        self._order = [[field.name for field in found].index(name) for name in _FIELDS]

    @classmethod
    def of(cls, name: str, opened: bpf.Map) -> "_PeerLayout":
        """Read it from a map's BTF. Raises DatapathError."""
        if not opened.info.btf_id:
            raise DatapathError(f"socket storage {name} was made by others: it has no BTF")
        parsed = btf.Btf(bpf.read_btf(opened.info.btf_id))
        try:
            number = parsed.struct_named(f"peer{name[-1]}")
        except LookupError as error:
            raise DatapathError(f"socket storage {name} was made by others: {error}") from error
        return cls(name, parsed.size(number), parsed.fields(number))

    def sort(self, items: Iterable[tuple[int, bytes]]) -> Iterator[tuple[Pair, set[int]]]:
        """Sort (cookie, value) by pair. Sockets may be very many, pairs are few: bytes are compared, then parsed."""
        raw: defaultdict[tuple[bytes, ...], set[int]] = defaultdict(set)
        for cookie, value in items:
            whole = len(value) // self._struct.size * self._struct.size
            for entry in self._struct.iter_unpack(value[:whole]):
                raw[entry].add(cookie)
        for entry, cookies in raw.items():
            pair = self._pair(entry)
            if pair is not None:
                yield pair, cookies

    def _pair(self, raw: tuple[bytes, ...]) -> Pair | None:
        front_ip, front_port, back_ip, back_port, protocol, replies = (raw[i] for i in self._order)
        if not any(replies) or protocol[0] not in _PROTOCOLS:
            return None  # forgotten, or just being written
        number = Protocol(protocol[0])
        return Pair(
            L4Addr(front_ip, int.from_bytes(front_port, "big"), number),
            L4Addr(back_ip, int.from_bytes(back_port, "big"), number),
        )
