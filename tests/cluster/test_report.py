"""The node's report on a real API server: what it says, whose it is, and how seldom it is written."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lrp_operator.agent.config import load
from lrp_operator.agent.desired import Desired
from lrp_operator.agent.events import EventHub
from lrp_operator.agent.kube_source import KubernetesSource
from lrp_operator.agent.loop import Circle, Timing
from lrp_operator.agent.pods import PodNames
from lrp_operator.agent.report import Pace, Reporter
from lrp_operator.agent.view import Identity, View
from lrp_operator.agent.worker import Worker
from lrp_operator.api.addresses import L4Addr
from lrp_operator.sources.kube.backoff import Pauses
from lrp_operator.sources.kube.client import KubeClient
from tests.cluster.apiserver import Cluster, Manifest
from tests.cluster.conftest import CRDS
from tests.cluster.following import QUICK, account, policy, service, to_service, until
from tests.unit.agent.fakes import FakeDatapath

STATES = "/apis/lrp-operator.io/v1alpha1/noderedirectstates"
ORDER = "lrp-operator-withdraw"


class Forgetful(FakeDatapath):
    """A datapath that may lose everything."""

    forgets = False

    def held(self, frontends: Iterable[L4Addr]) -> set[L4Addr]:
        return set() if self.forgets else super().held(frontends)


@dataclass
class Reporting:
    """An agent without doors and without a kernel, and its report."""

    cluster: Cluster
    node: str
    namespace: str
    datapath: Forgetful
    view: View
    circle: Circle

    def report(self) -> dict[str, Any]:
        return self.state().get("report", {})

    def state(self) -> dict[str, Any]:
        answer = self.cluster.request("GET", f"{STATES}/{self.node}")
        return answer.body if answer else {}

    def policies(self) -> dict[str, dict[str, Any]]:
        return {entry["policy"].partition("/")[2]: entry for entry in self.report().get("policies", ())}

    def writes(self) -> int:
        """How often it was written, or would have been."""
        path = f"{STATES}/{self.node}"
        return sum(seen.verb == "patch" and seen.path.startswith(path) for seen in self.cluster.requests())

    async def until(self, **policies: int) -> None:
        """Wait until the report has these policies, with so many frontends redirected."""

        def is_so() -> bool:
            found = {name: entry.get("redirected", 0) for name, entry in self.policies().items()}
            return bool(self.report()) and found == policies

        await until(is_so, lambda: f"{policies}: {self.report()}, {self.view.reporting}")

    def pod(self, *, ready: bool = True) -> None:
        manifest: Manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "cache", "namespace": self.namespace, "labels": {"app": "dns"}},
            "spec": {
                "nodeName": self.node,
                "containers": [
                    {"name": "c", "image": "none", "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]}
                ],
            },
        }
        status = {"podIP": "10.244.0.9", "conditions": [{"type": "Ready", "status": str(ready)}]}
        self.cluster.apply(manifest)
        self.cluster.apply(manifest | {"status": status}, subresource="status")


@pytest.fixture
def pace() -> Pace:
    return Pace(gather=0.2, rest=0.5, pauses=Pauses(first=0.2, most=0.5))


RULES = [
    {"apiGroups": ["cilium.io"], "resources": ["ciliumlocalredirectpolicies"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["services", "pods", "nodes"], "verbs": ["list", "watch"]},
    {"apiGroups": ["lrp-operator.io"], "resources": ["noderedirectstates"], "verbs": ["create", "patch"]},
]
"""All that an agent needs where kube-proxy stays; endpointslices, to list and to watch, where it does not."""


def token_with(cluster: Cluster, namespace: str, rules: list[Manifest]) -> str:
    """The token of a new service account that may do this and nothing else."""
    meta = {"name": f"agent-{namespace}"}
    group = "rbac.authorization.k8s.io"
    cluster.apply({"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": meta, "rules": rules})
    cluster.apply(
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": meta["name"]},
            "subjects": [{"kind": "ServiceAccount", "name": "agent", "namespace": namespace}],
        }
    )
    return cluster.token_for("agent", namespace)


@pytest.fixture
async def reporting(cluster: Cluster, namespace: str, tmp_path: Path, pace: Pace) -> AsyncIterator[Reporting]:
    node = f"node-{namespace}"
    cluster.apply(own_node(node))
    client = KubeClient(account(cluster, tmp_path, token=token_with(cluster, namespace, RULES)))
    source = KubernetesSource(client, node, replaces_kube_proxy=False, timing=QUICK)
    loaded, worker, datapath = load(None, {}, {}), Worker(), Forgetful()
    pods = PodNames(node, lambda: None)
    circle = Circle(
        Desired(node, loaded, pods), datapath, worker, [source], hold_pins=lambda: None, timing=Timing(reconcile=0.1)
    )
    identity = Identity(node, loaded, loaded.datapath(tmp_path, tmp_path), datetime.now(UTC))
    view = View(identity, circle, pods, EventHub(datapath, worker, pods))
    reporter = Reporter(source, view, circle, order=f"{namespace}/{ORDER}", pace=pace)
    tasks = [asyncio.create_task(reporter.run()), asyncio.create_task(circle.run())]
    yield Reporting(cluster, node, namespace, datapath, view, circle)
    assert not any(task.done() for task in tasks), tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    worker.stop(patience=1)
    cluster.delete(own_node(node))
    cluster.request("DELETE", f"{STATES}/{node}")
    for kind in ("clusterroles", "clusterrolebindings"):
        cluster.request("DELETE", f"/apis/rbac.authorization.k8s.io/v1/{kind}/agent-{namespace}")


def own_node(name: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


async def test_what_it_says(reporting: Reporting) -> None:
    cluster, namespace = reporting.cluster, reporting.namespace
    await reporting.until()
    node = cluster.request("GET", f"/api/v1/nodes/{reporting.node}").body
    assert reporting.state()["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": reporting.node, "uid": node["metadata"]["uid"]}
    ]
    assert reporting.report()["inForce"] is True
    cluster.apply(service("dns", namespace))
    mine = cluster.apply(policy("p", namespace, to_service("dns", namespace)))
    cluster.apply(policy("elsewhere", namespace, to_service("other", namespace), app="other"))
    reporting.pod()
    await reporting.until(p=1)
    uid = mine["metadata"]["uid"]
    assert reporting.policies()["p"] == {
        "policy": f"{namespace}/p",
        "uid": uid,
        "generation": 1,
        "frontends": 1,
        "redirected": 1,
    }
    reporting.datapath.forgets = True
    await reporting.until(p=0)
    entry = reporting.policies()["p"]
    assert entry["reason"] == "NotProgrammed"
    assert entry["message"].endswith("53/UDP is not programmed: the kernel's maps do not hold it")
    reporting.datapath.forgets = False
    await reporting.until(p=1)
    reporting.pod(ready=False)
    await reporting.until()


async def test_whose_it_is(reporting: Reporting) -> None:
    """Its release's, by the order that its agent goes by; also where an older agent did not say so."""
    whose = {"lrp-operator.io/order-namespace": reporting.namespace, "lrp-operator.io/order-name": ORDER}
    await reporting.until()
    assert reporting.state()["metadata"]["labels"] == whose
    meta = {"name": reporting.node}
    older = {"apiVersion": "lrp-operator.io/v1alpha1", "kind": "NodeRedirectState", "metadata": meta}
    report = {"agentVersion": "0", "mode": "m", "inForce": True}
    reporting.cluster.apply(older | {"report": report}, manager="lrp-agent")
    assert "labels" not in reporting.state()["metadata"]
    reporting.cluster.apply(service("dns", reporting.namespace))
    reporting.cluster.apply(policy("p", reporting.namespace, to_service("dns", reporting.namespace)))
    reporting.pod()
    await reporting.until(p=1)
    assert reporting.state()["metadata"]["labels"] == whose


