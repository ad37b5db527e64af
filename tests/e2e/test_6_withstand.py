"""What a node goes through, and redirects with it: reboots, restarts, an agent that can't be had or starves.

Most of it is done to the node itself, so only to one of our own.
"""

import os
import time
from collections.abc import Iterator

import pytest

from tests.e2e import pods
from tests.e2e.asker import Asker
from tests.e2e.client import ADDRESS, curl, my_service, redirect_addresses, set_stage, ways
from tests.e2e.hands import Hands
from tests.e2e.release import AGENT, AGENTS, Mode, Release
from tests.e2e.terminal import Terminal, eventually


@pytest.fixture(scope="module", params=["sockets", "tc"])
def mode(request: pytest.FixtureRequest) -> Mode:
    """A mode of each level."""
    found: Mode = request.param
    return found


# For what an agent goes through in either mode alike.
once = pytest.mark.parametrize("mode", ["tc"], indirect=True)


@pytest.fixture(autouse=True, scope="module")
def redirecting(terminal: Terminal, release: Release, mode: Mode) -> None:
    """The chart is installed, in this mode, and redirects the client's addresses to the local pod."""
    set_stage(terminal)
    if release.installed():
        release.upgrade(mode)
    else:
        release.install(mode)
    redirect_addresses(terminal)
    redirected(terminal)


def redirected(terminal: Terminal, within: float = 90) -> None:
    """The client's addresses are answered by the local pod, sooner or later."""
    for way in ways(terminal):
        ask = f"kubectl exec mediabot -- curl -sS --max-time 3 {way.address}"
        eventually(lambda ask=ask: "hello from lrp-pod" in terminal.quietly(f"{ask} 2>&1 || true"), within)
        curl(terminal, way.address)


@pytest.fixture
def losing_nothing(terminal: Terminal, asker: Asker) -> Iterator[None]:
    """A client that never stops asks the redirected addresses meanwhile, and loses nothing."""
    asker.ask({f"address{way.suffix}": way.address for way in ways(terminal)})
    yield
    asker.nothing_lost()


def ready(terminal: Terminal) -> bool:
    """Whether the node is ready, and every pod on it that should run does."""
    node = terminal.get(f"node {terminal.node}")["status"]["conditions"]
    of_all = terminal.get("pods -A")["items"]
    return next(c["status"] for c in node if c["type"] == "Ready") == "True" and all(
        c["status"] == "True" for pod in of_all for c in pod["status"].get("conditions", []) if c["type"] == "Ready"
    )


@pytest.mark.usefixtures("losing_nothing")
def test_agents_image_is_missing(terminal: Terminal) -> None:
    """A rollout that gets stuck: the old agent has gone, the new one never comes. Redirects go on."""
    image = terminal.get(f"-n kube-system {AGENT}")["spec"]["template"]["spec"]["containers"][0]["image"]
    terminal(f"kubectl -n kube-system set image {AGENT} agent=localhost/lrp-agent:no-such")
    eventually(lambda: "ErrImageNeverPull" in terminal.quietly(f"kubectl get {AGENTS}"))
    terminal(f"kubectl get {AGENTS}")
    redirected(terminal)
    terminal(f"kubectl -n kube-system set image {AGENT} agent={image}")
    terminal(f"kubectl -n kube-system rollout status {AGENT} --timeout=120s")


@pytest.mark.usefixtures("losing_nothing")
def test_kubelet_restarts(terminal: Terminal, hands: Hands) -> None:
    hands.restart("kubelet")
    eventually(lambda: ready(terminal))
    redirected(terminal)


@pytest.mark.usefixtures("losing_nothing")
def test_containerd_restarts(terminal: Terminal, hands: Hands) -> None:
    hands.restart("containerd")
    eventually(lambda: ready(terminal))
    redirected(terminal)


@pytest.mark.usefixtures("losing_nothing")
def test_cni_is_installed_anew(terminal: Terminal, hands: Hands) -> None:
    """Plugins and settings go, and come as an installer brings them; a pod of the time after is redirected, too."""
    hands.run("sh", "-c", "mv /opt/cni/bin /opt/cni/away && mv /etc/cni/net.d /etc/cni/away")
    eventually(lambda: "False" in terminal.quietly(node_is_ready(terminal.node)))
    redirected(terminal)
    hands.run("sh", "-c", "mv /opt/cni/away /opt/cni/bin && mv /etc/cni/away /etc/cni/net.d")
    eventually(lambda: "True" in terminal.quietly(node_is_ready(terminal.node)))
    new_client(terminal, "after-cni")


def node_is_ready(node: str) -> str:
    """Asks whether the node is ready."""
    return f"kubectl get node {node} -o jsonpath='{{.status.conditions[?(@.type==\"Ready\")].status}}'"


def new_client(terminal: Terminal, name: str) -> None:
    """A pod that has just been made is redirected."""
    terminal.apply(pods.pod(name, "client", {}))
    terminal(f"kubectl wait pod/{name} --for=condition=Ready --timeout=60s")
    for way in ways(terminal):
        assert terminal(f"kubectl exec {name} -- curl -sS --max-time 3 {way.address}") == "hello from lrp-pod\n"
    terminal(f"kubectl delete pod {name} --now --wait=false")


