"""The pods of the walk, with images that need no registry."""

from typing import Any

import yaml

from tests.e2e.images import name_of
from tests.e2e.terminal import ROOT

Manifest = dict[str, Any]


def example(path: str, images: dict[str, str] | None = None) -> list[Manifest]:
    """The manifests of one of the project's examples. images: ours (their short names) for what the example has."""
    text = (ROOT / "examples" / path).read_text()
    manifests = [manifest for manifest in yaml.safe_load_all(text) if manifest]
    for container in (container for manifest in manifests for container in _containers(manifest)):
        found = [ours for theirs, ours in (images or {}).items() if theirs in container["image"]]
        if found:
            container |= {"image": name_of(found[0]), "imagePullPolicy": "IfNotPresent"}
    return manifests


def _containers(manifest: Manifest) -> list[Manifest]:
    spec = manifest.get("spec", {})
    pod = spec if manifest["kind"] == "Pod" else spec.get("template", {}).get("spec", {})
    found: list[Manifest] = [*pod.get("initContainers", []), *pod.get("containers", [])]
    return found


def pod(name: str, image: str, labels: dict[str, str], **container: Any) -> Manifest:
    """A pod with one container, which ends quickly."""
    one = {"name": name, "image": name_of(image), "imagePullPolicy": "IfNotPresent", **container}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {"containers": [one], "terminationGracePeriodSeconds": 3},
    }


def web(name: str, app: str, port: int) -> Manifest:
    """A pod that answers HTTP requests with its name."""
    ready = {"httpGet": {"path": "/", "port": port}, "periodSeconds": 1}
    ports = [{"containerPort": port, "name": "tcp", "protocol": "TCP"}]
    return pod(name, "web", {"app": app}, args=[f"-port={port}"], ports=ports, readinessProbe=ready)
