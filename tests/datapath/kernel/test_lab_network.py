import errno
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Network, Node, Pod, cleanup
from lab.naming import NETNS, STATE, is_owned
from lab.wiring import BRIDGE, UPLINK
from lrp_operator.kernel.cgroup import find_root

pytestmark = pytest.mark.privileged

IP_RECVERR, IPV6_RECVERR = 11, 25
NOBODY = ("192.0.2.1", "10.244.77.1", "10.244.0.99", "2001:db8::1", "fd00:10:244:99::1", "fd00:10:244::99")

SCRIPT = """
import time
from lab import Network
with Network() as network:
    nodes = [network.node(), network.node()]
    nodes[0].pod("a").serve_tcp(80, "a")
    nodes[1].pod("b", bridge=True).popen(["sleep", "300"])
    print(network.name, *(node.name for node in nodes), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes, each with a routed and a bridged pod that serve TCP and UDP."""
    with Network() as network:
        both = network.node(), network.node()
        for node in both:
            for name in ("routed", "bridged"):
                pod = node.pod(name, bridge=name == "bridged")
                pod.serve_tcp(80, pod.name)
                pod.serve_udp(80, pod.name)
        yield both


def traces(name: str) -> list[str]:
    """All that carries a name on this machine."""
    found = [path for place in (STATE, NETNS, find_root().path) for path in place.glob(f"{name}*")]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [*map(str, found), *(line for line in mounts if f"/{name}" in line)]


def address(pod: Pod, family: str) -> str:
    return pod.ipv4 if family == "IPv4" else pod.ipv6


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
@pytest.mark.parametrize("server", ["routed", "bridged"])
@pytest.mark.parametrize("client", ["routed", "bridged"])
def test_pods_reach_pods_of_another_node_as_themselves(
    nodes: tuple[Node, Node], client: str, server: str, family: str
) -> None:
    for here, there in (nodes, reversed(nodes)):
        asker, asked = here.pods[client], there.pods[server]
        host = address(asked, family)
        for reply in (
            asker.ask_tcp(host, 80, payload=b"payload"),
            asker.ask_udp(host, 80, payload=b"payload"),
            asker.ask_udp(host, 80, payload=b"payload", connected=True),
        ):
            assert (reply.name, reply.peer[0], reply.echo) == (asked.name, host, b"payload")
            assert reply.seen[0] == address(asker, family)


def test_nodes_reach_each_other_and_each_others_pods(nodes: tuple[Node, Node]) -> None:
    here, there = nodes
    server = there.serve_tcp(0, "the other node")
    for place in (here, *here.pods.values()):
        assert {place.ask_tcp(host, server.port).name for host in there.addresses} == {"the other node"}
    for pod in there.pods.values():
        assert {here.ask_tcp(host, 80).seen[0] for host in pod.addresses} == set(here.addresses)
    server.stop()


def test_what_crosses_the_network_crosses_both_uplinks(nodes: tuple[Node, Node]) -> None:
    here, there = nodes

    def received() -> list[int]:
        shown = [json.loads(node.run(["ip", "-j", "-s", "link", "show", UPLINK]).stdout) for node in nodes]
        return [link["stats64"]["rx"]["packets"] for (link,) in shown]

    before = received()
    here.pods["routed"].ask_tcp(there.pods["bridged"].ipv4, 80)
    assert all(after > count for after, count in zip(received(), before, strict=True))


def test_the_way_to_another_nodes_pods_is_that_nodes_address(nodes: tuple[Node, Node]) -> None:
    for here, there in (nodes, reversed(nodes)):
        for pod in there.pods.values():
            for host, gateway in zip(pod.addresses, there.addresses, strict=True):
                assert f" via {gateway} dev {UPLINK} " in here.run(["ip", "route", "get", host]).stdout


def test_a_node_has_an_uplink_with_its_address_and_a_default_route(nodes: tuple[Node, Node]) -> None:
    for number, node in enumerate(nodes):
        assert node.uplink
        link = node.run(["ip", "-d", "-o", "link", "show", UPLINK]).stdout
        assert link.startswith(f"{node.uplink.index}: {UPLINK}@")
        assert node.uplink.mac in link
        assert " veth " in link
        shown = node.run(["ip", "-o", "address", "show", UPLINK]).stdout
        assert node.addresses == (f"172.31.0.{number + 1}", f"fd00:172:31::{number + 1}")
        assert all(f" {address}/" in shown for address in node.addresses)
        for family in ("-4", "-6"):
            best = node.run(["ip", family, "route", "show", "default"]).stdout.splitlines()
            assert any(f"dev {UPLINK} " in line and "unreachable" not in line for line in best)
    assert not set(nodes[0].pods["routed"].addresses) & set(nodes[1].pods["routed"].addresses)


