"""The controller against a real API server; nodes, pods and their reports are plain objects."""

import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.apiserver import Cluster, free_ports
from tests.cluster.faulty import ErrorEvent, FaultyProxy, Refuse
from tests.cluster.hurried import CONTROLLER, ROOT

CLRP = "/apis/cilium.io/v2/namespaces/{}/ciliumlocalredirectpolicies"
PATIENCE = 30.0
Manifest = dict[str, Any]


def until(holds: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


class Controller:
    """A controller's process, as a user of its own so that its requests can be told from others'."""

    def __init__(self, cluster: Cluster, user: str, log: Path, *flags: str) -> None:
        self.user = user
        self._log = log
        self._file = log.open("w")
        command = [*CONTROLLER, "--kubeconfig", str(cluster.kubeconfig(user, "system:masters"))]
        command += ["--metrics-bind-address", ""]
        command += ["--healthz-bind-address", "", *flags]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=self._file, stdout=self._file)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._file.close()


class World:
    """What there is in one namespace of the cluster, and the words for it."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.ns = namespace
        self._made: list[Manifest] = []

    def apply(self, manifest: Manifest, **more: Any) -> Manifest:
        self._made.append(manifest)
        return self.cluster.apply(manifest, **more)

    def node(self, name: str, **labels: str) -> str:
        full = f"{self.ns}-{name}"
        self.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": full, "labels": labels}})
        return full

    def policy(self, name: str = "p", *, port: str = "80", description: str = "", **annotations: str) -> Manifest:
        ports = [{"port": port, "protocol": "TCP"}]
        return self.apply({
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumLocalRedirectPolicy",
            "metadata": {
                "name": name,
                "namespace": self.ns,
                "annotations": {f"lrp-operator.io/{key.replace('_', '-')}": text for key, text in annotations.items()},
            },
            "spec": {
                "description": description,
                "redirectFrontend": {"addressMatcher": {"ip": self.ip, "toPorts": ports}},
                "redirectBackend": {
                    "localEndpointSelector": {"matchLabels": {"app": "proxy"}},
                    "toPorts": [{"port": "80", "protocol": "TCP"}],
                },
            },
        })  # fmt: skip

    @property
    def ip(self) -> str:
        """An address of the namespace's own, so that tests don't conflict."""
        number = int(self.ns.rpartition("-")[2][:4], 16)
        return f"169.254.{number >> 8}.{number & 255}"

    def pod(self, name: str, node: str, *, ready: bool = True) -> None:
        meta = {"name": name, "namespace": self.ns, "labels": {"app": "proxy"}}
        ports = [{"containerPort": 80}]
        self.apply({
            "apiVersion": "v1", "kind": "Pod", "metadata": meta,
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i", "ports": ports}]},
        })  # fmt: skip
        status = {
            "podIP": "10.244.0.1",
            "podIPs": [{"ip": "10.244.0.1"}],
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        }
        meta = {"name": name, "namespace": self.ns}
        self.cluster.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "status": status}, subresource="status"
        )

    def report(self, node: str, *policies: Manifest, in_force: bool = True, **more: Any) -> None:
        entries = [
            {
                "policy": f"{self.ns}/{policy['metadata']['name']}",
                "uid": policy["metadata"]["uid"],
                "generation": policy["metadata"]["generation"],
                "frontends": 1,
                "redirected": 1,
                **more,
            }
            for policy in policies
        ]
        report = {"agentVersion": "1", "mode": "socket", "inForce": in_force, "policies": entries}
        self.apply({
            "apiVersion": "lrp-operator.io/v1alpha1", "kind": "NodeRedirectState",
            "metadata": {"name": node}, "report": report,
        })  # fmt: skip

    def status(self, name: str = "p") -> Manifest:
        answer = self.cluster.request("GET", f"{CLRP.format(self.ns)}/{name}")
        return (answer.body.get("status") or {}) if answer else {}

    def condition(self, kind: str, name: str = "p") -> tuple[str, str]:
        found = {c["type"]: (c["status"], c["reason"]) for c in self.status(name).get("conditions", ())}
        return found.get(kind, ("", ""))

    def await_condition(self, kind: str, status: str, reason: str, name: str = "p") -> Manifest:
        wanted = (status, reason)
        until(lambda: self.condition(kind, name) == wanted, f"{kind} of {name} never was {wanted}")
        return self.status(name)

    def events(self, name: str = "p") -> list[tuple[str, str]]:
        found = self.cluster.request("GET", f"/apis/events.k8s.io/v1/namespaces/{self.ns}/events").body["items"]
        mine = [event for event in found if event["regarding"]["name"] == name]
        return [(event["type"], event["reason"]) for event in sorted(mine, key=lambda event: event["eventTime"])]

    def clear(self) -> None:
        for manifest in self._made:
            if manifest["kind"] in ("Node", "NodeRedirectState"):
                self.cluster.delete(manifest)


@pytest.fixture
def world(cluster: Cluster, namespace: str) -> Iterator[World]:
    world = World(cluster, namespace)
    yield world
    world.clear()


@pytest.fixture
def controller(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Callable[..., Controller]]:
    started: list[Controller] = []

    def start(*flags: str, on: Cluster = cluster) -> Controller:
        number = len(started)
        made = Controller(on, f"controller-{namespace}-{number}", tmp_path / f"controller-{number}.log", *flags)
        started.append(made)
        return made

    yield start
    for made in started:
        made.kill()
        print(made.user, made.log, sep="\n")  # shown if the test failed


def status_writes(cluster: Cluster, *controllers: Controller) -> int:
    users = {made.user for made in controllers}
    return sum(
        request.user in users and "/status" in request.path and request.verb == "patch"
        for request in cluster.requests()
    )


# --- What people see --------------------------------------------------------------------------------------------------


def test_a_policy_is_programmed_when_its_nodes_say_so(
    world: World, controller: Callable[..., Controller], kubectl: Callable[..., str]
) -> None:
    controller()
    first, second = world.node("a"), world.node("b")
    policy = world.policy()
    status = world.await_condition("Programmed", "False", "NoLocalPod")
    assert status["ok"] is True
    assert "matches the localEndpointSelector" in json.dumps(status["conditions"])

    world.pod("a", first)
    status = world.await_condition("Programmed", "False", "NodesPending")
    assert (status["nodesWanted"], status["nodesProgrammed"], status["backends"]) == (1, 0, 1)
    world.report(first, policy)
    kubectl("wait", "--for=condition=Programmed", "clrp/p", "-n", world.ns, "--timeout=60s")
    status = world.status()
    assert (status["nodesWanted"], status["nodesProgrammed"]) == (1, 1)
    assert status["nodesFallingBack"] >= 1
    assert status["frontends"] == [{"frontend": f"{world.ip}:80/TCP", "nodesRedirecting": 1}]
    until(lambda: ("Normal", "Programmed") in world.events(), "an event")
    assert "NodesPending" not in {reason for _, reason in world.events()}  # it was on its way

    world.pod("b", second)
    world.await_condition("Programmed", "False", "NodesPending")
    world.report(second, policy, redirected=0, reason="NotProgrammed", message="the map is full")
    status = world.await_condition("Degraded", "True", "NodesFailing")
    messages = {condition["type"]: condition["message"] for condition in status["conditions"]}
    assert f"{second} (0 of 1 frontends redirected: the map is full)" in messages["Programmed"]
    columns = kubectl("get", "clrp", "p", "-n", world.ns, "--no-headers").split()
    assert columns[:7] == ["p", world.ip, "True", "False", "NodesFailing", "2", "1"]
    assert kubectl("get", "nrs", first, "--no-headers").split()[:3] == [first, "socket", "true"]


def test_what_is_wrong_is_named(world: World, controller: Callable[..., Controller]) -> None:
    controller("--lrp-address-matcher-cidrs", "169.254.0.0/16,10.0.0.0/8", "--lrp-max-frontends-per-namespace", "3")
    world.policy("first")
    world.await_condition("Resolved", "True", "Resolved", "first")
    world.policy("second")
    status = world.await_condition("Resolved", "False", "Conflict", "second")
    assert f"Policy {world.ns}/first has this frontend" in json.dumps(status)
    world.policy("typo", on_no_backends="drop")
    status = world.await_condition("Accepted", "False", "Invalid", "typo")
    assert "do you mean lrp-operator.io/on-no-backend?" in json.dumps(status)
    assert status["ok"] is False
    world.policy("elsewhere", port="81", node_selector="no-node=has-this")
    world.await_condition("Programmed", "False", "NodeNotSelected", "elsewhere")
    world.policy("too-many", port="82")
    status = world.await_condition("Accepted", "False", "TooManyFrontends", "too-many")
    assert status["observedGeneration"] == 1
    until(lambda: ("Warning", "TooManyFrontends") in world.events("too-many"), "an event")


def test_a_policy_made_again_is_another(world: World, controller: Callable[..., Controller]) -> None:
    made = controller()
    node = world.node("a")
    world.pod("a", node)
    old = world.policy()
    world.report(node, old)
    world.await_condition("Programmed", "True", "Programmed")
    world.cluster.delete(old)
    new = world.policy()
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    world.await_condition("Programmed", "False", "NodesPending")
    world.report(node, new)
    world.await_condition("Programmed", "True", "Programmed")
    edited = world.policy(port="81")
    status = world.await_condition("Programmed", "False", "NodesPending")
    assert status["observedGeneration"] == edited["metadata"]["generation"] == 2
    assert made.process.poll() is None


def test_health_readiness_and_metrics(world: World, controller: Callable[..., Controller]) -> None:
    metrics, healthz = free_ports(2)
    controller("--metrics-bind-address", f"127.0.0.1:{metrics}", "--healthz-bind-address", f"127.0.0.1:{healthz}")
    until(lambda: answer(healthz, "/healthz") == (200, "ok\n"), "healthy")
    until(lambda: answer(healthz, "/readyz") == (200, "ok\n"), "ready")
    world.policy()
    world.pod("a", world.node("a"))
    world.await_condition("Programmed", "False", "NodesPending")
    _, text = answer(metrics, "/metrics")
    assert f'lrp_policy_nodes{{policy="{world.ns}/p",state="wanted"}} 1.0' in text
    assert 'lrp_controller_writes_total{result="written",what="status"}' in text
    assert "lrp_controller_leader 1.0" in text


def answer(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except OSError:  # refused, or an HTTP error
        return 0, ""


# --- What it must withstand -------------------------------------------------------------------------------------------


def test_status_is_right_after_the_controller_was_killed_at_any_point(
    cluster: Cluster, world: World, controller: Callable[..., Controller]
) -> None:
    node = world.node("a")
    world.pod("a", node)
    for round_ in range(4):
        made = controller()
        policies = [world.policy(f"p{index}", port=str(1000 + 10 * round_ + index)) for index in range(6)]
        seen = {policy["metadata"]["name"]: policy["metadata"]["generation"] for policy in policies}
        until(lambda made=made, few=round_: status_writes(cluster, made) > few, "a write")
        made.kill()
        world.report(node, *policies)
    controller()
    for name, generation in seen.items():
        status = world.await_condition("Programmed", "True", "Programmed", name)
        assert status["observedGeneration"] == generation
    assert [c["type"] for c in world.status("p0")["conditions"]] == ["Accepted", "Resolved", "Programmed", "Degraded"]


def test_of_two_one_writes_and_the_other_takes_over(
    cluster: Cluster, world: World, controller: Callable[..., Controller]
) -> None:
    lease = f"{world.ns}/lrp-controller"
    first = controller("--leader-elect", lease)
    world.policy("p0")
    world.await_condition("Accepted", "True", "Accepted", "p0")
    second = controller("--leader-elect", lease)
    for index in range(1, 5):
        world.policy(f"p{index}", port=str(80 + index))
        world.await_condition("Accepted", "True", "Accepted", f"p{index}")
    assert status_writes(cluster, second) == 0
    assert status_writes(cluster, first) >= 5

    first.process.kill()
    killed = status_writes(cluster, first)
    world.policy("after", port="99")
    world.await_condition("Accepted", "True", "Accepted", "after")
    assert status_writes(cluster, first) == killed
    found = cluster.request("GET", f"/apis/coordination.k8s.io/v1/namespaces/{world.ns}/leases/lrp-controller").body
    assert found["spec"]["leaseTransitions"] == 1

    third = controller("--leader-elect", lease)  # one that leaves in peace hands over at once
    until(lambda: any(r.user == third.user and "/leases/" in r.path for r in cluster.requests()), "a candidate")
    second.process.terminate()
    assert second.process.wait(PATIENCE) == 0
    world.policy("later", port="98")
    world.await_condition("Accepted", "True", "Accepted", "later")
    assert status_writes(cluster, third) >= 1


def test_a_leader_that_was_frozen_does_not_write_beside_its_successor(
    cluster: Cluster, world: World, controller: Callable[..., Controller]
) -> None:
    lease = f"{world.ns}/lrp-controller"
    first = controller("--leader-elect", lease)
    world.policy("p0")
    world.await_condition("Accepted", "True", "Accepted", "p0")
    second = controller("--leader-elect", lease)
    first.process.send_signal(signal.SIGSTOP)
    for index in range(8):  # there is something to write for whoever wakes up
        world.policy(f"q{index}", port=str(90 + index))
    world.await_condition("Accepted", "True", "Accepted", "q0")
    written = status_writes(cluster, first)
    first.process.send_signal(signal.SIGCONT)
    until(lambda: "leads no more" in first.log, "it notices")
    for index in range(8):
        world.await_condition("Accepted", "True", "Accepted", f"q{index}")
    assert status_writes(cluster, first) == written
    assert status_writes(cluster, second) >= 8


def test_ten_policies_edited_a_hundred_times_a_second(
    cluster: Cluster, world: World, controller: Callable[..., Controller]
) -> None:
    made = controller()
    world.policy("p0")
    world.await_condition("Accepted", "True", "Accepted", "p0")
    before, began = status_writes(cluster, made), time.monotonic()
    for turn in range(30):
        for index in range(10):
            world.policy(f"p{index}", description=f"turn {turn}", port=str(80 + index))
    last = {f"p{index}": world.policy(f"p{index}", port=str(80 + index)) for index in range(10)}
    for name, policy in last.items():
        until(
            lambda name=name, policy=policy: (
                world.status(name).get("observedGeneration") == policy["metadata"]["generation"]
            ),
            f"{name} is current",
        )
    seconds = time.monotonic() - began
    assert status_writes(cluster, made) - before <= 5 * seconds + 1


def test_hostile_objects_leave_others_alone(world: World, controller: Callable[..., Controller]) -> None:
    made = controller()
    labels = {f"label{index}": "v" * 63 for index in range(10_000)}  # about a megabyte
    hostile = world.policy("good-name")
    hostile["metadata"] = {"name": "x" * 253, "namespace": world.ns}
    hostile["spec"]["redirectBackend"]["localEndpointSelector"] = {"matchLabels": labels}
    answer = world.cluster.request("POST", CLRP.format(world.ns), hostile)
    assert answer, answer.body
    world.policy("nonsense", node_selector="(((,,," * 1000, on_no_backend="\u202e" * 1000)
    world.policy("fine", port="81")
    world.await_condition("Accepted", "True", "Accepted", "fine")
    world.await_condition("Accepted", "False", "Invalid", "nonsense")
    world.await_condition("Resolved", "False", "Conflict", "x" * 253)
    until(lambda: world.events("x" * 253), "an event on the longest name")
    assert made.process.poll() is None


def test_a_namespace_goes_with_its_policies(cluster: Cluster, controller: Callable[..., Controller]) -> None:
    made = controller()
    with cluster.namespace() as name:
        gone = World(cluster, name)
        for index in range(5):
            gone.policy(f"p{index}", port=str(80 + index))
        gone.await_condition("Accepted", "True", "Accepted", "p4")
    with cluster.namespace() as name:
        after = World(cluster, name)
        after.policy()
        after.await_condition("Accepted", "True", "Accepted")
    assert made.process.poll() is None
    assert "Traceback" not in made.log


def test_the_kind_goes_and_comes_back(
    cluster: Cluster, namespace: str, world: World, controller: Callable[..., Controller]
) -> None:
    made = controller("--install-crds")
    world.policy()
    world.await_condition("Accepted", "True", "Accepted")
    try:
        cluster.request(
            "DELETE",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/ciliumlocalredirectpolicies.cilium.io",
        )
        until(lambda: not cluster.request("GET", CLRP.format(namespace)), "the kind is gone")
        until(lambda: "does not know" in made.log, "it is told")
    finally:
        cluster.install(ROOT / "deploy/crds/ciliumlocalredirectpolicies.yaml")
    world.policy()
    world.await_condition("Accepted", "True", "Accepted")
    assert made.process.poll() is None


def test_kopf_is_started_again_unless_it_dies_at_every_start(
    cluster: Cluster, namespace: str, controller: Callable[..., Controller]
) -> None:
    with FaultyProxy(cluster) as proxy:
        kubeconfig = cluster.kubeconfig(token=cluster.token, server=proxy.url)
        proxy.add(ErrorEvent(500, "InternalError", after_events=1), "WATCH", "/ciliumlocalredirectpolicies", times=1)
        made = controller("--kubeconfig", str(kubeconfig))
        world = World(cluster, namespace)
        until(lambda: proxy.open("WATCH", "/ciliumlocalredirectpolicies"), "kopf watches")
        world.policy()
        until(lambda: "kopf does not watch any more" in made.log, "kopf dies")
        world.policy("later", port="81")
        world.await_condition("Accepted", "True", "Accepted", "later")
        assert made.process.poll() is None

        proxy.add(Refuse(418, "Teapot"), "WATCH", "/ciliumlocalredirectpolicies")
        proxy.break_connections()
        assert made.process.wait(3 * PATIENCE) == 1
        assert "the controller can't go on" in made.log


def test_a_policy_deleted_while_the_watch_was_cut_is_noticed(
    cluster: Cluster, namespace: str, controller: Callable[..., Controller]
) -> None:
    world = World(cluster, namespace)
    with FaultyProxy(cluster) as proxy:
        kubeconfig = cluster.kubeconfig(token=cluster.token, server=proxy.url)
        controller("--kubeconfig", str(kubeconfig))
        first, _ = world.policy("first"), world.policy("second")
        world.await_condition("Resolved", "False", "Conflict", "second")
        rule = proxy.add(Refuse(410, "Expired"), "WATCH", "/ciliumlocalredirectpolicies")
        hidden = proxy.add(Refuse(503), "GET", "/ciliumlocalredirectpolicies")
        proxy.break_connections()
        world.cluster.delete(first)
        proxy.remove(hidden)
        proxy.remove(rule)
        world.await_condition("Resolved", "True", "Resolved", "second")


def test_a_status_that_the_server_refuses_keeps_nobody_else_waiting(
    cluster: Cluster, namespace: str, controller: Callable[..., Controller]
) -> None:
    world = World(cluster, namespace)
    with FaultyProxy(cluster) as proxy:
        rule = proxy.add(Refuse(422, "Invalid"), "PATCH", "/bad/status")
        proxy.add(Refuse(429, "TooManyRequests", retry_after=1), "PATCH", "/good/status", times=2)
        controller("--kubeconfig", str(cluster.kubeconfig(token=cluster.token, server=proxy.url)))
        world.policy("bad")
        world.policy("good", port="81")
        world.await_condition("Accepted", "True", "Accepted", "good")
        until(lambda: proxy.count("PATCH", "/bad/status") >= 1, "it was tried")
        assert proxy.count("PATCH", "/good/status") == 3
        assert proxy.count("PATCH", "/bad/status") <= 3  # not in a loop
        proxy.remove(rule)
        world.await_condition("Accepted", "True", "Accepted", "bad")


def test_it_goes_on_after_the_api_server_was_away(
    cluster: Cluster, world: World, controller: Callable[..., Controller]
) -> None:
    made = controller("--leader-elect", f"{world.ns}/lrp-controller")
    world.policy("before")
    world.await_condition("Accepted", "True", "Accepted", "before")
    cluster.restart()
    world.policy("after", port="81")
    world.await_condition("Accepted", "True", "Accepted", "after")
    cluster.delete(world.policy("before"))
    assert made.process.poll() is None


# --- Other people's clusters ------------------------------------------------------------------------------------------

CILIUMS_CRD: Manifest = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "ciliumlocalredirectpolicies.cilium.io"},
    "spec": {
        "group": "cilium.io",
        "names": {
            "kind": "CiliumLocalRedirectPolicy",
            "plural": "ciliumlocalredirectpolicies",
            "singular": "ciliumlocalredirectpolicy",
            "shortNames": ["clrp"],
        },
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v2",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                            "status": {"type": "object", "properties": {"ok": {"type": "boolean"}}},
                        },
                    }
                },
            }
        ],
    },
}


@pytest.fixture
def ciliums_cluster(programs: None, tmp_path: Path) -> Iterator[Cluster]:  # noqa: ARG001
    """A cluster with the policies' kind as Cilium has it: no status subresource."""
    with Cluster(audit=True) as cluster:
        file = tmp_path / "crd.yaml"
        file.write_text(json.dumps(CILIUMS_CRD))
        cluster.install(file)
        yield cluster


