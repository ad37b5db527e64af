"""The chart's roles are what the code needs and nothing more, and an agent writes the report of its own node only.

The first half has the real agent's source and reporter, and the real controller, work under the chart's roles, and
compares what the audit log saw with every verb of every rule. They reach the API server through a proxy that knows no
watch lists, as older servers don't: then they list and watch, which takes both verbs.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest

from lrp_operator.agent.config import load
from lrp_operator.agent.desired import Desired
from lrp_operator.agent.events import EventHub
from lrp_operator.agent.kube_source import KubernetesSource
from lrp_operator.agent.loop import Circle, Timing
from lrp_operator.agent.pods import PodNames
from lrp_operator.agent.report import Pace, Reporter
from lrp_operator.agent.view import Identity, View
from lrp_operator.agent.withdraw import Order
from lrp_operator.agent.worker import Worker
from lrp_operator.api.withdrawal import labels_of_reports
from lrp_operator.sources.kube.client import KubeClient
from lrp_operator.sources.kube.credentials import Credentials
from tests.cluster.apiserver import Answer, Cluster, Manifest
from tests.cluster.charting import RELEASE, Helm, Values, one
from tests.cluster.faulty import FaultyProxy, Refuse
from tests.cluster.following import QUICK, account, heed, policy, service, to_address, to_service, until
from tests.unit.agent.fakes import FakeDatapath

ROOT = Path(__file__).parents[2]
STATES = "/apis/lrp-operator.io/v1alpha1/noderedirectstates"
APPLY = "application/apply-patch+yaml"
RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
ADMISSION = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
IN_NO_NAMESPACE = (*ADMISSION, "ClusterRole", "ClusterRoleBinding")


@contextmanager
def installed(cluster: Cluster, manifests: list[Manifest], *kinds: str) -> Iterator[None]:
    """Some kinds of what the chart renders, while the block lasts."""
    wanted = [manifest for manifest in manifests if manifest["kind"] in kinds]
    try:
        for manifest in wanted:
            cluster.apply(manifest)
        yield
    finally:
        for manifest in wanted:
            if manifest["kind"] in IN_NO_NAMESPACE:
                cluster.delete(manifest)


def node(name: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def pod(name: str, namespace: str, on: str, *, app: str = "", account: str = "default") -> Manifest:
    container = {"name": "c", "image": "none", "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}},
        "spec": {"nodeName": on, "serviceAccountName": account, "containers": [container]},
    }


def start_pod(cluster: Cluster, manifest: Manifest) -> None:
    """Make a pod, running and ready, as the kubelet would tell."""
    cluster.apply(manifest)
    status = {"podIP": "10.244.0.9", "conditions": [{"type": "Ready", "status": "True"}]}
    cluster.apply(manifest | {"status": status}, subresource="status")


# --- What is granted, and what is used --------------------------------------------------------------------------------


class Right(NamedTuple):
    """One verb on one kind of object. namespace: empty for all; name: empty for any."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""

    def covers(self, other: "Right") -> bool:
        """Whether who has this right may do what asks for the other."""
        same = self[:3] == other[:3]
        return same and self.namespace in ("", other.namespace) and self.name in ("", other.name)


