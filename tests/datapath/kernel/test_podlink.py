import socket
import time
from ipaddress import ip_address

import pytest

from lab import Node, Pod
from lrp_operator.kernel.netns import NetnsListing, identity, in_netns
from lrp_operator.kernel.podlink import NoPodLinkError, PodLink, PodLinks
from lrp_operator.kernel.rtnl import Rtnl

pytestmark = pytest.mark.privileged


def packed(*hosts: str) -> list[bytes]:
    return [ip_address(host).packed for host in hosts]


def find(node: Node, *hosts: str) -> PodLink:
    with PodLinks(node.netns) as links:
        return links.find(packed(*hosts))


def is_pods(link: PodLink | None, pod: Pod) -> bool:
    return link == PodLink(pod.veth.index, pod.veth.name, identity(pod.netns), pod.cookie)


def why_not(node: Node, *hosts: str) -> str:
    with pytest.raises(NoPodLinkError) as caught:
        find(node, *hosts)
    return str(caught.value)


@pytest.mark.parametrize("bridge", [False, True], ids=["routed", "bridged"])
def test_a_pod_is_found_by_any_of_its_addresses(node: Node, bridge: bool) -> None:
    pods = [node.pod(f"p{i}", bridge=bridge) for i in range(3)]
    for pod in pods:
        assert is_pods(find(node, pod.ipv4), pod)
        assert is_pods(find(node, pod.ipv6), pod)
        assert is_pods(find(node, pod.ipv6, pod.ipv4), pod)


def test_it_works_from_inside_the_nodes_namespace(node: Node) -> None:
    pod = node.pod("a")

    def look() -> tuple[PodLink | None, int]:
        with PodLinks() as links:
            return links.locate(packed(pod.ipv4)), links.own_cookie

    link, own = in_netns(node.netns, look)
    assert is_pods(link, pod)
    assert own == node.cookie


@pytest.mark.parametrize("bridge", [False, True], ids=["routed", "bridged"])
def test_a_pod_that_went_is_gone_and_its_successor_is_found(node: Node, bridge: bool) -> None:
    with PodLinks(node.netns) as links:
        ids = []
        for _ in range(4):
            pod = node.pod("a", bridge=bridge)
            ips = packed(*pod.addresses)
            assert is_pods(links.locate(ips), pod)
            ids.append(pod.cookie)
            pod.remove()
            assert links.locate(ips) is None
        assert len(set(ids)) == 4


def test_an_address_that_moves_to_another_pod_on_the_bridge(node: Node) -> None:
    """The neighbour's entry still names the old pod, which is alive: hearsay is confirmed before it is believed."""
    old, new = node.pod("old", bridge=True), node.pod("new", bridge=True)
    address = "10.244.1.50"
    old.run(["ip", "addr", "add", f"{address}/24", "dev", "eth0"])
    assert is_pods(find(node, address), old)
    old.run(["ip", "addr", "del", f"{address}/24", "dev", "eth0"])
    new.run(["ip", "addr", "add", f"{address}/24", "dev", "eth0"])
    node.run(["ip", "neigh", "change", address, "dev", "cni0", "nud", "stale"])
    assert is_pods(find(node, address), new)


def test_a_bridge_that_has_forgotten_where_the_pod_is(node: Node) -> None:
    pod = node.pod("a", bridge=True)
    assert is_pods(find(node, pod.ipv4), pod)
    node.run(["ip", "link", "set", "cni0", "type", "bridge", "fdb_flush"])
    assert is_pods(find(node, pod.ipv4), pod)


