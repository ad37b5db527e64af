import re
import select
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from lab import KubeProxy, Network, Node, Place, Pod, Reply, Service, serving
from lab.kubeproxy import Mode

pytestmark = pytest.mark.privileged

IPS = {"IPv4": "10.96.0.10", "IPv6": "fd00:10:96::10"}
NOBODYS = {"IPv4": "10.96.0.11", "IPv6": "fd00:10:96::11"}
HAIRPIN = {"IPv4": "10.96.0.12", "IPv6": "fd00:10:96::12"}
TCP_REPAIR = 19


@dataclass
class Stage:
    """A node with kube-proxy's rules, and another one; an endpoint on each."""

    node: Node
    near: Pod
    far: Pod

    def place(self, name: str) -> Place:
        return self.node.pods.get(name, self.node)

    def services(self) -> list[Service]:
        """One over both endpoints, one without any, and one that is its only client's own."""
        own = self.node.pods["routed"]
        made = []
        for family, ip in IPS.items():
            both, hairpin = ([endpoint(pod, family) for pod in pods] for pods in ((self.near, self.far), (own,)))
            for protocol in ("TCP", "UDP"):
                made += [
                    Service("default/web:http", ip, 80, both, protocol),
                    Service("default/nobody:http", NOBODYS[family], 80, (), protocol),
                    Service("default/self:http", HAIRPIN[family], 80, hairpin, protocol),
                ]
        return made


@pytest.fixture(scope="module")
def bare() -> Iterator[Stage]:
    """A stage without rules."""
    with Network() as network:
        node, other = network.node(), network.node()
        stage = Stage(node, node.pod("near", bridge=True), other.pod("far"))
        for pod in (stage.near, stage.far, node.pod("routed"), node.pod("bridged", bridge=True)):
            pod.serve_tcp(8080, pod.short_name)
            pod.serve_udp(8080, pod.short_name)
        yield stage


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def written(bare: Stage, request: pytest.FixtureRequest) -> Iterator[KubeProxy]:
    """The rules for the stage's Services, which every test of a mode finds."""
    mode: Mode = request.param
    proxy = KubeProxy(bare.node, mode)
    proxy.write(bare.services())
    yield proxy
    proxy.remove()


@pytest.fixture
def stage(bare: Stage, written: KubeProxy) -> Stage:
    """A stage with the rules for its Services, for tests that leave them as they are."""
    assert written.node is bare.node
    return bare


@pytest.fixture
def proxy(bare: Stage, written: KubeProxy) -> Iterator[KubeProxy]:
    """The same rules, for tests that change them."""
    yield written
    written.write(bare.services())


def endpoint(pod: Pod, family: str) -> str:
    return f"{pod.ipv4}:8080" if family == "IPv4" else f"[{pod.ipv6}]:8080"


def ask_often(place: Place, host: str) -> list[Reply]:
    """So often that an endpoint that is never seen is not there: chance misses one of two once in 10^11 runs."""

    def ask() -> list[Reply]:
        asks = serving.ask_tcp, serving.ask_udp
        return [ask(host, 80, timeout=0.5, payload=b"payload") for ask in asks for _ in range(40)]

    return place.call(ask)


def ruleset(node: Node) -> str:
    """All rules, without counters."""
    return re.sub(r"packets \d+ bytes \d+", "", node.run(["nft", "list", "ruleset"]).stdout)


@pytest.mark.parametrize("family", IPS)
@pytest.mark.parametrize("client", ["routed", "bridged", "node"])
def test_a_service_is_balanced_over_its_endpoints(stage: Stage, client: str, family: str) -> None:
    place = stage.place(client)
    replies = ask_often(place, IPS[family])
    for half in (replies[:40], replies[40:]):
        assert {reply.name for reply in half} == {"near", "far"}
    assert {(reply.peer[0], reply.echo) for reply in replies} == {(IPS[family], b"payload")}
    seen = {reply.seen[0] for reply in replies}
    if isinstance(place, Pod):
        assert seen <= set(place.addresses)
    else:
        assert not any(pod_address in seen for pod in stage.node.pods.values() for pod_address in pod.addresses)


@pytest.mark.parametrize("family", IPS)
def test_who_comes_from_outside_is_masqueraded(stage: Stage, family: str) -> None:
    """Endpoints elsewhere answer past this node, if they see who asked, and the answers are nobody's."""
    other, ip = stage.far.node, IPS[family]
    gateway = next(address for address in stage.node.addresses if (":" in address) == (":" in ip))
    other.run(["ip", "route", "replace", ip, "via", gateway])
    replies = ask_often(other, ip)
    assert {reply.name for reply in replies} == {"near", "far"}
    assert not {reply.seen[0] for reply in replies} & set(other.addresses)


@pytest.mark.parametrize("client", ["routed", "bridged", "node"])
def test_a_service_without_endpoints_refuses_at_once(stage: Stage, client: str) -> None:
    place = stage.place(client)
    # The node's own sender hears that its datagram was dropped before it hears the refusal.
    error = PermissionError if place is stage.node else ConnectionRefusedError
    for host in NOBODYS.values():
        with pytest.raises(error):
            place.ask_udp(host, 80, timeout=0.5, connected=True)
    with pytest.raises(ConnectionRefusedError):
        place.ask_tcp(NOBODYS["IPv4"], 80, timeout=0.5)


