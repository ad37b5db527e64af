"""What the tests of attachment stand on: pods behind routed and bridged links, redirected at TC level, and neighbours.

Nobody is asked by name: a VIP is owned by the pod `far`, which serves "untranslated" there. So whatever passes without
our programs is seen by its answer, and what passes with half of them by getting none.
"""

import contextlib
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from lab import Node, Pod
from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath.links import LinkPrograms, Standing
from lrp_operator.datapath.model import DatapathSettings, PodLinkStatus, PodPlace, SocketLevel, TcLevel
from lrp_operator.kernel import bpf, features
from lrp_operator.kernel.bpf import Place, TcxHook
from lrp_operator.kernel.netns import in_netns
from lrp_operator.kernel.podlink import PodInterface
from lrp_operator.kernel.tcfilter import Filter, Hook, TcFilters
from lrp_operator.resolve.model import Delta
from tests.datapath.world import DNS, VIP, WEB, InNode, address_of, entry, name_in, socket_in

HERE = Path(__file__).parent
OURS = {"lrp_from_pod", "lrp_from_port", "lrp_to_pod"}
PASS, OK, DROP = -1, 0, 2


def packed(*addresses: str) -> tuple[bytes, ...]:
    """Addresses as the agent has them."""
    return tuple(ip_address(address).packed for address in addresses)


def place_of(pod: Pod, *, ips: bool = True) -> PodPlace:
    """A pod as the agent knows it."""
    return PodPlace(pod.name, packed(*pod.addresses) if ips else ())


def tcx_on(ifindex: int) -> dict[TcxHook, list[str]]:
    """Names of the programs of both hooks, in order; for the calling thread's namespace."""
    names: dict[TcxHook, list[str]] = {}
    for hook in TcxHook:
        names[hook] = []
        for number in bpf.attached_programs(ifindex, hook):
            with bpf.open_program(number) as program:
                names[hook].append(bpf.prog_info(program).name)
    return names


def filters_on(ifindex: int) -> dict[Hook, list[Filter]]:
    """The filters of both hooks; for the calling thread's namespace."""
    filters = TcFilters()
    try:
        return {hook: filters.list(ifindex, hook) for hook in Hook}
    finally:
        filters.close()


def revisions(ifindex: int) -> tuple[int, ...]:
    """How often tcx's lists of a link have been changed; for the calling thread's namespace."""
    found = []
    for hook in TcxHook:
        attributes = bytearray(struct.pack("=IIIIQI4xQQQQ", ifindex, hook, 0, 0, 0, 0, 0, 0, 0, 0))
        bpf.call(bpf.Command.PROG_QUERY, attributes)
        found.append(struct.unpack_from("=Q", attributes, 56)[0])
    return tuple(found)


@dataclass
class Flood:
    """What came of a flood of datagrams."""

    answers: dict[str, int] = field(default_factory=dict)
    lost: int = 0

    @property
    def sent(self) -> int:
        """How many were sent."""
        return self.lost + sum(self.answers.values())


class Ground:
    """A node, its pods and a datapath that redirects VIPs to the pod `one` at TC level."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.one = node.pod("one")
        self.one.serve_tcp(WEB, "one")
        self.one.serve_udp(DNS, "one")
        self.far = node.pod("far", ipv4=VIP["4"], ipv6=VIP["6"])
        self.far.serve_tcp(WEB, "untranslated")
        self.far.serve_udp(DNS, "untranslated")
        # A bridge takes the lowest of its ports' hardware addresses, and another one when that port goes: unless told.
        node.pod("keeper", bridge=True)
        node.run(["ip", "link", "set", "cni0", "address", "02:00:00:00:c0:01"])
        self.settings = DatapathSettings(
            node.bpf / "lrp", node.cgroup, socket_level=SocketLevel.OFF, tc_level=TcLevel.PODS, max_flows=4096
        )
        self.entries = {
            made.frontend: made
            for way in ("4", "6")
            for port, protocol in ((WEB, Protocol.TCP), (DNS, Protocol.UDP))
            for made in [entry(L4Addr.make(VIP[way], port, protocol), address_of(self.one, way, port, protocol))]
        }

    def datapath(self) -> InNode:
        """A datapath that is to redirect the VIPs; not open."""
        datapath = InNode(self.node, self.settings)
        datapath.update(Delta(dict(self.entries), {}, {}))
        return datapath

    def inside(self, work: Callable[[], object]) -> object:
        """Do something in the node's namespace."""
        return in_netns(self.node.netns, work)

    def ours_on(self, index: int) -> list[str]:
        """Names of our programs on a link of the node, of either technology."""

        def look() -> list[str]:
            names = [name for found in tcx_on(index).values() for name in found]
            names += [one.name for found in filters_on(index).values() for one in found]
            return sorted(name for name in names if name in OURS)

        return in_netns(self.node.netns, look)

    def tc(self, *words: str, check: bool = True) -> str:
        """Run tc on the node."""
        done: str = self.node.run(["tc", *words], check=check).stdout
        return done


