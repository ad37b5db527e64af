"""The agent on a real API server: what it watches, what it holds back, and what it does while the server is away.

The first half follows `KubernetesSource` alone, through a proxy that counts its watches. The second half is the real
agent on a node made of network namespaces, with real connections.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import Node, Pod
from lab.serving import Reply
from lrp_operator.agent import kube_services
from lrp_operator.agent.apimodel import Status
from lrp_operator.agent.kube_source import KubernetesSource
from lrp_operator.agent.parts import ObjectKey, SourceUpdate
from lrp_operator.api.objects import ClusterObject, Policy
from lrp_operator.cli.client import AgentError, Client
from lrp_operator.datapath.engine import cleanup
from tests.cluster.apiserver import Cluster, Manifest
from tests.cluster.faulty import FaultyProxy, Hang
from tests.cluster.following import PATIENCE, QUICK, connect, policy, service, to_address, to_service, until
from tests.cluster.hurried import AGENT, ROOT

NODE = "worker-1"
LISTING = "sendInitialEvents"
KINDS = ("ciliumlocalredirectpolicies", "services", "endpointslices", "pods", "nodes")


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[FaultyProxy]:
    with FaultyProxy(cluster) as proxy:
        yield proxy


# --- What it watches --------------------------------------------------------------------------------------------------


class Told:
    """A source, followed in the background."""

    def __init__(self, cluster: Cluster, proxy: FaultyProxy, namespace: str, source: KubernetesSource) -> None:
        self.cluster, self.proxy, self.namespace, self.source = cluster, proxy, namespace, source
        self.objects: dict[ObjectKey, ClusterObject] = {}
        self.updates: list[SourceUpdate] = []

    async def follow(self) -> None:
        async with aclosing(self.source.changes()) as updates:  # type: ignore[type-var]
            async for update in updates:
                self.updates.append(update)
                for key in update.deletes:
                    self.objects.pop(key, None)
                self.objects |= {(type(obj), obj.metadata.key): obj for obj in update.upserts}

    @property
    def names(self) -> str:
        """The policies and Services of the test's namespace that were told: "Policy/a Service/b"."""
        keys = [(kind.__name__, *key.split("/")) for kind, key in self.objects]
        return " ".join(sorted(f"{kind}/{name}" for kind, namespace, name in keys if namespace == self.namespace))

    def generations(self) -> dict[str, int]:
        """The policies of the test's namespace, and the generation of each that was told."""
        mine = [obj.metadata for obj in self.objects.values() if isinstance(obj, Policy)]
        return {meta.name: meta.generation for meta in mine if meta.namespace == self.namespace}

    @property
    def now(self) -> SourceUpdate:
        return self.updates[-1] if self.updates else SourceUpdate(complete=False)

    async def until(self, condition: Callable[[], bool]) -> None:
        await until(condition, lambda: f"{self.names!r}, {self.updates[-1:]}")

    async def tells(self, names: str) -> None:
        await self.until(lambda: self.names == names and self.now.complete and not self.now.problems)

    def watches(self, kind: str) -> list[str]:
        """The watches of a kind that are open, without what is the same for all."""
        return [seen.path.partition("&")[0] for seen in self.proxy.open("WATCH", f"/{kind}[?]")]

    def make(self, *manifests: Manifest) -> None:
        for manifest in manifests:
            self.cluster.apply(manifest)

    def service(self, name: str, **spec: Any) -> Manifest:
        return service(name, self.namespace, **spec)

    def policy(self, name: str, frontend: Manifest) -> Manifest:
        return policy(name, self.namespace, frontend)


@pytest.fixture
def replaces() -> bool:
    """Whether kube-proxy is replaced."""
    return False


