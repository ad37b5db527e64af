"""What every test of the datapath stands on: a node made of network namespaces, and root."""

import os
from collections.abc import Iterator

import pytest

from lab import Node
from lrp_operator.datapath.engine import cleanup
from tests.datapath.world import World


@pytest.fixture(autouse=True)
def _root(request: pytest.FixtureRequest) -> None:
    """A privileged test without root fails, and says how to leave it out: it is never skipped in silence."""
    if request.node.get_closest_marker("privileged") and os.geteuid():
        pytest.fail(
            'this test needs root; leave it out with `make unit` or `pytest -m "not privileged"`', pytrace=False
        )


@pytest.fixture
def node(_root: None) -> Iterator[Node]:
    """An empty node. Give it pods with `node.pod(...)`."""
    with Node() as node:
        yield node


@pytest.fixture(scope="session")
def shared_world() -> Iterator[World]:
    """The node, pods and datapath that `world` lends."""
    if os.geteuid():
        pytest.fail("this test needs root", pytrace=False)
    with Node() as node:
        world = World(node)
        world.datapath.open()
        yield world
        world.datapath.close()
        cleanup(world.settings.bpf_root, world.settings.cgroup_root)


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    """A node with pods that serve and an open datapath without entries; a test need not clean up what it programs."""
    shared_world.program()
    yield shared_world
    shared_world.program()