async def test_nothing_is_written_while_nothing_changes(reporting: Reporting) -> None:
    await reporting.until()
    passes = sum(reporting.circle.sync_times.counts)
    await until(lambda: sum(reporting.circle.sync_times.counts) > passes + 20, lambda: "more passes")
    assert reporting.writes() == 1


@pytest.mark.parametrize("pace", [Pace(gather=0.2, rest=5)])
async def test_churn_is_gathered(reporting: Reporting) -> None:
    cluster, namespace = reporting.cluster, reporting.namespace
    await reporting.until()
    cluster.apply(service("dns", namespace))
    cluster.apply(policy("p", namespace, to_service("dns", namespace)))
    for round_ in range(40):
        reporting.pod(ready=bool(round_ % 2))
        await asyncio.sleep(0.02)
    await reporting.until(p=1)
    assert reporting.writes() <= 3


async def test_a_node_that_is_made_again(reporting: Reporting) -> None:
    """The report of the Node that is gone goes with it; the new Node gets its own."""
    await reporting.until()
    first = reporting.state()["metadata"]["ownerReferences"][0]["uid"]
    reporting.cluster.delete(own_node(reporting.node))
    await until(lambda: "there is no Node named" in reporting.view.reporting, lambda: "the sentence")
    uid = reporting.cluster.apply(own_node(reporting.node))["metadata"]["uid"]
    await until(lambda: reporting.state()["metadata"]["ownerReferences"][0]["uid"] == uid, lambda: "the new owner")
    assert uid != first
    await until(lambda: not reporting.view.reporting, lambda: "peace")


async def test_without_its_definition_it_says_so_and_goes_on(cluster: Cluster, reporting: Reporting) -> None:
    crd = next(path for path in CRDS if "noderedirectstates" in path.name)
    await reporting.until()
    await asyncio.to_thread(cluster.kubectl, "delete", "-f", str(crd))
    try:
        cluster.apply(service("dns", reporting.namespace))
        cluster.apply(policy("p", reporting.namespace, to_service("dns", reporting.namespace)))
        reporting.pod()
        await until(lambda: "installed?)" in reporting.view.reporting, lambda: reporting.view.reporting)
        assert reporting.datapath.kernel, "what it is about goes on"
        assert reporting.view.problems() == [reporting.view.reporting]
    finally:
        await asyncio.to_thread(cluster.install, crd)
    await reporting.until(p=1)
    await until(lambda: not reporting.view.reporting, lambda: "peace")
    assert not reporting.report().get("problems")
