"""Where packets are fuzzed: a lab node with a datapath at the TC level, and the table that it and the model are given.

Packets go through BPF_PROG_TEST_RUN, which shapes what can be tested (Linux 6.18): a packet is linear, so what the
programs do when a header is not in the first piece (`pull`) is not run; it has no partial checksum; it is shorter than
a page; one that is shorter than the IP header that its Ethernet header announces is refused by the kernel itself. Of
the context, the link and gso_size can be given.
"""

import random
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

from lab import Node, Pod
from lrp_operator.api.addresses import L4Addr, Protocol, parse_ip
from lrp_operator.datapath.engine import Datapath, cleanup
from lrp_operator.datapath.model import DatapathSettings, PodPlace, SocketLevel, TcLevel
from lrp_operator.kernel import bpf
from lrp_operator.kernel.netns import in_netns
from lrp_operator.resolve.model import Delta, FrontendEntry, SkipEntry
from tests.datapath.world import InNode, entry, with_original
from tests.fuzz.model import IN, OUT, TCP, UDP, Address, Conversation, Leg, Model, Rule, Table, Wrong

MAX_FLOWS = 8192
ENTRIES = 2 * MAX_FLOWS + 1  # of the table of established connections
TICK_BITS = 30
_COARSE = 6  # CLOCK_MONOTONIC_COARSE, which Python has no name for
_DELETE_BATCH = 27
_IFINDEX, _GSO_SEGS, _GSO_SIZE = 40, 164, 176  # in struct __sk_buff
_KINDS = ("flows", "recent", "fragments")
_OFF_LINK = 64
_GIVEN_UP = {"sent": 8, "back": 16, "reset": 32}


@dataclass(frozen=True, slots=True)
class Client:
    """A pod that sends. ips: its own addresses, by bytes. macs: of its frames, as the node gets them."""

    link: int
    program: str
    ips: dict[int, bytes]
    macs: tuple[bytes, ...]