@pytest.fixture
async def told(
    cluster: Cluster, proxy: FaultyProxy, namespace: str, tmp_path: Path, replaces: bool
) -> AsyncIterator[Told]:
    client = connect(cluster, tmp_path, proxy.url)
    source = KubernetesSource(client, NODE, replaces_kube_proxy=replaces, timing=QUICK)
    told = Told(cluster, proxy, namespace, source)
    task = asyncio.create_task(told.follow())
    try:
        yield told
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_only_what_policies_name_where_kube_proxy_stays(told: Told) -> None:
    told.make(*(told.service(name) for name in "abcd"))
    await told.tells("")
    assert told.watches("services") == []
    told.make(told.policy("p", to_service("b", told.namespace)))
    await told.tells("Policy/p Service/b")
    told.make(told.policy("q", to_service("c", told.namespace)), told.policy("r", to_address("169.254.169.254")))
    await told.tells("Policy/p Policy/q Policy/r Service/b Service/c")
    assert told.watches("services") == [
        f"/api/v1/namespaces/{told.namespace}/services?fieldSelector=metadata.name%3D{name}" for name in "bc"
    ]
    told.cluster.delete(told.policy("p", {}))
    await told.tells("Policy/q Policy/r Service/c")
    await told.until(lambda: len(told.watches("services")) == 1)
    assert told.watches("endpointslices") == []
    assert told.watches("pods") == [f"/api/v1/pods?fieldSelector=spec.nodeName%3D{NODE}"]
    assert told.watches("nodes") == [f"/api/v1/nodes?fieldSelector=metadata.name%3D{NODE}"]


@pytest.mark.parametrize("replaces", [True])
async def test_all_services_and_slices_where_kube_proxy_is_replaced(told: Told) -> None:
    told.make(told.service("a"))
    await told.tells("Service/a")
    assert told.watches("services") == ["/api/v1/services?watch=true"]
    (slices,) = told.watches("endpointslices")
    assert slices.endswith("?labelSelector=!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name")
    assert all(len(told.watches(kind)) == 1 for kind in KINDS)
    assert told.proxy.count() == len(KINDS), "one request each, and nothing else"


async def test_a_service_that_comes_later_and_goes(told: Told) -> None:
    told.make(told.policy("p", to_service("a", told.namespace)))
    await told.tells("Policy/p")
    told.make(told.service("a"))
    await told.tells("Policy/p Service/a")
    told.cluster.delete(told.service("a"))
    await told.tells("Policy/p")


async def test_an_address_of_a_service_is_known_before_the_policy_that_names_it(told: Told) -> None:
    """The ClusterIP of a Service that no policy names: all are followed, and only this one is told."""
    told.make(*(told.service(name) for name in "abc"), told.service("d", clusterIP="10.96.77.7"))
    await told.tells("")
    told.make(told.policy("p", to_address("10.96.77.7")))
    await told.tells("Policy/p Service/d")
    came = [{type(obj).__name__ for obj in update.upserts} for update in told.updates]
    policy_at = next(i for i, kinds in enumerate(came) if "Policy" in kinds)
    assert any("Service" in kinds for kinds in came[: policy_at + 1]), "not one moment without the Service"
    assert told.watches("services") == ["/api/v1/services?watch=true"]
    told.make(told.service("e", externalIPs=["192.0.2.77"]), told.policy("q", to_address("192.0.2.77")))
    await told.tells("Policy/p Policy/q Service/d Service/e")
    told.cluster.delete(told.policy("p", {}))
    await told.tells("Policy/q Service/e")


async def test_a_policy_is_held_back_while_its_service_cannot_be_asked_for(told: Told) -> None:
    await told.tells("")
    rule = told.proxy.add(Hang(), "WATCH", "/services")
    told.make(told.service("a"), told.policy("p", to_service("a", told.namespace)))
    await told.until(lambda: told.proxy.count("WATCH", "/services") > 0)
    assert told.names == ""
    told.proxy.remove(rule)
    told.proxy.break_connections()
    await told.tells("Policy/p Service/a")


async def test_many_names_are_one_watch(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_services, "MOST_NAMED", 3)
    told.make(*(told.service(name) for name in "abcdef"))
    for name in "abcd":
        told.make(told.policy(f"p{name}", to_service(name, told.namespace)))
    names = "Policy/pa Policy/pb Policy/pc Policy/pd Service/a Service/b Service/c Service/d"
    await told.tells(names)
    await told.until(lambda: told.watches("services") == ["/api/v1/services?watch=true"])
    told.cluster.delete(told.policy("pd", {}))
    await told.tells(names.replace(" Policy/pd", "").replace(" Service/d", ""))


