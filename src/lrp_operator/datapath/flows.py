"""The TC level's flows, read back: which have ended or gone silent, how many there are, whose backend has left.

Only TCP connections that were answered need this; what else there is lives in an LRU and goes by itself. A connection
is swept out some time after it has ended (both sides have sent their FIN, or one a RST), or when nothing has passed
either way for long. Each has two entries, which go together. What bounds the table while no agent sweeps is its size:
connections keep their places, ended or not, and when all are taken, new ones are not redirected; they go where they
would go without us, and are counted (`failed`).
"""

import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath.layout import (
    FLOW,
    FLOW_BOUNCE,
    FLOW_FIN_BACK,
    FLOW_FIN_SENT,
    FLOW_KEY,
    FLOW_REPLY,
    FLOW_RESET,
    FROM_POD,
    TO_POD,
)
from lrp_operator.kernel import bpf

_TICK_BITS = 30  # of struct flow's `seen`: 2^30 ns


def _ticks(seconds: float) -> int:
    return int(seconds * 1_000_000_000) >> _TICK_BITS


# As conntrack has them where kube-proxy runs: established, half closed, closed.
_SILENT, _HALF_CLOSED, _ENDED = _ticks(24 * 3600), _ticks(3600), _ticks(60)
_UDP = _HALF_OPEN = _ticks(64)
_BOTH_ENDS = FLOW_FIN_SENT | FLOW_FIN_BACK


