import asyncio
import select
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from lab import Node
from lrp_operator.kernel.linkwatch import LinkWatch
from lrp_operator.kernel.podlink import PodLinks

pytestmark = pytest.mark.privileged


@pytest.fixture
def watch(node: Node) -> Iterator[LinkWatch]:
    watch = LinkWatch(node.netns)
    while select.select([watch], [], [], 0.3)[0]:  # the node's own making has a tail: addresses and routes of its links
        watch.changed()
    yield watch
    watch.close()


def is_readable(watch: LinkWatch) -> bool:
    return bool(select.select([watch], [], [], 0)[0])


@pytest.mark.parametrize("bridge", [False, True], ids=["routed", "bridged"])
def test_pods_that_come_and_go_are_news(node: Node, watch: LinkWatch, bridge: bool) -> None:
    assert not watch.changed()
    pod = node.pod("a", bridge=bridge)
    assert is_readable(watch)
    assert watch.changed()
    pod.remove()
    assert watch.changed()


def test_another_nodes_changes_are_none(watch: LinkWatch) -> None:
    with Node() as other:
        other.pod("a")
    assert not watch.changed()


def test_a_route_is_news(node: Node, watch: LinkWatch) -> None:
    node.run(["ip", "route", "add", "unreachable", "10.50.0.0/16"])
    assert watch.changed()
    node.run(["ip", "-6", "route", "add", "unreachable", "fd50::/64"])
    assert watch.changed()


def test_a_neighbour_is_news_only_with_another_address(node: Node, watch: LinkWatch) -> None:
    pod = node.pod("a", bridge=True)
    ips = [ip_address(pod.ipv4).packed]
    with PodLinks(node.netns) as links:
        assert links.locate(ips)
        watch.changed()
        node.run(["ip", "neigh", "change", pod.ipv4, "dev", "cni0", "nud", "stale"])
        assert links.locate(ips)  # which makes the kernel ask, and hear the same again
        assert is_readable(watch)
        assert not watch.changed()
    node.run(["ip", "neigh", "replace", pod.ipv4, "dev", "cni0", "lladdr", "02:00:00:00:00:99", "nud", "stale"])
    assert watch.changed()
    node.run(["ip", "neigh", "del", pod.ipv4, "dev", "cni0"])
    assert watch.changed()


def test_an_overrun_is_news_and_not_the_end(node: Node, watch: LinkWatch) -> None:
    watch._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for number in range(40):
        node.pod(f"p{number}")
    assert watch.changed()
    assert not watch.changed()
    node.pod("after")
    assert watch.changed()


async def test_a_burst_is_one_change(node: Node, watch: LinkWatch, tmp_path: Path) -> None:
    changes = watch.changes(settle=0.5)
    waiting = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    burst = tmp_path / "burst"
    burst.write_text("".join(f"route add unreachable 10.50.{n}.0/24\n" for n in range(50)))
    await asyncio.to_thread(node.run, ["ip", "-batch", str(burst)])
    await asyncio.wait_for(waiting, 10)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(changes), 0.2)