async def test_a_policy_edited_in_a_loop_does_not_open_watches_in_a_loop(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_services, "OPENINGS", 5)
    await told.tells("")
    for round_ in range(40):
        told.make(told.policy("p", to_service(f"s{round_}", told.namespace)))
    told.make(told.service("s39"))
    await told.tells("Policy/p Service/s39")
    assert told.proxy.count("WATCH", "/services") <= 6


async def test_policies_that_are_edited_all_the_time(told: Told) -> None:
    """Ten at once, as fast as the server takes it: the last word of each is what stays."""

    def edit(name: str) -> int:
        for round_ in range(30):
            edited = told.policy(name, to_service(f"s{round_ % 2}", told.namespace))
            generation: int = told.cluster.apply(edited)["metadata"]["generation"]
        return generation

    told.make(told.service("s0"), told.service("s1"))
    names = [f"p{number}" for number in range(10)]
    last = await asyncio.gather(*(asyncio.to_thread(edit, name) for name in names))
    wanted = dict(zip(names, last, strict=True))
    await told.until(lambda: told.now.complete and told.generations() == wanted)
    await told.tells(" ".join([*(f"Policy/{name}" for name in names), "Service/s1"]))


async def test_a_namespace_goes_with_all_that_is_in_it(told: Told) -> None:
    with told.cluster.namespace() as other:
        told.make(service("a", other), policy("p", other, to_service("a", other)))
        await told.until(lambda: any(key == f"{other}/a" for _, key in told.objects))
    await told.until(lambda: not any(key.startswith(f"{other}/") for _, key in told.objects))


async def test_one_sentence_while_the_server_is_away(told: Told) -> None:
    told.make(told.service("a"), told.policy("p", to_service("a", told.namespace)))
    await told.tells("Policy/p Service/a")
    with told.proxy.away():
        await told.until(lambda: bool(told.now.problems))
        await asyncio.sleep(1)
        (problem,) = told.now.problems
        assert problem.startswith("the API server can't be reached since ")
        assert problem.endswith("; redirects go on as they are")
        assert told.names == "Policy/p Service/a"
    await told.tells("Policy/p Service/a")
    assert told.proxy.count("WATCH", LISTING) == 4, "resumed, not listed anew"


# --- The whole agent, real connections --------------------------------------------------------------------------------


