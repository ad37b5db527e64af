"""Who controls a pod's namespace does not reach others' links by it."""

import socket
from ipaddress import ip_address

import pytest

from lab import Pod
from lrp_operator.datapath.model import PodPlace
from lrp_operator.resolve.model import Delta, SkipEntry
from tests.datapath.attach.ground import Ground, place_of, statuses, wait_until, who_answers, works
from tests.datapath.world import InNode

pytestmark = pytest.mark.privileged


@pytest.fixture(params=["routed", "bridged"])
def pair(ground: Ground, datapath: InNode, request: pytest.FixtureRequest) -> tuple[Pod, Pod]:
    """The victim and the tenant, both attached."""
    bridge = request.param == "bridged"
    victim, tenant = ground.node.pod("victim", bridge=bridge), ground.node.pod("tenant", bridge=bridge)
    datapath.want_pods({"default/victim": place_of(victim), "default/tenant": place_of(tenant)})
    assert datapath.flush(complete=True).problems == ()
    return victim, tenant


def owners(datapath: InNode) -> dict[str, str]:
    return {link: pod for pod, link in statuses(datapath)}


def say_that_it_is(tenant: Pod, address: str) -> None:
    """Tell the bridge's other end, by ARP, that an address is the tenant's."""
    mac, ip = bytes.fromhex(tenant.veth.pod_mac.replace(":", "")), ip_address(address).packed

    def announce() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(("eth0", 0))
            sock.send(b"\xff" * 6 + mac + b"\x08\x06" + bytes.fromhex("0001080006040001") + mac + ip + b"\0" * 6 + ip)

    tenant.call(announce)


def test_anothers_address_on_ones_own_links(datapath: InNode, pair: tuple[Pod, Pod]) -> None:
    victim, tenant = pair
    tenant.run(["ip", "addr", "add", f"{victim.ipv4}/32", "dev", "lo"])
    tenant.run(["ip", "addr", "add", f"{victim.ipv6}/128", "dev", "lo"])
    datapath.reconcile()
    assert owners(datapath) == {victim.veth.name: "default/victim", tenant.veth.name: "default/tenant"}
    assert works(victim)


def test_links_and_namespaces_of_ones_own(ground: Ground, datapath: InNode, pair: tuple[Pod, Pod]) -> None:
    """Veths within the pod, and the pod's own end moved into a namespace below: its link stays its link."""
    victim, tenant = pair
    before = owners(datapath)
    tenant.run(["ip", "link", "add", "x", "type", "veth", "peer", "y"])
    tenant.run(["ip", "link", "set", "x", "up"])
    inner = ground.node.pod("inner")  # stands for a namespace that the tenant has made
    tenant.run(["ip", "link", "set", "y", "netns", inner.name])
    datapath.reconcile()
    assert owners(datapath) == before
    inner_before = ground.ours_on(inner.veth.index)
    assert inner_before == []
    assert works(victim)


def test_ones_end_moved_away(ground: Ground, datapath: InNode, pair: tuple[Pod, Pod]) -> None:
    victim, tenant = pair
    nested = ground.node.pod("nested")
    tenant.run(["ip", "link", "set", "eth0", "netns", nested.name, "name", "stolen"])
    datapath.relocate()
    datapath.flush(complete=True)
    datapath.reconcile()
    assert owners(datapath)[victim.veth.name] == "default/victim"
    assert ground.ours_on(ground.far.veth.index) == []
    assert works(victim)
    nested.run(["ip", "link", "set", "stolen", "netns", tenant.name])  # else it goes with that namespace


def test_ones_end_deleted(ground: Ground, datapath: InNode, pair: tuple[Pod, Pod]) -> None:
    victim, tenant = pair
    tenant.run(["ip", "link", "del", "eth0"])
    wait_until(lambda: tenant.veth.name not in ground.node.run(["ip", "link"]).stdout, "its link stays")
    report = datapath.flush(complete=True)
    assert ["default/tenant" in problem for problem in report.problems] == [True]
    assert works(victim)
    # So that there is something to remove.
    again = ["ip", "link", "add", tenant.veth.name, "index", str(tenant.veth.index), "type", "veth", "peer", "eth0"]
    ground.node.run([*again, "netns", tenant.name])


@pytest.mark.parametrize("first", ["victim", "tenant"])
def test_an_exemption_is_not_had_by_claiming_an_address(ground: Ground, first: str) -> None:
    """On a bridge ARP tells who has an address, and a tenant may lie. A pod that was found once keeps its link."""
    victim, tenant = ground.node.pod("victim", bridge=True), ground.node.pod("tenant", bridge=True)
    pods = {"default/victim": place_of(victim), "default/tenant": place_of(tenant)}
    names = list(pods) if first == "victim" else list(pods)[::-1]
    ips = place_of(victim).ips
    skip = SkipEntry("default/victim", victim.name, ips, host_network=False, frontends=tuple(ground.entries))
    with ground.datapath() as datapath:
        datapath.want_pods({name: pods[name] for name in names})
        datapath.flush(complete=True)
        datapath.update(Delta({}, {}, {"default/victim": skip}))
        datapath.flush(complete=True)
        assert who_answers(victim) == ("untranslated", "untranslated")
        assert works(tenant)
        tenant.run(["ip", "addr", "add", f"{victim.ipv4}/32", "dev", "eth0"])

        def is_believed() -> bool:
            say_that_it_is(tenant, victim.ipv4)
            return tenant.veth.pod_mac in ground.node.run(["ip", "neigh", "show", victim.ipv4]).stdout

        wait_until(is_believed, "the node does not believe it")
        datapath.reconcile()
        datapath.relocate()
        datapath.flush(complete=True)
        try:
            assert owners(datapath) == {victim.veth.name: "default/victim", tenant.veth.name: "default/tenant"}
            assert works(tenant, "6")
        finally:
            datapath.update(Delta({}, {}, {"default/victim": None}))
            datapath.want_pods({})
            datapath.flush(complete=True)


def test_an_address_of_the_node_or_of_nobody_is_no_way_in(
    ground: Ground, datapath: InNode, pair: tuple[Pod, Pod]
) -> None:
    """Should the API ever name such addresses for a pod: they lead to no link, or to that pod's."""
    victim, _tenant = pair
    datapath.want_pods(
        {
            "default/victim": place_of(victim),
            "default/tenant": PodPlace("t", tuple(ip_address(a).packed for a in (*ground.node.addresses, "127.0.0.1"))),
        }
    )
    report = datapath.flush(complete=True)
    assert "the node's own address" in report.problems[0]
    assert works(victim)