def granted(manifests: list[Manifest], component: str) -> set[Right]:
    """Every verb of every rule of the roles of an agent or a controller."""
    roles = [
        manifest
        for manifest in manifests
        if manifest["kind"] in ("ClusterRole", "Role")
        and manifest["metadata"]["labels"]["app.kubernetes.io/component"] == component
    ]
    return {
        Right(verb, group, resource, role["metadata"].get("namespace", ""), name)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


@dataclass(frozen=True)
class Uses:
    """What a user has asked for: the rights that takes, and the requests that were refused for want of one."""

    rights: set[Right]
    refused: list[str]


def uses(cluster: Cluster, user: str) -> Uses:
    """Read it from the audit log, in which the authorizer has its say on every request."""
    rights, refused = set(), []
    for line in (cluster.dir / "audit.log").read_text().splitlines():
        if user not in line:
            continue
        entry = json.loads(line)
        if entry["user"].get("username") != user:
            continue
        if entry["annotations"].get("authorization.k8s.io/decision") != "allow":
            refused.append(f"{entry['verb']} {entry['requestURI']}")
        about = entry.get("objectRef", {})
        if "resource" not in about:  # what the API can do: any authenticated user may ask that
            continue
        resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        where = (about.get("apiGroup", ""), resource, about.get("namespace", ""), about.get("name", ""))
        rights.add(Right(entry["verb"], *where))
        if entry["verb"] == "patch" and entry.get("responseStatus", {}).get("code") == 201:
            rights.add(Right("create", *where))  # asked for as well, by an apply to what is not there yet
    return Uses(rights, refused)


def unused(rights: set[Right], used: Uses) -> list[Right]:
    return sorted(right for right in rights if not any(right.covers(use) for use in used.rights))


def beyond(rights: set[Right], used: Uses) -> list[Right]:
    return sorted(use for use in used.rights if not any(right.covers(use) for right in rights))


def settings_in(manifests: list[Manifest], directory: Path) -> Path:
    """Write the settings that the chart has for agents and the controller."""
    (directory / "settings.yaml").write_text(one(manifests, "ConfigMap", "settings")["data"]["settings.yaml"])
    return directory / "settings.yaml"


# --- The agent --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def agent_at_work(credentials: Credentials, own_node: str, settings: Path, order: str) -> AsyncIterator[View]:
    """An agent without doors and without a kernel: the real source, resolver and reporter, and the order followed."""
    loaded, directory = load(settings, {}, {}), settings.parent
    client = KubeClient(credentials)
    source = KubernetesSource(client, own_node, replaces_kube_proxy=loaded.mode.replaces_kube_proxy, timing=QUICK)
    worker, datapath, pods = Worker(), FakeDatapath(), PodNames(own_node, lambda: None)
    desired = Desired(own_node, loaded, pods)
    circle = Circle(desired, datapath, worker, [source], hold_pins=lambda: None, timing=Timing(reconcile=0.1))
    identity = Identity(own_node, loaded, loaded.datapath(directory, directory), datetime.now(UTC))
    view = View(identity, circle, pods, EventHub(datapath, worker, pods))
    reporter = Reporter(source, view, circle, pace=Pace(gather=0.2, rest=0.2))
    following = Order(KubeClient(credentials), order, QUICK)
    tasks = [asyncio.create_task(life.run()) for life in (reporter, circle, following)]
    try:
        yield view
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        worker.stop(patience=1)


@pytest.mark.parametrize("replaces", [False, True], ids=["kube-proxy stays", "kube-proxy replaced"])
async def test_an_agent_may_do_what_it_does_and_nothing_more(
    cluster: Cluster, namespace: str, helm: Helm, tmp_path: Path, replaces: bool
) -> None:
    own = f"node-{namespace}"
    values: Values = {"localRedirectPolicies": {"addressMatcherCIDRs": []}}
    if replaces:
        values["kubeProxyReplacement"] = True
    manifests = helm.template(values, namespace=namespace)
    user = f"system:serviceaccount:{namespace}:{RELEASE}-agent"
    rights = granted(manifests, "agent")

    def reported() -> list[str]:
        answer = cluster.request("GET", f"{STATES}/{own}")
        return [entry["policy"] for entry in answer.body["report"].get("policies", ())] if answer else []

    with installed(cluster, manifests, *RIGHTS, *ADMISSION), FaultyProxy(cluster) as proxy:
        proxy.add(Refuse(400, "BadRequest"), "WATCH", "sendInitialEvents")
        cluster.apply(node(own))
        cluster.apply(pod("agent", namespace, own, account=f"{RELEASE}-agent"))
        token = cluster.token_for(f"{RELEASE}-agent", namespace, pod="agent")
        credentials = account(cluster, tmp_path, proxy.url, token)
        order = f"{namespace}/{one(manifests, 'ConfigMap', 'uninstall')['metadata']['name']}"
        try:
            async with agent_at_work(credentials, own, settings_in(manifests, tmp_path), order) as view:
                await until(
                    lambda: bool(cluster.request("GET", f"{STATES}/{own}")), lambda: f"a report {view.reporting}"
                )
                cluster.apply(service("dns", namespace))
                cluster.apply(policy("by-name", namespace, to_service("dns", namespace)))
                cluster.apply(policy("by-address", namespace, to_address("10.1.2.3")))  # it takes all Services to know
                start_pod(cluster, pod("cache", namespace, own, app="dns"))
                wanted = [f"{namespace}/by-address", f"{namespace}/by-name"]
                await until(lambda: reported() == wanted, lambda: f"the report {reported()} {view.reporting}")
                with contextlib.suppress(AssertionError):  # told below, in full
                    await until(lambda: not unused(rights, uses(cluster, user)), lambda: "every right to be used")
                assert not view.problems()
        finally:
            cluster.delete(node(own))
            cluster.request("DELETE", f"{STATES}/{own}")
    used = uses(cluster, user)
    assert not used.refused
    assert not beyond(rights, used), "needed, and allowed by something else than the chart's roles"
    assert not unused(rights, used), "granted, and never needed"


# --- The controller ---------------------------------------------------------------------------------------------------


@contextmanager
def controller_at_work(manifests: list[Manifest], kubeconfig: Path, directory: Path) -> Iterator[None]:
    """The controller as the chart starts it, but for where it listens and who it is."""
    (container,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    settings = settings_in(manifests, directory)
    elsewhere = [
        f"--config={settings}",
        f"--kubeconfig={kubeconfig}",
        "--metrics-bind-address=",
        "--healthz-bind-address=",
    ]
    command = [sys.executable, "-m", "lrp_operator.controller", *container["args"], *elsewhere]
    with (directory / "log").open("w") as log, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as process:
        try:
            yield
            assert process.poll() is None
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
            print((directory / "log").read_text())  # shown if the test failed


@pytest.mark.parametrize("despite_cilium", [False, True])
def test_the_controller_may_do_what_it_does_and_nothing_more(
    cluster: Cluster, namespace: str, helm: Helm, tmp_path: Path, despite_cilium: bool
) -> None:
    manifests = helm.template({"despiteCilium": despite_cilium}, namespace=namespace)
    user = f"system:serviceaccount:{namespace}:{RELEASE}-controller"
    rights = granted(manifests, "controller")
    with installed(cluster, manifests, *RIGHTS), FaultyProxy(cluster) as proxy:
        proxy.add(Refuse(400, "BadRequest"), "WATCH", "sendInitialEvents")
        token = cluster.token_for(f"{RELEASE}-controller", namespace)
        kubeconfig = cluster.kubeconfig(token=token, server=proxy.url)
        first = cluster.apply(policy("first", namespace, to_address("169.254.20.10")))
        with controller_at_work(manifests, kubeconfig, tmp_path):
            told_and_then_gone(cluster, first)
            deadline = time.monotonic() + 40
            while unused(rights, uses(cluster, user)) and time.monotonic() < deadline:
                time.sleep(0.1)
    used = uses(cluster, user)
    assert not used.refused
    assert not beyond(rights, used), "needed, and allowed by something else than the chart's roles"
    assert not unused(rights, used), "granted, and never needed"


def told_and_then_gone(cluster: Cluster, manifest: Manifest) -> None:
    """A policy's status is written, also after an edit, and people are told; then the policy goes."""
    path, namespace = cluster.path(manifest), manifest["metadata"]["namespace"]
    events = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
    for generation, port in ((1, "53"), (2, "54")):
        frontend = {"addressMatcher": {"ip": "169.254.20.10", "toPorts": [{"port": port, "protocol": "UDP"}]}}
        cluster.apply(policy(manifest["metadata"]["name"], namespace, frontend))
        deadline = time.monotonic() + 60
        while (cluster.request("GET", path).body.get("status") or {}).get("observedGeneration") != generation:
            assert time.monotonic() < deadline, f"no status of generation {generation}"
            time.sleep(0.05)
    while not cluster.request("GET", events).body["items"]:
        assert time.monotonic() < deadline, "no Event"
        time.sleep(0.05)
    cluster.delete(manifest)


# --- The uninstalling Job ---------------------------------------------------------------------------------------------


def test_who_uninstalls_may_do_what_that_takes_and_nothing_more(cluster: Cluster, namespace: str, helm: Helm) -> None:
    manifests = helm.template(namespace=namespace)
    user = f"system:serviceaccount:{namespace}:{RELEASE}-uninstall"
    rights = granted(manifests, "uninstall")
    own = f"node-{namespace}"
    meta = {"name": own, "labels": labels_of_reports(f"{namespace}/{RELEASE}-withdraw")}
    state = {"apiVersion": "lrp-operator.io/v1alpha1", "kind": "NodeRedirectState", "metadata": meta}
    (container,) = one(manifests, "Job")["spec"]["template"]["spec"]["containers"]
    with installed(cluster, manifests, *RIGHTS, "ConfigMap"), FaultyProxy(cluster) as proxy:
        proxy.add(Refuse(400, "BadRequest"), "WATCH", "sendInitialEvents")
        kubeconfig = cluster.kubeconfig(token=cluster.token_for(f"{RELEASE}-uninstall", namespace), server=proxy.url)
        command = [sys.executable, "-m", "lrp_operator.controller", *container["args"], f"--kubeconfig={kubeconfig}"]
        order = f"/api/v1/namespaces/{namespace}/configmaps/{RELEASE}-withdraw"
        report = {"agentVersion": "1", "mode": "m", "inForce": False}
        cluster.apply(state | {"report": report})
        with ThreadPoolExecutor() as agents:
            agent = agents.submit(heed, cluster, order, state, report)
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            agent.result()
        assert done.returncode == 0, done.stdout + done.stderr
        assert "data" not in cluster.request("GET", order).body, "the order is given"
        assert not cluster.request("GET", f"{STATES}/{own}")
    used = uses(cluster, user)
    assert not used.refused
    assert not beyond(rights, used), "needed, and allowed by something else than the chart's roles"
    assert not unused(rights, used), "granted, and never needed"


# --- The report of a node, and who may write it -----------------------------------------------------------------------


@dataclass(frozen=True)
class Reports:
    """Two nodes with an agent's pod each, and what agents try."""

    cluster: Cluster
    namespace: str

    @property
    def nodes(self) -> tuple[str, str]:
        return f"{self.namespace}-a", f"{self.namespace}-b"

    def token(self, on: str | None) -> str:
        """The token of the agent's pod on a node, or one that is bound to no pod."""
        return self.cluster.token_for(f"{RELEASE}-agent", self.namespace, pod=on and f"agent-{on}")

    def body(self, name: str) -> Manifest:
        return {
            "apiVersion": "lrp-operator.io/v1alpha1",
            "kind": "NodeRedirectState",
            "metadata": {"name": name},
            "report": {"agentVersion": "1", "mode": "m", "inForce": True, "policies": []},
        }

    def apply(self, token: str, name: str, dry_run: str = "") -> Answer:
        query = f"fieldManager=lrp-agent&force=true{dry_run}"
        return self.cluster.request(
            "PATCH", f"{STATES}/{name}?{query}", self.body(name), token=token, content_type=APPLY
        )

    def merge(self, token: str, name: str) -> Answer:
        change = {"report": {"mode": "another"}}
        kind = "application/merge-patch+json"
        return self.cluster.request("PATCH", f"{STATES}/{name}", change, token=token, content_type=kind)

    def create(self, token: str, body: Manifest) -> Answer:
        return self.cluster.request("POST", STATES, body, token=token)

    def delete(self, token: str, name: str) -> Answer:
        return self.cluster.request("DELETE", f"{STATES}/{name}", token=token)


@pytest.fixture
async def reports(cluster: Cluster, namespace: str, helm: Helm) -> AsyncIterator[Reports]:
    reports = Reports(cluster, namespace)
    with installed(cluster, helm.template(namespace=namespace), *RIGHTS, *ADMISSION):
        for name in reports.nodes:
            cluster.apply(node(name))
            cluster.apply(pod(f"agent-{name}", namespace, name, account=f"{RELEASE}-agent"))
        unbound = reports.token(None)
        # The API server takes up rules a moment after it has stored them.
        await until(
            lambda: reports.apply(unbound, "none", "&dryRun=All").status == 403, lambda: "the rules to be in force"
        )
        yield reports
        for name in reports.nodes:
            cluster.delete(node(name))
            cluster.request("DELETE", f"{STATES}/{name}")


def said(answer: Answer) -> str:
    """Why a request was refused."""
    assert answer.status == 403, answer
    return str(answer.body["message"])


async def test_an_agent_writes_the_report_of_its_own_node(reports: Reports) -> None:
    a, b = reports.nodes
    token = reports.token(a)
    assert reports.apply(token, a).status == 201
    assert reports.apply(token, a).status == 200
    assert reports.merge(token, a).status == 200
    assert reports.apply(reports.token(b), b).status == 201
    assert reports.apply(reports.cluster.token, a).status == 200, "others are none of its business"


async def test_an_agent_writes_no_other_nodes_report(reports: Reports) -> None:
    a, b = reports.nodes
    token = reports.token(a)
    sentence = f"an agent may write the NodeRedirectState of its own node, {a}, and not that of {b}"
    assert sentence in said(reports.apply(token, b)), "there is none yet"
    assert sentence in said(reports.create(token, reports.body(b)))
    assert reports.apply(reports.token(b), b)
    assert sentence in said(reports.apply(token, b)), "there is one"
    assert sentence in said(reports.merge(token, b))
    nameless = reports.body(b)
    nameless["metadata"] = {"generateName": f"{a}"}
    assert "an agent may write" in said(reports.create(token, nameless))
    assert '-agent" cannot delete resource' in said(reports.delete(token, a))
    assert reports.cluster.request("GET", f"{STATES}/{b}").body["report"]["mode"] == "m"


async def test_a_token_that_names_no_node_writes_no_report(reports: Reports) -> None:
    a, _ = reports.nodes
    token = reports.token(None)
    assert "does not say which node" in said(reports.apply(token, a))
    assert "does not say which node" in said(reports.create(token, reports.body(a)))


async def test_whatever_else_an_agent_is_allowed(reports: Reports) -> None:
    """The rule holds for an agent's account even if somebody has made it an administrator."""
    a, b = reports.nodes
    group = "rbac.authorization.k8s.io"
    binding: Manifest = {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"too-much-{reports.namespace}"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": f"{RELEASE}-agent", "namespace": reports.namespace}],
    }
    token = reports.token(a)
    assert reports.apply(reports.token(b), b)
    reports.cluster.apply(binding)
    try:
        everything = "/api/v1/namespaces/kube-system/secrets"
        await until(lambda: bool(reports.cluster.request("GET", everything, token=token)), lambda: "the binding")
        assert "not that of" in said(reports.delete(token, b))
        assert "not that of" in said(reports.apply(token, b))
        assert "not that of" in said(reports.cluster.request("DELETE", STATES, token=token)), "all at once"
    finally:
        reports.cluster.delete(binding)
    assert reports.cluster.request("GET", f"{STATES}/{b}")
