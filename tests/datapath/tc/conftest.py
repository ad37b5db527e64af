"""Nodes with the TC level: one with routed pods and one with pods on a bridge, each for all tests of a session."""

from collections.abc import Iterator

import pytest

from lab import Node
from tests.datapath.tc.tcworld import TcWorld


@pytest.fixture(scope="session", params=["routed", "bridged"])
def shared_tc(request: pytest.FixtureRequest) -> Iterator[TcWorld]:
    with Node() as node:
        world = TcWorld(node, bridged=request.param == "bridged")
        world.open()
        yield world
        world.close()


@pytest.fixture
def tc(shared_tc: TcWorld, _root: None) -> Iterator[TcWorld]:
    """A node whose pods are redirected at their links, both ways that pods are wired; nothing is programmed yet."""
    shared_tc.program()
    yield shared_tc
    shared_tc.program()
