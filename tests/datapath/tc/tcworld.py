"""A node whose pods are redirected at their links: what the tests of the TC level talk through.

Clients are the world's `client` and `other`; `one`, `two` serve. `far` has the frontend's own address, so that what is
not redirected is answered there, too. Every pod is known to the datapath, which attaches to its link.
"""

import socket
from collections.abc import Callable, Iterable
from typing import Any

from lab import Node, Pod
from lrp_operator.api.addresses import L4Addr, Protocol, parse_ip
from lrp_operator.datapath.engine import cleanup
from lrp_operator.datapath.model import DatapathSettings, FlushReport, PodPlace, SocketLevel, TcLevel
from lrp_operator.kernel.netns import in_netns
from lrp_operator.resolve.model import Delta, FrontendEntry, SkipEntry
from tests.datapath.world import InNode, entry

TCP, UDP = Protocol.TCP, Protocol.UDP
WEB, DNS = 80, 53
VIP = {"4": "10.96.0.10", "6": "fd00:96::10"}
FAR = {"4": "10.96.0.99", "6": "fd00:96::99"}
FAMILY = {"4": socket.AF_INET, "6": socket.AF_INET6}
WAYS = ("4", "6")


class TcWorld:
    """A node, its pods, and an open datapath at the TC level. bridged: how the pods are wired."""

    def __init__(self, node: Node, *, bridged: bool, **settings: Any) -> None:
        self.node = node
        self.bridged = bridged
        self.client, self.other = self.pod("client"), self.pod("other")
        self.one, self.two = self.serving("one"), self.serving("two")
        self.far = self.serving("far", ipv4=FAR["4"], ipv6=FAR["6"], bridge=False)
        given = {"socket_level": SocketLevel.OFF, "tc_level": TcLevel.PODS, "max_flows": 4096, **settings}
        self.settings = DatapathSettings(node.bpf / "lrp", node.cgroup, **given)
        self.datapath = InNode(node, self.settings)
        self._frontends: set[L4Addr] = set()
        self._skips: set[str] = set()

    def pod(self, name: str, **more: Any) -> Pod:
        return self.node.pod(name, **{"bridge": self.bridged, **more})

    def serving(self, name: str, **more: Any) -> Pod:
        pod = self.pod(name, **more)
        pod.serve_tcp(WEB, name)
        pod.serve_udp(DNS, name)
        return pod

    def open(self) -> None:
        self.datapath.open()
        self.tell_pods()

    def close(self) -> None:
        self.datapath.close()
        in_netns(self.node.netns, lambda: cleanup(self.settings.bpf_root, self.settings.cgroup_root))

    def tell_pods(self) -> None:
        """Let the datapath know which pods there are."""
        places = {
            f"default/{pod.short_name}": PodPlace(pod.short_name, tuple(map(parse_ip, pod.addresses)))
            for pod in self.node.pods.values()
            if pod is not self.far
        }
        self.datapath.want_pods(places)

    def entry(
        self, way: str, protocol: Protocol, *pods: Pod, vip: dict[str, str] = VIP, port: int = 0, **more: Any
    ) -> FrontendEntry:
        """The frontend of a family and protocol, redirected to pods' servers (port: or to another one of theirs)."""
        usual = WEB if protocol is TCP else DNS
        backends = [L4Addr.make(pod.ipv4 if way == "4" else pod.ipv6, port or usual, protocol) for pod in pods]
        return entry(L4Addr.make(vip[way], usual, protocol), *backends, **more)

    def program(self, *entries: FrontendEntry, skips: Iterable[SkipEntry] = ()) -> FlushReport:
        """Make these the whole table, and see that it worked."""
        skips = list(skips)
        frontends: dict[L4Addr, FrontendEntry | None] = dict.fromkeys(self._frontends)
        frontends.update({wanted.frontend: wanted for wanted in entries})
        exempt: dict[str, SkipEntry | None] = dict.fromkeys(self._skips)
        exempt.update({skip.pod: skip for skip in skips})
        self._frontends, self._skips = {e.frontend for e in entries}, {skip.pod for skip in skips}
        self.datapath.update(Delta(frontends, {}, exempt))
        report: FlushReport = self.datapath.flush(complete=True)
        assert report.problems == ()
        return report

    def skip(self, pod: Pod, *entries: FrontendEntry) -> SkipEntry:
        ips = tuple(map(parse_ip, pod.addresses))
        return SkipEntry(f"default/{pod.short_name}", "u", ips, host_network=False, frontends=_of(entries))

    def flows(self) -> dict[str, int]:
        """Connections that stand, after a sweep."""
        self.datapath.reconcile()
        counts: dict[str, int] = self.datapath.status().flows
        return counts


def _of(entries: Iterable[FrontendEntry]) -> tuple[L4Addr, ...]:
    return tuple(one.frontend for one in entries)


def each_family(make: Callable[[str], Iterable[FrontendEntry]]) -> list[FrontendEntry]:
    """What is made for IPv4 and for IPv6."""
    return [wanted for way in WAYS for wanted in make(way)]
