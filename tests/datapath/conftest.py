"""What every test of the datapath stands on: a node made of network namespaces, and root."""

import os
import struct
from collections.abc import Iterator

import pytest

from lab import Node
from lrp_operator.datapath.engine import cleanup
from lrp_operator.kernel import bpf
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


@pytest.fixture
def vacant(world: World) -> None:
    """No place is taken, not even by what other tests' MPTCP connections leave for a minute."""
    for name in ("places4", "places6"):
        table = bpf.Map.open(world.settings.bpf_root / "sockets-v1" / name)
        table.update_many([(key, bytes(len(value))) for key, value in table.items()])
        table.close()


@pytest.fixture(params=["table", "storage"])
def memory(world: World, request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test twice: sockets find their places in the table free, and then taken, so that storage is used."""
    if request.param == "table":
        yield "table"
        return
    nobody = (1 << 64) - 1
    tables = [bpf.Map.open(world.settings.bpf_root / "sockets-v1" / name) for name in ("places4", "places6")]
    for table in tables:
        _fill(table, nobody, among=0)
    yield "storage"
    for table in tables:
        _fill(table, 0, among=nobody)
        table.close()


def _fill(table: bpf.Map, cookie: int, *, among: int) -> None:
    """Give the places of one owner to another."""
    found = [key for key, value in table.items() if struct.unpack_from("=Q", value)[0] == among]
    table.update_many([(key, struct.pack(f"=Q{table.info.value_size - 8}x", cookie)) for key in found])
