"""The chart: it passes on what it is told, refuses what agents would refuse, and a real API server takes it."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click import Context

from lrp_operator.agent.apimodel import DEFAULT_SOCKET
from lrp_operator.agent.config import DEPRECATED, SETTINGS, ConfigError, Loaded, load
from lrp_operator.agent.doors import Doors
from lrp_operator.agent.main import BPF_ROOT
from lrp_operator.agent.main import app as agent_app
from lrp_operator.api.withdrawal import labels_of_reports
from lrp_operator.controller.main import app as controller_app
from tests.cluster.apiserver import Answer, Cluster, Manifest
from tests.cluster.charting import CHART, IMAGE, RELEASE, ChartError, Helm, Values, one
from tests.cluster.conftest import CRDS
from tests.cluster.faulty import FaultyProxy, Refuse
from tests.cluster.following import heed, policy, to_address, until
from tests.cluster.hooks import Hooks

POLICIES = "/apis/cilium.io/v2/ciliumlocalredirectpolicies"
STATES = "/apis/lrp-operator.io/v1alpha1/noderedirectstates"
LINK_LOCAL = ["169.254.0.0/16", "fe80::/10"]
MODES: dict[str, Values] = {
    "nothing said": {},
    "sockets, kube-proxy stays": {"kubeProxyReplacement": False, "socketLB": {"enabled": True}},
    "kube-proxy replaced": {"kubeProxyReplacement": True},
    "the node's own sockets": {"kubeProxyReplacement": True, "socketLB": {"hostNamespaceOnly": True}},
    "pods at TC level": {"kubeProxyReplacement": False},
}


def merged(*parts: Values) -> Values:
    """Values put together, mappings within mappings too."""
    result: Values = {}
    for part in parts:
        for key, value in part.items():
            result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


def load_text(directory: Path, text: str) -> Loaded:
    """What the agent makes of a file of settings."""
    (directory / "settings.yaml").write_text(text)
    return load(directory / "settings.yaml", {}, {})


def rendered_settings(manifests: list[Manifest]) -> str:
    text: str = one(manifests, "ConfigMap", "settings")["data"]["settings.yaml"]
    return text


# --- Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_settings_arrive(helm: Helm, tmp_path: Path, mode: str) -> None:
    said = {
        "localRedirectPolicies": {
            "addressMatcherCIDRs": ["10.0.0.0/8"],
            "addressMatcherNamespaces": ["kube-system"],
            "maxFrontendsPerNamespace": 1_000_000,  # Helm holds numbers as floats: no 1e+06
        },
        "bpf": {"lbMapMax": 1 << 24, "lbBackendMapMax": 1_000_000, "ctTcpMax": 2_000_000},
        "enableIPv6": False,
        "terminateTCP": True,
    }
    values = merged(said, MODES[mode])
    told, meant = load_text(tmp_path, rendered_settings(helm.template(values))), load_text(tmp_path, yaml.dump(values))
    assert told.settings.model_dump() == meant.settings.model_dump()
    assert told.mode == meant.mode
    assert not told.warnings


def test_who_says_nothing_gets_link_local_addresses(helm: Helm, tmp_path: Path) -> None:
    settings = load_text(tmp_path, rendered_settings(helm.template())).settings
    assert settings.local_redirect_policies.address_matcher_cidrs == LINK_LOCAL
    expected = {"localRedirectPolicies": {"addressMatcherCIDRs": LINK_LOCAL}}
    assert settings.model_dump() == load_text(tmp_path, yaml.dump(expected)).settings.model_dump()


def test_every_setting_of_the_agent_is_a_value(helm: Helm) -> None:
    settings = yaml.safe_load(rendered_settings(helm.template()))
    for key in [*(setting.key for setting in SETTINGS), *DEPRECATED]:
        place: Any = settings
        for part in key.split("."):
            assert part in place, key
            place = place[part]


def combinations() -> Iterator[Values]:
    """All that may be said about the modes, and some of what else may contradict itself."""
    sockets: list[Values] = [{}, {"enabled": True}, {"enabled": False}]
    hosts: list[Values] = [{}, {"hostNamespaceOnly": True}]
    for replacement, enabled, host in itertools.product([None, True, False, "strict"], sockets, hosts):
        yield {"kubeProxyReplacement": replacement, "socketLB": enabled | host}
    yield {"kubeProxyReplacement": "partial"}
    yield {"kubeProxyReplacement": "disabled", "socketLB": {"enabled": True}}
    yield {"enableIPv4": False}
    yield {"enableIPv4": False, "enableIPv6": False}
    yield {"localRedirectPolicies": {"enabled": False}}
    yield {"localRedirectPolicies": {"enabled": False}, "kubeProxyReplacement": True}
    yield {"localRedirectPolicy": False}
    yield {"localRedirectPolicy": True}
    yield {"localRedirectPolicy": True, "localRedirectPolicies": {"enabled": False}}


@pytest.mark.parametrize("values", list(combinations()), ids=json.dumps)
def test_it_refuses_what_agents_refuse_and_nothing_else(helm: Helm, tmp_path: Path, values: Values) -> None:
    """In the agent's words, and before anything is installed."""
    try:
        meant = load_text(tmp_path, yaml.dump(values))
    except ConfigError as error:
        sentence = str(error).removeprefix(f"{tmp_path}/settings.yaml: ").splitlines()[0]
        with pytest.raises(ChartError) as refused:
            helm.template(values)
        assert sentence in str(refused.value)
    else:
        manifests = helm.template(values)
        assert load_text(tmp_path, rendered_settings(manifests)).mode == meant.mode
        rules = one(manifests, "ClusterRole", "agent")["rules"]
        assert any(rule["resources"] == ["endpointslices"] for rule in rules) == meant.mode.replaces_kube_proxy


