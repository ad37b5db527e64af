"""One build's programs go into another's place: never doubled, never absent, and nothing is lost meanwhile."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab import Pod
from lrp_operator.datapath.plan import plan
from lrp_operator.datapath.programs import Programs
from lrp_operator.kernel import bpf, features
from lrp_operator.kernel.bpf import TcxHook
from lrp_operator.kernel.netns import in_netns
from lrp_operator.kernel.podlink import PodInterface
from lrp_operator.kernel.tcfilter import Hook
from tests.datapath.attach.ground import (
    OURS,
    Ground,
    Links,
    add_filter,
    filters_on,
    flood,
    place_of,
    revisions,
    tcx_on,
    without_tcx,
    works,
)
from tests.datapath.world import InNode

pytestmark = pytest.mark.privileged


@pytest.fixture
def other_build(ground: Ground, datapath: InNode) -> Iterator[dict[str, bpf.Fd]]:
    """The same programs with another clock: another build, with the same maps."""
    assert datapath
    real = features.probe()
    wanted = plan(ground.settings, replace(real, coarse_time=False), None)
    made = Programs(wanted, ground.settings.cgroup_root)
    in_netns(ground.node.netns, made.load)
    yield made.tc_programs()
    made.close()
    shutil.rmtree(Path(wanted.tc_programs.folder), ignore_errors=True)  # a reconcile may have


def running(ground: Ground, index: int) -> list[tuple[str, int]]:
    """Names and ids of our programs on a link, of either technology."""

    def look() -> list[tuple[str, int]]:
        found = []
        for hook in TcxHook:
            for number in bpf.attached_programs(index, hook):
                with bpf.open_program(number) as program:
                    found.append((bpf.prog_info(program).name, number))
        found += [(one.name, one.program) for hook in Hook for one in filters_on(index)[hook]]
        return sorted(one for one in found if one[0] in OURS)

    return in_netns(ground.node.netns, look)


def test_two_hundred_swaps_under_a_flood_lose_nothing(  # noqa: PLR0917 (fixtures)
    ground: Ground,
    links: Links,
    technology: str,
    client: Pod,
    interface: PodInterface,
    other_build: dict[str, bpf.Fd],
) -> None:
    first = links
    assert first.put(interface).changed
    second = Links(ground, tcx=technology == "tcx", programs=other_build)
    try:
        assert works(client)
        with flood(client) as known, flood(client, new_flows=True, way="6") as new:
            for number in range(200):
                one = (second, first)[number % 2]
                assert one.put(interface).changed
                now = {number for _, number in running(ground, client.veth.index)}
                assert len(now) == 2
                assert now <= set(one.ids)
                assert not one.put(interface).changed
            served = (known.sent, new.sent)
        for told in (known, new):
            assert told.lost == 0
            assert set(told.answers) == {"one"}
        print(f"datagrams answered during 200 swaps: {served}")
        assert min(served) > 50
        assert works(client)
    finally:
        assert first.take_off(interface.ifindex)
        second.close()


def test_ours_are_never_doubled(ground: Ground, attached: InNode, technology: str, client: Pod) -> None:
    index = client.veth.index
    before, revision = running(ground, index), ground.inside(lambda: revisions(index))
    assert len(before) == 2
    for _ in range(3):
        attached.flush(complete=True)
        assert attached.reconcile().repaired == ()
    assert running(ground, index) == before
    with ground.datapath() as again:  # as after a restart, or beside the old agent for a moment
        again.want_pods({"default/client": place_of(client)})
        assert again.flush(complete=True).links_attached == 0
        assert again.reconcile().repaired == ()
        assert running(ground, index) == before
    if technology == "tcx":
        assert ground.inside(lambda: revisions(index)) == revision
    assert works(client)


def test_an_upgrade_under_a_flood_loses_nothing(
    ground: Ground, technology: str, client: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another build, by the agent's own steps: the old one ends, the new one compiles, opens, learns of its pods."""
    with ground.datapath() as old:
        old.want_pods({"default/client": place_of(client)})
        old.flush(complete=True)
        before = running(ground, client.veth.index)
        with flood(client, pause=0.001) as told:
            old.close()
            real = features.probe
            monkeypatch.setattr(features, "probe", lambda: replace(real(), coarse_time=False))
            with ground.datapath() as new:
                new.flush(complete=False)
                new.want_pods({"default/client": place_of(client)})
                new.flush(complete=True)
                after = running(ground, client.veth.index)
                assert [name for name, _ in after] == [name for name, _ in before]
                assert not {number for _, number in after} & {number for _, number in before}
                new.want_pods({})
                # stays attached until the flood is over
                told_by_then = told.sent
        assert told.lost == 0
        assert set(told.answers) == {"one"}
        assert told_by_then > 20
    assert technology
    with ground.datapath() as last:
        last.flush(complete=True)
        last.reconcile()
        assert running(ground, client.veth.index) == []


def test_a_doubled_program_of_ours_is_put_right(
    ground: Ground, attached: InNode, technology: str, client: Pod, other_build: dict[str, bpf.Fd]
) -> None:
    """Whoever has put another build beside ours: one is left."""
    if technology == "clsact":
        pin = ground.node.bpf / "doubled"
        bpf.pin(other_build["lrp_to_pod"], pin)
        add_filter(ground, client.veth.name, "egress", 77, pin)
        pin.unlink()
    else:
        ground.inside(
            lambda: bpf.attach_to_link(other_build["lrp_to_pod"], client.veth.index, TcxHook.EGRESS, bpf.Place.LAST)
        )
    attached.reconcile()
    assert len(running(ground, client.veth.index)) == 2
    assert works(client)


def test_from_filters_to_tcx(ground: Ground, client: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel was upgraded while pods ran on (a live patch, say): one technology, never both."""
    with monkeypatch.context() as patch:
        without_tcx(patch)
        with ground.datapath() as old:
            old.want_pods({"default/client": place_of(client)})
            old.flush(complete=True)
            assert ground.inside(lambda: tcx_on(client.veth.index)) == {hook: [] for hook in TcxHook}
    with ground.datapath() as new:
        new.want_pods({"default/client": place_of(client)})
        new.flush(complete=True)
        assert len(running(ground, client.veth.index)) == 2
        assert works(client)
        new.want_pods({})
        new.flush(complete=True)