def who_answers(pod: Pod, way: str = "4") -> tuple[str, str]:
    """Who answers a pod that asks the VIP, by UDP and by TCP; what the client sees of the peer is checked too."""
    udp = pod.ask_udp(VIP[way], DNS, payload=b"?")
    tcp = pod.ask_tcp(VIP[way], WEB, payload=b"hello")
    assert udp.peer == (VIP[way], DNS)
    assert tcp.echo == b"hello"
    return udp.name, tcp.name


def works(pod: Pod, ways: str = "46") -> bool:
    """Whether a pod is redirected, TCP and UDP; asked in each family."""
    return all(who_answers(pod, way) == ("one", "one") for way in ways)


@contextlib.contextmanager
def flood(pod: Pod, *, new_flows: bool = False, way: str = "4", pause: float = 0.0) -> Iterator[Flood]:
    """Send datagrams to the VIP one after the other until the block ends; each waits for its answer.

    new_flows: each from a socket of its own.
    """
    told, stop = Flood(), threading.Event()
    socks = [socket_in(pod, way) for _ in range(64 if new_flows else 1)]
    for sock in socks:
        sock.settimeout(10)  # late is not lost, on a busy machine

    def send() -> None:
        number = 0
        while not stop.is_set():
            sock = socks[number % len(socks)]
            number += 1
            sock.sendto(b"%d" % number, (VIP[way], DNS))
            try:
                answer = sock.recv(4096)
            except TimeoutError:
                told.lost += 1
                continue
            assert answer.endswith(b"\n%d" % number)
            name = name_in(answer)
            told.answers[name] = told.answers.get(name, 0) + 1
            if pause:
                time.sleep(pause)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield told
    finally:
        stop.set()
        thread.join()
        for sock in socks:
            sock.close()


def wait_until(condition: Callable[[], bool], what: str, within: float = 10.0) -> None:
    """Wait for something; fail with `what` if it does not come."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def raw(verdict: int, name: str = "neighbour") -> bpf.Fd:
    """A program that returns a verdict, whatever comes."""
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, verdict, 0x95, 0, 0, 0)
    return bpf.load_program(bpf.ProgType.SCHED_CLS, code, name=name)


class Neighbours:
    """Others' programs: those of neighbour.c, compiled once; and attaching them to a link of a node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.folder = node.bpf / "neighbour"
        self.folder.mkdir()
        names = ["note_out", "check_in", "other_out", "other_in"]
        command = [sys.executable, str(HERE / "compile.py"), str(HERE / "neighbour.c"), str(self.folder), *names]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self._maps = {name: bpf.Map.open(self.folder / name) for name in ("seen", "counts", "verdict")}
        self.forget()

    def forget(self) -> None:
        """As new: nothing seen, and what may pass is left to whoever comes next."""
        for key, _ in list(self._maps["seen"].items()):
            self._maps["seen"].delete(key)
        for number in range(4):
            self._maps["counts"].update(struct.pack("=I", number), bytes(8))
        self.let_pass_by(PASS)

    def let_pass_by(self, verdict: int) -> None:
        """What the programs return when a packet may pass."""
        self._maps["verdict"].update(bytes(4), struct.pack("=i", verdict))

    @property
    def counts(self) -> tuple[int, int, int]:
        """Packets of the pod's, answers to them, and what was no answer (and was dropped)."""
        counts = self._maps["counts"]
        return tuple(
            int.from_bytes(counts.lookup(struct.pack("=I", number)) or b"", sys.byteorder) for number in range(3)
        )

    def destinations(self) -> set[str]:
        """Whom the pod talks to, as the neighbour sees it."""
        found = set()
        for keys, _ in self._maps["seen"].batches():
            for at in range(0, len(keys), 40):
                key = keys[at : at + 40]
                to = key[16:32]
                found.add(str(ip_address(to[:4] if not any(to[4:]) else to)))
        return found

    def program(self, name: str) -> bpf.Fd:
        """One of the programs."""
        return bpf.open_pin(self.folder / name)

    def close(self) -> None:
        """Let go."""
        for one in self._maps.values():
            one.close()


