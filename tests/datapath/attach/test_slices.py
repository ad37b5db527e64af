"""Many links at once are served bit by bit: what else the worker is to do has its turn between."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from lab import Pod
from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath import tc
from lrp_operator.datapath.engine import cleanup
from lrp_operator.datapath.model import LinkState, SocketLevel, TcLevel
from lrp_operator.kernel.netns import in_netns
from lrp_operator.resolve.model import Delta, SkipEntry
from tests.datapath.attach.ground import Ground, packed, place_of, statuses, who_answers, works
from tests.datapath.world import DNS, UDP, VIP2, InNode, address_of, entry

pytestmark = pytest.mark.privileged

ATTACHED, WAITING = LinkState.ATTACHED, LinkState.WAITING


@pytest.fixture(autouse=True)
def _one_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time at all: each pass serves one link."""
    monkeypatch.setattr(tc, "ATTACH_SECONDS", 0.0)


@pytest.fixture
def pods(ground: Ground) -> list[Pod]:
    """From the oldest on, on both kinds of links."""
    return [ground.node.pod(f"pod-{number}", bridge=number % 2 == 1) for number in range(5)]


@pytest.fixture
def fresh(ground: Ground) -> Iterator[InNode]:
    """The first agent of a node; it has not been told of pods yet."""
    with ground.datapath() as datapath:
        yield datapath
        datapath.want_pods({})
        datapath.flush(complete=True)


def places(pods: list[Pod]) -> dict[str, object]:
    return {f"default/{pod.short_name}": place_of(pod) for pod in pods}


def states(datapath: InNode) -> dict[str, LinkState]:
    return {pod.removeprefix("default/"): row.state for (pod, _), row in statuses(datapath).items()}


def test_the_newest_come_first_and_all_have_their_turn(fresh: InNode, pods: list[Pod]) -> None:
    fresh.want_pods(places(pods))
    for served in range(1, 6):
        report = fresh.flush(complete=True)
        assert (report.links_attached, report.problems) == (1, ())
        assert states(fresh) == {pod.short_name: WAITING for pod in pods[:-served]} | {
            pod.short_name: ATTACHED for pod in pods[-served:]
        }
        status = fresh.status()
        assert bool(report.again_in) == (served < 5)
        assert status.in_force == (served == 5)
        assert status.in_force or "are being attached" in status.message
    assert all(works(pod) for pod in pods)
    assert fresh.flush(complete=True).links_attached == 0


def test_a_change_of_the_table_does_not_wait_for_all_links(ground: Ground, fresh: InNode, pods: list[Pod]) -> None:
    fresh.want_pods(places(pods))
    fresh.flush(complete=True)
    another = entry(L4Addr.make(VIP2["4"], DNS, UDP), address_of(ground.one, "4", DNS, UDP))
    fresh.update(Delta({another.frontend: another}, {}, {}))
    assert fresh.flush(complete=True).written == 1
    assert pods[-1].ask_udp(VIP2["4"], DNS).name == "one"
    assert WAITING in states(fresh).values()


def test_a_pod_that_comes_meanwhile_is_not_kept_waiting(ground: Ground, fresh: InNode, pods: list[Pod]) -> None:
    fresh.want_pods(places(pods))
    fresh.flush(complete=True)
    late = ground.node.pod("late")
    fresh.want_pods(places([*pods, late]))
    fresh.flush(complete=True)
    assert works(late)
    assert list(states(fresh).values()).count(WAITING) == 4


def test_once_it_has_started_a_node_is_in_force_though_links_wait(fresh: InNode, pods: list[Pod]) -> None:
    """A few pods that come together are none of the others' concern."""
    fresh.want_pods(places(pods[:1]))
    fresh.flush(complete=True)
    fresh.want_pods(places(pods))
    report = fresh.flush(complete=True)
    assert report.again_in
    assert WAITING in states(fresh).values()
    assert fresh.status().in_force


def test_a_reconcile_serves_those_that_are_known_whoever_waits(ground: Ground, fresh: InNode, pods: list[Pod]) -> None:
    fresh.want_pods(places(pods))
    fresh.flush(complete=True)
    newest = pods[-1].veth.index
    in_netns(ground.node.netns, lambda: fresh.inner._opened.tc._links.take_off(newest))
    assert ground.ours_on(newest) == []
    fresh.reconcile()
    assert len(ground.ours_on(newest)) == 2
    assert list(states(fresh).values()).count(WAITING) == 2, "it has two turns of its own"


def test_the_level_that_leaves_serves_until_all_links_have_had_their_turn(ground: Ground, pods: list[Pod]) -> None:
    """From the socket level to the TC level: nobody is without either, and who is exempt from the one is from both."""
    sockets = replace(ground.settings, socket_level=SocketLevel.EVERYWHERE, tc_level=TcLevel.OFF)
    *others, exempt = pods
    ips = packed(*exempt.addresses)
    skip = SkipEntry("default/exempt", exempt.name, ips, host_network=False, frontends=tuple(ground.entries))
    wanted = Delta(dict(ground.entries), {}, {skip.pod: skip})

    def all_is_well() -> bool:
        return who_answers(exempt) == ("untranslated",) * 2 and all(who_answers(pod) == ("one",) * 2 for pod in others)

    with InNode(ground.node, sockets) as before:
        before.update(wanted)
        before.flush(complete=True)
        assert all_is_well()
    try:
        with ground.datapath() as after:
            after.update(wanted)
            after.want_pods({**places(others), skip.pod: place_of(exempt)})
            for _ in range(4):
                assert after.flush(complete=True).again_in
                assert not after.status().in_force
                assert all_is_well()
            after.flush(complete=True)
            assert after.status().in_force
            assert all_is_well()
            assert {row.ifindex for row in after.skips()} == {exempt.veth.index}, "by its link alone"
            after.want_pods({})
            after.flush(complete=True)
    finally:
        in_netns(ground.node.netns, lambda: cleanup(ground.settings.bpf_root, ground.settings.cgroup_root))


def test_the_level_that_leaves_takes_its_programs_off_bit_by_bit(ground: Ground, pods: list[Pod]) -> None:
    """From the TC level to the socket level, and no flow is left."""
    sockets = replace(ground.settings, socket_level=SocketLevel.EVERYWHERE, tc_level=TcLevel.OFF)
    try:
        with ground.datapath() as before:
            before.want_pods(places(pods))
            while before.flush(complete=True).again_in:
                pass
        with InNode(ground.node, sockets) as after:
            after.flush(complete=True)
            left = [5]
            while after.status().flows:
                after.reconcile()
                left.append(sum(bool(ground.ours_on(pod.veth.index)) for pod in pods))
            assert sorted(set(left)) == [0, 1, 2, 3, 4, 5], "one at a time, of all pods'"
    finally:
        in_netns(ground.node.netns, lambda: cleanup(ground.settings.bpf_root, ground.settings.cgroup_root))
