"""The cluster part: what the agent and the controller take on a real API server (etcd and kube-apiserver on loopback).

cluster_lines.py        the table, and what is promised
cluster_agent.py        changes until they are in a node's map; starts in a large cluster; rest
cluster_controller.py   a thousand policies, five thousand nodes
cluster_objects.py      what the clusters are filled with        cluster_processes.py   agent, controller, API client
"""

from pathlib import Path

from benchmarks import cluster_agent, cluster_controller
from benchmarks.cluster_lines import Effort, Lines, Tell
from benchmarks.topology import BenchmarkError
from tests.cluster import binaries
from tests.cluster.apiserver import Cluster, ClusterError

_CRDS = Path(__file__).parents[1] / "deploy" / "crds"


def measure(effort: Effort, tell: Tell) -> Lines:
    """Do all of it, in two clusters."""
    lines = Lines()
    try:
        for part in (cluster_agent, cluster_controller):
            with Cluster(audit=True) as cluster:
                cluster.install(*_CRDS.glob("*.yaml"))
                part.measure(cluster, effort, lines, tell)
    except (ClusterError, binaries.NoProgramError) as error:
        raise BenchmarkError(str(error)) from error
    tell("")
    lines.compare()
    return lines