@dataclass(frozen=True, slots=True)
class Flow:
    """One direction of a flow. key: as the map has it; seen: in ticks of 2^30 ns of the monotonic clock.

    source, destination: of the packet as it comes; becomes_source, becomes_destination: as it goes on.
    """

    key: bytes
    ifindex: int
    source: L4Addr
    destination: L4Addr
    becomes_source: L4Addr
    becomes_destination: L4Addr
    seen: int
    flags: int
    way: int

    @property
    def is_reply(self) -> bool:
        """Whether it is the backend's side."""
        return bool(self.flags & FLOW_REPLY)

    @property
    def is_plain(self) -> bool:
        """Whether its packets go on as they come."""
        return (self.source, self.destination) == (self.becomes_source, self.becomes_destination)

    @property
    def has_ended(self) -> bool:
        """Whether either side has reset the connection, or both have closed it."""
        return bool(self.flags & FLOW_RESET) or self.flags & _BOTH_ENDS == _BOTH_ENDS

    def other_key(self) -> bytes:
        """The key of the other direction."""
        source, destination = self.becomes_destination, self.becomes_source
        way = FROM_POD if self.flags & FLOW_BOUNCE else TO_POD if self.way == FROM_POD else FROM_POD
        ports = (source.port.to_bytes(2, "big"), destination.port.to_bytes(2, "big"))
        return FLOW_KEY[len(source.ip)].pack(source.ip, destination.ip, *ports, self.ifindex, source.protocol, way)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep found. standing: connections that go on; removed: those that went."""

    standing: int
    removed: int


class FlowTable:
    """One family's flows. ip_bytes: of an address. All methods raise OSError."""

    def __init__(self, ip_bytes: int, flows: bpf.Map, recent: bpf.Map) -> None:
        self._ip_bytes = ip_bytes
        self._flows, self._recent = flows, recent
        self._key, self._value = FLOW_KEY[ip_bytes], FLOW[ip_bytes]
        self.max_flows = flows.info.max_entries // 2
        self.standing = 0

    def established(self) -> Iterator[Flow]:
        """Every entry of an answered TCP connection."""
        return self._read(self._flows)

    def sweep(self, links: set[int], now: int | None = None) -> Swept:
        """Remove what has ended, gone silent, or was of a link that is no more. links: indexes of those that are."""
        now = now_ticks() if now is None else now
        removed = total = 0
        for key, value, ifindex, seen, flags in self._glances():
            total += 1
            limit = _limit(flags)
            if ifindex in links and _age(seen, now) <= limit:
                continue
            flow = self._parse(key, value)
            if ifindex not in links or self._is_silent(flow.other_key(), now, limit):
                removed += self.remove(flow)
        self.standing = (total - removed + 1) // 2
        return Swept(self.standing, (removed + 1) // 2)

    def _glances(self) -> Iterator[tuple[bytes, bytes, int, int, int]]:
        """Every entry with its link, time and flags: there may be a hundred thousand, and most go on."""
        tuple_bytes = 2 * self._ip_bytes + 4
        keys_of = struct.Struct(f"={tuple_bytes}xI4x")
        values_of = struct.Struct(f"={tuple_bytes}xI6xB9x")
        for keys, values in self._flows.batches():
            numbers = zip(keys_of.iter_unpack(keys), values_of.iter_unpack(values), strict=True)
            for at, ((ifindex,), (seen, flags)) in enumerate(numbers):
                key = keys[at * keys_of.size : (at + 1) * keys_of.size]
                yield key, values[at * values_of.size : (at + 1) * values_of.size], ifindex, seen, flags

    def _is_silent(self, key: bytes, now: int, limit: int) -> bool:
        """Whether nothing has passed the other way either."""
        other = self._flows.lookup(key)
        return other is None or _age(self._value.unpack(other)[4], now) > limit

    def remove(self, flow: Flow) -> int:
        """Remove both of a flow's entries; how many were there."""
        return sum(self._flows.delete(key) for key in (flow.key, flow.other_key()))

    def strays(self, is_frontend: Callable[[L4Addr], bool]) -> bool:
        """Whether some connection is translated, or may be when it is answered, that is to no frontend (any more)."""
        now = now_ticks()
        asked = (flow for flow in self._read(self._recent) if _age(flow.seen, now) <= _HALF_OPEN)
        flows = (flow for flow in chain(self.established(), asked) if flow.source.protocol is Protocol.TCP)
        return any(not (flow.is_reply or flow.is_plain or is_frontend(flow.destination)) for flow in flows)

    def any_alive(self) -> bool:
        """Whether some flow may still send something: for programs that wait for the last one to end."""
        now = now_ticks()
        return any(not flow.has_ended for flow in self.established()) or any(
            flow.source.protocol is Protocol.UDP and _age(flow.seen, now) <= _UDP for flow in self._read(self._recent)
        )

    def _read(self, table: bpf.Map) -> Iterator[Flow]:
        key_bytes, value_bytes = self._key.size, self._value.size
        for keys, values in table.batches():
            for at in range(len(keys) // key_bytes):
                key = keys[at * key_bytes : (at + 1) * key_bytes]
                yield self._parse(key, values[at * value_bytes : (at + 1) * value_bytes])

    def _parse(self, key: bytes, value: bytes) -> Flow:
        saddr, daddr, sport, dport, ifindex, number, way = self._key.unpack(key)
        to_saddr, to_daddr, to_sport, to_dport, seen, _isn, _index, flags, _mac = self._value.unpack(value)
        protocol = Protocol(number)

        def address(ip: bytes, port: bytes) -> L4Addr:
            return L4Addr(ip, int.from_bytes(port, "big"), protocol)

        return Flow(
            key=key,
            ifindex=ifindex,
            source=address(saddr, sport),
            destination=address(daddr, dport),
            becomes_source=address(to_saddr, to_sport),
            becomes_destination=address(to_daddr, to_dport),
            seen=seen,
            flags=flags,
            way=way,
        )


def _age(seen: int, now: int) -> int:
    """How many ticks ago something was seen; the count wraps, and a packet may have come after `now` was read."""
    return ((now - seen + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def _limit(flags: int) -> int:
    """How many ticks of silence an entry with these flags outlives."""
    if flags & FLOW_RESET or flags & _BOTH_ENDS == _BOTH_ENDS:
        return _ENDED
    return _HALF_CLOSED if flags & _BOTH_ENDS else _SILENT


Stands = Callable[[L4Addr, L4Addr], bool]
"""Whether a frontend has a backend, as the maps are now."""


def stale(flows: Iterable[Flow], stands: Stands) -> Iterator[Flow]:
    """Those of clients' flows whose backend has left their frontend. A flow to a backend's own address never is."""
    for flow in flows:
        if flow.is_reply or flow.has_ended or flow.destination == flow.becomes_destination:
            continue
        if not stands(flow.destination, flow.becomes_destination):
            yield flow


def now_ticks() -> int:
    """Now, as struct flow's `seen` counts."""
    return (time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> _TICK_BITS) & 0xFFFFFFFF
