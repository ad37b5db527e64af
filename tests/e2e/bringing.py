"""From a node that has booted to a cluster that is ready: images in, DNS up."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster import binaries
from tests.e2e import images, manifests
from tests.e2e.hands import Hands, HandsError
from tests.e2e.node import Node, NodeError

BUILT = Path(__file__).parents[2] / "build" / "images"
PATIENCE = 120.0


def built_images() -> list[Path]:
    """The product's own images, as `make image` leaves them. Raises NodeError where they are not there."""
    found = [BUILT / f"lrp-{role}.tar" for role in ("agent", "controller")]
    if missing := [str(path) for path in found if not path.exists()]:
        raise NodeError(f"not there: {', '.join(missing)}; run `make image`")
    return found


def bring_up(node: Node) -> None:
    """Wait for the API, bring images in, start the cluster's DNS. Returns when the node is ready and DNS answers."""
    hands = Hands(node.room)
    archives = images.write_all(node.room / "images")
    _await(lambda: hands.run("ctr", "version"), "containerd")
    _bring_in(hands, archives)
    _await(lambda: _kubectl(node, "get", "--raw=/readyz"), "the API server")
    _await(lambda: _kubectl(node, "get", "serviceaccount", "default"), "the controllers")
    objects = {"apiVersion": "v1", "kind": "List", "items": manifests.cluster_dns()}
    _kubectl(node, "apply", "-f", "-", stdin=json.dumps(objects))
    _bring_in(hands, built_images())  # the largest, while DNS comes up
    _await(lambda: _kubectl(node, "wait", "--for=condition=Ready", "node", "--all", "--timeout=1s"), "the node")
    _kubectl(node, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")


def _bring_in(hands: Hands, archives: list[Path]) -> None:
    for archive in archives:
        hands.run("ctr", "--namespace", "k8s.io", "images", "import", str(archive))


def _kubectl(node: Node, *args: str, stdin: str = "") -> str:
    command = [str(binaries.program("kubectl")), "--kubeconfig", str(node.kubeconfig), *args]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NodeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _await(attempt: Callable[[], object], what: str) -> None:
    """Try again and again. Raises NodeError when it takes too long."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            attempt()
        except (NodeError, HandsError) as error:
            if time.monotonic() > deadline:
                raise NodeError(f"{what} does not come up: {error}") from error
            time.sleep(0.2)
        else:
            return