def test_node_reboots(terminal: Terminal, release: Release, asker: Asker, hands: Hands) -> None:
    """Every pin, link and veth goes at once. Pods start, and redirects are back with them: the agent need not compile.

    Measured: how long a client is refused that starts with the node, as the pod that is to answer it does.
    """
    asker.start({"address": ADDRESS})
    hands.reboot()
    assert "lrp" not in hands.run("find", "/sys/fs/bpf")
    terminal.say("The node has lost its power, and boots.")
    eventually(lambda: terminal.quietly("kubectl get --raw=/readyz"), within=120)
    redirected(terminal, within=180)
    eventually(lambda: ready(terminal), within=180)
    waited = asker.tell()["address"].waited
    terminal.measured(f"After a boot: a client that starts with its node is redirected {waited:.1f} s after it asks.")
    terminal("kubectl get pods -A")
    assert "programs were put together from what was kept" in release.agent_log()


def test_node_is_drained_and_returns(terminal: Terminal) -> None:
    """The backend is evicted, and traffic goes as usual until the node may have pods again; its agent stays."""
    terminal(f"kubectl drain {terminal.node} --ignore-daemonsets --force --pod-selector=app=proxy --timeout=60s")
    for way in ways(terminal):
        eventually(lambda way=way: "curl: (" in curl(terminal, way.address, check=False))
    terminal.apply(*pods.example("lrp-pod.yaml", {"nginx": "web"}))
    terminal(f"kubectl uncordon {terminal.node}")
    redirected(terminal)


@once
@pytest.mark.usefixtures("losing_nothing")
def test_agent_is_out_of_memory(terminal: Terminal, release: Release, mode: Mode) -> None:
    """With a limit that it can't live with, it is killed again and again. Redirects go on."""
    release.upgrade(
        mode, wait=False, more=["agent.resources.requests.memory=16Mi", "agent.resources.limits.memory=16Mi"]
    )
    eventually(lambda: "OOMKilled" in terminal.quietly(f"kubectl get {AGENTS} -o yaml"), within=120)
    terminal(f"kubectl get {AGENTS}")
    redirected(terminal)
    release.upgrade(mode)


@once
@pytest.mark.usefixtures("losing_nothing")
def test_agent_is_throttled(terminal: Terminal, release: Release, mode: Mode) -> None:
    """Measured: how long a new policy takes with a twentieth of a CPU."""
    release.upgrade(mode, more=["agent.resources.limits.cpu=50m"])
    url, started = my_service(terminal), time.monotonic()
    terminal("kubectl apply -f examples/lrp-svc.yaml")
    eventually(lambda: curl(terminal, url) == "hello from lrp-pod", within=120)
    terminal.measured(f"With 50 m CPU, redirected {time.monotonic() - started:.1f} s after `kubectl apply`.")
    terminal("kubectl delete clrp lrp-svc")
    release.upgrade(mode)


@once
@pytest.mark.usefixtures("losing_nothing")
def test_disk_is_full(terminal: Terminal, release: Release, hands: Hands) -> None:
    """The agent starts where it has no room for its socket; what it keeps for the next boot is as it was."""
    pod = release.agent_pod()
    place = f"/var/lib/kubelet/pods/{pod['metadata']['uid']}/volumes/kubernetes.io~empty-dir/run"
    hands.run("mount", "-t", "tmpfs", "-o", "size=4k,mode=777", "full", place)
    hands.run("sh", "-c", f"cat /dev/zero > {place}/filler || true")
    restarts = restarted(release)
    hands.run("pkill", "-x", "lrp-agent")
    eventually(lambda: restarted(release) > restarts)
    terminal(f"kubectl -n kube-system rollout status {AGENT} --timeout=120s")
    redirected(terminal)
    terminal(f"kubectl -n kube-system delete pod {pod['metadata']['name']} --now")
    hands.run("umount", "--lazy", place, check=False)  # the kubelet may have been quicker
    terminal(f"kubectl -n kube-system rollout status {AGENT} --timeout=120s")


def restarted(release: Release) -> int:
    """How often the agent was started again."""
    return sum(of["restartCount"] for of in release.agent_pod()["status"]["containerStatuses"])


@once
@pytest.mark.skipif("LRP_LONG" not in os.environ, reason="long: LRP_LONG=1 runs it")
@pytest.mark.timeout(900)
def test_two_hundred_pods(terminal: Terminal) -> None:
    """Measured: how long it takes until all of them are redirected."""
    started = time.monotonic()
    pod = pods.pod("many", "client", {"app": "many"}, command=["/bin/sleep", "infinity"])
    where = {"kubernetes.io/hostname": terminal.node}
    terminal.apply({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "many", "namespace": "default"},
        "spec": {
            "replicas": 200, "selector": {"matchLabels": {"app": "many"}},
            "template": {"metadata": {"labels": {"app": "many"}}, "spec": pod["spec"] | {"nodeSelector": where}},
        },
    })  # fmt: skip
    terminal("kubectl rollout status deployment/many --timeout=600s")
    names = terminal.quietly("kubectl get pods -l app=many -o name").split()
    asked = [terminal.quietly(f"kubectl exec {name} -- curl -sS --max-time 3 {ADDRESS}") for name in names]
    assert asked == ["hello from lrp-pod\n"] * 200
    terminal.measured(f"200 pods: all redirected after {time.monotonic() - started:.0f} s.")
    terminal("kubectl delete deployment many --wait")
    eventually(lambda: not terminal.quietly("kubectl get pods -l app=many -o name"), within=300)
