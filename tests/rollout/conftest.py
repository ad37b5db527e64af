"""What the tests of this folder stand on: a lab node with a real agent, and root."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Node
from tests.rollout.cluster import Cluster, policy


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The node and the agent that `cluster` lends."""
    if os.geteuid():
        pytest.fail(
            'this test needs root; leave it out with `make unit` or `pytest -m "not privileged"`', pytrace=False
        )
    directory: Path = tmp_path_factory.mktemp("rollout")
    with Node() as node, Cluster(node, directory) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """A node with a running agent, the Service kube-dns, a policy for it and no pod; a test removes its own pods."""
    shared_cluster.write("policy", policy())
    yield shared_cluster
    shared_cluster.write("policy", policy())
    shared_cluster.redirected_to([])
