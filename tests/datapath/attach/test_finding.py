"""Which links get programs: those that pods' addresses lead to, on each kind of node, and no others."""

import time

import pytest

from lab import Network, Node, Pod
from lrp_operator.datapath.engine import cleanup
from lrp_operator.datapath.model import LinkState, PodPlace
from lrp_operator.kernel.netns import in_netns
from lrp_operator.kernel.podlink import PodFinder
from lrp_operator.kernel.rtnl import Link
from tests.datapath.attach.ground import Ground, packed, place_of, statuses, works
from tests.datapath.world import InNode

pytestmark = pytest.mark.privileged


def second_link(pod: Pod, name: str = "net1", address: str = "10.245.0.2") -> tuple[str, int]:
    """Give a pod another interface, as Multus does; its name and index on the node."""
    node = pod.node
    device = f"second-{pod.short_name}"[:15]
    node.run(["ip", "link", "add", device, "type", "veth", "peer", name, "netns", pod.name])
    node.run(["ip", "link", "set", device, "up"])
    pod.run(["ip", "addr", "add", f"{address}/32", "dev", name])
    pod.run(["ip", "link", "set", name, "up"])
    return device, _index(node, device)


def _index(node: Node, device: str) -> int:
    return int(node.run(["ip", "-o", "link", "show", device]).stdout.split(":", 1)[0])


def test_a_pod_is_found_by_either_family_on_either_kind_of_link(
    ground: Ground, technology: str, datapath: InNode, client: Pod
) -> None:
    assert technology
    for addresses in ([client.ipv4], [client.ipv6], list(client.addresses)):
        datapath.want_pods({"default/client": PodPlace("u", packed(*addresses))})
        report = datapath.flush(complete=True)
        assert report.problems == ()
        assert set(statuses(datapath)) == {("default/client", client.veth.name)}
        assert len(ground.ours_on(client.veth.index)) == 2
        assert works(client)
        datapath.want_pods({})
        assert datapath.flush(complete=True).links_left == 1
        assert ground.ours_on(client.veth.index) == []
    # Pods that nobody spoke of have been left alone all the time: the ground's fixture looks at them.


def test_each_link_gets_the_program_for_its_kind(ground: Ground, datapath: InNode, client: Pod) -> None:
    datapath.want_pods({"default/client": place_of(client)})
    datapath.flush(complete=True)
    outward = "lrp_from_port" if client.bridged else "lrp_from_pod"
    assert ground.ours_on(client.veth.index) == [outward, "lrp_to_pod"]


def test_all_links_into_a_pods_namespace_are_its(ground: Ground, datapath: InNode, client: Pod) -> None:
    _, index = second_link(client)
    datapath.want_pods({"default/client": place_of(client)})
    assert datapath.flush(complete=True).links_attached == 2
    assert len(ground.ours_on(index)) == len(ground.ours_on(client.veth.index)) == 2
    assert {row.pod for row in datapath.status().links} == {"default/client"}
    client.run(["ip", "link", "del", "net1"])
    datapath.flush(complete=True)
    assert set(statuses(datapath)) == {("default/client", client.veth.name)}
    assert works(client)


def test_a_link_that_is_plugged_in_later_is_found_at_the_next_reconcile(
    ground: Ground, datapath: InNode, client: Pod
) -> None:
    datapath.want_pods({"default/client": place_of(client)})
    datapath.flush(complete=True)
    _, index = second_link(client)
    datapath.reconcile()
    assert len(ground.ours_on(index)) == 2


def test_an_address_that_is_not_set_up_yet_does_no_harm(ground: Ground, datapath: InNode, client: Pod) -> None:
    nobody = "fd99::77"
    datapath.want_pods({"default/client": PodPlace("u", packed(nobody, client.ipv4))})
    assert datapath.flush(complete=True).problems == ()
    assert len(ground.ours_on(client.veth.index)) == 2


def test_a_pod_that_is_not_found_is_told_and_the_others_go_on(datapath: InNode, client: Pod) -> None:
    datapath.want_pods(
        {
            "default/lost": PodPlace("u1", packed("192.0.2.7")),
            "default/client": place_of(client),
            "kube-system/far": PodPlace("u2", packed("fe80::1")),
        }
    )
    report = datapath.flush(complete=True)
    assert report.links_attached == 1
    assert report.problems == (
        "pod default/lost is not redirected: the node has no route to 192.0.2.7",
        "pod kube-system/far is not redirected: fe80::1 is a link-local address, which means another host on each link",
    )
    rows = statuses(datapath)
    assert rows["default/lost", ""].state is rows["kube-system/far", ""].state is LinkState.MISSING
    assert "no route to 192.0.2.7" in rows["default/lost", ""].message
    assert rows["default/client", client.veth.name].state is LinkState.ATTACHED
    assert datapath.status().problems == report.problems
    assert works(client)
    datapath.want_pods({"default/client": place_of(client)})
    assert datapath.flush(complete=True).problems == ()


