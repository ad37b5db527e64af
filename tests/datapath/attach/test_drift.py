"""What others undo is done again and told; what netlink could not tell of is found; cleanup takes all of ours."""

import asyncio
import socket
from pathlib import Path

import pytest

from lab import Pod
from lrp_operator.datapath.engine import cleanup
from lrp_operator.kernel import bpf
from lrp_operator.kernel.bpf import Place, TcxHook
from lrp_operator.kernel.linkwatch import LinkWatch
from lrp_operator.kernel.podlink import PodInterface
from lrp_operator.kernel.tcfilter import Hook
from tests.datapath.attach.ground import (
    PASS,
    Ground,
    Links,
    Neighbours,
    clsact_neighbour,
    filters_on,
    place_of,
    raw,
    tcx_on,
    works,
)
from tests.datapath.world import InNode

pytestmark = pytest.mark.privileged


def undo(ground: Ground, client: Pod, technology: str, hook: TcxHook) -> None:
    """Take one of our programs off, as somebody else would."""
    index = client.veth.index
    if technology == "clsact":
        for one in ground.inside(lambda: filters_on(index))[Hook[hook.name]]:
            ground.tc("filter", "del", "dev", client.veth.name, hook.name.lower(), "prio", str(one.priority))
        return
    (number,) = ground.inside(lambda: bpf.attached_programs(index, hook))
    with bpf.open_program(number) as program:
        ground.inside(lambda: bpf.detach_from_link(program, index, hook))


@pytest.mark.parametrize("hook", list(TcxHook), ids=["ingress", "egress"])
def test_what_somebody_detaches_is_put_back_and_told(
    ground: Ground, attached: InNode, technology: str, client: Pod, hook: TcxHook
) -> None:
    undo(ground, client, technology, hook)
    assert len(ground.ours_on(client.veth.index)) == 1
    report = attached.reconcile()
    assert report.repaired == ("programs attached to 1 links of pods",)
    assert len(ground.ours_on(client.veth.index)) == 2
    assert works(client)
    assert attached.reconcile().repaired == ()


def test_a_clsact_that_somebody_deletes(ground: Ground, attached: InNode, technology: str, client: Pod) -> None:
    if technology == "tcx":
        ground.tc("qdisc", "add", "dev", client.veth.name, "clsact")
    ground.tc("qdisc", "del", "dev", client.veth.name, "clsact")
    report = attached.reconcile()
    assert bool(report.repaired) is (technology == "clsact")
    assert works(client)


def test_programs_on_a_link_that_is_nobodys_are_removed_and_told(
    ground: Ground, links: Links, datapath: InNode, interface: PodInterface, client: Pod
) -> None:
    links.put(interface)  # by an agent before this one, say
    assert len(ground.ours_on(client.veth.index)) == 2
    assert datapath.reconcile().repaired == ("programs removed from 1 links",)
    assert ground.ours_on(client.veth.index) == []


async def test_an_overrun_leads_to_a_look_at_everything(ground: Ground, datapath: InNode) -> None:
    """The socket's buffer overflows while links come and go; among them is a pod's, which must not be missed."""
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        datapath.relocate()
        datapath.flush(complete=True)

    watch = LinkWatch(ground.node.netns)
    watch._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)

    async def follow() -> None:
        async for _ in watch.changes(settle=0.01):
            look()

    pod = await asyncio.to_thread(ground.node.pod, "pod")
    place = place_of(pod)
    await asyncio.to_thread(pod.remove)
    datapath.want_pods({"default/pod": place})
    datapath.flush(complete=True)
    # A flood that nobody reads away: what follows is lost to the socket.
    flood = ground.node.bpf.parent / "flood"
    flood.write_text("".join(f"route add unreachable 10.5{n % 10}.{n // 10}.0/24\n" for n in range(500)))
    await asyncio.to_thread(ground.node.run, ["ip", "-batch", str(flood)])
    # The link's own news is lost with the rest: only the overrun itself tells that there was any.
    again = await asyncio.to_thread(ground.node.pod, "pod", ipv4=pod.ipv4, ipv6=pod.ipv6)
    following = asyncio.ensure_future(follow())
    try:
        async with asyncio.timeout(10):
            while not ground.ours_on(again.veth.index):  # noqa: ASYNC110 (the kernel sets no event)
                await asyncio.sleep(0.01)
    finally:
        following.cancel()
        watch.close()
        flood.write_text(flood.read_text().replace("route add", "route del"))
        await asyncio.to_thread(ground.node.run, ["ip", "-force", "-batch", str(flood)], check=False)
        flood.unlink()
    assert looks
    assert works(again)


@pytest.mark.parametrize("theirs", ["tcx", "clsact", "none"])
def test_cleanup_takes_ours_and_leaves_others(
    ground: Ground, technology: str, client: Pod, neighbours: Neighbours, theirs: str
) -> None:
    index, device = client.veth.index, client.veth.name
    with raw(PASS) as program:
        if theirs == "tcx":
            for hook in TcxHook:
                ground.inside(lambda hook=hook: bpf.attach_to_link(program, index, hook, Place.LAST))
        with ground.datapath() as datapath:
            if theirs == "clsact":
                with clsact_neighbour(ground, neighbours, device, 30000):
                    _clean(ground, datapath, client, {"note_out", "check_in"})
            else:
                _clean(ground, datapath, client, {"neighbour"} if theirs == "tcx" else set())
    assert technology


def _clean(ground: Ground, datapath: InNode, client: Pod, theirs: set[str]) -> None:
    index = client.veth.index
    datapath.want_pods({"default/client": place_of(client)})
    datapath.flush(complete=True)
    attached = len(ground.ours_on(index))
    datapath.close()
    removed = ground.inside(lambda: cleanup(ground.settings.bpf_root, ground.settings.cgroup_root))
    assert (f"programs on {client.veth.name}" in removed) is bool(attached)
    assert ground.ours_on(index) == []
    assert list(Path(ground.settings.bpf_root).glob("*")) == []
    names = {n for found in ground.inside(lambda: tcx_on(index)).values() for n in found}
    names |= {f.name.split(":")[0] for found in ground.inside(lambda: filters_on(index)).values() for f in found}
    assert names == theirs