def keys_in(values: Values, at: str = "") -> Iterator[str]:
    """Dotted keys of values, down to what the schema has no words for."""
    for key, value in values.items():
        yield f"{at}{key}"
        if isinstance(value, dict) and f"{at}{key}" not in FREE:
            yield from keys_in(value, f"{at}{key}.")


def keys_of(schema: Manifest, whole: Manifest, at: str = "") -> Iterator[str]:
    """The same of a schema."""
    reference = schema.get("$ref", "").removeprefix("#/definitions/")
    schema = whole["definitions"][reference] if reference else schema
    for key, inner in schema.get("properties", {}).items():
        yield f"{at}{key}"
        if f"{at}{key}" not in FREE:
            yield from keys_of(inner, whole, f"{at}{key}.")


FREE = {
    f"{component}.{key}"
    for component in ("agent", "controller")
    for key in ("resources", "nodeSelector", "affinity", "podLabels", "podAnnotations", "updateStrategy")
}
"""Values that are Kubernetes' own objects."""


def test_the_schema_knows_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = set(keys_of(schema, schema)) - {"global", "LocalRedirectPolicy"}  # Helm's own, and one that is explained
    assert known == set(keys_in(yaml.safe_load((CHART / "values.yaml").read_text())))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"socketLB": {"enbled": True}}, "enbled"),
        ({"socketLB": {"enabled": "yes"}}, "socketLB/enabled"),
        ({"kubeproxyReplacement": True}, "kubeproxyReplacement"),
        ({"bpf": {"lbMapMax": 0}}, "bpf/lbMapMax"),
        ({"localRedirectPolicies": {"addressMatcherCIDRs": "169.254.0.0/16"}}, "addressMatcherCIDRs"),
        ({"localRedirectPolicies": {"addressMatcherCIDRs": ["everything"]}}, "addressMatcherCIDRs"),
        ({"image": {"pullPolicy": "Sometimes"}}, "image/pullPolicy"),
        ({"agent": {"metricsBindAddress": "9881"}}, "agent/metricsBindAddress"),
        ({"image": {"registry": ""}}, "image.registry are empty: no image"),
        ({"agent": {"tolerations": [{"operator": "Exits"}]}}, "agent/tolerations/0/operator"),
        ({"agent": {"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}}, "agent/updateStrategy/rollingUpdate"),
        ({"uninstall": {"timeoutSeconds": 0}}, "uninstall/timeoutSeconds"),
        ({"LocalRedirectPolicy": True}, "write localRedirectPolicies: {enabled: true}"),
    ],
)
def test_what_is_wrong_is_named(helm: Helm, values: Values, words: str) -> None:
    with pytest.raises(ChartError, match=words):
        helm.template(values)


# --- The chart's own tests, and its page ------------------------------------------------------------------------------


def test_its_own_tests(helm_unittest: Path) -> None:
    done = subprocess.run([helm_unittest, "--strict", CHART], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    suites = len(list(CHART.glob("tests/*_test.yaml")))
    assert f"{suites} passed, {suites} total" in done.stdout


def test_the_readme_tells_the_values(helm_docs: Path, regenerate: bool) -> None:
    """`.venv/bin/pytest tests/cluster/test_chart.py -k readme --regenerate` writes it."""
    command = [helm_docs, f"--chart-search-root={CHART}", "--template-files=README.md.gotmpl", "--dry-run"]
    command += ["--sort-values-order=file", "--skip-version-footer", "--log-level=warning"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() + "\n"
    page = CHART / "README.md"
    if regenerate:
        page.write_text(told)
    assert page.read_text() == told, "values.yaml or README.md.gotmpl was changed: write it anew (see above)"
    rows = [line for line in told.splitlines() if line.startswith("| ") and not line.startswith("| Key")]
    assert rows
    assert not [row for row in rows if row.endswith("|  |")], "every value is told"


# --- What is rendered -------------------------------------------------------------------------------------------------


def test_lint(helm: Helm) -> None:
    helm.run("lint", "--strict", CHART, values=IMAGE)


def test_the_kinds_are_those_of_deploy_crds(helm: Helm, tmp_path: Path) -> None:
    """Also in a package: files/crds is a link, and Helm packs what it leads to."""
    helm.run("package", CHART, "--destination", tmp_path)
    (package,) = tmp_path.glob("*.tgz")
    for chart in (CHART, package):
        for keep in (True, False):
            manifests = helm.template({"crds": {"keep": keep}}, chart=chart)
            found = [manifest for manifest in manifests if manifest["kind"] == "CustomResourceDefinition"]
            for crd in found:
                del crd["metadata"]["labels"]
                assert crd["metadata"]["annotations"].pop("helm.sh/resource-policy", None) == ("keep" if keep else None)
            assert found == [yaml.safe_load(file.read_text()) for file in CRDS]
    kinds = {manifest["kind"] for manifest in helm.template({"crds": {"install": False}})}
    assert "CustomResourceDefinition" not in kinds


def parsed(app: typer.Typer, container: Manifest) -> Context:
    """What a program makes of its command line, as far as that goes without starting it."""
    context: Context = typer.main.get_command(app).make_context(container["command"][0], list(container["args"]))
    return context


def container_of(workload: Manifest) -> Manifest:
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def volume_at(workload: Manifest, path: Path) -> Manifest:
    """The volume that a path of the container lies in."""
    mounts = [mount for mount in container_of(workload)["volumeMounts"] if path.is_relative_to(mount["mountPath"])]
    assert mounts, f"{path} is in no volume"
    volumes: list[Manifest] = workload["spec"]["template"]["spec"]["volumes"]
    return next(volume for volume in volumes if volume["name"] == mounts[0]["name"])


def test_the_agent_understands_its_command_line(helm: Helm) -> None:
    manifests = helm.template({"logFormat": "json", "agent": {"healthzPort": 9999, "metricsBindAddress": ""}})
    daemonset = one(manifests, "DaemonSet")
    container = container_of(daemonset)
    said = parsed(agent_app, container).params
    doors = Doors.checked(said["api_socket"], said["metrics"], said["healthz"])
    assert (doors.metrics, doors.healthz, said["log_format"].value) == (None, "127.0.0.1:9999", "json")
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert {f"{probe['host']}:{probe['port']}" for probe in probes} == {doors.healthz}
    assert (
        volume_at(daemonset, said["config"])["configMap"]["name"]
        == one(manifests, "ConfigMap", "settings")["metadata"]["name"]
    )
    assert said["config"].name in one(manifests, "ConfigMap", "settings")["data"]
    assert volume_at(daemonset, said["cgroup_root"])["hostPath"]["path"] == "/sys/fs/cgroup"
    assert volume_at(daemonset, BPF_ROOT)["hostPath"]["path"] == "/sys/fs/bpf"
    assert volume_at(daemonset, Path(DEFAULT_SOCKET))["emptyDir"] == {"medium": "Memory"}
    assert said["bpf_root"] == BPF_ROOT
    assert "K8S_NODE_NAME" in {variable["name"] for variable in container["env"]}


@pytest.mark.parametrize("despite_cilium", [False, True])
def test_the_controller_understands_its_command_line(helm: Helm, despite_cilium: bool) -> None:
    manifests = helm.template({"despiteCilium": despite_cilium}, namespace="elsewhere")
    deployment = one(manifests, "Deployment")
    container = container_of(deployment)
    said = parsed(controller_app, container).params
    lease = next(rule for rule in one(manifests, "Role", "controller")["rules"] if "resourceNames" in rule)[
        "resourceNames"
    ][0]
    assert said["lease"] == f"elsewhere/{lease}"
    assert said["despite_cilium"] is despite_cilium
    assert said["install_crds"] is False, "its role does not allow that; the chart installs them"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {name: int(said[name].removeprefix(":")) for name in ("metrics", "healthz")}
    assert (
        volume_at(deployment, said["config"])["configMap"]["name"]
        == one(manifests, "ConfigMap", "settings")["metadata"]["name"]
    )


def test_pods_start_anew_when_the_settings_change(helm: Helm) -> None:
    def sums(values: Values) -> list[str]:
        manifests = helm.template(values)
        templates = [one(manifests, kind)["spec"]["template"] for kind in ("DaemonSet", "Deployment")]
        return [template["metadata"]["annotations"]["checksum/settings"] for template in templates]

    assert sums({}) == sums({"logFormat": "json"}) != sums({"terminateTCP": True})


def test_an_api_server_by_name(helm: Helm) -> None:
    manifests = helm.template({"k8sServiceHost": "api.example.invalid", "k8sServicePort": 6444})
    for kind in ("DaemonSet", "Deployment"):
        variables = {entry["name"]: entry.get("value") for entry in container_of(one(manifests, kind))["env"]}
        assert variables["KUBERNETES_SERVICE_HOST"] == "api.example.invalid"
        assert variables["KUBERNETES_SERVICE_PORT"] == "6444"


# --- On a real API server ---------------------------------------------------------------------------------------------


@pytest.fixture
def bare_cluster(programs: None) -> Iterator[Cluster]:  # noqa: ARG001
    """An API server without the project's kinds."""
    with Cluster() as cluster:
        yield cluster


def slices_allowed(cluster: Cluster) -> bool:
    path = f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{RELEASE}-agent"
    return "endpointslices" in str(cluster.request("GET", path).body["rules"])


async def test_it_is_installed_changed_and_removed(bare_cluster: Cluster, helm: Helm) -> None:
    cluster, config = bare_cluster, bare_cluster.kubeconfig()

    def install(values: Values) -> str:
        return helm.run(
            *("upgrade", "--install", RELEASE, CHART, "--namespace", "kube-system"),
            values=merged(IMAGE, values),
            kubeconfig=config,
        )

    for mode in MODES.values():
        values = mode | {"bpf": {"autoMount": {"enabled": True}}}
        notes = install(values)
        assert slices_allowed(cluster) == bool(values.get("kubeProxyReplacement"))
        for word in ("k8sServiceHost", "nor the uninstall's Job once agents withdraw"):
            assert (word in notes) == bool(values.get("kubeProxyReplacement"))
        for kind in ("DaemonSet", "Deployment"):
            start_a_pod(cluster, one(helm.template(values), kind))
    kept = policy("kept", "default", to_address("169.254.20.10"))
    await until(lambda: bool(cluster.request("GET", POLICIES)), lambda: "the kind to be served")
    cluster.apply(kept)
    with Hooks(cluster) as hooks:
        helm.run("uninstall", RELEASE, "--namespace", "kube-system", kubeconfig=config)
    assert "every agent has withdrawn" in hooks.told[0]
    assert not cluster.request("GET", f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{RELEASE}-agent")
    assert cluster.request("GET", cluster.path(kept)), "the kind is kept, and so is every policy"
    install({})  # takes up what it has left


ORDER = f"/api/v1/namespaces/kube-system/configmaps/{RELEASE}-withdraw"
OURS = f"labelSelector=app.kubernetes.io/instance={RELEASE}"


def left(cluster: Cluster) -> list[str]:
    """What is there of the release, but for the kinds."""
    namespaced = {
        "v1": ["configmaps", "pods", "serviceaccounts"],
        "apps/v1": ["daemonsets", "deployments", "replicasets"],
    }
    namespaced |= {"batch/v1": ["jobs"], "policy/v1": ["poddisruptionbudgets"]}
    namespaced |= {
        "networking.k8s.io/v1": ["networkpolicies"],
        "rbac.authorization.k8s.io/v1": ["roles", "rolebindings"],
    }
    paths = [
        f"/{'api' if group == 'v1' else 'apis'}/{group}/namespaces/kube-system/{kind}"
        for group, kinds in namespaced.items()
        for kind in kinds
    ]
    paths += [f"/apis/rbac.authorization.k8s.io/v1/{kind}" for kind in ("clusterroles", "clusterrolebindings")]
    paths += [
        f"/apis/admissionregistration.k8s.io/v1/validatingadmission{kind}" for kind in ("policies", "policybindings")
    ]
    return [
        f"{path} {item['metadata']['name']}"
        for path in paths
        for item in cluster.request("GET", f"{path}?{OURS}").body["items"]
    ]


def state_of(node: str, release: str = RELEASE) -> Manifest:
    meta = {"name": node, "labels": labels_of_reports(f"kube-system/{release}-withdraw")}
    return {"apiVersion": "lrp-operator.io/v1alpha1", "kind": "NodeRedirectState", "metadata": meta}


def test_an_uninstall_that_fails_removes_nothing_and_is_tried_again(bare_cluster: Cluster, helm: Helm) -> None:
    """A node's agent is gone: it is named, and all stays, until somebody has seen to it."""
    cluster, config = bare_cluster, bare_cluster.kubeconfig()
    where = ["--namespace", "kube-system"]

    def install(**values: Any) -> None:
        helm.run("upgrade", "--install", RELEASE, CHART, *where, values=merged(IMAGE, values), kubeconfig=config)

    install()
    before = left(cluster)
    assert "uninstall" not in str(before), "what only the uninstall needs is made by it"
    report = {"agentVersion": "1", "mode": "m", "inForce": True}
    state = state_of("worker-9")
    cluster.apply(state | {"report": report})
    with Hooks(cluster, flags=("--timeout=3",)) as hooks, pytest.raises(ChartError, match="failed"):
        helm.run("uninstall", RELEASE, *where, kubeconfig=config)
    assert "worker-9: no agent is there to withdraw" in hooks.told[0]
    assert "data" not in cluster.request("GET", ORDER).body, "the order stands"
    failed = f"/apis/batch/v1/namespaces/kube-system/jobs {RELEASE}-uninstall"
    assert sorted(left(cluster)) == sorted([*before, failed]), "beside all that there was, the Job, to be read"
    # Helm upgrades no release that it has begun to remove.
    helm.run("rollback", RELEASE, "1", *where, kubeconfig=config)
    assert cluster.request("GET", ORDER).body["data"] == {"withdraw": "false"}, "the order is revoked"
    install()
    with Hooks(cluster) as hooks, ThreadPoolExecutor() as agents:
        agent = agents.submit(heed, cluster, ORDER, state, report)
        helm.run("uninstall", RELEASE, *where, kubeconfig=config)
        agent.result()
    assert "nothing is left on 1 node" in hooks.told[-1]
    assert not left(cluster)
    assert not cluster.request("GET", STATES).body["items"]


def test_an_uninstall_that_helm_could_not_end_is_tried_again(bare_cluster: Cluster, helm: Helm) -> None:
    """Agents have withdrawn, and Helm has begun to delete: the next one runs the Job again, and has all it takes."""
    cluster, config = bare_cluster, bare_cluster.kubeconfig()
    where = ["--namespace", "kube-system"]
    helm.run("upgrade", "--install", RELEASE, CHART, *where, values=IMAGE, kubeconfig=config)
    with Hooks(cluster) as hooks, FaultyProxy(cluster) as proxy:
        proxy.add(Refuse(500, "InternalError"), "DELETE", "/daemonsets/")
        cut_short = cluster.kubeconfig(token=cluster.token, server=proxy.url)
        with pytest.raises(ChartError, match="failed to delete release"):
            helm.run("uninstall", RELEASE, *where, kubeconfig=cut_short)
        assert "every agent has withdrawn" in hooks.told[0]
        assert [line.rpartition(" ")[2] for line in left(cluster)] == [f"{RELEASE}-agent"]
        helm.run("uninstall", RELEASE, *where, kubeconfig=config)
    assert "an earlier uninstall has come that far" in hooks.told[1]
    assert not left(cluster)


def test_another_release_keeps_its_nodes(bare_cluster: Cluster, helm: Helm) -> None:
    cluster, config = bare_cluster, bare_cluster.kubeconfig()
    where = ["--namespace", "kube-system"]
    report = {"agentVersion": "1", "mode": "m", "inForce": True}
    helm.run("install", RELEASE, CHART, *where, values=IMAGE, kubeconfig=config)
    cluster.apply(state_of("theirs", release="another-lrp-operator") | {"report": report})
    cluster.apply(state_of("ours") | {"report": report})
    with Hooks(cluster, flags=("--timeout=20",)) as hooks, ThreadPoolExecutor() as agents:
        agent = agents.submit(heed, cluster, ORDER, state_of("ours"), report)
        helm.run("uninstall", RELEASE, *where, kubeconfig=config)
        agent.result()
    assert "nothing is left on 1 node" in hooks.told[0]
    assert [item["metadata"]["name"] for item in cluster.request("GET", STATES).body["items"]] == ["theirs"]


def test_without_the_kind_of_their_answers_it_is_told_at_once(bare_cluster: Cluster, helm: Helm) -> None:
    """Also where Helm itself has removed it, with the agents: then there is nothing to wait for."""
    cluster, config = bare_cluster, bare_cluster.kubeconfig()
    where = ["--namespace", "kube-system"]
    helm.run("install", RELEASE, CHART, *where, values=IMAGE, kubeconfig=config)
    kind = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/noderedirectstates.lrp-operator.io"
    labels = one(helm.template(), "DaemonSet")["spec"]["selector"]["matchLabels"]
    spec = {"nodeName": "worker-1", "containers": [{"name": "agent", "image": "none"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent-1", "namespace": "kube-system"}, "spec": spec}
    pod["metadata"]["labels"] = labels
    cluster.apply(pod)
    assert cluster.request("DELETE", kind)
    with Hooks(cluster) as hooks:
        with pytest.raises(ChartError, match="failed"):
            helm.run("uninstall", RELEASE, *where, kubeconfig=config)
        assert "no agent could say that it has withdrawn. Nothing was done" in hooks.told[0]
        assert cluster.request("GET", ORDER).body["data"] == {"withdraw": "false"}
        helm.run("rollback", RELEASE, "1", *where, kubeconfig=config)
        assert cluster.request("GET", kind), "as is said"
        assert cluster.request("DELETE", kind)
        cluster.delete(pod)
        helm.run("uninstall", RELEASE, *where, kubeconfig=config)
        assert "an earlier uninstall has come that far" in hooks.told[1]
    assert not left(cluster)


def test_a_rollback_by_helm_4_revokes_the_order(cluster: Cluster, helm: Helm, namespace: str) -> None:
    """It applies on the server's side, and gives way to whoever else owns a field; it is not built here."""
    order = one(helm.template(namespace=namespace), "ConfigMap", "uninstall")
    path = f"{cluster.path(order)}?fieldManager=helm&force=false"

    def apply() -> Answer:
        return cluster.request("PATCH", path, order, content_type="application/apply-patch+yaml")

    assert apply()
    by_hand = {"data": {"withdraw": "true"}}
    assert cluster.request("PATCH", cluster.path(order), by_hand, content_type="application/merge-patch+json")
    assert apply().status == 409, "as it would be if the Job wrote that"
    where = [f"--kubeconfig={cluster.kubeconfig()}", f"--order={namespace}/{order['metadata']['name']}"]
    command = [sys.executable, "-m", "lrp_operator.controller", "withdraw", *where, "--agents=a=b", "--agent-image=i"]
    given: list[str] = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = cluster.request("GET", cluster.path(order)).body
        assert "data" not in found
        given.append(found["metadata"]["resourceVersion"])
    assert given[0] == given[1], "given again, it is the same order"
    assert apply().body["data"] == {"withdraw": "false"}


def test_an_upgrade_from_where_what_uninstalls_was_part_of_the_release(
    bare_cluster: Cluster, helm: Helm, tmp_path: Path
) -> None:
    cluster, config = bare_cluster, bare_cluster.kubeconfig()
    where = ["--namespace", "kube-system"]
    older = shutil.copytree(CHART, tmp_path / CHART.name)
    roles = older / "templates" / "uninstall" / "rbac.yaml"
    lines = roles.read_text().splitlines(keepends=True)
    roles.write_text("".join(line for line in lines if "lrp.uninstallHook" not in line))
    helm.run("install", RELEASE, older, *where, values=IMAGE, kubeconfig=config)
    assert sum(line.endswith("-uninstall") for line in left(cluster)) == 5
    helm.run("upgrade", RELEASE, CHART, *where, values=IMAGE, kubeconfig=config)
    assert "uninstall" not in str(left(cluster))
    with Hooks(cluster) as hooks:
        helm.run("uninstall", RELEASE, *where, kubeconfig=config)
    assert "every agent has withdrawn" in hooks.told[0]
    assert not left(cluster)


def test_helm_test_cleans_up(bare_cluster: Cluster, helm: Helm) -> None:
    cluster, config = bare_cluster, bare_cluster.kubeconfig()
    where = ["--namespace", "kube-system"]
    helm.run("upgrade", "--install", RELEASE, CHART, *where, values=IMAGE, kubeconfig=config)
    before = left(cluster)
    with Hooks(cluster) as hooks:
        told = helm.run("test", RELEASE, *where, kubeconfig=config)
    assert hooks.pods == [f"{RELEASE}-test"]
    assert "Phase:          Succeeded" in told
    assert left(cluster) == before
    assert not cluster.request("GET", POLICIES).body["items"]


def start_a_pod(cluster: Cluster, workload: Manifest) -> None:
    """Have the API server say what it would of a pod, as the controllers would make it."""
    template = workload["spec"]["template"]
    meta = template["metadata"] | {"name": "trial", "namespace": "kube-system"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
    answer = cluster.request("POST", "/api/v1/namespaces/kube-system/pods?dryRun=All&fieldValidation=Strict", pod)
    assert answer, answer.body


@pytest.mark.parametrize("mode", MODES)
def test_server_side_apply_takes_every_mode(helm: Helm, kubectl: Callable[..., str], mode: str) -> None:
    """With strict validation: no field that the API does not know."""
    manifests = yaml.safe_dump_all(helm.template(MODES[mode] | {"crds": {"install": False}}))
    flags = ["--server-side", "--validate=strict", "--dry-run=server"]
    applied = kubectl("apply", *flags, "-f", "-", stdin=manifests)
    assert len(applied.splitlines()) == len(list(yaml.safe_load_all(manifests)))
    assert all(line.endswith("serverside-applied (server dry run)") for line in applied.splitlines())


async def test_the_admission_policy_is_of_the_right_types(
    cluster: Cluster, helm: Helm, controllers: Callable[..., AbstractContextManager[None]]
) -> None:
    rule = one(helm.template(), "ValidatingAdmissionPolicy")
    path = f"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/{rule['metadata']['name']}"

    def checked() -> bool:
        return "typeChecking" in cluster.request("GET", path).body.get("status", {})

    with controllers("validatingadmissionpolicy-status-controller"):
        cluster.apply(rule)
        try:
            await until(checked, lambda: "its types to be checked")
            assert cluster.request("GET", path).body["status"]["typeChecking"] == {}
        finally:
            cluster.delete(rule)
