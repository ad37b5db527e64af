"""The TC part, packet by packet: what is run through the programs, on which tables, and how it got there.

A `Case` is a packet, and what the programs have seen before it. Most packets can be run again and again on what the
time before has left: the frontends under test come in pairs that are each other's backend (crowd.py), and both flows
are known. So the packet becomes one of the other flow, then itself again, and each time everything is done that is
done for the first. Only a new flow's first packet can't be, for that must be another one each time.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path

from benchmarks.crowd import MIRRORS, OTHER_PORT, SAME_PORT
from benchmarks.topology import BenchmarkError
from lrp_operator.api.addresses import Protocol
from lrp_operator.datapath.layout import FLOW, FLOW_KEY, FLOW_REPLY, TO_POD
from lrp_operator.kernel import bpf

TCP, UDP = Protocol.TCP, Protocol.UDP
OUT, IN = "lrp_from_pod", "lrp_to_pod"
FULL_SHARE = 0.9
MANY = 4096
"""Flows whose packets take turns, in the cases that are named so."""

_POD = {4: "10.244.0.77", 6: "fd00:10:244::4d"}
_NOBODY = {4: "10.98.0.1", 6: "fd00:98::1"}
_PORT, _FIRST_OF_MANY = 40000, 41000
_SYN, _SYN_ACK, _ACK = 0x02, 0x12, 0x10
_ETHERNET = bytes.fromhex("020000000001 020000000002".replace(" ", ""))
_PORT_AT = {4: 34, 6: 54}
_ADDRESS_AT = {4: 28, 6: 36}  # the last two bytes of the source
_PASS = 0xFFFFFFFF
_FRESH = 1  # of Case.ports


class Kind(StrEnum):
    """What a packet is to the programs. `same_port`: the frontend's is the backend's too, so only addresses change."""

    KNOWN = "of a known flow, from the pod"
    REPLY = "its reply"
    KNOWN_SAME = "the same, ports stay: from the pod"
    REPLY_SAME = "its reply, ports stay"
    FIRST = "the first of a flow"
    MISS = "to no frontend, the first"
    FOREIGN = "of another connection, from the pod"
    FOREIGN_IN = "of another connection, to the pod"
    KNOWN_MANY = f"of {MANY:,} known flows in turn, from the pod"
    REPLY_MANY = "their replies"


_SAME = {Kind.KNOWN_SAME, Kind.REPLY_SAME}
_BACK = {Kind.REPLY, Kind.REPLY_SAME, Kind.REPLY_MANY, Kind.FOREIGN_IN}
_MANY = {Kind.KNOWN_MANY, Kind.REPLY_MANY}
_PASSES = {Kind.MISS, Kind.FOREIGN, Kind.FOREIGN_IN}
_NO_ROW = {Kind.FIRST, *_MANY}
"""Kinds that can't be run in a row: each time it must be another packet."""

TABLE_KINDS = (Kind.KNOWN, Kind.REPLY, Kind.KNOWN_SAME, Kind.REPLY_SAME, Kind.FIRST, Kind.MISS)
FOREIGN_KINDS = (Kind.FOREIGN, Kind.FOREIGN_IN)
FULL_KINDS = (Kind.KNOWN, Kind.REPLY, Kind.KNOWN_MANY, Kind.REPLY_MANY)


@dataclass(frozen=True, slots=True)
class Case:
    """One packet on one datapath's tables. scene: the datapath's name."""

    scene: str
    kind: Kind
    version: int
    protocol: Protocol

    @property
    def name(self) -> str:
        """In data."""
        return f"{self.scene}/{self.protocol.name.lower()}{self.version}/{self.kind.name.lower()}"

    @property
    def in_row(self) -> bool:
        """Whether it can be run on what the time before has left."""
        return self.kind not in _NO_ROW

    @property
    def program(self) -> str:
        """Which of the programs it goes through."""
        return IN if self.kind in _BACK else OUT

    def line(self, number: int, pin: Path, ifindex: int) -> str:
        """As testrun.c is told."""
        ports = _FRESH if self.kind is Kind.FIRST else MANY if self.kind in _MANY else 0
        at = _PORT_AT[self.version]
        varied = (at + 2 if self.kind is Kind.REPLY_MANY else at, _ADDRESS_AT[self.version], _FIRST_OF_MANY, ports)
        translated = int(self.kind not in _PASSES)
        return f"case {number} {pin} {ifindex} {translated} {' '.join(map(str, varied))} {self.frame().hex()}\n"

    def frame(self) -> bytes:
        """The packet."""
        flags = _SYN if self.kind in {Kind.FIRST, Kind.MISS} else _ACK
        pod = (_POD[self.version], _PORT)
        frontend, backend = pair(self.version, SAME_PORT if self.kind in _SAME else OTHER_PORT)
        there = backend if self.kind in _BACK else frontend
        if self.kind in _PASSES:
            there = (_NOBODY[self.version], 80)
        ends = (there, pod) if self.kind in _BACK else (pod, there)
        return frame(self.version, self.protocol, *ends, flags)


Address = tuple[str, int]


def pair(version: int, ports: tuple[int, int]) -> tuple[Address, Address]:
    """Two frontends that are each other's backend."""
    one, other = MIRRORS[version]
    return (one, ports[0]), (other, ports[1])


