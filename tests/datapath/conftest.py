"""What every test of the datapath stands on: a node made of network namespaces, and root."""

import os
from collections.abc import Iterator

import pytest

from lab import Node


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