def test_a_port_that_a_service_does_not_have(stage: Stage, written: KubeProxy) -> None:
    """Mode nftables knows that the address is a Service's; with iptables it goes wherever the default route leads."""
    says = "Connection refused" if written.mode == "nftables" else "No route to host"
    for place in (stage.node, stage.place("routed")):
        with pytest.raises(OSError, match=says):
            place.ask_tcp(IPS["IPv4"], 81, timeout=0.5)


@pytest.mark.parametrize("family", IPS)
def test_an_endpoint_reaches_itself_as_the_node(stage: Stage, family: str) -> None:
    pod = stage.node.pods["routed"]
    for reply in (pod.ask_tcp(HAIRPIN[family], 80), pod.ask_udp(HAIRPIN[family], 80)):
        assert reply.name == "routed"
        assert reply.seen[0] not in pod.addresses


@pytest.mark.parametrize("family", IPS)
def test_what_conntrack_can_not_place_is_dropped(bare: Stage, proxy: KubeProxy, family: str) -> None:
    """An ACK out of the blue: a pod that has no such connection answers with a reset, if it hears of it."""
    bare.node.set("netfilter/nf_conntrack_tcp_loose", 0)  # else it would be taken for an old connection's
    pod, host = bare.node.pods["routed"], bare.far.ipv4 if family == "IPv4" else bare.far.ipv6
    before = invalid_drops(bare.node, proxy.mode, family)
    with pytest.raises(TimeoutError):
        pod.call(lambda: send_stray_ack(host))
    assert invalid_drops(bare.node, proxy.mode, family) > before
    proxy.remove()
    with pytest.raises(ConnectionResetError):
        pod.call(lambda: send_stray_ack(host))


def send_stray_ack(host: str) -> None:
    """Send on a connection that only this end believes in, and wait for what comes of it."""
    with socket.socket(serving.family_of(host), socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        sock.connect((host, 8080))  # under repair: it is established without a packet
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)  # repaired: an ACK asks the other end for its window
        sock.settimeout(0.2)
        sock.recv(1)


def invalid_drops(node: Node, mode: Mode, family: str) -> int:
    """How many packets the rule has dropped, as its counter tells."""
    if mode == "nftables":
        shown = node.run(["nft", "list", "chain", "ip" if family == "IPv4" else "ip6", "kube-proxy", "filter-forward"])
        found = re.search(r"ct state invalid counter packets (\d+) .*drop", shown.stdout)
    else:
        command = "iptables" if family == "IPv4" else "ip6tables"
        shown = node.run([command, "-nvxL", "KUBE-FORWARD"])
        found = re.search(r"(\d+) +\d+ DROP .*ctstate INVALID", shown.stdout)
    assert found, shown.stdout
    return int(found[1])


def test_other_services_take_the_place_of_the_first(bare: Stage, proxy: KubeProxy) -> None:
    pod = bare.node.pods["routed"]
    proxy.write([Service("default/web:http", IPS["IPv4"], 80, [endpoint(bare.far, "IPv4")])])
    assert {pod.ask_tcp(IPS["IPv4"], 80).name for _ in range(10)} == {"far"}
    with pytest.raises(OSError, match=r"No route|refused"):
        pod.ask_tcp(HAIRPIN["IPv4"], 80, timeout=0.5)
    once = ruleset(bare.node)
    proxy.write(bare.services())
    proxy.write([Service("default/web:http", IPS["IPv4"], 80, [endpoint(bare.far, "IPv4")])])
    assert ruleset(bare.node) == once
    assert "near" not in once
    assert endpoint(bare.near, "IPv4").partition(":")[0] not in once


def test_no_connection_fails_while_rules_are_replaced(bare: Stage, proxy: KubeProxy) -> None:
    """Endpoints come and go, and there is always one."""
    pod, host = bare.node.pods["routed"], IPS["IPv4"]
    here, there = socket.socketpair()

    def ask() -> set[str]:
        names = {serving.ask_tcp(host, 80, timeout=0.5).name}
        there.send(b"started")
        while not select.select([there], [], [], 0)[0]:
            names.add(serving.ask_tcp(host, 80, timeout=0.5).name)
        return names

    with here, there, ThreadPoolExecutor(1) as threads:
        asking = threads.submit(pod.call, ask)
        here.recv(7)
        for pods in 2 * [(bare.near,), (bare.far,), (bare.near, bare.far)]:
            proxy.write([Service("default/web:http", host, 80, [endpoint(each, "IPv4") for each in pods])])
        here.send(b"enough")
        assert asking.result() == {"near", "far"}


def test_removal_leaves_what_others_have_written(bare: Stage, proxy: KubeProxy) -> None:
    node = bare.node
    for table, chain in (("nat", "POSTROUTING"), ("filter", "FORWARD"), ("filter", "OUTPUT"), ("nat", "OUTPUT")):
        for command in ("iptables", "ip6tables"):
            node.run([command, "-t", table, "-A", chain, "-m", "comment", "--comment", "another's", "-j", "ACCEPT"])
    node.run(["iptables", "-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT"])
    node.run(["ip6tables", "-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT"])
    proxy.remove()
    before = ruleset(node)
    proxy.write(bare.services())
    assert ruleset(node) != before
    proxy.remove()
    assert ruleset(node) == before
    proxy.remove()
    with pytest.raises(OSError, match="No route to host"):
        node.pods["routed"].ask_tcp(IPS["IPv4"], 80, timeout=0.5)