def test_there_is_no_way_out(network: Network) -> None:
    """Nothing but loopback and the nodes is at the switch, and what is nobody's is refused at once."""
    node, _ = network.node(), network.node()
    links = subprocess.run(["ip", "-n", network.name, "-o", "link"], check=True, capture_output=True, text=True).stdout
    names = {line.split(": ")[1].split("@")[0] for line in links.splitlines()}
    assert names == {"lo", BRIDGE, "port-0", "port-1"}
    for place in (node, node.pod("routed"), node.pod("bridged", bridge=True)):
        for host in NOBODY:
            assert place.call(lambda host=host: refusal(host)) in {errno.EHOSTUNREACH, errno.ENETUNREACH}
        with pytest.raises(OSError, match="No route to host"):
            place.ask_tcp(NOBODY[0], 80, timeout=0.5)


def refusal(host: str) -> int:
    """The error that a datagram meets; 0 for none soon."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        # Unreachable is what a UDP socket hears only if it has asked to.
        level, name = (socket.IPPROTO_IPV6, IPV6_RECVERR) if ":" in host else (socket.IPPROTO_IP, IP_RECVERR)
        sock.setsockopt(level, name, 1)
        sock.settimeout(0.5)
        try:
            sock.connect((host, 53))
            sock.send(b"")
            sock.recv(1)
        except TimeoutError:
            return 0
        except OSError as error:
            return error.errno or 0
    return 0


def test_a_refusal_is_not_kept_back(network: Network) -> None:
    """The kernel's usual limit for ICMP lets two through."""
    pod = network.node().pod("a")
    assert [pod.call(lambda: refusal("192.0.2.1")) for _ in range(5)] == [errno.EHOSTUNREACH] * 5


def test_a_node_may_come_later_and_go_earlier(network: Network) -> None:
    first, second = network.node(), network.node()
    second.close()
    third = network.node()
    third.pod("a").serve_tcp(80, "third")
    assert first.ask_tcp(third.pods["a"].ipv4, 80).name == "third"
    assert traces(second.name) == []


def test_a_network_that_is_left_leaves_nothing() -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with Network() as network:
        names = [network.name, network.node().name, network.node().name]
        network.nodes[0].pod("a").serve_tcp(80, "a")
        assert all(traces(name) for name in names)
    network.close()
    assert [traces(name) for name in names] == [[], [], []]
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_what_a_killed_run_left_is_swept_and_what_lives_is_not(network: Network) -> None:
    own = [network.name, network.node().name]
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        names = process.stdout.readline().split()
        assert not set(names) & set(cleanup.sweep())
        process.kill()
    assert len(names) == 3
    assert all(traces(name) and not is_owned(name) for name in names)
    swept = subprocess.run([sys.executable, "-m", "lab.cleanup"], check=True, capture_output=True, text=True).stderr
    assert all(f"removed {name}\n" in swept for name in names)
    assert [trace for name in names for trace in traces(name)] == []
    assert all(traces(name) and is_owned(name) for name in own)


@pytest.mark.parametrize("bridge", [False, True])
def test_a_node_drops_what_a_pod_sends_as_somebody_else(network: Network, bridge: bool) -> None:
    node = network.node()
    pod, web = node.pod("pod", bridge=bridge), node.pod("web")
    web.serve_udp(80, "web")
    pod.run(["ip", "address", "add", "198.51.100.7/32", "dev", "lo"])

    def send_as_somebody_else() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("198.51.100.7", 0))
            sock.sendto(b"", (web.ipv4, 80))

    def dropped() -> int:
        return int(node.run(["nstat", "-asz", "TcpExtIPReversePathFilter"]).stdout.split()[-2])

    pod.call(send_as_somebody_else)
    assert dropped() == 0
    pod.check_sources()
    pod.call(send_as_somebody_else)
    assert dropped() == 1
    assert pod.ask_udp(web.ipv4, 80).name == "web"


def test_what_passes_a_bridge_is_shown_to_iptables_or_hidden(network: Network) -> None:
    node = network.node()
    web, client = node.pod("web", bridge=True), node.pod("client", bridge=True)
    web.serve_udp(80, "web")
    node.run(["nft", "table inet t { chain forward { type filter hook forward priority 0; udp dport 80 drop; }; }"])
    for host in (web.ipv4, web.ipv6):
        node.filter_bridged(on=False)
        assert client.ask_udp(host, 80).name == "web"
        node.filter_bridged(on=True)
        with pytest.raises(TimeoutError):
            client.ask_udp(host, 80, timeout=0.05)
