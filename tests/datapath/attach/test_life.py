"""From a pod's coming to its going: programs come before its first packet, and nothing of it is left."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Pod
from lrp_operator.datapath import podports
from lrp_operator.datapath.model import LinkState, PodPlace
from lrp_operator.kernel.netns import list_netns
from tests.datapath.attach.ground import Ground, flood, packed, place_of, statuses, wait_until, without_tcx, works
from tests.datapath.world import InNode

pytestmark = pytest.mark.privileged


def descriptors() -> Counter[str]:
    """What this process holds open, by kind: sockets, namespaces, eBPF objects, files."""
    found: Counter[str] = Counter()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            found[str(fd.readlink()).split(":")[0]] += 1
        except FileNotFoundError:
            continue  # the directory's own
    return found


def pins(ground: Ground) -> set[str]:
    return {str(path) for path in ground.settings.bpf_root.rglob("*")}


def namespaces(ground: Ground) -> int:
    """How many other namespaces the node's links have led to and that are alive."""
    return len(ground.node.run(["ip", "netns", "list-id"]).stdout.splitlines())


def names(ground: Ground) -> set[str]:
    """Namespaces of this node's pods that a process is in or that have a name; other tests' come and go meanwhile."""
    return {found.path for found in list_netns().namespaces if ground.node.name in found.path}


# --- Coming


@pytest.mark.parametrize("when", ["before", "after"])
def test_programs_come_at_the_start(ground: Ground, technology: str, client: Pod, when: str) -> None:
    assert technology
    datapath = ground.datapath()
    if when == "before":
        datapath.want_pods({"default/client": place_of(client)})
    with datapath:
        if when == "after":
            datapath.want_pods({"default/client": place_of(client)})
        assert datapath.flush(complete=True).links_attached == 1
        assert works(client)
        datapath.want_pods({})
        datapath.flush(complete=True)


def test_programs_stay_and_serve_while_no_agent_runs(ground: Ground, technology: str, client: Pod) -> None:
    assert technology
    with ground.datapath() as datapath:
        datapath.want_pods({"default/client": place_of(client)})
        datapath.flush(complete=True)
    assert works(client)
    with ground.datapath() as datapath:
        assert works(client)
        datapath.flush(complete=False)  # the pods are not known yet
        assert works(client)
        datapath.want_pods({"default/client": place_of(client)})
        assert datapath.flush(complete=True).links_left == 0
        assert works(client)
        datapath.want_pods({})
        assert datapath.flush(complete=True).links_left == 1


def test_links_of_pods_that_went_while_no_agent_ran_are_let_go(ground: Ground, technology: str, client: Pod) -> None:
    assert technology
    with ground.datapath() as datapath:
        datapath.want_pods({"default/client": place_of(client)})
        datapath.flush(complete=True)
    with ground.datapath() as datapath:
        datapath.flush(complete=True)
        datapath.reconcile()
        assert ground.ours_on(client.veth.index) == []


def test_a_link_that_comes_after_its_address_is_known(ground: Ground, datapath: InNode) -> None:
    place = PodPlace("u", packed("10.244.0.200"))
    datapath.want_pods({"default/late": place})
    assert "no route" in datapath.flush(complete=True).problems[0]
    pod = ground.node.pod("late", ipv4="10.244.0.200", ipv6="fd00:10:244::200")
    datapath.relocate()
    report = datapath.flush(complete=True)
    assert (report.links_attached, report.problems) == (1, ())
    assert works(pod)


def test_addresses_that_change_are_followed(ground: Ground, datapath: InNode) -> None:
    one, two = ground.node.pod("a"), ground.node.pod("b")
    datapath.want_pods({"default/x": place_of(one)})
    datapath.flush(complete=True)
    datapath.want_pods({"default/x": place_of(two)})
    report = datapath.flush(complete=True)
    assert (report.links_attached, report.links_left) == (1, 1)
    assert ground.ours_on(one.veth.index) == []
    assert works(two)


@pytest.fixture
def awaiting(ground: Ground, technology: str) -> Iterator[InNode]:
    """A datapath that knows of a pod without addresses."""
    assert technology
    ground.node.pod("bystander", bridge=True)  # so that there is a bridge, and a link that is nobody's
    with ground.datapath() as datapath:
        datapath.flush(complete=True)
        datapath.want_pods({"default/soon": PodPlace("soon", ())})
        assert datapath.flush(complete=True).links_attached == 0
        yield datapath
        datapath.want_pods({})
        datapath.flush(complete=True)