def test_a_newer_definition_is_not_replaced(cluster: Cluster, controller: Callable[..., Controller]) -> None:
    name, version = "noderedirectstates.lrp-operator.io", "lrp-operator.io/crd-version"
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
    newer = {"metadata": {"annotations": {version: "999"}}}
    assert cluster.request("PATCH", path, newer, content_type="application/merge-patch+json")
    try:
        made = controller("--install-crds")
        until(lambda: "is newer (999) than ours" in made.log, "it is told")
        assert cluster.request("GET", path).body["metadata"]["annotations"][version] == "999"
    finally:
        cluster.install(ROOT / "deploy/crds/noderedirectstates.yaml")
    assert cluster.request("GET", path).body["metadata"]["annotations"][version] != "999"


def test_ciliums_own_kind_is_left_alone_and_events_tell(
    ciliums_cluster: Cluster, controller: Callable[..., Controller]
) -> None:
    made = controller("--install-crds", on=ciliums_cluster)
    with ciliums_cluster.namespace() as name:
        world = World(ciliums_cluster, name)
        world.policy()
        until(lambda: world.events() == [("Normal", "NoLocalPod")], "an event")
        assert world.status() == {}
        assert status_writes(ciliums_cluster, made) == 0
    assert "is not ours" in made.log
    assert "told in Events and metrics only" in made.log


@contextmanager
def a_cilium_agent(world: World) -> Iterator[None]:
    node = world.node("a")
    pod = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "cilium-x", "namespace": world.ns, "labels": {"k8s-app": "cilium"}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
    }  # fmt: skip
    world.apply(pod)
    yield
    world.cluster.delete(pod)


def test_beside_cilium_it_refuses_unless_told_otherwise(world: World, controller: Callable[..., Controller]) -> None:
    with a_cilium_agent(world):
        made = controller()
        assert made.process.wait(PATIENCE) == 3
        assert f"a pod of Cilium's agent is here: {world.ns}/cilium-x" in made.log
        controller("--despite-cilium")
        world.policy()
        world.await_condition("Accepted", "True", "Accepted")
