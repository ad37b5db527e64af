"""lrpctl's commands for the cluster against a real API server, with the real controller where its words are shown.

Nodes, pods and nodes' reports are plain objects. Other tests' nodes may be in the cluster too: only one's own count.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from lrp_operator.cli.main import app
from tests.cluster import binaries
from tests.cluster.apiserver import Cluster
from tests.cluster.charting import Helm, one
from tests.cluster.hurried import ROOT
from tests.cluster.test_controller import CLRP, Controller, Manifest, World, until

Lrpctl = Callable[..., Result]
READ = ["get", "list"]


def runner(kubeconfig: Path) -> Lrpctl:
    """Run lrpctl as whoever a kubeconfig says."""
    environment = {"KUBECONFIG": str(kubeconfig), "COLUMNS": "200", "NO_COLOR": "1"}
    return lambda *words, stdin="": CliRunner().invoke(app, [str(word) for word in words], input=stdin, env=environment)


@pytest.fixture
def world(cluster: Cluster, namespace: str) -> Iterator[World]:
    world = World(cluster, namespace)
    yield world
    world.clear()


@pytest.fixture
def lrpctl(cluster: Cluster, namespace: str) -> Lrpctl:
    """Run lrpctl as an administrator whose context has the test's namespace."""
    file = cluster.kubeconfig(f"admin-{namespace}", "system:masters")
    config = yaml.safe_load(file.read_text())
    config["contexts"][0]["context"]["namespace"] = namespace
    file.write_text(yaml.safe_dump(config))
    return runner(file)


@pytest.fixture
def controller(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Callable[..., Controller]]:
    started: list[Controller] = []

    def start(*flags: str) -> Controller:
        started.append(Controller(cluster, f"controller-{namespace}", tmp_path / "controller.log", *flags))
        return started[-1]

    yield start
    for made in started:
        made.kill()


def manifest(ip: str, name: str = "p", namespace: str = "", **annotations: str) -> Manifest:
    """A policy as a file has it."""
    where = {"namespace": namespace} if namespace else {}
    ours = {f"lrp-operator.io/{key.replace('_', '-')}": text for key, text in annotations.items()}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumLocalRedirectPolicy",
        "metadata": {"name": name, **where, "annotations": ours},
        "spec": {
            "redirectFrontend": {"addressMatcher": {"ip": ip, "toPorts": [{"port": "80", "protocol": "TCP"}]}},
            "redirectBackend": {
                "localEndpointSelector": {"matchLabels": {"app": "proxy"}},
                "toPorts": [{"port": "80", "protocol": "TCP"}],
            },
        },
    }


def explained(lrpctl: Lrpctl, *manifests: Manifest, code: int, flags: tuple[str, ...] = ()) -> list[Any]:
    """Explain policies from standard input; what it says of each."""
    text = "---\n".join(map(yaml.safe_dump, manifests))
    result = lrpctl("explain", "-f", "-", "-o", "json", *flags, stdin=text)
    assert (result.exit_code, result.stderr) == (code, "")
    found: list[Any] = json.loads(result.stdout)["policies"]
    return found


def fates(policy: Any, *nodes: str) -> list[tuple[str, str]]:
    """What becomes of a policy's first frontend on these nodes."""
    by_name = {node["node"]: node["frontends"][0] for node in policy["nodes"]}
    return [(by_name[node]["fate"], by_name[node].get("reason", "")) for node in nodes]