@pytest.mark.parametrize("bridge", [False, True], ids=["routed", "bridged"])
def test_an_awaited_pods_link_gets_programs_before_its_address_is_known(
    ground: Ground, awaiting: InNode, bridge: bool
) -> None:
    pod = ground.node.pod("soon", bridge=bridge)
    assert awaiting.flush(complete=True).links_attached == 1
    assert works(pod)
    assert awaiting.pod_of_link(pod.veth.index) is None
    assert awaiting.status().problems == ()
    awaiting.want_pods({"default/soon": place_of(pod)})
    report = awaiting.flush(complete=True)
    assert (report.links_attached, report.links_left) == (0, 0)
    assert awaiting.pod_of_link(pod.veth.index) == "default/soon"
    assert works(pod)
    assert ground.ours_on(ground.node.pods["bystander"].veth.index) == []


def test_an_awaited_link_that_joins_its_bridge_later(ground: Ground, awaiting: InNode) -> None:
    """CNIs make the veth first and put it into the bridge afterwards; a pass may come between the two."""
    pod = ground.node.pod("soon", bridge=True)
    ground.node.run(["ip", "link", "set", pod.veth.name, "nomaster"])
    awaiting.flush(complete=True)
    assert ground.ours_on(pod.veth.index) == ["lrp_from_pod", "lrp_to_pod"]
    ground.node.run(["ip", "link", "set", pod.veth.name, "master", "cni0"])
    awaiting.flush(complete=True)
    assert ground.ours_on(pod.veth.index) == ["lrp_from_port", "lrp_to_pod"]
    awaiting.want_pods({"default/soon": place_of(pod)})
    awaiting.flush(complete=True)
    assert works(pod)


def test_a_link_that_is_renamed(ground: Ground, awaiting: InNode) -> None:
    """CNIs make links under a passing name, too."""
    pod = ground.node.pod("soon")
    awaiting.flush(complete=True)
    ground.node.run(["ip", "link", "set", pod.veth.name, "down"])
    ground.node.run(["ip", "link", "set", pod.veth.name, "name", "vethb4c3"])
    ground.node.run(["ip", "link", "set", "vethb4c3", "up"])
    for address in pod.addresses:
        ground.node.run(["ip", "route", "replace", address, "dev", "vethb4c3"])
        ground.node.run(["ip", "neigh", "replace", address, "dev", "vethb4c3", "lladdr", pod.veth.pod_mac])
    awaiting.want_pods({"default/soon": place_of(pod)})
    awaiting.flush(complete=True)
    assert statuses(awaiting)["default/soon", "vethb4c3"].state is LinkState.ATTACHED
    assert len(ground.ours_on(pod.veth.index)) == 2
    assert works(pod)


