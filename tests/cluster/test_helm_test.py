"""What `helm test` starts does what it says: its programs, its policy, in pods of a node with a real agent."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lab import Pod
from tests.cluster.apiserver import Manifest
from tests.cluster.charting import Helm, one
from tests.modes.ground import SHAPES, Ground, Shape
from tests.modes.modes import SOCKETS, TC_ONLY, Mode

pytestmark = pytest.mark.privileged

LABEL = "app.kubernetes.io/component"
SMALL = ("--bpf-lb-map-max", "512")


@pytest.fixture(scope="module", params=[SOCKETS, TC_ONLY], ids=str)
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Nodes, and an agent that runs in one mode."""
    mode: Mode = request.param
    with Ground(tmp_path_factory.mktemp("ground")) as ground:
        ground.started(mode, *SMALL)
        yield ground
        ground.cleanup()


def start(pod: Pod, container: Manifest) -> "subprocess.Popen[str]":
    """Start a container's program in a pod."""
    interpreter, flag = container["command"]
    assert interpreter == "python3"
    command = [sys.executable, flag, *container["args"]]
    env = os.environ | {"NODE": pod.node.name}
    return pod.popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_sees_a_redirect(ground: Ground, helm: Helm, shape: Shape) -> None:
    hooks = [
        found for found in helm.template() if found["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"
    ]
    template = one(hooks, "ReplicaSet")["spec"]["template"]
    (backend,), (client,) = template["spec"]["containers"], one(hooks, "Pod")["spec"]["containers"]
    pod = ground.node.pod(f"{shape}-b", bridge=shape == "bridged", labels=template["metadata"]["labels"])
    start(pod, backend)
    manifest = pod.manifest("kube-system", ports=[("http", 8080, "TCP")])
    asking = start(ground.clients[shape], client)
    time.sleep(1)
    assert asking.poll() is None, "nobody answers yet"
    ground.write("test", one(hooks, "CiliumLocalRedirectPolicy"), manifest)
    told, errors = asking.communicate(timeout=60)
    ground.delete("test")
    ground.settled()
    assert (asking.returncode, told) == (
        0,
        f"169.254.213.7:80 is answered by the backend on {ground.node.name}: it is redirected\n",
    ), errors
