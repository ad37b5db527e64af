"""What the controller takes in a large cluster: memory, time until a status is current, writes.

The statuses that policies show at first are what the controller's own model of the cluster makes of it, put into etcd
with everything else: a cluster that has been looked after for long. Writing a thousand of them takes minutes at the
pace that is promised, and tells nothing.
"""

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import cluster_objects as objects
from benchmarks.cluster_lines import Effort, Lines, Tell
from benchmarks.cluster_processes import PATIENCE, Api, Controller, requests_of
from benchmarks.topology import BenchmarkError
from lrp_operator.agent.config import load_settings
from lrp_operator.api.nodestate import NodeRedirectState
from lrp_operator.api.objects import Node, Pod, Policy
from lrp_operator.controller.policies import SeenPolicy
from lrp_operator.controller.world import World
from lrp_operator.resolve.options import ClusterIPs
from tests.cluster.apiserver import Cluster

NODES, POLICIES, EVERYWHERE, ON = 5_000, 1_000, 5, 10
# Reports of the first nodes change all the time; these policies are served by others.
_CHURNING, _QUIET = NODES // 2, range(NODES // 2 // ON, NODES // ON - EVERYWHERE)
_REPORTS = "/apis/lrp-operator.io/v1alpha1/noderedirectstates"
_WRITING = ("create", "update", "patch", "delete")


def measure(cluster: Cluster, effort: Effort, lines: Lines, tell: Tell) -> None:
    """Do all of it."""
    tell(f"cluster: {NODES:,} nodes, {POLICIES:,} policies")
    world = objects.large_cluster(NODES, POLICIES, everywhere=EVERYWHERE, on=ON)
    _show(world)
    for part in (world.namespaces, world.nodes, world.pods, world.policies, world.reports):
        cluster.store(objects.stored(*part), at_once=objects.AT_ONCE)
    with tempfile.TemporaryDirectory(prefix="lrp-bench-") as directory:
        began = time.perf_counter()
        controller = Controller(cluster, Path(directory))
        try:
            controller.wait_until_ready()
            lines.add("controller-ready", time.perf_counter() - began)
            time.sleep(5)
            lines.add("controller-rss", controller.memory())
            lines.add("controller-idle", _statuses_written(cluster, controller))
            tell("cluster: reports that change")
            _Reports(cluster, world).flip(effort.reports, "current", lines)
            tell("cluster: all reports change")
            _churn(cluster, controller, world, effort, lines)
            lines.add("controller-peak", controller.memory("VmHWM"))
        finally:
            controller.end()


def _show(world: objects.LargeCluster) -> None:
    """Give the policies the statuses that they would show."""
    settings, _ = load_settings(None, {}, {})
    model = World(settings.local_redirect_policies.resolve_options(ClusterIPs.OMIT))
    model.put([msgspec.convert(node, Node) for node in world.nodes], (), Node)
    model.put([msgspec.convert(pod, Pod) for pod in world.pods], (), Pod)
    model.put_reports([msgspec.convert(report, NodeRedirectState) for report in world.reports], ())
    for policy in world.policies:
        seen = SeenPolicy(msgspec.convert(policy, Policy), "1", {})
        model.put_policy(seen.policy.metadata.key, seen)
        model.namespace_told(seen.policy.metadata.namespace)
    model.settle()
    for policy in world.policies:
        meta = policy["metadata"]
        job = model.job(f"{meta['namespace']}/{meta['name']}")
        assert job is not None
        policy["status"] = job.status


def _statuses_written(cluster: Cluster, controller: Controller) -> int:
    asked = requests_of(cluster, controller.user)
    return sum(r.verb in _WRITING and r.resource == "ciliumlocalredirectpolicies" for r in asked)


class _Reports:
    """Reports that change, one after the other."""

    def __init__(self, cluster: Cluster, world: objects.LargeCluster) -> None:
        self._api = Api(cluster)
        self._policies = world.policies[EVERYWHERE:]
        self._nodes = [node["metadata"]["name"] for node in world.nodes]
        self._by_name = {report["metadata"]["name"]: report for report in world.reports}

    def flip(self, times: int, name: str, lines: Lines) -> None:
        """Have a node say that it can't program a policy, and then that it can; time each until the status says so."""
        for number in range(times):
            index = _QUIET.start + number // 2 % len(_QUIET)
            policy = self._policies[index]
            node = self._nodes[(index + EVERYWHERE) * ON % NODES]
            programmed = number % 2 == 1
            began = time.perf_counter()
            self._api.merge(f"{_REPORTS}/{node}", {"report": self._said(node, policy, programmed)})
            self._wait(policy, ON if programmed else ON - 1)
            lines.add(name, time.perf_counter() - began)
        self._api.close()

    def _said(self, node: str, about: dict[str, Any], programmed: bool) -> dict[str, Any]:
        report = self._by_name[node]["report"]
        uid = about["metadata"]["uid"]
        trouble = {"redirected": 0, "reason": "NotProgrammed", "message": "the map is full"}
        entries = [entry if programmed or entry["uid"] != uid else entry | trouble for entry in report["policies"]]
        return {"policies": entries}

    def _wait(self, policy: dict[str, Any], programmed: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self._api.ask("GET", self._api.path(policy))["status"]["nodesProgrammed"] != programmed:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"the status of {policy['metadata']['name']} does not become current")
            time.sleep(0.02)


def _churn(cluster: Cluster, controller: Controller, world: objects.LargeCluster, effort: Effort, lines: Lines) -> None:
    """Have reports change as fast as one writer can, and look meanwhile how long a status takes that people act on."""
    over, written = threading.Event(), 0

    def write() -> None:
        nonlocal written
        api = Api(cluster)
        while not over.is_set():
            report = world.reports[written % _CHURNING]
            turn = written // _CHURNING % 2 == 0
            entries = [entry | {"redirected": 0 if turn and i < EVERYWHERE else 1} for i, entry in _entries(report)]
            api.merge(f"{_REPORTS}/{report['metadata']['name']}", {"report": {"policies": entries}})
            written += 1
        api.close()

    writer = threading.Thread(target=write, name="churn")
    before = _writes(cluster, controller)
    began = time.perf_counter()
    writer.start()
    try:
        while time.perf_counter() - began < effort.churn:
            _Reports(cluster, world).flip(2, "current-churn", lines)
    finally:
        over.set()
        writer.join()
    seconds = time.perf_counter() - began
    lines.add("churn", written / seconds)
    lines.add("writes", (_writes(cluster, controller) - before) / seconds)


def _entries(report: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    return list(enumerate(report["report"]["policies"]))


def _writes(cluster: Cluster, controller: Controller) -> int:
    return sum(request.verb in _WRITING for request in requests_of(cluster, controller.user))