def frame(version: int, protocol: Protocol, source: Address, destination: Address, flags: int) -> bytes:
    """A packet with one byte in it, its checksums right."""
    ips = ip_address(source[0]).packed + ip_address(destination[0]).packed
    ports = struct.pack("!HH", source[1], destination[1])
    if protocol is TCP:
        l4, check_at = ports + struct.pack("!IIBBHHH", 1, 0, 0x50, flags, 64240, 0, 0) + b"?", 16
    else:
        l4, check_at = ports + struct.pack("!HH", 9, 0) + b"?", 6
    check = checksum(ips + struct.pack("!HH", protocol, len(l4)) + l4)
    l4 = l4[:check_at] + struct.pack("!H", check) + l4[check_at + 2 :]
    if version == 6:
        return _ETHERNET + b"\x86\xdd" + struct.pack("!IHBB", 0x60000000, len(l4), protocol, 64) + ips + l4
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(l4), 1, 0x4000, 64, protocol, 0)
    head = head[:10] + struct.pack("!H", checksum(head + ips))
    return _ETHERNET + b"\x08\x00" + head + ips + l4


def checksum(data: bytes) -> int:
    """The Internet's."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(total) ^ 0xFFFF


@dataclass
class Scene:
    """A datapath that packets are run through. root: of its pins; ifindex: the link that packets come by."""

    name: str
    root: Path
    ifindex: int
    programs: dict[str, bpf.Fd] = field(default_factory=dict)

    def pin(self, program: str) -> Path:
        """Where a program is pinned."""
        return next(self.root.glob(f"tables-*/tc-*/{program}"))

    def begin_flows(self, *, many: bool) -> None:
        """Have the flows known that packets under test are of. In the node's network namespace."""
        context = bytearray(192)
        struct.pack_into("=I", context, 40, self.ifindex)
        run = _Runner({name: bpf.open_pin(self.pin(name)) for name in (OUT, IN)}, bytes(context))
        for version in (4, 6):
            pod = (_POD[version], _PORT)
            for ports in (OTHER_PORT, SAME_PORT):
                one, other = pair(version, ports)
                for protocol in (TCP, UDP):
                    run.begin(version, protocol, pod, one, other)
                    run.begin(version, protocol, pod, other, one)
            for number in range(MANY if many else 0):
                run.begin(version, TCP, (_POD[version], _FIRST_OF_MANY + number), *pair(version, OTHER_PORT))
        run.close()

    def fill(self) -> None:
        """Fill the tables of established connections."""
        for version, ip_bytes in ((4, 4), (6, 16)):
            opened = bpf.Map.open(next(self.root.glob(f"flows-*/flows{version}")))
            entries = int(opened.info.max_entries * FULL_SHARE) - sum(1 for _ in opened.items())
            opened.update_many(list(_strangers(ip_bytes, entries, self.ifindex)))
            opened.close()


def _strangers(ip_bytes: int, entries: int, ifindex: int) -> Iterator[tuple[bytes, bytes]]:
    """Connections that have no packets here, each with both of its entries."""
    ends = tuple(ip_address(MIRRORS[4 if ip_bytes == 4 else 6][i]).packed for i in (0, 1))
    base = int.from_bytes(ip_address("10.200.0.0" if ip_bytes == 4 else "fd00:200::").packed, "big")
    for number in range((entries + 1) // 2):
        pod = (base + number // 60000).to_bytes(ip_bytes, "big")
        port, here, there = (n.to_bytes(2, "big") for n in (1024 + number % 60000, *OTHER_PORT))
        out = (pod, ends[0], port, here), (pod, ends[1], port, there)
        for way, (comes, becomes), flags in ((0, out, 0), (TO_POD, _reversed(out), FLOW_REPLY)):
            key = FLOW_KEY[ip_bytes].pack(*comes, ifindex, TCP, way)
            yield key, FLOW[ip_bytes].pack(*becomes, 0, 0, 0, flags, bytes(6))


Ends = tuple[bytes, bytes, bytes, bytes]


def _reversed(out: tuple[Ends, Ends]) -> tuple[Ends, Ends]:
    comes, becomes = out
    return (becomes[1], becomes[0], becomes[3], becomes[2]), (comes[1], comes[0], comes[3], comes[2])


class _Runner:
    """Runs packets, and sees that they become what they should."""

    def __init__(self, programs: dict[str, bpf.Fd], context: bytes) -> None:
        self._programs, self._context = programs, context

    def close(self) -> None:
        for program in self._programs.values():
            program.close()

    def begin(self, version: int, protocol: Protocol, pod: Address, frontend: Address, backend: Address) -> None:
        """Have a flow begin as flows do, and look at a packet each way."""

        def send(flags: int) -> None:
            packets = (frame(version, protocol, pod, there, flags) for there in (frontend, backend))
            self._turns(OUT, *packets)

        def answer(flags: int) -> None:
            packets = (frame(version, protocol, there, pod, flags) for there in (backend, frontend))
            self._turns(IN, *packets)

        if protocol is TCP:
            send(_SYN)
            answer(_SYN_ACK)
        send(_ACK)
        answer(_ACK)

    def _turns(self, program: str, comes: bytes, wanted: bytes) -> None:
        result = bpf.run_packet(self._programs[program], comes, context=self._context)
        if result.value != _PASS or result.data != wanted:
            raise BenchmarkError(
                f"{program} made {result.data.hex()} ({result.value:#x}) of a packet, not {wanted.hex()}"
            )