@dataclass
class Arena:
    """An open datapath, to be used in the node's namespace.

    entries: the table as it is at first. exempt: from which frontends, and by which link.
    room: how many entries of established connections fit, by bytes of an address.
    """

    programs: dict[str, bpf.Fd]
    maps: dict[str, bpf.Map]
    clients: list[Client]
    datapath: Datapath
    entries: list[FrontendEntry]
    exempt: dict[L4Addr, int]
    table: Table
    neighbours: dict[bytes, tuple[bytes, bytes]]
    changed: bool = False
    contexts: dict[tuple[int, int], bytes] = field(default_factory=dict)
    room: dict[int, int] = field(default_factory=lambda: {4: ENTRIES, 16: ENTRIES})

    def model(self) -> Model:
        """A model of the node as it is, without flows."""
        return Model(self.table, self.neighbours, self.room)

    def run(self, program: str, link: int, frame: bytes, gso: int = 0) -> tuple[int, bytes]:
        """What a program makes of a packet: verdict and bytes. Raises OSError (EINVAL where the kernel won't)."""
        context = self.contexts.get((link, gso))
        if context is None:
            raw = bytearray(192)
            struct.pack_into("=I", raw, _IFINDEX, link)
            struct.pack_into("=I", raw, _GSO_SIZE, gso)
            struct.pack_into("=I", raw, _GSO_SEGS, 2 if gso else 0)
            context = self.contexts[link, gso] = bytes(raw)
        result = bpf.run_packet(self.programs[program], frame, context=context)
        return result.value - (1 << 32) if result.value >> 31 else result.value, result.data

    def change(self, pick: random.Random | None) -> None:
        """Make another table of the first one, or (None) that one again."""
        entries = self.entries
        if pick is not None:
            entries = [changed for one in entries if (changed := _changed(one, pick))]
        gone = {one.frontend: None for one in self.entries}
        self.datapath.update(Delta({**gone, **{one.frontend: one for one in entries}}, {}, {}))
        report = self.datapath.flush(complete=True)
        assert not report.problems, report.problems
        self._let_go()
        self.table, self.changed = _table(entries, self.exempt), pick is not None

    def _let_go(self) -> None:
        """Backends that have left go at once: the model knows of no while."""
        opened = self.datapath._opened
        assert opened is not None
        assert opened._direct is not None
        with patch("lrp_operator.datapath.direct.LINGER_SECONDS", -1.0):
            for address in opened._direct.expired(set):
                opened._tables[len(address.ip)].want(address, None)
        self.datapath.flush(complete=True)

    # --- Flows

    def clear(self) -> None:
        """Forget all flows."""
        for kind in _KINDS:
            for digit in "46":
                opened = self.maps[kind + digit]
                _delete(opened, [key for key, _ in opened.items()])
        self.room = {4: ENTRIES, 16: ENTRIES}

    def fill(self, size: int, room: int) -> None:
        """Leave room for so many entries of established connections only."""
        opened = self.maps["flows4" if size == 4 else "flows6"]
        value = bytes(opened.value_bytes)
        tail = b"\xff" * (opened.info.key_size - 4)
        opened.update_many([(number.to_bytes(4, "big") + tail, value) for number in range(ENTRIES - room)])
        self.room[size] = room

    def age(self, model: Model, ticks: int) -> None:
        """Make all flows older, here and in the model."""
        for digit, size in (("4", 4), ("6", 16)):
            for kind in _KINDS:
                opened = self.maps[kind + digit]
                at = 2 * size + 4
                aged = []
                for key, value in opened.items():
                    (seen,) = struct.unpack_from("=I", value, at)
                    aged.append((key, value[:at] + struct.pack("=I", (seen - ticks) & 0xFFFFFFFF) + value[at + 4 :]))
                opened.update_many(aged)
        for leg in model.legs():
            leg.seen -= ticks

    def compare(self, model: Model) -> None:
        """Hold the kernel's tables against the model's. Raises Wrong."""
        for kind, asked, owed in (("recent", model.asked, model.owed), ("flows", model.open, model.open_back)):
            found = {}
            for digit, size in (("4", 4), ("6", 16)):
                for key, value in self.maps[kind + digit].items():
                    if key[4:].strip(b"\xff"):
                        found[key] = _told(value, size)
            wanted = {_key(leg.talk, back=False): _expected(leg, back=False) for leg in asked.values()}
            wanted |= {_key(leg.talk, back=True): _expected(leg, back=True) for leg in owed.values()}
            if found != wanted:
                odd = {key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)}
                lines = [f"{key.hex()}: {found.get(key)}, not {wanted.get(key)}" for key in sorted(odd)[:5]]
                raise Wrong(f"table {kind} has {len(odd)} entries that it should not have so:\n" + "\n".join(lines))


def _delete(opened: bpf.Map, keys: list[bytes]) -> None:
    if keys:
        raw = bytearray(b"".join(keys))
        buffer = (bpf.ctypes.c_char * len(raw)).from_buffer(raw)
        head = (0, 0, bpf.ctypes.addressof(buffer), 0, len(keys), opened.fd.number, 0, 0)
        bpf.call(_DELETE_BATCH, struct.pack("=QQQQIIQQ", *head))


def _pair(one: Address, other: Address) -> bytes:
    return one[0] + other[0] + one[1].to_bytes(2, "big") + other[1].to_bytes(2, "big")


def _key(talk: Conversation, *, back: bool) -> bytes:
    ends = (talk.backend, talk.source) if back else (talk.client, talk.frontend)
    way = OUT if not back or talk.bounce else IN
    return _pair(*ends) + struct.pack("=IBBH", talk.link, talk.protocol, way, 0)


def _expected(leg: Leg, *, back: bool) -> tuple[object, ...]:
    talk = leg.talk
    ends = (talk.frontend, talk.client) if back else (talk.source, talk.backend)
    flags = (1 if back else 0) | (2 if talk.bounce else 0) | sum(_GIVEN_UP[end] for end in leg.ends)
    flags |= (4 if talk.mac and not back else 0) | (128 if leg.taken else 0)
    return _pair(*ends), leg.seen & 0xFFFFFFFF, 0 if back else talk.isn, flags, b"" if back else talk.mac