def why(lrpctl: Lrpctl, pod: str, destination: str) -> Any:
    result = lrpctl("why", pod, destination, "-o", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


# --- get, describe ----------------------------------------------------------------------------------------------------


def test_get_shows_what_the_controller_wrote(
    world: World, controller: Callable[..., Controller], lrpctl: Lrpctl
) -> None:
    node = world.node("a")
    world.pod("a", node)
    policy = world.policy("web")
    before = json.loads(lrpctl("get", "-o", "json").stdout)["policies"]
    assert [(p["policy"], p["current"], "conditions" in p) for p in before] == [(f"{world.ns}/web", False, False)]
    assert "Unknown" in lrpctl("get").stdout

    controller()
    world.report(node, policy)
    world.await_condition("Programmed", "True", "Programmed", "web")
    (after,) = json.loads(lrpctl("get", "web", "-o", "json").stdout)["policies"]
    assert (after["current"], after["nodesWanted"], after["nodesProgrammed"]) == (True, 1, 1)
    assert after["conditions"]["Programmed"]["status"] == "True"
    assert after["frontends"] == [{"frontend": f"{world.ip}:80/TCP", "nodesRedirecting": 1}]
    row = lrpctl("get").stdout.splitlines()[1].split()
    assert row[:5] == [f"{world.ns}/web", world.ip, "True", "True", "1/1"]
    assert f"{world.ns}/web\n" in lrpctl("get", "-A", "-o", "name").stdout
    assert yaml.safe_load(lrpctl("get", "web", "-o", "yaml").stdout)["policies"] == [after]

    missing = lrpctl("get", "nope")
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert missing.stderr.startswith(f"lrpctl: there is no policy nope in namespace {world.ns}")


def test_describe(world: World, controller: Callable[..., Controller], lrpctl: Lrpctl) -> None:
    controller()
    good, full, lazy, bare = (world.node(name) for name in ("good", "full", "lazy", "bare"))
    for node in (good, full, lazy):
        world.pod(node, node)
    policy = world.policy("web", node_selector="!nothing")
    world.report(good, policy)
    world.report(full, policy, redirected=0, reason="NotProgrammed", message="the map is full")
    world.await_condition("Degraded", "True", "NodesFailing", "web")
    result = lrpctl("describe", "web", "-o", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    nodes = {node["node"]: (node.get("agent", ""), node.get("problem", "")) for node in told["nodes"]}
    assert nodes[good] == ("programmed", "")
    assert nodes[full] == ("trouble", "the map is full")
    assert nodes[lazy] == ("pending", "no agent has reported from it")
    assert nodes[bare] == ("", "no agent has reported from it")
    assert told["rules"]["Only on"] == "nodes with !nothing"
    text = lrpctl("describe", "web").stdout
    assert "agent: trouble: the map is full" in text
    assert f"-> 10.244.0.1:80/TCP {world.ns}/{good}" in text


def test_describe_shows_events(world: World, controller: Callable[..., Controller], lrpctl: Lrpctl) -> None:
    controller()
    world.policy("web", on_no_backend="dorp")
    world.await_condition("Accepted", "False", "Invalid", "web")
    until(lambda: world.events("web"), "no event")
    told = json.loads(lrpctl("describe", "web", "-o", "json").stdout)
    assert [(event["type"], event["reason"], event["count"]) for event in told["events"]] == [("Warning", "Invalid", 1)]
    assert 'must be "drop" or "fallback", not "dorp"' in told["events"][0]["message"]
    assert told["nodes"] == []


def test_as_a_plugin_of_kubectl(world: World, cluster: Cluster, kubectl: Callable[..., str]) -> None:  # noqa: ARG001
    world.policy("web")
    binary = Path(sys.executable).parent
    kubectls = Path(binaries.program("kubectl")).parent
    environment = {
        **os.environ,
        "PATH": f"{binary}:{kubectls}:{os.environ['PATH']}",
        "KUBECONFIG": str(cluster.kubeconfig()),
    }
    done = subprocess.run(
        ["kubectl", "lrp", "get", "-n", world.ns, "-o", "name"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{world.ns}/web\n", "")
    done = subprocess.run(["kubectl", "lrp", "why", "-h"], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Usage: kubectl lrp why ")


# --- explain ----------------------------------------------------------------------------------------------------------


def test_explain_writes_nothing(world: World, cluster: Cluster, lrpctl: Lrpctl) -> None:
    explained(lrpctl, manifest(world.ip), code=0)
    assert not cluster.request("GET", f"{CLRP.format(world.ns)}/p")
    requests = cluster.requests(f"admin-{world.ns}")
    assert {request.resource for request in requests} >= {"ciliumlocalredirectpolicies", "pods", "nodes", "services"}
    assert {request.verb for request in requests} <= {"get", "list"}


def test_explain_says_what_the_controller_says_afterwards(
    world: World, cluster: Cluster, controller: Callable[..., Controller], lrpctl: Lrpctl
) -> None:
    """The same policies, explained and then applied, come to the same verdicts."""
    node, unready = world.node("a"), world.node("b")
    world.pod("a", node)
    world.pod("b", unready, ready=False)
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": world.ns}}
    cluster_ip = world.apply({**service, "spec": {"ports": [{"port": 80}]}})["spec"]["clusterIP"]
    cases = [
        manifest(world.ip, "a"),
        manifest(world.ip, "b"),  # loses to a
        manifest(cluster_ip, "of-a-service"),
        manifest("10.99.99.99", "elsewhere"),
        manifest("169.254.200.1", "nowhere", node_selector="pool=none"),
        manifest("169.254.200.2", "closed", on_no_backend="drop"),
        manifest("169.254.200.3", "typo", on_no_backand="drop"),
    ]
    cases[0]["spec"]["skipRedirectFromBackend"] = True
    allowed = "169.254.0.0/16,10.96.0.0/16"
    try:
        plans = explained(lrpctl, *cases, code=1, flags=("--address-matcher-cidrs", allowed))
        assert [plan["policy"].partition("/")[2] for plan in plans if plan["works"]] == ["a", "closed"]
        controller("--lrp-address-matcher-cidrs", allowed)
        for case in cases:
            world.apply(manifest_in(case, world.ns))
        for plan in plans:
            name = plan["policy"].partition("/")[2]
            accepted = ("True", "Accepted") if plan["accepted"] else ("False", plan["reason"])
            status = world.await_condition("Accepted", *accepted, name)
            told = {item["frontend"]: item.get("reason", "") for item in status["frontends"]}
            # Pods can serve, but there is no agent: that is not for the resolver to say.
            said = {item["frontend"]: item.get("reason", "").replace("NoAgent", "") for item in plan["frontends"]}
            assert said == told, name
            by_kind = {condition["type"]: condition for condition in status["conditions"]}
            if not plan["frontends"]:
                assert by_kind["Resolved"]["message"] == plan["message"], name
        again = {plan["policy"]: plan["change"] for plan in explained(lrpctl, *cases, code=1)}
        assert set(again.values()) == {"unchanged"}  # what the API server filled in is no change
    finally:
        cluster.delete(service)


def manifest_in(policy: Manifest, namespace: str) -> Manifest:
    return {**policy, "metadata": {**policy["metadata"], "namespace": namespace}}


def test_explain_node_by_node(world: World, lrpctl: Lrpctl) -> None:
    ready, unready, other, empty = (
        world.node("a", pool="x"),
        world.node("b", pool="x"),
        world.node("c"),
        world.node("d", pool="x"),
    )
    world.pod("a", ready)
    world.pod("b", unready, ready=False)
    world.pod("c", other)
    world.report(ready)
    world.report(other, in_force=False)
    nodes = (ready, unready, other, empty)
    (plan,) = explained(lrpctl, manifest(world.ip, on_no_backend="drop", node_selector="pool in (x)"), code=0)
    assert plan["nodesRedirecting"] == 1
    assert fates(plan, *nodes) == [
        ("redirected", ""),
        ("refused", "NoReadyPod"),
        ("usual", "NodeNotSelected"),
        ("refused", "NoLocalPod"),
    ]
    (plan,) = explained(lrpctl, manifest(world.ip), code=0)
    assert fates(plan, *nodes) == [
        ("redirected", ""),
        ("usual", "NoReadyPod"),
        ("redirected", ""),
        ("usual", "NoLocalPod"),
    ]
    assert (plan["nodesRedirecting"], plan["nodesHindered"]) == (1, 1)  # what is not in force redirects nothing
    assert plan["frontends"] == [{"frontend": f"{world.ip}:80/TCP", "nodesRedirecting": 1}]


def test_explain_an_edit_of_an_old_policy_that_takes_what_another_has(world: World, lrpctl: Lrpctl) -> None:
    """Whoever edits a policy keeps its age: the younger one loses."""
    old = world.apply(manifest_in(manifest("169.254.201.1", "z"), world.ns))
    created = old["metadata"]["creationTimestamp"]

    def is_younger() -> bool:
        younger = manifest_in(manifest(world.ip, "younger"), world.ns)
        world.cluster.delete(younger)
        return bool(world.apply(younger)["metadata"]["creationTimestamp"] != created)

    until(is_younger, "time stands still")
    (plan,) = explained(lrpctl, manifest(world.ip, "z"), code=0)
    assert (plan["change"], plan["works"]) == ("replaced", True)
    assert plan["takes"] == [{"frontend": f"{world.ip}:80/TCP", "policy": f"{world.ns}/younger"}]
    (plan,) = explained(lrpctl, manifest(world.ip, "new"), code=1)
    assert (plan["change"], plan["works"], plan["takes"]) == ("new", False, [])
    assert plan["frontends"][0]["message"] == f"Policy {world.ns}/younger has this frontend: it is older."


def test_explain_in_a_namespace_that_is_not_there(world: World, lrpctl: Lrpctl) -> None:
    (plan,) = explained(lrpctl, manifest(world.ip, namespace="nowhere-at-all"), code=1)
    assert plan["problems"] == ["There is no namespace nowhere-at-all in the cluster."]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kind: [", "standard input, document 1, line "),
        ("kind: ConfigMap\nmetadata: {name: x}", "there is no CiliumLocalRedirectPolicy in -"),
        ("kind: CiliumLocalRedirectPolicy\nmetadata: {}", "standard input, document 1, line "),
    ],
)
def test_explain_what_is_no_policy(lrpctl: Lrpctl, text: str, sentence: str) -> None:
    result = lrpctl("explain", "-f", "-", stdin=text)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"lrpctl: {sentence}")


def test_settings_from_the_agents_file(world: World, lrpctl: Lrpctl, tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("localRedirectPolicies: {addressMatcherCIDRs: [10.0.0.0/8]}\n")
    (plan,) = explained(lrpctl, manifest(world.ip), code=1, flags=("--config", str(file)))
    assert plan["reason"] == "AddressNotAllowed"
    file.write_text("localRedirectPolicies: {addressMatcherCIDR: [10.0.0.0/8]}\n")
    result = lrpctl("explain", "-f", "-", "--config", file, stdin=yaml.safe_dump(manifest(world.ip)))
    assert result.exit_code == 2
    assert "do you mean localRedirectPolicies.addressMatcherCIDRs" in result.stderr


def test_settings_from_the_charts_config_map(world: World, cluster: Cluster, lrpctl: Lrpctl) -> None:
    settings = one(Helm().template(), "ConfigMap", "settings")
    settings["metadata"]["namespace"] = world.ns
    outside = manifest("8.8.8.8")
    try:
        world.apply(settings)
        (plan,) = explained(lrpctl, outside, code=1)
        assert plan["reason"] == "AddressNotAllowed"  # the chart allows link-local ones only
        explained(lrpctl, outside, code=0, flags=("--address-matcher-cidrs", "8.0.0.0/8"))
        result = lrpctl("explain", "-f", "-", stdin=yaml.safe_dump(manifest(world.ip)))
        origin = f"ConfigMap {world.ns}/{settings['metadata']['name']}"
        assert (result.exit_code, f"Note: The agents' settings are taken from {origin}.\n" in result.stdout) == (
            0,
            True,
        )
    finally:
        cluster.delete(settings)
    result = lrpctl("explain", "-f", "-", stdin=yaml.safe_dump(outside))
    assert (result.exit_code, "The agents' settings are not known (there are 0 ConfigMaps" in result.stdout) == (
        0,
        True,
    )


# --- why --------------------------------------------------------------------------------------------------------------


def test_why(world: World, cluster: Cluster, lrpctl: Lrpctl) -> None:
    node, other = world.node("a"), world.node("b")
    world.pod("backend", node)
    for name, where in (("client", node), ("client-2", other)):
        world.pod(name, where)  # every pod here has app=proxy; relabel the clients
        world.apply({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": world.ns, "labels": {"app": "client"}},
            "spec": {"nodeName": where, "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]},
        })  # fmt: skip
    policy = world.policy("web", on_no_backend="drop")
    world.report(node, policy)
    world.report(other)
    told = why(lrpctl, "client", f"{world.ip}:80")
    assert (told["result"], told["policy"]) == ("redirected", f"{world.ns}/web")
    assert told["backends"] == [{"address": "10.244.0.1:80/TCP", "pod": f"{world.ns}/backend"}]
    assert why(lrpctl, f"{world.ns}/client-2", f"{world.ip}:80")["result"] == "refused"
    assert why(lrpctl, "client", f"{world.ip}:80/udp")["result"] == "usual"
    text = lrpctl("why", "client", f"{world.ip}:81").stdout
    assert f"{world.ip}:80/TCP (policy {world.ns}/web)" in text

    world.apply(manifest_in(manifest("169.254.202.1", "web", on_no_backend="drop"), world.ns))
    told = why(lrpctl, "client", "169.254.202.1:80")  # edited: the agent has not caught up
    assert told["result"] == "usual"
    assert "earlier version" in told["because"]

    missing = lrpctl("why", "nope", f"{world.ip}:80")
    assert (missing.exit_code, missing.stderr) == (2, f"lrpctl: there is no pod nope in namespace {world.ns}\n")
    assert cluster.requests(f"admin-{world.ns}")


def test_why_a_node_port_is_not_redirected(world: World, cluster: Cluster, lrpctl: Lrpctl) -> None:
    node = world.node("a")
    address = {"type": "InternalIP", "address": f"198.18.{world.ip.rpartition('169.254.')[2]}"}
    named = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}
    world.apply({**named, "status": {"addresses": [address]}}, subresource="status")
    world.pod("client", node)
    world.report(node)
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": world.ns}}
    try:
        spec = world.apply({**service, "spec": {"type": "NodePort", "ports": [{"port": 80}]}})["spec"]
        told = why(lrpctl, "client", f"{address['address']}:{spec['ports'][0]['nodePort']}")
        assert told["result"] == "usual"
        assert told["because"] == (
            f"it goes to Service {world.ns}/web: it is a nodePort, and policies for a Service redirect ClusterIPs only."
        )
    finally:
        cluster.delete(service)


def test_why_a_rejected_policy_redirects_nothing(
    world: World, controller: Callable[..., Controller], lrpctl: Lrpctl
) -> None:
    """lrpctl does not know the settings, but the controller has said what came of them."""
    node = world.node("a")
    world.pod("client", node)
    world.report(node)
    controller("--lrp-address-matcher-cidrs", "10.0.0.0/8")
    world.policy("web")
    world.await_condition("Accepted", "False", "AddressNotAllowed", "web")
    told = why(lrpctl, "client", f"{world.ip}:80")
    assert told["result"] == "usual"
    assert any("is outside localRedirectPolicies.addressMatcherCIDRs" in step["text"] for step in told["steps"])


# --- Who may not, and who can't ---------------------------------------------------------------------------------------


def allow(world: World, user: str, groups: list[str], resources: list[str]) -> None:
    """Let a user read in the test's namespace."""
    rule = {"apiGroups": groups, "resources": resources, "verbs": READ}
    name = {"name": user, "namespace": world.ns}
    rbac = "rbac.authorization.k8s.io"
    world.apply({"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": name, "rules": [rule]})
    world.apply({
        "apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": name,
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": user},
        "subjects": [{"kind": "User", "name": user}],
    })  # fmt: skip


def test_who_may_nothing_is_told_what_is_missing(world: World, cluster: Cluster) -> None:
    lrpctl = runner(cluster.kubeconfig(f"bob-{world.ns}"))
    result = lrpctl("get", "-n", world.ns)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == (
        f"lrpctl: you may not list ciliumlocalredirectpolicies.cilium.io in namespace {world.ns}: it takes a role with"
        ' apiGroups: ["cilium.io"], resources: [ciliumlocalredirectpolicies], verbs: [list]\n'
    )
    result = lrpctl("explain", "-f", "-", "-n", world.ns, stdin=yaml.safe_dump(manifest(world.ip)))
    assert (result.exit_code, result.stdout) == (3, "")
    for resource in ("ciliumlocalredirectpolicies", "services", "pods", "nodes", "noderedirectstates"):
        assert f"resources: [{resource}], verbs: [list]" in result.stderr  # all at once


def test_who_may_read_policies_sees_what_they_say(world: World, cluster: Cluster) -> None:
    user = f"carol-{world.ns}"
    allow(world, user, ["cilium.io"], ["ciliumlocalredirectpolicies"])
    world.policy("web")
    lrpctl = runner(cluster.kubeconfig(user))
    assert lrpctl("get", "-n", world.ns, "-o", "name").stdout == f"{world.ns}/web\n"
    assert lrpctl("get", "-A").exit_code == 3
    told = lrpctl("describe", f"{world.ns}/web")
    assert told.exit_code == 0
    assert f"Redirects:  {world.ip} 80/TCP" in told.stdout
    assert "Note: Nodes are not shown: you may not list nodes of the whole cluster" in told.stdout
    assert "Note: Events are not shown: you may not list events in namespace" in told.stdout


def test_who_can_not_ask(cluster: Cluster, tmp_path: Path) -> None:
    nobody = runner(cluster.kubeconfig(token="wrong"))("get")  # noqa: S106
    assert (nobody.exit_code, nobody.stdout) == (3, "")
    assert nobody.stderr == f"lrpctl: the API server at {cluster.url} does not accept your credentials; renew them\n"
    nothing = runner(tmp_path / "nothing")("get")
    assert nothing.exit_code == 3
    assert nothing.stderr.startswith(f"lrpctl: there is no kubeconfig {tmp_path}/nothing. Name a kubeconfig with")
    lrpctl = runner(cluster.kubeconfig())
    away = lrpctl("get", "--api-server", "https://127.0.0.1:1")
    assert (away.exit_code, away.stderr) == (
        3,
        "lrpctl: the API server at https://127.0.0.1:1 can't be reached: connection refused\n",
    )
    assert "nope" in lrpctl("get", "--context", "nope").stderr
    assert lrpctl("get", "--context", "nope").exit_code == 3


def test_a_cluster_without_our_kinds(cluster: Cluster) -> None:
    kind = yaml.safe_load((ROOT / "deploy/crds/ciliumlocalredirectpolicies.yaml").read_text())
    cluster.delete(kind)
    try:
        until(lambda: not cluster.request("GET", "/apis/cilium.io/v2"), "the kind is gone")
        result = runner(cluster.kubeconfig())("get", "-A")
    finally:
        cluster.install(ROOT / "deploy/crds/ciliumlocalredirectpolicies.yaml")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == (
        "lrpctl: the cluster knows no CiliumLocalRedirectPolicy: the CustomResourceDefinition"
        " ciliumlocalredirectpolicies.cilium.io is not installed\n"
    )
