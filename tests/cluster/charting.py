"""The project's chart in a test: rendered as Helm renders it, and installed as Helm installs it."""

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import binaries
from tests.cluster.apiserver import Manifest

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "lrp-operator"
IMAGE = {"image": {"registry": "example.invalid"}}
RELEASE = "lrp-operator"

Values = dict[str, Any]


class ChartError(Exception):
    """Helm refuses; the text has its words."""


class Helm:
    """Helm, with nothing of its user's."""

    def run(self, *args: str | Path, values: Values | None = None, kubeconfig: Path | None = None) -> str:
        """Run it, with values on standard input if there are any. Returns what it printed. Raises ChartError."""
        where = ["--kubeconfig", kubeconfig] if kubeconfig else []
        given = ["--values", "-"] if values is not None else []
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        done = subprocess.run(
            [binaries.program("helm"), *args, *where, *given],
            input=yaml.safe_dump(values),
            env=kept | {"HELM_PLUGINS": "/nonexistent", "KUBECONFIG": "/nonexistent"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ChartError(f"helm {' '.join(map(str, args))}: {done.stderr.strip()}")
        return done.stdout

    def template(
        self, values: Values | None = None, *, namespace: str = "kube-system", chart: Path = CHART
    ) -> list[Manifest]:
        """The chart rendered: with values and an image, in a namespace."""
        text = self.run("template", RELEASE, chart, "--namespace", namespace, values=IMAGE | (values or {}))
        return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def one(manifests: list[Manifest], kind: str, component: str = "") -> Manifest:
    """The only manifest of a kind; of a component, where several have that kind."""
    label = "app.kubernetes.io/component"
    found = [
        manifest
        for manifest in manifests
        if manifest["kind"] == kind and component in ("", manifest["metadata"]["labels"][label])
    ]
    assert len(found) == 1, f"{len(found)} of {kind} {component}"
    return found[0]