def _told(value: bytes, size: int) -> tuple[object, ...]:
    at = 2 * size + 4
    seen, _isn, _index, flags, mac = struct.unpack_from("=IIHBx6s", value, at)
    flags &= ~_OFF_LINK  # "the way was looked at": nothing that a packet shows
    isn = int.from_bytes(value[at + 4 : at + 8], "big")
    return value[:at], seen, 0 if flags & 1 else isn, flags, mac if flags & 4 else b""


def clock() -> int:
    """Now, in ticks, as the programs tell the time."""
    return time.clock_gettime_ns(_COARSE) >> TICK_BITS


# --- Building it

_FRONTENDS = {4: "10.96.0.{}", 6: "fd00:96::{}"}
_FAR = {4: ("10.244.0.250", "10.255.255.255"), 6: ("fd00:10:244::fa", "fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff")}


@contextmanager
def arena() -> Iterator[tuple[Node, Arena]]:
    """A node with an open datapath that has the table; run what uses it by `in_netns(node.netns, ...)`."""
    with Node() as node:
        pods = {name: node.pod(name) for name in ("client", "exempt", "one", "itself")}
        bridged = {name: node.pod(name, bridge=True) for name in ("port", "beside")}
        settings = DatapathSettings(
            node.bpf / "lrp",
            node.cgroup,
            SocketLevel.OFF,
            TcLevel.PODS,
            cluster_ip=True,  # has all that the other build has
            max_flows=MAX_FLOWS,
            max_frontends=256,
        )
        datapath = InNode(node, settings)
        datapath.open()
        try:
            entries = [entry for family in (4, 6) for entry in _entries(family, {**pods, **bridged})]
            exempt = pods["exempt"]
            ips = tuple(parse_ip(address) for address in exempt.addresses)
            links = {e.frontend: exempt.veth.index for e in entries if _last(e.frontend) in {10, 12, 14, 66}}
            spared = tuple(links)
            skip = SkipEntry("default/exempt", "uid", ips, host_network=False, frontends=spared)
            datapath.update(Delta({e.frontend: e for e in entries}, {}, {skip.pod: skip}))
            datapath.want_pods({skip.pod: PodPlace(skip.uid, ips)})
            report = datapath.flush(complete=True)
            assert not report.problems, report.problems
            opened = datapath.inner._opened
            yield (
                node,
                Arena(
                    opened._programs.tc_programs(),
                    opened._maps,
                    [_client(pod, node) for pod in (*pods.values(), bridged["port"])],
                    datapath.inner,
                    entries,
                    links,
                    _table(entries, links),
                    _neighbours(node, pods, bridged),
                ),
            )
        finally:
            datapath.close()
            in_netns(node.netns, lambda: cleanup(settings.bpf_root, settings.cgroup_root))


def _last(address: L4Addr) -> int:
    return int(f"{address.ip[-1]:x}") if len(address.ip) == 16 else address.ip[-1]


def _entries(family: int, pods: dict[str, Pod]) -> Iterator[FrontendEntry]:
    def at(host: int | str, port: int, protocol: Protocol) -> L4Addr:
        named = _FRONTENDS[family].format(host) if isinstance(host, int) else host
        return L4Addr.make(named, port, protocol)

    def ip(name: str) -> str:
        return pods[name].ipv4 if family == 4 else pods[name].ipv6

    far, odd = _FAR[family]
    for protocol in (Protocol.TCP, Protocol.UDP):
        # Two frontends with one backend; another port, the same port; several; the client itself; none; a bridge.
        # Who is exempt from the first has the second's backend, or another; from the bridge's none; else it passes.
        own = [at(ip("one"), 8080, protocol), at(far, 1, protocol)]
        yield with_original(entry(at(10, 80, protocol), at(ip("one"), 8080, protocol)), *own)
        yield entry(at(11, 80, protocol), at(ip("one"), 8080, protocol))
        yield entry(at(11, 53, protocol), at(ip("one"), 53, protocol))
        many = [(ip("one"), 53), (ip("itself"), 5353), (far, 1), (odd, 65535), (ip("beside"), 53)]
        yield entry(at(12, 53, protocol), *(at(host, port, protocol) for host, port in many))
        yield entry(at(13, 65535, protocol), at(ip("itself"), 80, protocol))
        yield with_original(entry(at(14, 80, protocol), at(ip("beside"), 80, protocol)))
        yield with_original(entry(at(66, 80, protocol)), at(ip("exempt"), 53, protocol))
        # A backend that is a frontend too.
        yield entry(at(15, 80, protocol), at(10, 80, protocol))


