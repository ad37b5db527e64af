"""The presets in examples/: a real API server takes them, and a node redirects to the pods that they make."""

import json
import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from lrp_operator.agent.config import load
from tests.cluster.apiserver import Manifest
from tests.cluster.charting import Helm, one

EXAMPLES = Path(__file__).parents[2] / "examples"
PRESETS = ("node-local-dns", "metadata-proxy")
KUBE_DNS = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "kube-dns", "namespace": "kube-system"},
    "spec": {
        "clusterIP": "10.96.0.10",
        "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            {"name": "metrics", "port": 9153, "protocol": "TCP"},
        ],
    },
}
EXPECTED = {
    "node-local-dns": {"10.96.0.10:53/TCP": ["10.244.0.9:53/TCP"], "10.96.0.10:53/UDP": ["10.244.0.9:53/UDP"]},
    "metadata-proxy": {"169.254.169.254:80/TCP": ["10.244.0.9:8181/TCP"]},
}


def manifests_of(preset: str) -> list[Manifest]:
    files = sorted((EXAMPLES / preset / "manifests").glob("*.yaml"))
    return [manifest for file in files for manifest in yaml.safe_load_all(file.read_text())]


def pod_of(daemonset: Manifest) -> Manifest:
    """A pod as the DaemonSet makes it, running and ready."""
    template = daemonset["spec"]["template"]
    status = {"phase": "Running", "podIP": "10.244.0.9", "conditions": [{"type": "Ready", "status": "True"}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "made", "namespace": "kube-system", **template["metadata"]},
        "spec": template["spec"] | {"nodeName": "n"},
        "status": status,
    }


def resolved(directory: Path, manifests: list[Manifest]) -> dict[str, Any]:
    """What a node does with manifests."""
    file = directory / "manifests.yaml"
    file.write_text(yaml.safe_dump_all(manifests))
    lrpctl = Path(sys.executable).parent / "lrpctl"
    done = subprocess.run(
        [lrpctl, "resolve", "--node", "n", "-o", "json", "-f", file], capture_output=True, text=True, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("preset", PRESETS)
def test_the_api_server_takes_it(kubectl: Callable[..., str], preset: str) -> None:
    where = EXAMPLES / preset / "manifests"
    told = kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", where)
    assert len(told.splitlines()) == len(manifests_of(preset))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_chart_takes_its_values(helm: Helm, tmp_path: Path, preset: str) -> None:
    values = yaml.safe_load((EXAMPLES / preset / "values.yaml").read_text())
    manifests = helm.template(values)
    (tmp_path / "settings.yaml").write_text(one(manifests, "ConfigMap", "settings")["data"]["settings.yaml"])
    loaded = load(tmp_path / "settings.yaml", {}, {})
    assert not loaded.mode.replaces_kube_proxy
    policy = one(manifests, "CiliumLocalRedirectPolicy", "test")
    taken = ip_address(policy["spec"]["redirectFrontend"]["addressMatcher"]["ip"])
    allowed = loaded.settings.local_redirect_policies.networks()
    assert any(taken in network for network in allowed) or not allowed, "`helm test` is to work with the preset"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_node_redirects_to_its_pods(tmp_path: Path, preset: str) -> None:
    manifests = manifests_of(preset)
    (daemonset,) = [manifest for manifest in manifests if manifest["kind"] == "DaemonSet"]
    answer = resolved(tmp_path, [*manifests, KUBE_DNS, pod_of(daemonset)])
    assert {found["frontend"]: found["backends"] for found in answer["frontends"]} == EXPECTED[preset]


@pytest.mark.parametrize("preset", PRESETS)
def test_it_rolls_without_a_node_being_without(preset: str) -> None:
    (daemonset,) = [manifest for manifest in manifests_of(preset) if manifest["kind"] == "DaemonSet"]
    assert daemonset["spec"]["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    spec = daemonset["spec"]["template"]["spec"]
    assert not spec.get("hostNetwork"), "two of them are on a node for a while"
    (container,) = spec["containers"]
    assert container["readinessProbe"]
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] < spec["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("preset", PRESETS)
def test_its_policy_is_the_one_to_start_from(preset: str) -> None:
    (policy,) = [manifest for manifest in manifests_of(preset) if manifest["kind"] == "CiliumLocalRedirectPolicy"]
    assert policy == yaml.safe_load((EXAMPLES / f"{preset}.yaml").read_text())