def test_a_bridge_that_does_not_answer_for_single_addresses(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that filters VLANs: its entries have a VLAN, which the question leaves open. (Not in every kernel.)"""
    pod, other = node.pod("a", bridge=True), node.pod("b", bridge=True)
    real = Rtnl._ask

    def ask(self: Rtnl, kind: int, body: bytes) -> bytes | None:
        return None if body[0] == socket.AF_BRIDGE else real(self, kind, body)

    monkeypatch.setattr(Rtnl, "_ask", ask)
    assert is_pods(find(node, pod.ipv4), pod)
    assert is_pods(find(node, other.ipv6), other)


def test_a_ports_own_address_is_nobody_behind_it(node: Node) -> None:
    pod = node.pod("a", bridge=True)
    node.run(["ip", "neigh", "add", "10.244.1.60", "dev", "cni0", "lladdr", pod.veth.node_mac, "nud", "permanent"])
    assert "nobody on bridge cni0" in why_not(node, "10.244.1.60")


def test_an_id_that_was_given_to_another_namespace(node: Node) -> None:
    a, b = node.pod("a"), node.pod("b")
    with PodLinks(node.netns) as links:
        assert is_pods(links.find(packed(a.ipv4)), a)
        assert is_pods(links.find(packed(b.ipv4)), b)
        first, second = sorted(links._by_nsid)[:2]
        known = links._by_nsid
        known[first], known[second] = known[second], known[first]
        assert is_pods(links.find(packed(a.ipv4)), a)
        assert is_pods(links.find(packed(b.ipv4)), b)


def test_nobody_is_found_soon(node: Node) -> None:
    node.pod("a", bridge=True)
    started = time.monotonic()
    assert "nobody on bridge cni0" in why_not(node, "10.244.1.77")
    assert time.monotonic() - started < 0.5


def test_an_address_that_a_pod_gives_itself_counts_for_nothing(node: Node) -> None:
    rightful, thief = node.pod("rightful"), node.pod("thief")
    thief.run(["ip", "addr", "add", f"{rightful.ipv4}/32", "dev", "lo"])
    thief.run(["ip", "addr", "add", "10.244.9.9/32", "dev", "lo"])
    assert is_pods(find(node, rightful.ipv4), rightful)
    assert "no route" in why_not(node, "10.244.9.9")


def test_the_nodes_own_addresses_are_no_pods(node: Node) -> None:
    node.pod("a", bridge=True)
    for address in (*node.addresses, "127.0.0.1", "::1", "10.244.1.1"):
        assert "the node's own" in why_not(node, address)


def test_a_veth_that_is_the_nodes_uplink_is_refused(node: Node) -> None:
    """A node that is a container has a veth for an uplink, and its far end is a namespace like any other."""
    world = node.pod("world", ipv4="10.99.0.1", ipv6="fd99::1")
    uplink = world.veth.name
    assert is_pods(find(node, "10.99.0.1"), world)  # without what marks an uplink there is nothing to tell it by
    node.run(["ip", "route", "add", "default", "dev", uplink])
    assert "link to other machines" in why_not(node, "10.99.0.1")
    assert "link to other machines" in why_not(node, "fd99::1")
    node.run(["ip", "route", "del", "default", "dev", uplink])
    node.run(["ip", "-6", "route", "add", "default", "dev", uplink])
    assert "link to other machines" in why_not(node, "10.99.0.1")
    node.run(["ip", "-6", "route", "del", "default", "dev", uplink])
    node.run(["ip", "addr", "add", "10.99.7.1/24", "dev", uplink])
    assert "link to other machines" in why_not(node, "10.99.0.1")
    node.run(["ip", "route", "add", "10.98.0.0/24", "via", "10.99.7.2", "dev", uplink])
    assert "on another machine" in why_not(node, "10.98.0.7")


def test_a_gateways_single_address_on_the_veth_is_no_uplink(node: Node) -> None:
    pod = node.pod("a")
    node.run(["ip", "addr", "add", "10.244.0.1/32", "dev", pod.veth.name])
    assert is_pods(find(node, pod.ipv4), pod)


def test_an_uplink_in_the_bridge_is_refused(node: Node) -> None:
    """Behind the uplink's port is a switch: here the far namespace answers with a second hardware address."""
    pod, world = node.pod("a", bridge=True), node.pod("world", bridge=True)
    world.run(["ip", "link", "add", "behind", "link", "eth0", "type", "macvlan", "mode", "bridge"])
    world.run(["ip", "addr", "add", "10.244.1.99/24", "dev", "behind"])
    world.run(["ip", "link", "set", "behind", "up"])
    world.run(["sysctl", "-qw", "net.ipv4.conf.eth0.arp_ignore=1"])
    node.run(["ip", "route", "add", "default", "via", "10.244.1.99"])
    assert "leads to other machines" in why_not(node, "10.244.1.99")
    assert is_pods(find(node, pod.ipv4), pod)


def test_a_link_that_is_no_veth_or_stays_on_the_node_is_refused(node: Node) -> None:
    node.run(["ip", "link", "add", "left", "type", "veth", "peer", "name", "right"])
    node.run(["ip", "link", "set", "left", "up"])
    node.run(["ip", "route", "add", "10.97.0.1/32", "dev", "left"])
    assert "other end is on the node itself" in why_not(node, "10.97.0.1")
    node.run(["ip", "link", "add", "mv", "link", "left", "type", "macvlan"])
    node.run(["ip", "link", "set", "mv", "up"])
    node.run(["ip", "route", "add", "10.97.0.2/32", "dev", "mv"])
    assert "no veth (macvlan)" in why_not(node, "10.97.0.2")


def test_addresses_of_two_pods_are_not_one_pod(node: Node) -> None:
    a, b = node.pod("a"), node.pod("b")
    assert "different links: veth-a, veth-b" in why_not(node, a.ipv4, b.ipv6)
    assert is_pods(find(node, a.ipv4, "10.1.2.3"), a)  # one family not set up yet


def test_addresses_that_mean_nothing_here(node: Node) -> None:
    node.pod("a")
    assert "link-local" in why_not(node, "fe80::1")
    assert "no route" in why_not(node, "192.0.2.1")
    assert "no address" in why_not(node)


def test_without_a_way_into_the_namespace_the_link_is_still_known(node: Node) -> None:
    pod = node.pod("a")
    with PodLinks(node.netns, namespaces=lambda: NetnsListing(())) as links:
        assert links.locate(packed(pod.ipv4)) == PodLink(pod.veth.index, pod.veth.name, None, None)


def test_it_is_quick(node: Node) -> None:
    """250 pods are located at each burst of changes: 0.3 ms each where it was measured."""
    pods = [node.pod(f"p{i}") for i in range(20)]
    with PodLinks(node.netns) as links:
        links.find(packed(pods[0].ipv4))
        started = time.perf_counter()
        for pod in pods:
            links.find(packed(*pod.addresses))
        each = (time.perf_counter() - started) / len(pods)
    print(f"{each * 1e3:.2f} ms a pod")
    assert each < 0.005
