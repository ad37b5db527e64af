"""A tenant who may write policies, and means it badly: the real agent goes on, and so do other tenants' redirects.

Each test has an honest tenant with a redirect that works. It has to go on working while the other one does his worst,
and it has to follow its pods meanwhile: an agent that stands still would pass for one that withstands.
LRP_TEST_POLICIES says how many policies the flood has.
"""

import itertools
import json
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from lrp_operator.agent.apimodel import Policies, PolicyState, Status
from lrp_operator.agent.kube_services import MOST_NAMED, OPENINGS
from lrp_operator.cli.client import Client
from tests.cluster.apiserver import Answer, Cluster, Manifest
from tests.cluster.conftest import CRDS
from tests.cluster.following import policy, service, to_address, to_service
from tests.cluster.test_agent_source import (
    NODE,
    Stage,
    answered_by,
    node,  # noqa: F401 - a fixture
    publish,
    stage,  # noqa: F401 - a fixture
    who_answers,
)

pytestmark = pytest.mark.privileged

MANY = int(os.environ.get("LRP_TEST_POLICIES", "1000"))
EDITS = 1200
MIB = 1 << 20
MAY_GROW = 100 * MIB
LONGEST_NAME = 253
ANNOTATIONS_MOST = 256 * 1024
CLRP = "/apis/cilium.io/v2/namespaces/{}/ciliumlocalredirectpolicies"


@pytest.fixture(scope="module")
def cluster(programs: None) -> Iterator[Cluster]:  # noqa: ARG001 (it is what this stands on)
    """A cluster of this file's own: what is done here others would feel."""
    with Cluster(audit=True) as cluster:
        cluster.install(*CRDS)
        yield cluster


class Scene:
    """A stage on which the agent runs and an honest tenant's redirect works, and a namespace of a hostile tenant."""

    def __init__(self, on: Stage, honest: str, hostile: str) -> None:
        self.stage, self.cluster, self.honest, self.hostile = on, on.cluster, honest, hostile
        on.agent.start()
        self.status(lambda status: status.ready)  # nothing is redirected that another test's tenants wanted
        self.vip: str = self.cluster.apply(service("dns", honest))["spec"]["clusterIP"]
        self.cluster.apply(policy("honest", honest, to_service("dns", honest)))
        publish(self.cluster, on.one, honest)
        assert answered_by(on.client, self.vip, "one")
        self.pid = self.status().pid
        self._memory = self.memory()

    def status(self, condition: Callable[[Status], bool] = lambda _: True) -> Status:
        return self.stage.agent.wait(condition)

    def policies(self) -> dict[str, PolicyState]:
        """What the agent says of each policy."""
        told = Client(self.stage.agent._socket).get("policies", Policies)
        return {state.policy: state for state in told.policies}

    def until(self, condition: Callable[[dict[str, PolicyState]], bool]) -> dict[str, PolicyState]:
        """Wait for the agent to say so."""
        self.status(lambda _: condition(self.policies()))
        return self.policies()

    def memory(self) -> int:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) << 10

    def swap(self, before: str, after: str) -> None:
        """The honest tenant's pod turns unready, another one is ready: the redirect follows."""
        pods = {"one": self.stage.one, "two": self.stage.two}
        assert who_answers(self.stage.client, self.vip) == before
        publish(self.cluster, pods[before], self.honest, ready=False)
        publish(self.cluster, pods[after], self.honest)
        assert answered_by(self.stage.client, self.vip, after)

    def check(self) -> None:
        """The same agent is alive, has not grown without bounds, and is as ready as before; its report is written."""
        status = self.status(lambda status: status.ready and not status.problems)
        assert status.pid == self.pid, "it was not to be started again"
        assert self.memory() - self._memory < MAY_GROW
        assert self.stage.agent.door("/healthz") == (200, "ok\n")

    def post(self, manifest: Manifest) -> Answer:
        """Create a policy, as whoever does not go through kubectl."""
        return self.cluster.request("POST", CLRP.format(manifest["metadata"]["namespace"]), manifest)


@pytest.fixture
def scene(stage: Stage) -> Iterator[Scene]:  # noqa: F811 - it is that fixture
    cluster = stage.cluster
    with cluster.namespace() as honest, cluster.namespace() as hostile:
        scene = Scene(stage, honest, hostile)
        yield scene
        stage.agent.close()