def test_many_pods_that_are_not_found_do_not_hold_up_the_others(ground: Ground, datapath: InNode, client: Pod) -> None:
    """After a node's start the API names addresses of sandboxes that are no more: on a bridge each costs a wait."""
    ground.node.pod("on-the-bridge", bridge=True)
    lost = {
        f"default/lost-{n}": PodPlace(str(n), packed(f"10.244.1.{100 + n}", f"fd00:10:244:1::{n + 256:x}"))
        for n in range(60)
    }
    datapath.want_pods({**lost, "default/client": place_of(client)})
    started = time.monotonic()
    report = datapath.flush(complete=True)
    for _ in range(60):  # what was left is gone on with: the report says when
        if len(report.problems) == 60 and ground.ours_on(client.veth.index):
            break
        assert report.again_in or len(report.problems) == 60
        report = datapath.flush(complete=True)
    print(f"60 pods that are not found were looked for in {time.monotonic() - started:.2f} s")
    assert len(report.problems) == 60
    assert len(ground.ours_on(client.veth.index)) == 2
    started = time.monotonic()
    datapath.flush(complete=True)
    took = time.monotonic() - started
    print(f"a pass with 60 pods that are not found: {took:.2f} s")
    assert took < 2.5


def test_who_is_on_the_nodes_own_network_is_no_links(ground: Ground, datapath: InNode) -> None:
    """The agent leaves hostNetwork pods out; if it did not, their address would still lead to no link."""
    datapath.want_pods({"default/host": PodPlace("u", packed(*ground.node.addresses))})
    report = datapath.flush(complete=True)
    assert report.links_attached == 0
    assert ["is the node's own address" in problem for problem in report.problems] == [True]


def test_a_nodes_uplink_is_never_taken() -> None:
    """Nodes in containers have a veth for an uplink, with an address and a default route, or with one of both."""
    with Network() as network:
        near, far = network.node(), network.node()
        remote = far.pod("remote")
        assert near.uplink
        assert far.uplink
        ground = Ground(near)
        try:
            with ground.datapath() as datapath:
                datapath.flush(complete=True)
                datapath.want_pods({"default/soon": PodPlace("soon", ())})
                datapath.flush(complete=True)
                late = near.pod("late")
                extra = near.run(["ip", "link", "add", "up2", "type", "veth", "peer", "x", "netns", far.name])
                assert extra.returncode == 0
                near.run(["ip", "addr", "add", "172.30.0.2/24", "dev", "up2"])
                near.run(["ip", "link", "set", "up2", "up"])
                near.run(["ip", "link", "add", "up3", "type", "veth", "peer", "y", "netns", far.name])
                near.run(["ip", "link", "set", "up3", "up"])
                near.run(["ip", "route", "add", "default", "dev", "up3", "metric", "77"])
                wanted = {
                    "default/soon": PodPlace("soon", ()),
                    "default/remote": place_of(remote),
                    "default/far-node": PodPlace("f", packed(*far.addresses)),
                }
                datapath.want_pods(wanted)
                report = datapath.flush(complete=True)
                assert len(ground.ours_on(late.veth.index)) == 2  # it waits for its pod
                assert any("through a gateway" in problem for problem in report.problems)
                assert any("is the node's link to other machines" in problem for problem in report.problems)
                datapath.reconcile()
                for device in ("eth0", "up2", "up3"):
                    assert ground.ours_on(_index(near, device)) == [], device
        finally:
            in_netns(near.netns, lambda: cleanup(ground.settings.bpf_root, ground.settings.cgroup_root))


def test_a_bridges_port_to_other_machines_is_never_taken(ground: Ground, datapath: InNode) -> None:
    pod = ground.node.pod("inside", bridge=True)
    datapath.want_pods({"default/inside": place_of(pod), "default/soon": PodPlace("soon", ())})
    datapath.flush(complete=True)
    ground.node.run(["ip", "route", "add", "default", "via", "10.244.1.99", "dev", "cni0"])
    try:
        outside = ground.node.pod("outside", ipv4="10.244.1.99", ipv6="fd00:10:244:1::99", bridge=True)
        outside.run(["ip", "link", "add", "behind", "link", "eth0", "type", "macvlan", "mode", "bridge"])
        outside.run(["ip", "addr", "add", "10.244.1.98/24", "dev", "behind"])
        outside.run(["ip", "link", "set", "behind", "up"])
        outside.run(["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1"])
        datapath.want_pods({"default/inside": place_of(pod), "default/soon": PodPlace("s", packed("10.244.1.98"))})
        report = datapath.flush(complete=True)
        assert any("leads to other machines" in problem for problem in report.problems)
        datapath.reconcile()
        assert ground.ours_on(outside.veth.index) == []
        assert len(ground.ours_on(pod.veth.index)) == 2
        assert works(pod)
    finally:
        ground.node.run(["ip", "route", "del", "default", "dev", "cni0"])


@pytest.mark.parametrize("bridge", [False, True], ids=["routed", "bridged"])
def test_a_dying_namespace_is_not_taken_for_anothers(ground: Ground, bridge: bool) -> None:
    """Links into namespaces that are being torn down all have the id -1."""
    pod = ground.node.pod("going", bridge=bridge)
    other = ground.node.pod("other", bridge=bridge)

    def look() -> set[int]:
        with PodFinder() as finder:
            real = finder._link_of
            dying = {pod.veth.index, other.veth.index}

            def seen(link: Link) -> Link:
                if link.index not in dying:
                    return link
                return Link(link.index, link.name, link.kind, link.mac, link.master, link.peer, -1)

            finder._link_of = lambda ip: seen(real(ip))  # type: ignore[method-assign]
            links = [seen(link) for link in finder.all_links()]
            return {found.ifindex for found in finder.interfaces(packed(*pod.addresses), links)}

    assert in_netns(ground.node.netns, look) == {pod.veth.index}
