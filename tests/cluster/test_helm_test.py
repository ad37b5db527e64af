"""What `helm test` starts does what it says: its programs, its policy, in pods of a node with a real agent."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Pod
from tests.cluster.apiserver import Manifest
from tests.cluster.charting import Helm, one
from tests.modes.ground import SHAPES, Ground, Shape
from tests.modes.modes import SOCKETS, TC_ONLY, Mode

pytestmark = pytest.mark.privileged

LABEL = "app.kubernetes.io/component"
SMALL = ("--bpf-lb-map-max", "512")


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with Ground(tmp_path) as ground:
        yield ground
        ground.cleanup()


def start(pod: Pod, container: Manifest) -> "subprocess.Popen[str]":
    """Start a container's program in a pod."""
    interpreter, flag = container["command"]
    assert interpreter == "python3"
    command = [sys.executable, flag, *container["args"]]
    env = os.environ | {"NODE": pod.node.name}
    return pod.popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("mode", [SOCKETS, TC_ONLY], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_sees_a_redirect(ground: Ground, helm: Helm, mode: Mode, shape: Shape) -> None:
    hooks = [
        found for found in helm.template() if found["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"
    ]
    template = one(hooks, "ReplicaSet")["spec"]["template"]
    (backend,), (client,) = template["spec"]["containers"], one(hooks, "Pod")["spec"]["containers"]
    ground.started(mode, *SMALL)
    pod = ground.node.pod("backend", bridge=shape == "bridged", labels=template["metadata"]["labels"])
    start(pod, backend)
    manifest = pod.manifest("kube-system", ports=[("http", 8080, "TCP")])
    asking = start(ground.clients[shape], client)
    time.sleep(1)
    assert asking.poll() is None, "nobody answers yet"
    ground.write("test", one(hooks, "CiliumLocalRedirectPolicy"), manifest)
    told, errors = asking.communicate(timeout=60)
    assert (asking.returncode, told) == (
        0,
        f"169.254.213.7:80 is answered by the backend on {ground.node.name}: it is redirected\n",
    ), errors
