import gc
import os
from collections.abc import Iterator

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from lab import Node, Pod
from lab import cleanup as cleanup_room
from lrp_operator.datapath.engine import cleanup
from lrp_operator.kernel.netns import in_netns
from lrp_operator.kernel.podlink import PodInterface
from tests.datapath.attach.ground import Ground, Links, Neighbours, place_of, without_tcx
from tests.datapath.world import InNode


def remove(pod: Pod) -> None:
    """End a pod, also where a test that failed has left it without its link."""
    try:
        pod.remove()
    except NetlinkError:
        cleanup_room.remove_netns(pod.name)
        os.close(pod.netns)
        cleanup_room.remove_cgroup(pod.cgroup)


@pytest.fixture(scope="session")
def shared_ground(_root_session: None) -> Iterator[Ground]:
    """A node with servers, for all tests of this folder."""
    with Node() as node:
        ground = Ground(node)
        yield ground
        in_netns(node.netns, lambda: cleanup(ground.settings.bpf_root, ground.settings.cgroup_root))


@pytest.fixture(scope="session")
def _root_session() -> None:
    """Without root, the fixture of each test says so."""


@pytest.fixture
def ground(_root: None, shared_ground: Ground) -> Iterator[Ground]:
    """The node; whatever pods a test makes are removed, and what a test attached too."""
    stay = set(shared_ground.node.pods)
    yield shared_ground
    for name in set(shared_ground.node.pods) - stay:
        remove(shared_ground.node.pods[name])
    for name in stay:
        assert shared_ground.ours_on(shared_ground.node.pods[name].veth.index) == [], f"left on {name}"
    gc.collect()


@pytest.fixture(params=["tcx", "clsact"])
def technology(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with each technology."""
    if request.param == "clsact":
        without_tcx(monkeypatch)
    return str(request.param)


@pytest.fixture
def datapath(ground: Ground) -> Iterator[InNode]:
    """An open datapath that redirects the VIPs once it has pods."""
    with ground.datapath() as datapath:
        assert datapath.flush(complete=True).problems == ()
        yield datapath
        datapath.want_pods({})
        datapath.flush(complete=True)


@pytest.fixture(params=["routed", "bridged"])
def client(ground: Ground, request: pytest.FixtureRequest) -> Pod:
    """A pod, on either kind of link."""
    return ground.node.pod("client", bridge=request.param == "bridged")


@pytest.fixture
def attached(ground: Ground, technology: str, datapath: InNode, client: Pod) -> InNode:
    """A datapath with the client's link attached, by either technology."""
    assert technology
    datapath.want_pods({"default/client": place_of(client)})
    assert datapath.flush(complete=True).links_attached == 1
    assert len(ground.ours_on(client.veth.index)) == 2
    return datapath


@pytest.fixture(scope="session")
def shared_neighbours(shared_ground: Ground) -> Iterator[Neighbours]:
    """Compiled once."""
    neighbours = Neighbours(shared_ground.node)
    yield neighbours
    neighbours.close()


@pytest.fixture
def neighbours(shared_neighbours: Neighbours) -> Neighbours:
    """Others' programs, as new."""
    shared_neighbours.forget()
    return shared_neighbours


@pytest.fixture
def links(ground: Ground, technology: str, datapath: InNode) -> Iterator[Links]:
    """LinkPrograms with either technology."""
    assert datapath
    links = Links(ground, tcx=technology == "tcx")
    yield links
    links.close()


@pytest.fixture
def interface(client: Pod) -> PodInterface:
    """The client's link as podlink describes it."""
    return PodInterface(client.veth.index, client.veth.name, client.bridged)