class RealAgent:
    """`lrp-agent` as a process. Its programs are on the node of the lab; the API server is the machine's own.

    They stay there when it ends: another agent adopts them, and starts in no time.
    """

    def __init__(self, node: Node, kubeconfig: Path, directory: Path) -> None:
        self._socket = directory / "agent.sock"
        self._log = directory / "agent.log"
        roots = ["--bpf-root", str(pins_on(node)), "--cgroup-root", str(node.cgroup), "--api-socket", str(self._socket)]
        doors = ["--metrics-bind-address", "", "--healthz-bind-address", ""]
        self._command = [*AGENT, "--kubeconfig", str(kubeconfig), "--node-name", NODE, *roots, *doors]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, cwd=ROOT, stdout=log, stderr=log)
        self.wait(lambda _: True)

    def kill(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def wait(self, condition: Callable[[Status], bool]) -> Status:
        """Wait for a status like that."""
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(AgentError):
                status = Client(self._socket).get("status", Status)
                if condition(status):
                    return status
            assert time.monotonic() < end, f"in vain; {self._log.read_text()}"
            time.sleep(0.05)

    def door(self, path: str) -> tuple[int, str]:
        """Knock at /healthz or /readyz."""
        command = ["curl", "-s", "-w", "%{http_code}", "--unix-socket", self._socket, f"http://agent{path}"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
        return int(text[-3:]), text[:-3]

    def close(self) -> None:
        if self._process and self._process.poll() is None:
            self.kill()


def pins_on(node: Node) -> Path:
    return node.bpf / "lrp"


@dataclass(frozen=True)
class Stage:
    """A node with a client and two pods that serve, and an agent that reaches the API server through a proxy."""

    cluster: Cluster
    proxy: FaultyProxy
    agent: RealAgent
    client: Pod
    one: Pod
    two: Pod


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """The node, with its pods; a file's tests share it."""
    if os.geteuid():
        pytest.fail("this test needs root", pytrace=False)
    with Node() as node:
        for name in ("client", "one", "two"):
            pod = node.pod(name, labels={"app": "dns"})
            if name != "client":
                pod.serve_udp(53, pod.short_name)
        yield node
        if pins_on(node).exists():
            cleanup(pins_on(node), node.cgroup)


@pytest.fixture
def stage(cluster: Cluster, node: Node, tmp_path: Path) -> Iterator[Stage]:
    """The stage, its agent not started yet."""
    own = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
    with FaultyProxy(cluster) as proxy:  # after the servers: they are forks, and would keep its sockets open
        cluster.apply(own)
        agent = RealAgent(node, cluster.kubeconfig(token=cluster.token, server=proxy.url), tmp_path)
        yield Stage(cluster, proxy, agent, *node.pods.values())
        agent.close()
    cluster.delete(own)


def publish(cluster: Cluster, pod: Pod, namespace: str, *, ready: bool = True) -> Manifest:
    """Make a pod of the lab known to the API server, as the kubelet would."""
    manifest = pod.manifest(namespace, ports=[("dns", 53, "UDP")], ready=ready)
    manifest["spec"]["nodeName"] = NODE
    status = manifest.pop("status")
    cluster.apply(manifest)
    cluster.apply(manifest | {"status": status}, subresource="status")
    return manifest


def who_answers(client: Pod, vip: str) -> str:
    """Who answers at the Service's address; empty if nobody does."""
    with contextlib.suppress(OSError):
        reply: Reply = client.ask_udp(vip, 53, timeout=0.5)
        return reply.name
    return ""


def answered_by(client: Pod, vip: str, name: str) -> bool:
    end = time.monotonic() + PATIENCE
    while (answer := who_answers(client, vip)) != name and time.monotonic() < end:
        time.sleep(0.05)
    return answer == name


@pytest.mark.privileged
def test_apply_and_it_redirects_and_delete_and_it_does_not(stage: Stage, namespace: str) -> None:
    """Pods ready, unready, replaced; the Service before the policy; the policy deleted and made again at once."""
    cluster, client = stage.cluster, stage.client
    stage.agent.start()
    stage.agent.wait(lambda status: status.ready)
    cluster.apply(policy("p", namespace, to_service("dns", namespace)))
    vip = cluster.apply(service("dns", namespace))["spec"]["clusterIP"]
    publish(cluster, stage.one, namespace)
    assert answered_by(client, vip, "one")
    publish(cluster, stage.one, namespace, ready=False)
    publish(cluster, stage.two, namespace)
    assert answered_by(client, vip, "two")
    for _ in range(3):
        cluster.delete(policy("p", namespace, {}))
        cluster.apply(policy("p", namespace, to_service("dns", namespace)))
    assert answered_by(client, vip, "two")
    cluster.delete(policy("p", namespace, {}))
    assert answered_by(client, vip, "")


@pytest.mark.privileged
def test_a_start_with_the_server_away(stage: Stage, namespace: str) -> None:
    """It adopts what is pinned, keeps serving, says so, and catches up."""
    cluster, agent, client = stage.cluster, stage.agent, stage.client
    vip = cluster.apply(service("dns", namespace))["spec"]["clusterIP"]
    cluster.apply(policy("p", namespace, to_service("dns", namespace)))
    first = publish(cluster, stage.one, namespace)
    agent.start()
    before = agent.wait(lambda status: status.ready)
    assert answered_by(client, vip, "one")
    agent.kill()
    with stage.proxy.away():
        agent.start()
        status = agent.wait(lambda status: status.in_force and bool(status.sources[0].problems))
        assert not status.ready
        assert not status.sources[0].complete
        assert status.programs == before.programs
        assert "the API server can't be reached since" in status.sources[0].problems[0]
        assert agent.door("/healthz") == (200, "ok\n")
        code, why = agent.door("/readyz")
        assert code == 503
        assert "can't be reached" in why
        assert who_answers(client, vip) == "one"
        cluster.delete(first)
        publish(cluster, stage.two, namespace)
        assert who_answers(client, vip) == "one", "nobody has told it"
    assert answered_by(client, vip, "two")
    agent.wait(lambda status: status.ready and not status.sources[0].problems)
    with stage.proxy.away():
        status = agent.wait(lambda status: bool(status.sources[0].problems))
        assert status.ready, "what it knew is in force; only news are missing"
        assert agent.door("/readyz") == (200, "ok\n")
        assert who_answers(client, vip) == "two"