@contextlib.contextmanager
def tcx_neighbour(
    neighbours: Neighbours, ifindex: int, out: str = "note_out", into: str = "check_in", *, place: Place = Place.LAST
) -> Iterator[None]:
    """A neighbour on both hooks of a link by tcx; gone afterwards."""
    netns = neighbours.node.netns
    with neighbours.program(out) as ingress, neighbours.program(into) as egress:
        on = ((ingress, TcxHook.INGRESS), (egress, TcxHook.EGRESS))

        def come() -> None:
            for program, hook in on:
                bpf.attach_to_link(program, ifindex, hook, place)

        def go() -> None:
            for program, hook in on:
                bpf.detach_from_link(program, ifindex, hook)

        in_netns(netns, come)
        try:
            yield
        finally:
            in_netns(netns, go)


def add_filter(ground: Ground, device: str, hook: str, priority: int, pin: Path) -> None:
    """Add somebody's eBPF filter with tc; the clsact, too."""
    ground.tc("qdisc", "add", "dev", device, "clsact", check=False)
    ground.tc("filter", "add", "dev", device, hook, "prio", str(priority), "bpf", "da", "object-pinned", str(pin))


def delete_filter(ground: Ground, device: str, hook: str, priority: int) -> None:
    """Delete all filters of a priority with tc."""
    ground.tc("filter", "del", "dev", device, hook, "prio", str(priority))


@contextlib.contextmanager
def clsact_neighbour(ground: Ground, neighbours: Neighbours, device: str, priority: int) -> Iterator[None]:
    """A neighbour on both hooks of a link by filters; gone afterwards."""
    for hook, name in (("ingress", "note_out"), ("egress", "check_in")):
        add_filter(ground, device, hook, priority, neighbours.folder / name)
    try:
        yield
    finally:
        for hook in ("ingress", "egress"):
            delete_filter(ground, device, hook, priority)


def without_tcx(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel that has no tcx."""
    real = features.probe
    monkeypatch.setattr(features, "probe", lambda: replace(real(), tcx=False))


class Links:
    """LinkPrograms in the node's namespace, with the programs that a datapath has pinned."""

    def __init__(self, ground: Ground, *, tcx: bool, programs: dict[str, bpf.Fd] | None = None) -> None:
        """Take what is pinned, or other programs (which stay the giver's)."""
        self.netns = ground.node.netns
        self._own = {}
        if programs is None:
            (folder,) = (ground.settings.bpf_root).glob("tables-*/tc-*")
            programs = self._own = {name: bpf.open_pin(folder / name) for name in sorted(OURS)}
        self.ids = [bpf.prog_info(program).id for program in programs.values()]
        self.inner: LinkPrograms = in_netns(self.netns, lambda: LinkPrograms(programs, tcx=tcx))

    def put(self, link: PodInterface) -> Standing:
        """Have the programs on a link."""
        return in_netns(self.netns, lambda: self.inner.put(link))

    def take_off(self, ifindex: int) -> bool:
        """Remove them."""
        return in_netns(self.netns, lambda: self.inner.take_off(ifindex))

    def close(self) -> None:
        """Let go."""
        self.inner.close()
        for program in self._own.values():
            program.close()


def statuses(datapath: InNode) -> dict[tuple[str, str], PodLinkStatus]:
    """How links stand, by pod and link."""
    return {(row.pod, row.link): row for row in datapath.status().links}


def udp_in(pod: Pod) -> socket.socket:
    """A UDP socket in a pod that asks within a moment."""
    sock = socket_in(pod, "4")
    sock.settimeout(0.3)
    return sock
