"""The agent runs with what the chart gives it, and needs all of it: capabilities, on a root that can't be written.

The real agent, without a cluster, as a container runtime would start it: root with these capabilities at most, in a
mount namespace where everything is read-only but its own directory, and no names in /run/netns to find pods by.
"""

import errno
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from lab import Node, Pod
from lrp_operator.agent.apimodel import Status
from lrp_operator.cli.client import AgentError, Client
from lrp_operator.datapath.engine import cleanup
from tests.cluster.charting import Helm, one
from tests.cluster.following import PATIENCE, policy, to_address

pytestmark = pytest.mark.privileged

VIP = "169.254.20.10"
NODE = "worker-1"
WITHOUT = {
    "SYS_ADMIN": "no right to load eBPF programs",
    "SYS_PTRACE": "pod default/one: its network namespace is not known yet",
    "NET_ADMIN": "ending sockets takes root, or CAP_NET_ADMIN",
}
"""What an agent says that has all the chart's capabilities but one."""
OLD_KERNELS = {"SYS_RESOURCE"}


class Confined:
    """An agent that follows a directory, with some capabilities and no others."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.node, self.directory = node, directory
        self.manifests = directory / "manifests"
        self.manifests.mkdir()
        self._pins = node.bpf / "lrp"
        self._socket = directory / "agent.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, capabilities: set[str]) -> None:
        bounding = ",".join(["-all", *(f"+{name.lower()}" for name in sorted(capabilities))])
        rights = ["setpriv", "--bounding-set", bounding, "--inh-caps", "-all", "--ambient-caps", "-all"]
        own = shlex.quote(str(self.directory))
        mounts = f"mount -t tmpfs none /run/netns && mount --bind {own} {own} && mount -o bind,remount,ro /"
        confined = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", f'{mounts} && exec "$@"', "sh", *rights]
        roots = [f"--bpf-root={self._pins}", f"--cgroup-root={self.node.cgroup}", f"--api-socket={self._socket}"]
        doors = ["--metrics-bind-address=", "--healthz-bind-address="]
        program = str(Path(sys.executable).parent / "lrp-agent")
        agent = [program, f"--manifests={self.manifests}", f"--node-name={NODE}", *roots, *doors]
        with (self.directory / "log").open("wb") as log:
            self._process = self.node.popen([*confined, *agent], stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def until(self, holds: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < end, self.log
            time.sleep(0.05)

    def well(self) -> bool:
        """Whether everything is as it should be."""
        with suppress(AgentError):
            status = Client(self._socket).get("status", Status)
            return status.ready and status.in_force and not status.problems
        return False

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._pins.exists():
            cleanup(self._pins, self.node.cgroup)


@pytest.fixture
def confined(tmp_path: Path) -> Iterator[Confined]:
    with Node() as node:
        agent = Confined(node, tmp_path)
        yield agent
        agent.close()


@pytest.fixture
def capabilities(helm: Helm) -> set[str]:
    (container,) = one(helm.template(), "DaemonSet")["spec"]["template"]["spec"]["containers"]
    context = container["securityContext"]
    assert (context["readOnlyRootFilesystem"], context["capabilities"]["drop"]) == (True, ["ALL"])
    return set(context["capabilities"]["add"])


def publish(confined: Confined, pod: Pod) -> Path:
    """Make a pod and a policy known to the agent; the pod's file."""
    skipping = policy("p", "default", to_address(VIP))
    skipping["spec"]["skipRedirectFromBackend"] = True
    (confined.manifests / "policy.yaml").write_text(yaml.safe_dump(skipping))
    manifest = pod.manifest("default", ports=[("dns", 53, "UDP")], ready=True)
    manifest["spec"]["nodeName"] = NODE
    file = confined.manifests / "pod.yaml"
    file.write_text(yaml.safe_dump(manifest))
    return file


def who_answers(pod: Pod) -> str:
    with suppress(OSError):
        return str(pod.ask_udp(VIP, 53, timeout=0.5).name)
    return ""


def hold_a_socket(client: Pod, end: Path) -> None:
    """Leave a connected socket behind that was redirected; how it ends is written to a file."""

    def hold(ready: Callable[[int], None]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(PATIENCE)
            asking.connect((VIP, 53))
            asking.send(b"")
            asking.recv(100)
            ready(0)
            try:
                asking.recv(100)
            except OSError as error:
                end.write_text(errno.errorcode.get(error.errno or 0, str(error)))

    client.serve(hold)


def test_the_charts_capabilities_are_enough(confined: Confined, capabilities: set[str]) -> None:
    client, pod = confined.node.pod("client"), confined.node.pod("one", labels={"app": "dns"})
    pod.serve_udp(53, "one")
    file = publish(confined, pod)
    confined.start(capabilities)
    confined.until(confined.well)
    assert who_answers(client) == "one"
    assert who_answers(pod) == "", "skipRedirectFromBackend"
    hold_a_socket(client, end := confined.directory / "end")
    file.unlink()
    confined.until(lambda: end.exists() and end.read_text())
    assert end.read_text() == "ECONNABORTED"


@pytest.mark.parametrize("missing", WITHOUT)
def test_none_of_them_is_too_much(confined: Confined, capabilities: set[str], missing: str) -> None:
    assert capabilities - OLD_KERNELS == WITHOUT.keys(), "every one has its reason here"
    client, pod = confined.node.pod("client"), confined.node.pod("one", labels={"app": "dns"})
    pod.serve_udp(53, "one")
    file = publish(confined, pod)
    confined.start(capabilities - {missing})
    if missing == "NET_ADMIN":  # needed at last
        confined.until(confined.well)
        hold_a_socket(client, confined.directory / "end")
        file.unlink()
    confined.until(lambda: WITHOUT[missing] in confined.log)
