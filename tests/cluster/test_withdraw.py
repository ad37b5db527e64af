"""Withdrawal: on the cluster's order, agents take everything off their nodes, and clients notice nothing.

A real agent on a node made of namespaces follows a real API server, which it reaches through a relay, with the rights
that the chart gives it. `lrp-controller withdraw` runs as the chart's Job has it.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab import Pod
from lrp_operator.agent import EXIT_HELD
from lrp_operator.agent.lock import PinsLock
from lrp_operator.cli.client import AgentError
from lrp_operator.kernel import bpf
from lrp_operator.kernel.netns import in_netns
from lrp_operator.loader.kept import VARIABLE
from tests.cluster.apiserver import Cluster, Manifest
from tests.cluster.charting import RELEASE, Helm, one
from tests.cluster.conftest import CRDS
from tests.cluster.following import PATIENCE
from tests.cluster.hurried import AGENT, ROOT
from tests.cluster.relay import Relay
from tests.datapath.attach.ground import DROP, raw
from tests.modes.ground import OWN_DNS, OWN_WEB, SHAPES, Ground, address_of, policy
from tests.modes.modes import HOST_ONLY, SOCKETS, TC_ONLY, Mode
from tests.modes.traffic import Seen, asking

pytestmark = pytest.mark.privileged

STATES = "/apis/lrp-operator.io/v1alpha1/noderedirectstates"
ORDER = f"/api/v1/namespaces/kube-system/configmaps/{RELEASE}-withdraw"
MAY_READ_THE_ORDER = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "RoleBinding",
    "metadata": {"name": f"{RELEASE}-agent", "namespace": "kube-system"},
}
SHORT = ("tcp", "udp", "udp-connected", "unconnected")
SMALL = ("--bpf-lb-map-max", "512")
PATIENT = (str(Path(sys.executable).parent / "lrp-agent"),)
"""An agent that serves replies for as long as any; others here are hurried."""


def wait(holds: Callable[[], object], what: str, log: Callable[[], str] = lambda: "") -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}\n{log()}"
        time.sleep(0.05)


class KubeGround(Ground):
    """The ground of tests/modes, with an API server in place of a directory. Addresses are redirected, not Services."""

    def __init__(self, folder: Path, cluster: Cluster, manifests: list[Manifest]) -> None:
        super().__init__(folder)
        self.cluster = cluster
        self.chart = manifests
        self.config: Path
        self.program: Sequence[str] = AGENT
        self._made: list[Manifest] = []

    def make(self, manifest: Manifest) -> None:
        """Apply a manifest, until the end."""
        self.cluster.apply({key: value for key, value in manifest.items() if key != "status"})
        self._made.append(manifest)
        if "status" in manifest:
            self.cluster.apply(manifest, subresource="status")

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for manifest in self._made:
            self.cluster.delete(manifest)
        self.cluster.request("DELETE", STATES)

    def _build(self) -> None:
        super()._build()
        for node in (self.node, self.far_node):
            self.make({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name}})
        self.make(self.agents_pod())
        token = self.cluster.token_for(f"{RELEASE}-agent", "kube-system", pod=f"agent-{self.node.name}")
        self.config = self.cluster.kubeconfig(token=token)

    def agents_pod(self) -> Manifest:
        labels = one(self.chart, "DaemonSet")["spec"]["selector"]["matchLabels"]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"agent-{self.node.name}", "namespace": "kube-system", "labels": labels},
            "spec": {
                "nodeName": self.node.name,
                "serviceAccountName": f"{RELEASE}-agent",
                "containers": [{"name": "agent", "image": "none"}],
            },
        }

    def tell_pod(self, pod: Pod, *, ready: bool = True) -> None:
        self.write(pod.short_name, pod.manifest(ports=[("web", OWN_WEB, "TCP"), ("dns", OWN_DNS, "UDP")], ready=ready))

    def write(self, name: str, *manifests: Manifest) -> None:  # noqa: ARG002
        for manifest in manifests:
            if manifest["kind"] not in ("Service", "EndpointSlice"):
                self.make(manifest)

    def start(self, mode: Mode, *flags: str, env: dict[str, str] | None = None) -> None:
        config = self.folder / "values.yaml"
        config.write_text(mode.text)
        if not self.kept.exists():  # what the tests have compiled before, for it is removed in the end
            shutil.copytree(os.environ[VARIABLE], self.kept)
        command = [*self.program, "--config", config, "--kubeconfig", self.config]
        order = f"--withdraw-order=kube-system/{RELEASE}-withdraw"
        with self.log_path.open("ab") as log:
            self.process = self.node.popen(
                [*map(str, command), order, "--node-name", self.node.name, *self.roots(), *flags],
                env=os.environ | {"LRP_API_SOCKET": str(self._socket), VARIABLE: str(self.kept)} | (env or {}),
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def redirect(self) -> None:
        """Have every outside address redirected to its first backend."""
        for shape in SHAPES:
            self.write("p", *policy(f"p-{shape}", address_of(shape), {"shape": shape, "number": "1"}))

    def order(self, word: str) -> None:
        answer = self.cluster.request(
            "PATCH", ORDER, {"data": {"withdraw": word}}, content_type="application/merge-patch+json"
        )
        assert answer, answer.body

    def report(self) -> dict[str, Any]:
        answer = self.cluster.request("GET", f"{STATES}/{self.node.name}")
        return answer.body.get("report", {}) if answer else {}

    def withdrawn(self) -> bool:
        return bool(self.report().get("withdrawn"))

    @property
    def kept(self) -> Path:
        """Where the agent keeps what it has compiled."""
        return self.folder / "kept"

    def left_behind(self) -> list[str]:
        """What there is of ours, in the kernel and on disk."""
        return self.in_kernel() + [str(path) for path in (self.kept, *self.kept.rglob("*")) if path.exists()]

    def in_kernel(self) -> list[str]:
        """Pins and their directory, programs on the node's cgroup and on its links."""
        pins = self.node.bpf / "lrp"
        found = [str(path) for path in (pins, *pins.rglob("*"))] if pins.exists() else []
        cgroup = os.open(self.node.cgroup, os.O_RDONLY | os.O_DIRECTORY)
        try:
            found += [f"{hook.name} {ids}" for hook in bpf.AttachType if (ids := bpf.attached_programs(cgroup, hook))]
        finally:
            os.close(cgroup)
        return found + in_netns(self.node.netns, _programs_on_links)

    def attached(self) -> list[str]:
        """The same without pins: hooks, and the numbers of the programs there."""
        return [name for name in self.in_kernel() if not name.startswith("/")]