def test_a_link_that_nobody_claims_is_let_go(ground: Ground, awaiting: InNode, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = ground.node.pod("somebodys")
    assert awaiting.flush(complete=True).links_attached == 1
    monkeypatch.setattr(podports, "_CLAIM_SECONDS", 0.0)
    assert awaiting.flush(complete=True).links_left == 1
    assert ground.ours_on(pod.veth.index) == []
    monkeypatch.setattr(podports, "_CLAIM_SECONDS", 60.0)
    awaiting.want_pods({"default/soon": place_of(pod)})  # it comes after all
    assert awaiting.flush(complete=True).links_attached == 1
    assert works(pod)


def test_when_nobody_is_awaited_any_more_the_unclaimed_go(ground: Ground, awaiting: InNode) -> None:
    pod, other = ground.node.pod("soon"), ground.node.pod("somebodys")
    assert awaiting.flush(complete=True).links_attached == 2
    awaiting.want_pods({"default/soon": place_of(pod)})
    assert awaiting.flush(complete=True).links_left == 1
    assert ground.ours_on(other.veth.index) == []
    assert works(pod)


# --- Going


def test_a_pod_that_goes_leaves_nothing(ground: Ground, technology: str, datapath: InNode) -> None:
    assert technology
    held, pinned, spaces, named = descriptors(), pins(ground), namespaces(ground), names(ground)
    for bridge in (False, True):
        pod = ground.node.pod("a", bridge=bridge)
        datapath.want_pods({"default/a": place_of(pod)})
        datapath.flush(complete=True)
        assert works(pod)
        pod.remove()
        report = datapath.flush(complete=True)  # its link is gone before the API says so
        assert any("default/a" in problem for problem in report.problems)
        datapath.want_pods({})
        assert datapath.flush(complete=True).problems == ()
        assert datapath.reconcile().problems == ()
        assert datapath.status().links == ()
    assert pins(ground) == pinned
    assert descriptors() == held
    assert names(ground) == named
    wait_until(lambda: namespaces(ground) == spaces, "something keeps a pod's namespace alive")


def test_a_pod_whose_link_outlives_it(ground: Ground, technology: str, datapath: InNode, client: Pod) -> None:
    assert technology
    datapath.want_pods({"default/client": place_of(client)})
    datapath.flush(complete=True)
    datapath.want_pods({})
    assert datapath.flush(complete=True).links_left == 1
    assert ground.ours_on(client.veth.index) == []


def test_a_successor_with_the_same_name_and_address(ground: Ground, attached: InNode, client: Pod) -> None:
    name, addresses, bridged = client.short_name, client.addresses, client.bridged
    client.remove()
    again = ground.node.pod(name, ipv4=addresses[0], ipv6=addresses[1], bridge=bridged)
    assert again.veth.name == client.veth.name
    attached.want_pods({"default/client": place_of(again)})
    assert attached.flush(complete=True).links_attached == 1
    assert works(again)


@pytest.mark.parametrize("known_as", ["another pod", "the same pod"])
def test_a_successor_with_the_same_name_and_index(
    ground: Ground, technology: str, datapath: InNode, known_as: str
) -> None:
    """Indexes don't come again by themselves, but who makes a link may name one: the next reconcile sees to it."""
    assert technology
    pod = ground.node.pod("a")
    datapath.want_pods({"default/a": place_of(pod)})
    datapath.flush(complete=True)
    name, index = pod.veth.name, str(pod.veth.index)
    ground.node.run(["ip", "link", "del", name])
    ground.node.run(["ip", "link", "add", name, "index", index, "type", "veth", "peer", "eth0", "netns", pod.name])
    ground.node.run(["ip", "link", "set", name, "up"])
    pod.run(["ip", "link", "set", "eth0", "up"])
    for address in pod.addresses:
        pod.run(["ip", "addr", "add", address, "dev", "eth0"])
        ground.node.run(["ip", "route", "add", address, "dev", name])
    if known_as == "another pod":
        datapath.want_pods({"default/b": place_of(pod)})
    datapath.flush(complete=True)
    datapath.reconcile()
    assert len(ground.ours_on(pod.veth.index)) == 2


def test_pods_come_and_go_by_the_hundred(ground: Ground) -> None:
    """500 pods, some at a time, as the agent sees them; meanwhile another pod's traffic goes on without a loss."""
    total, batch = 500, 10
    steady = ground.node.pod("steady")
    with ground.datapath() as datapath:
        wanted = {"default/steady": place_of(steady)}
        datapath.want_pods(wanted)
        datapath.flush(complete=True)
        held, pinned, spaces = descriptors(), pins(ground), namespaces(ground)
        with flood(steady, new_flows=True, pause=0.001) as told:
            for start in range(0, total, batch):
                names = [f"c{n}" for n in range(start, start + batch)]
                datapath.want_pods({**wanted, **{f"default/{n}": PodPlace(n, ()) for n in names}})
                datapath.flush(complete=True)
                pods = [ground.node.pod(name, bridge=n % 2 == 1) for n, name in enumerate(names)]
                assert datapath.flush(complete=True).links_attached == batch
                datapath.want_pods({**wanted, **{f"default/{p.short_name}": place_of(p) for p in pods}})
                report = datapath.flush(complete=True)
                assert (report.problems, report.links_attached, report.links_left) == ((), 0, 0)
                if start % 100 == 0:
                    assert works(pods[0])
                    assert works(pods[1])
                    datapath.reconcile()
                for pod in pods:
                    pod.remove()
                datapath.flush(complete=True)
            datapath.want_pods(wanted)
            datapath.flush(complete=True)
            datapath.reconcile()
        assert told.lost == 0
        assert set(told.answers) == {"one"}
        assert told.sent > 1000
        assert set(statuses(datapath)) == {("default/steady", steady.veth.name)}
        assert pins(ground) == pinned
        found = descriptors()
        assert found - held == Counter()
        wait_until(lambda: namespaces(ground) <= spaces, "something keeps pods' namespaces alive")
        datapath.want_pods({})
        datapath.flush(complete=True)


def test_churn_without_tcx(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A little of the same."""
    without_tcx(monkeypatch)
    with ground.datapath() as datapath:
        for _ in range(5):
            pods = [ground.node.pod(f"c{n}", bridge=n % 2 == 1) for n in range(4)]
            datapath.want_pods({f"default/{p.short_name}": place_of(p) for p in pods})
            assert datapath.flush(complete=True).links_attached == 4
            assert works(pods[0], "4")
            for pod in pods:
                pod.remove()
        datapath.want_pods({})
        assert datapath.flush(complete=True).problems == ()
        assert datapath.status().links == ()