def stored(*policies: Manifest) -> dict[str, Manifest]:
    """Policies as etcd has them, whatever the kind's schema would have said: Cilium's own says less."""
    for made in policies:
        made["metadata"] |= {"uid": str(uuid.uuid4()), "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
    kind = "cilium.io/ciliumlocalredirectpolicies"
    return {f"{kind}/{made['metadata']['namespace']}/{made['metadata']['name']}": made for made in policies}


def with_selector(made: Manifest, selector: Manifest) -> Manifest:
    made["spec"]["redirectBackend"]["localEndpointSelector"] = selector
    return made


# --- What is too large, and what is nonsense --------------------------------------------------------------------------


def test_selectors_of_a_megabyte(scene: Scene) -> None:
    """The largest that the API server takes, and one of labels; both are valid, and one selects a pod."""
    values = [f"v{number:09}" for number in range(78_000)]
    expressions = {"matchExpressions": [{"key": "app", "operator": "In", "values": [*values, "dns"]}]}
    large = with_selector(policy("values", scene.hostile, to_address("169.254.9.1")), expressions)
    assert 1_000_000 < len(json.dumps(large)) < 1_500_000
    assert scene.post(large), "the API server takes it"
    labels = {"matchLabels": {f"example.org/label-{number}": "x" for number in range(30_000)}}
    scene.cluster.store(stored(with_selector(policy("labels", scene.hostile, to_address("169.254.9.2")), labels)))
    told = scene.until(lambda told: {f"{scene.hostile}/{name}" for name in ("values", "labels")} <= told.keys())
    assert all(told[f"{scene.hostile}/{name}"].accepted for name in ("values", "labels"))
    scene.swap("one", "two")
    for pod in (scene.stage.one, scene.stage.two):  # the tenant's own pods: every one is held against all selectors
        publish(scene.cluster, pod, scene.hostile)
    told = scene.until(lambda told: told[f"{scene.hostile}/values"].frontends[0].redirected)
    assert not told[f"{scene.hostile}/labels"].frontends[0].redirected
    assert who_answers(scene.stage.client, "169.254.9.1") in ("one", "two")
    scene.swap("two", "one")
    scene.check()


def test_names_at_their_limits_and_annotations_of_nonsense(scene: Scene) -> None:
    """What is wrong is told, in sentences of bearable length; what is only long works."""
    long = "n" * LONGEST_NAME
    prefix = f"{'.'.join(['d' * 62] * 4)}.e"
    assert len(prefix) == LONGEST_NAME
    selector = {
        "matchLabels": {"app": "dns"},
        "matchExpressions": [{"key": f"{prefix}/{'k' * 63}", "operator": "DoesNotExist"}],
    }
    assert scene.post(with_selector(policy(long, scene.hostile, to_address("169.254.9.3")), selector))
    nonsense = {
        "unknown": {"lrp-operator.io/on-no-backnd": "drop"},
        "binary": {"lrp-operator.io/on-no-backend": "\x00\x1b[31m\u202e\U0001f4a5" * 1000},
        "long": {"lrp-operator.io/node-selector": "a," * (ANNOTATIONS_MOST // 2 - 100)},
        "deep": {"lrp-operator.io/node-selector": "(" * 4000},
        "others": {"example.org/whatever": "[" * (ANNOTATIONS_MOST - 100)},
    }
    for index, (name, annotations) in enumerate(nonsense.items()):
        made = policy(name, scene.hostile, to_address(f"169.254.9.{10 + index}"))
        made["metadata"]["annotations"] = annotations
        scene.cluster.store(stored(made))
    shapes = {"nothing": None, "text": "spec", "numbers": {"redirectFrontend": 7, "redirectBackend": [[[[]]]]}}
    wrong = [policy(name, scene.hostile, {}) | {"spec": spec} for name, spec in shapes.items()]
    scene.cluster.store(stored(*wrong))
    publish(scene.cluster, scene.stage.two, scene.hostile)
    key = f"{scene.hostile}/{long}"
    expected = {*nonsense, *shapes, long}
    told = scene.until(lambda told: {f"{scene.hostile}/{name}" for name in expected} <= told.keys())
    refused = {name for name in expected if not told[f"{scene.hostile}/{name}"].accepted}
    assert refused == {*nonsense, *shapes} - {"others"}
    for name in refused:
        state = told[f"{scene.hostile}/{name}"]
        assert state.reason == "Invalid"
        assert 10 < len(state.message) < 5000, "a sentence, not the nonsense itself"
        assert state.message.isprintable()
    scene.until(lambda told: told[key].frontends[0].redirected)
    assert answered_by(scene.stage.client, "169.254.9.3", "two")
    scene.swap("one", "two")
    scene.check()


# --- What is too much -------------------------------------------------------------------------------------------------


def test_thousands_of_policies_in_one_namespace(scene: Scene) -> None:
    """Half of them want one and the same address, one the honest tenant's; then all are gone again."""
    frontends = [f"169.254.{10 + number // 250}.{1 + number % 250}" for number in range(MANY // 2)]
    frontends += ["169.254.9.9"] * (MANY - len(frontends) - 1) + [scene.vip]
    crowd = [policy(f"p{number}", scene.hostile, to_address(ip)) for number, ip in enumerate(frontends)]
    publish(scene.cluster, scene.stage.two, scene.hostile)
    scene.cluster.store(stored(*crowd))
    scene.swap("one", "two")
    counts = scene.status(lambda status: status.policies.accepted + status.policies.rejected == MANY + 1)
    assert counts.frontends.local_redirect == MANY // 2 + 1 + 1, "one address has one owner"
    thief = scene.policies()[f"{scene.hostile}/p{MANY - 1}"].frontends[0]
    assert not thief.redirected
    assert f"{scene.honest}/dns" in thief.message, "it names whose address it is"
    assert answered_by(scene.stage.client, frontends[0], "two")
    scene.swap("two", "one")
    report = f"/apis/lrp-operator.io/v1alpha1/noderedirectstates/{NODE}"
    scene.status(
        lambda _: scene.cluster.request("GET", report).body.get("report", {}).get("policyCount", 0) > MANY // 2
    )
    assert len(scene.cluster.request("GET", report).body["report"]["policies"]) <= 1000
    assert scene.cluster.request("DELETE", CLRP.format(scene.hostile))
    scene.status(lambda status: status.policies.accepted + status.policies.rejected == 1)
    scene.swap("one", "two")
    scene.check()


def test_ten_policies_edited_as_fast_as_the_server_takes_it(scene: Scene) -> None:
    """Between addresses and Services that need new watches; the honest tenant's changes get through meanwhile."""
    with edited(scene) as edits:
        sides = itertools.pairwise(itertools.cycle(["one", "two"]))
        while len(edits) < EDITS:
            scene.swap(*next(sides))
    last = {f"{scene.hostile}/p{number}": f"169.254.9.{100 + number}:53/UDP" for number in range(10)}

    def settled(told: dict[str, PolicyState]) -> bool:
        shown = {key: [frontend.frontend for frontend in told[key].frontends] for key in last if key in told}
        return shown == {key: [frontend] for key, frontend in last.items()}

    scene.until(settled)
    assert scene.stage.proxy.count("WATCH", "/services") <= OPENINGS + MOST_NAMED, "no watch is opened per edit"
    scene.check()


@contextmanager
def edited(scene: Scene) -> Iterator[list[int]]:
    """Ten policies, each edited in a loop by a thread; in the end each is about an address of its own.

    Gives the list of edits, which grows.
    """
    over, edits = threading.Event(), list[int]()

    def edit(number: int) -> None:
        rounds = itertools.count()
        while not over.is_set():
            round_ = next(rounds)
            frontend = to_service(f"s{round_}", scene.hostile) if round_ % 2 else to_address(f"169.254.9.{round_ % 90}")
            scene.cluster.apply(policy(f"p{number}", scene.hostile, frontend))
            edits.append(number)
        scene.cluster.apply(policy(f"p{number}", scene.hostile, to_address(f"169.254.9.{100 + number}")))

    editors = [threading.Thread(target=edit, args=(number,)) for number in range(10)]
    for editor in editors:
        editor.start()
    try:
        yield edits
    finally:
        over.set()
        for editor in editors:
            editor.join()


# --- What comes and goes ----------------------------------------------------------------------------------------------


def test_a_namespace_is_deleted_with_its_policies(
    scene: Scene, controllers: Callable[..., AbstractContextManager[None]]
) -> None:
    """By the real namespace controller. Its frontends go, and another policy that wanted one of them gets it."""
    scene.cluster.store(stored(policy("first", scene.hostile, to_address("169.254.9.1"))))  # long ago, by its time
    publish(scene.cluster, scene.stage.two, scene.hostile)
    assert answered_by(scene.stage.client, "169.254.9.1", "two")
    scene.cluster.apply(policy("waiting", scene.honest, to_address("169.254.9.1")))
    scene.until(lambda told: f"{scene.honest}/waiting" in told)
    assert who_answers(scene.stage.client, "169.254.9.1") == "two", "who was there first"
    scene.cluster.delete(scene.stage.two.manifest(scene.hostile))  # else its end would wait for a kubelet
    assert answered_by(scene.stage.client, "169.254.9.1", "")
    with controllers("namespace-controller"):
        assert scene.cluster.request("DELETE", f"/api/v1/namespaces/{scene.hostile}")
        assert answered_by(scene.stage.client, "169.254.9.1", "one")
    scene.until(lambda told: told.keys() == {f"{scene.honest}/honest", f"{scene.honest}/waiting"})
    scene.swap("one", "two")
    scene.check()


def test_the_kind_is_deleted_and_made_again(scene: Scene) -> None:
    """All policies go with it, and so do redirects; then it is as if nothing had been."""
    kind = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "ciliumlocalredirectpolicies.cilium.io"},
    }
    scene.cluster.delete(kind)
    assert answered_by(scene.stage.client, scene.vip, "")
    (source,) = scene.status(lambda status: bool(status.sources[0].problems)).sources
    assert "CustomResourceDefinition" in source.problems[0], "it says what is missing"
    assert scene.policies() == {}
    assert scene.stage.agent.door("/healthz") == (200, "ok\n")
    scene.cluster.install(*CRDS)
    scene.cluster.apply(policy("honest", scene.honest, to_service("dns", scene.honest)))
    assert answered_by(scene.stage.client, scene.vip, "one")
    scene.status(lambda status: not status.sources[0].problems)
    scene.swap("one", "two")
    scene.check()


def test_service_policy_and_pod_in_every_order(scene: Scene) -> None:
    """What comes last completes it; before that, nothing of it is redirected."""
    steps: dict[str, Callable[[], object]] = {
        "service": lambda: scene.cluster.apply(service("s", scene.hostile, clusterIP="10.96.200.1")),
        "policy": lambda: scene.cluster.apply(policy("p", scene.hostile, to_service("s", scene.hostile))),
        "pod": lambda: publish(scene.cluster, scene.stage.two, scene.hostile),
    }
    for order in itertools.permutations(steps):
        for name in order[:-1]:
            steps[name]()
        assert who_answers(scene.stage.client, "10.96.200.1") == "", f"{order}: complete before the last"
        steps[order[-1]]()
        assert answered_by(scene.stage.client, "10.96.200.1", "two"), order
        for made in (
            policy("p", scene.hostile, {}),
            service("s", scene.hostile),
            scene.stage.two.manifest(scene.hostile),
        ):
            scene.cluster.delete(made)
        assert answered_by(scene.stage.client, "10.96.200.1", ""), order
    scene.swap("one", "two")
    scene.check()


def test_a_pod_terminates_and_is_replaced_under_its_name(scene: Scene) -> None:
    """A StatefulSet's way: the same name, another uid, another address."""
    pod = publish(scene.cluster, scene.stage.one, scene.honest)
    pods = f"/api/v1/namespaces/{scene.honest}/pods/{pod['metadata']['name']}"
    assert scene.cluster.request("DELETE", f"{pods}?gracePeriodSeconds=60"), "as the kubelet will end it"
    assert scene.cluster.request("GET", pods).body["metadata"]["deletionTimestamp"]
    assert answered_by(scene.stage.client, scene.vip, ""), "ready still, but on its way out"
    scene.cluster.delete(pod)
    made = scene.stage.two.manifest(scene.honest, ports=[("dns", 53, "UDP")])
    made["metadata"]["name"] = pod["metadata"]["name"]
    made["spec"]["nodeName"] = NODE
    scene.cluster.apply({key: made[key] for key in made if key != "status"})
    scene.cluster.apply(made, subresource="status")
    assert answered_by(scene.stage.client, scene.vip, "two")
    scene.check()


def test_a_server_that_was_away_and_has_forgotten_its_history(scene: Scene) -> None:
    """Not one connect goes astray meanwhile; what happened is listed anew, and not in a loop."""
    over, astray = threading.Event(), []

    def dial() -> None:
        while not over.wait(0.02):
            astray.extend(answer for answer in [who_answers(scene.stage.client, scene.vip)] if answer != "one")

    dialling = threading.Thread(target=dial)
    dialling.start()
    try:
        with scene.stage.proxy.away():
            scene.cluster.apply(policy("meanwhile", scene.honest, to_address("169.254.9.1")))
            scene.cluster.forget()
            scene.status(lambda status: bool(status.sources[0].problems))
            before = scene.stage.proxy.count()
        scene.until(lambda told: f"{scene.honest}/meanwhile" in told)
        assert scene.stage.proxy.count() - before < 20
    finally:
        over.set()
        dialling.join()
    assert astray == []
    assert answered_by(scene.stage.client, "169.254.9.1", "one")
    scene.swap("one", "two")
    scene.check()