def _programs_on_links() -> list[str]:
    return [
        f"{name} {hook.name} {ids}"
        for index, name in socket.if_nameindex()
        for hook in bpf.TcxHook
        if (ids := bpf.attached_programs(index, hook))
    ]


@pytest.fixture
def chart(helm: Helm) -> list[Manifest]:
    return helm.template({"kubeProxyReplacement": True})  # with rights that suffice for every mode


@pytest.fixture(scope="module")
def api(programs: None) -> Iterator[Cluster]:  # noqa: ARG001
    """An API server for the tests here: others must not meet the order."""
    with Cluster() as cluster:
        cluster.install(*CRDS)
        yield cluster


@pytest.fixture
def ground(api: Cluster, chart: list[Manifest], tmp_path: Path) -> Iterator[KubeGround]:
    """Two nodes, an API server with what the chart has, and policies; the agent is not started yet."""
    for manifest in chart:
        test = manifest["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"
        if not test and manifest["kind"] not in ("CustomResourceDefinition", "Job"):
            api.apply(manifest)
    with KubeGround(tmp_path, api, chart) as ground, Relay(ground.node.netns, api.port):
        ground.redirect()
        yield ground
        ground.cleanup()


def uninstall(ground: KubeGround, seconds: int = 60) -> "subprocess.Popen[str]":
    """Start what the chart's Job runs, with its rights."""
    (container,) = one(ground.chart, "Job")["spec"]["template"]["spec"]["containers"]
    token = ground.cluster.token_for(f"{RELEASE}-uninstall", "kube-system")
    where = ["--kubeconfig", str(ground.cluster.kubeconfig(token=token)), f"--timeout={seconds}"]
    command = [sys.executable, "-m", "lrp_operator.controller", *container["args"], *where]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def complaints(seen: Iterable[Seen]) -> list[str]:
    return [line for one in seen for line in one.told()]


@pytest.mark.parametrize("mode", [SOCKETS, TC_ONLY, HOST_ONLY], ids=str)
def test_clients_notice_nothing_and_nothing_is_left(ground: KubeGround, mode: Mode) -> None:
    everybody = [(ground.clients[shape], address_of(shape), SHORT) for shape in SHAPES]
    with asking(everybody) as seen:
        ground.started(mode, *SMALL)
        wait(lambda: ground.report().get("policyCount"), "the report", ground.log)
        assert ground.attached(), "what is looked for below is to be seen here"
        time.sleep(1)
        job = uninstall(ground)
        told, errors = job.communicate(timeout=90)
        assert job.returncode == 0, told + errors + ground.log()
        assert not ground.left_behind()
        time.sleep(1)
    assert not complaints(seen)
    for one_client in seen:
        own = one_client.target.removeprefix("meta-")
        assert set(one_client.names) == {f"{own}-1", one_client.target}, "redirected, and then not any more"
    assert "nothing is left on 1 node" in told
    assert not ground.cluster.request("GET", STATES).body["items"]
    assert ground.status().message.startswith("withdrawn")
    ground.stop()
    assert not ground.left_behind()


def test_it_stays_away_until_the_order_is_revoked(ground: KubeGround) -> None:
    ground.started(SOCKETS, *SMALL)
    ground.order("true")
    wait(ground.withdrawn, "the agent to withdraw", ground.log)
    ground.kill()
    ground.start(SOCKETS, *SMALL)
    wait(lambda: "withdrawn" in status_of(ground), "it to know again", ground.log)
    assert not ground.left_behind(), "an agent that is started anew touches nothing"
    ground.order("false")
    assert ground.process
    assert ground.process.wait(timeout=30) == 0
    ground.started(SOCKETS, *SMALL)
    wait(lambda: not ground.withdrawn() and ground.report().get("policyCount"), "a report as ever", ground.log)
    assert ground.attached()


def test_an_uninstall_that_was_cut_short_can_be_repeated(ground: KubeGround) -> None:
    ground.started(SOCKETS, *SMALL)
    wait(ground.report, "the report", ground.log)
    # The first one ends when all that is left to do is Helm's; an agent that is still there says again what it did.
    for _ in range(2):
        told, errors = uninstall(ground).communicate(timeout=90)
        assert "every agent has withdrawn" in told, told + errors + ground.log()
        assert not ground.left_behind()


def test_what_was_said_to_an_earlier_order_does_not_count(ground: KubeGround) -> None:
    ground.started(SOCKETS, *SMALL)
    ground.order("true")
    wait(ground.withdrawn, "the agent to withdraw", ground.log)
    ground.kill()
    ground.order("false")
    told, errors = uninstall(ground, seconds=3).communicate(timeout=60)
    assert f"waiting for 1 node: {ground.node.name}" in told
    assert f"  {ground.node.name}: its agent has not withdrawn" in errors


def status_of(ground: KubeGround) -> str:
    with suppress(AgentError):
        return ground.status().message
    return ""


@pytest.mark.parametrize("mode", [SOCKETS, TC_ONLY], ids=str)
def test_one_that_is_killed_in_the_middle_goes_on(ground: KubeGround, mode: Mode) -> None:
    ground.program = PATIENT
    ground.started(mode, *SMALL)
    wait(ground.report, "the report", ground.log)  # the pod here has no phase: without one nobody waits for the node
    before = ground.attached()
    job = uninstall(ground)
    wait(lambda: "withdrawing" in status_of(ground) and ground.attached() != before, "the first step", ground.log)
    ground.kill()
    assert ground.attached(), "replies are still served"
    assert not ground.withdrawn()
    ground.program = AGENT
    ground.start(mode, *SMALL)
    told, errors = job.communicate(timeout=90)
    assert job.returncode == 0, told + errors + ground.log()
    assert not ground.left_behind()


def test_nodes_that_do_not_withdraw_are_named(ground: KubeGround) -> None:
    ground.started(SOCKETS, *SMALL)
    wait(ground.report, "the report", ground.log)
    ground.kill()
    ground.cluster.delete(ground.agents_pod())
    job = uninstall(ground, seconds=3)
    told, errors = job.communicate(timeout=60)
    name = ground.node.name
    assert job.returncode == 1
    assert f"waiting for 1 node: {name}" in told
    assert f"  {name}: no agent is there to withdraw" in errors
    assert f"kubectl debug node/{name} -it --profile=sysadmin --image=example.invalid/lrp-agent:" in errors
    assert ground.attached()
    # What it says is to be done, does it; through another path, as it does on a node.
    ground.cleanup()
    assert not ground.in_kernel()
    assert ground.cluster.request("DELETE", f"{STATES}/{name}")
    job = uninstall(ground, seconds=30)
    told, errors = job.communicate(timeout=60)
    assert job.returncode == 0, told + errors


def test_nothing_is_touched_before_the_order_is_known(ground: KubeGround) -> None:
    """And where it can't be read, that is what the agent says."""
    ground.cluster.delete(MAY_READ_THE_ORDER)
    ground.start(SOCKETS, *SMALL)
    wait(lambda: "forbidden" in status_of(ground), "it to say so", ground.log)
    assert f"kube-system/{RELEASE}-withdraw" in status_of(ground)
    assert not ground.in_kernel()


def cut_off(ground: KubeGround, pod: Pod) -> None:
    """Leave on a pod's link what an agent leaves that dies while it moves its programs."""
    with raw(DROP, "lrp_moving") as barrier:
        for hook in bpf.TcxHook:
            attach = partial(bpf.attach_to_link, barrier, pod.veth.index, hook, bpf.Place.FIRST)
            in_netns(ground.node.netns, attach)


def test_a_pod_that_was_left_cut_off_does_not_wait_for_the_order(ground: KubeGround) -> None:
    """By an agent that died while it moved its programs. The lock on the pins is held for that, as for all writes."""
    ground.started(TC_ONLY, *SMALL)
    wait(lambda: len(ground.attached()) > 1, "programs on links", ground.log)
    ground.kill()
    before, client = ground.attached(), ground.clients["routed"]
    cut_off(ground, client)
    assert ground.attached() != before
    ground.cluster.delete(MAY_READ_THE_ORDER)
    lock = PinsLock.take(ground.node.bpf / "lrp")
    try:
        ground.start(TC_ONLY, *SMALL)
        assert ground.process
        assert ground.process.wait(timeout=30) == EXIT_HELD
    finally:
        lock.release()
    assert ground.attached() != before, "it is somebody else's to lift"
    ground.start(TC_ONLY, *SMALL)
    wait(lambda: "forbidden" in status_of(ground), "it to say that it waits", ground.log)
    assert ground.attached() == before, "that, and nothing else, is removed"
    assert f"{client.veth.name} was cut off by an agent that died: it is open again" in ground.log()
