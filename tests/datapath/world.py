"""A node with pods that serve, and a datapath that runs in its namespace, for tests to program and talk through."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Self

from msgspec import structs

from lab import Node, Place, Pod
from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath.engine import Datapath, cleanup
from lrp_operator.datapath.model import DatapathSettings, FlushReport
from lrp_operator.kernel.netns import in_netns
from lrp_operator.resolve.model import Delta, FrontendEntry, FrontendType, SkipEntry

TCP, UDP = Protocol.TCP, Protocol.UDP
VIP = {"4": "10.96.0.10", "6": "fd00:96::10", "mapped": "::ffff:10.96.0.10"}
VIP2 = {"4": "10.96.0.11", "6": "fd00:96::11", "mapped": "::ffff:10.96.0.11"}
FAR = {"4": "10.96.0.99", "6": "fd00:96::99", "mapped": "::ffff:10.96.0.99"}
WAYS = ("4", "6", "mapped")
WEB, DNS = 80, 53


def entry(frontend: L4Addr, *backends: L4Addr, **more: Any) -> FrontendEntry:
    """A frontend that is redirected; without backends, one that is refused unless `more` says otherwise."""
    given: dict[str, Any] = {"type": FrontendType.LOCAL_REDIRECT, "policy": "default/p", "service": None}
    return FrontendEntry(
        frontend,
        backends=tuple(sorted(backends, key=lambda b: b.sort_key)),
        **{**given, "refuse": not backends, **more},
    )


def with_original(redirected: FrontendEntry, *endpoints: L4Addr, affinity_seconds: int = 0) -> FrontendEntry:
    """The same where kube-proxy is replaced: who is exempt is sent to the Service's own endpoints."""
    plain = {"type": FrontendType.CLUSTER_IP, "policy": None, "affinity_seconds": affinity_seconds}
    return structs.replace(redirected, original=entry(redirected.frontend, *endpoints, **plain))


def address_of(pod: Pod, way: str, port: int, protocol: Protocol) -> L4Addr:
    """A pod's own address, as a backend for frontends that are reached in this way."""
    return L4Addr.make(pod.ipv6 if way == "6" else pod.ipv4, port, protocol)


def written(pod: Pod, way: str) -> str:
    """A pod's own address, as a client's socket writes it."""
    return {"4": pod.ipv4, "6": pod.ipv6, "mapped": f"::ffff:{pod.ipv4}"}[way]


def family(way: str) -> socket.AddressFamily:
    """The family of a client's socket."""
    return socket.AF_INET if way == "4" else socket.AF_INET6


def socket_in(place: Place, way: str, kind: int = socket.SOCK_DGRAM, protocol: int = 0) -> socket.socket:
    """A socket that was made in a place (its namespace, its cgroup), for the test to hold."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def make() -> None:
        with socket.socket(family(way), kind, protocol) as made:
            socket.send_fds(there, [b"."], [made.fileno()])

    with here, there:
        place.call(make)
        _, descriptors, _, _ = socket.recv_fds(here, 1, 1)
    sock = socket.socket(fileno=descriptors[0])
    sock.settimeout(3)
    return sock


def exchange(sock: socket.socket, to: tuple[str, int], text: bytes = b"?") -> tuple[str, tuple[str, int]]:
    """Send a datagram; return who answered and where the answer came from."""
    sock.sendto(text, to)
    answer, source = sock.recvfrom(65536)
    return name_in(answer), source[:2]


def ask(sock: socket.socket) -> str:
    """Send on a connected socket; return who answered."""
    sock.send(b"?")
    return name_in(sock.recv(65536))


def name_in(answer: bytes) -> str:
    """The server's name in an answer of lab.serving."""
    return answer[2:].split(b'"', 1)[0].decode()


class InNode:
    """A Datapath whose every call happens in the node's network namespace, as the agent's do."""

    def __init__(self, node: Node, settings: DatapathSettings) -> None:
        self.node = node
        self.inner = Datapath(settings)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.inner, name)
        return lambda *args, **named: in_netns(self.node.netns, lambda: method(*args, **named))

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class World:
    """A node, its pods, and one open datapath that tests share; each test leaves it empty."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.client, self.other_client = node.pod("client"), node.pod("client2")
        self.one, self.two, self.three = (self._serving(name) for name in ("one", "two", "three"))
        self.far = self._serving("far", ipv4=FAR["4"], ipv6=FAR["6"])
        self.pods = {pod.short_name: pod for pod in (self.one, self.two, self.three)}
        self.settings = DatapathSettings(node.bpf / "lrp", node.cgroup)
        self.datapath = InNode(node, self.settings)
        self._frontends: set[L4Addr] = set()
        self._skips: set[str] = set()

    def _serving(self, name: str, **addresses: Any) -> Pod:
        # Other runs on this machine have pods too, and sockets are ended by address, in every namespace.
        number, run = len(self.node.pods) + 1, os.getpid() % 0x7FFF
        own = {"ipv4": f"10.{128 + (run >> 8)}.{run & 255}.{number}", "ipv6": f"fd00:{run:x}::{number:x}"}
        pod = self.node.pod(name, **(addresses or own))
        pod.serve_tcp(WEB, name)
        pod.serve_udp(DNS, name)
        return pod

    def entry(self, way: str, protocol: Protocol, *pods: Pod, vip: dict[str, str] = VIP, **more: Any) -> FrontendEntry:
        """The frontend of a way and protocol, redirected to pods' servers."""
        port = WEB if protocol is TCP else DNS
        backends = [address_of(pod, way, port, protocol) for pod in pods]
        return entry(L4Addr.make(vip[way], port, protocol), *backends, **more)

    def program(
        self,
        *entries: FrontendEntry,
        skips: Iterable[SkipEntry] = (),
        datapath: InNode | None = None,
    ) -> FlushReport:
        """Make these the whole table, and see that it worked."""
        datapath = datapath or self.datapath
        skips = list(skips)
        frontends = {wanted.frontend: wanted for wanted in entries}
        gone = dict.fromkeys(self._frontends - frontends.keys())
        gone_skips = dict.fromkeys(self._skips - {skip.pod for skip in skips})
        self._frontends, self._skips = set(frontends), {skip.pod for skip in skips}
        datapath.update(Delta({**gone, **frontends}, {}, {**gone_skips, **{skip.pod: skip for skip in skips}}))
        report: FlushReport = datapath.flush(complete=True)
        assert report.problems == ()
        return report

    @contextlib.contextmanager
    def instead(self, **changes: Any) -> Any:
        """Another datapath, with its own pins on the node's cgroup; the shared one stands by, empty."""
        self.program()
        settings = replace(self.settings, **{"bpf_root": self.node.bpf / "another", **changes})
        datapath = InNode(self.node, settings)
        try:
            datapath.open()
            yield datapath
        finally:
            datapath.close()
            cleanup(settings.bpf_root, settings.cgroup_root)
            self.forget()

    def forget(self) -> None:
        """What was programmed is no concern of the next test."""
        self._frontends, self._skips = set(), set()
