"""The walk of the seed: install, an address, a Service; each step shows what a person would see."""

import os
import re
import time

import pytest

from tests.e2e.asker import Asker
from tests.e2e.client import ADDRESS, IPV6, curl, my_service, redirect_addresses, set_stage, ways
from tests.e2e.release import AGENT, CONTROLLER, Release
from tests.e2e.terminal import Terminal, eventually


def test_pods_and_service(terminal: Terminal, asker: Asker) -> None:
    set_stage(terminal)
    assert "Running" in terminal("kubectl get pods | grep lrp-pod")
    asker.ask_services()


def test_before(terminal: Terminal) -> None:
    assert "curl: (" in curl(terminal, ADDRESS, check=False)
    assert curl(terminal, my_service(terminal)) == "hello from web"


def test_install(terminal: Terminal, release: Release) -> None:
    """Measured: from `helm install` to the first redirected request."""
    if release.installed():
        pytest.skip("it is installed already")
    started = time.monotonic()
    release.install("sockets", wait=False)
    eventually(lambda: terminal.quietly("kubectl apply -f examples/lrp-addr.yaml"))
    ask = f"kubectl exec mediabot -- curl -sS --max-time 1 {ADDRESS}"
    eventually(lambda: "hello from lrp-pod" in terminal.quietly(f"{ask} || true"), within=120)
    terminal.measured(f"From `helm install` to the first redirected request: {time.monotonic() - started:.1f} s.")


def test_agents_and_controller_run(terminal: Terminal) -> None:
    terminal(f"kubectl -n kube-system rollout status {AGENT} --timeout=120s")
    terminal(f"kubectl -n kube-system rollout status {CONTROLLER} --timeout=120s")
    for component in ("agent", "controller"):
        label = f"app.kubernetes.io/component={component}"
        terminal(f"kubectl -n kube-system get pods -l {label}")
        for pod in terminal.get(f"-n kube-system pods -l {label}")["items"]:
            assert pod["status"]["phase"] == "Running"
            assert [of["restartCount"] for of in pod["status"]["containerStatuses"]] == [0]


def test_doctor(release: Release) -> None:
    """Nothing stands in the way of any mode here."""
    told = release.agent("lrpctl doctor")
    assert "wrong" not in told
    assert "fine" in told


def test_kinds(terminal: Terminal) -> None:
    assert "ciliumlocalredirectpolicies.cilium.io" in terminal("kubectl get crds")


def test_address_policy(terminal: Terminal) -> None:
    terminal("kubectl apply -f examples/lrp-addr.yaml")
    listed = terminal("kubectl get ciliumlocalredirectpolicies")
    assert "AGE" in listed
    assert "lrp-addr" in listed


def test_address_is_local_redirect(release: Release) -> None:
    assert release.row("169.254.169.254:8080/TCP")[1] == "LocalRedirect"


def test_address_is_answered_by_the_local_pod(terminal: Terminal) -> None:
    assert curl(terminal, ADDRESS) == "hello from lrp-pod"
    assert "asks 169.254.169.254:8080/" in terminal("kubectl logs lrp-pod | tail -n 1")


def test_policy_has_a_status(terminal: Terminal) -> None:
    """What the controller writes, from what the agents report."""
    terminal("kubectl wait clrp/lrp-addr --for=condition=Programmed --timeout=60s")
    terminal("kubectl get clrp")


def test_service_policy_moves_traffic(terminal: Terminal, release: Release) -> None:
    url = my_service(terminal)
    assert curl(terminal, url) == "hello from web"
    terminal("kubectl apply -f examples/lrp-svc.yaml")
    assert "lrp-svc" in terminal("kubectl get ciliumlocalredirectpolicies")
    eventually(lambda: curl(terminal, url) == "hello from lrp-pod")
    frontend = f"{url.removeprefix('http://').rstrip('/')}:80/TCP"
    assert release.row(frontend)[1] == "LocalRedirect"


def test_deleted_policy_moves_it_back(terminal: Terminal, release: Release, asker: Asker) -> None:
    url = my_service(terminal)
    terminal("kubectl delete clrp lrp-svc")
    eventually(lambda: curl(terminal, url) == "hello from web")
    release.agent("lrpctl lrp list")
    asker.nothing_lost()


def test_ipv6(terminal: Terminal, release: Release, asker: Asker) -> None:
    """The same once more, with an address and a Service of IPv6."""
    if IPV6 not in ways(terminal):
        assert "LRP_E2E_NODE" not in os.environ, "a node of our own has both kinds of IP"
        pytest.skip("pods have no IPv6 addresses here")
    assert "curl: (" in curl(terminal, IPV6.address, check=False)
    redirect_addresses(terminal)
    eventually(lambda: curl(terminal, IPV6.address, check=False) == "hello from lrp-pod")
    assert release.row("[fd00:ec2::254]:8080/TCP")[1] == "LocalRedirect"
    url = my_service(terminal, IPV6)
    assert curl(terminal, url) == "hello from web"
    terminal.apply(IPV6.manifest("lrp-svc.yaml"))
    eventually(lambda: curl(terminal, url) == "hello from lrp-pod")
    assert release.row(f"{url.removeprefix('http://').rstrip('/')}:80/TCP")[1] == "LocalRedirect"
    terminal(f"kubectl delete clrp {IPV6.service_policy}")
    eventually(lambda: curl(terminal, url) == "hello from web")
    asker.nothing_lost()


def test_cost_at_rest(terminal: Terminal, release: Release) -> None:
    """Measured: an agent's memory and time, by its own account, while nothing changes."""
    time.sleep(5)  # what came before may have its aftermath
    before, started = account(release), time.monotonic()
    time.sleep(10)
    after = account(release)
    cost = (after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]) * 1000
    memory = after["process_resident_memory_bytes"] / 2**20
    cost /= time.monotonic() - started
    terminal.measured(f"The agent at rest: {memory:.0f} MiB resident, {cost:.1f} m CPU.")
    assert memory > 0


def account(release: Release) -> dict[str, float]:
    """What an agent's metrics say of its process."""
    program = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9881/metrics').read().decode())"
    pod = release.agent_pod()["metadata"]["name"]
    told = release.terminal.quietly(f'kubectl -n kube-system exec {pod} -c agent -- python3 -c "{program}"')
    return {name: float(value) for name, value in re.findall(r"^(process_\w+) (\S+)$", told, re.MULTILINE)}