def _changed(one: FrontendEntry, pick: random.Random) -> FrontendEntry | None:
    """A frontend's entry otherwise: gone, refused, with fewer backends or others; with no original."""
    kind, original = pick.randrange(6), one.original
    if kind == 0:
        return None
    if kind == 1:
        return entry(one.frontend, original=original)
    if kind == 2 and one.backends:
        kept = pick.sample(one.backends, pick.randint(1, len(one.backends)))
        return entry(one.frontend, *kept, original=original)
    if kind == 3:
        protocol, family = one.frontend.protocol, 4 if len(one.frontend.ip) == 4 else 6
        other = L4Addr.make(_FAR[family][0], pick.choice((53, 8080)), protocol)
        return entry(one.frontend, other, *one.backends, original=original)
    if kind == 4:
        return entry(one.frontend, *one.backends)
    return one


def _table(entries: list[FrontendEntry], exempt: dict[L4Addr, int]) -> Table:
    table: dict[tuple[bytes, int, int], Rule] = {}
    for one in entries:
        links = frozenset({exempt[one.frontend]} if one.frontend in exempt else ())
        backends = tuple((backend.ip, backend.port) for backend in one.backends)
        original = tuple((end.ip, end.port) for end in one.original.backends) if one.original else None
        key = (one.frontend.ip, one.frontend.port, int(one.frontend.protocol))
        table[key] = Rule(backends, exempt=links, original=original)
    for one in entries:
        for backend in (*one.backends, *(one.original.backends if one.original else ())):
            key = (backend.ip, backend.port, int(backend.protocol))
            table.setdefault(key, Rule(((backend.ip, backend.port),), direct=True))
    assert {protocol for _, _, protocol in table} == {TCP, UDP}
    return table


def _mac(written: str) -> bytes:
    return bytes.fromhex(written.replace(":", ""))


def _client(pod: Pod, node: Node) -> Client:
    ips = {len(ip): ip for ip in map(parse_ip, pod.addresses)}
    macs = [_mac(pod.veth.node_mac)]
    if pod.bridged:
        macs = [_bridge_mac(node), *macs]
    program = "lrp_from_port" if pod.bridged else "lrp_from_pod"
    return Client(pod.veth.index, program, ips, tuple(to + _mac(pod.veth.pod_mac) for to in macs))


def _bridge_mac(node: Node) -> bytes:
    from pyroute2 import IPRoute  # noqa: PLC0415 (in the node's namespace)

    def read() -> str:
        with IPRoute() as ip:
            return ip.link("get", ifname="cni0")[0].get_attr("IFLA_ADDRESS")

    return _mac(in_netns(node.netns, read))


def _neighbours(node: Node, pods: dict[str, Pod], bridged: dict[str, Pod]) -> dict[bytes, tuple[bytes, bytes]]:
    """Enter the bridge's neighbours for good, and tell the way to each pod."""
    from pyroute2 import IPRoute  # noqa: PLC0415

    def enter() -> None:
        with IPRoute() as ip:
            index = ip.link_lookup(ifname="cni0")[0]
            for pod in bridged.values():
                for address in pod.addresses:
                    family = 10 if ":" in address else 2
                    ip.neigh("replace", index=index, dst=address, lladdr=pod.veth.pod_mac, state=0x80, family=family)

    in_netns(node.netns, enter)
    bridge = _bridge_mac(node)
    ways = {a: (_mac(p.veth.node_mac), _mac(p.veth.pod_mac)) for p in pods.values() for a in p.addresses}
    ways |= {a: (bridge, _mac(p.veth.pod_mac)) for p in bridged.values() for a in p.addresses}
    return {parse_ip(address): way for address, way in ways.items()}
