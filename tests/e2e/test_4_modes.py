"""All four modes by `helm upgrade --set`, upgrades and rollouts, under a client that never stops.

Where a mode says that kube-proxy is replaced, it is: stopped, its rules removed, on a node of our own. On any other
cluster it stays, which the agent is told to be right.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrp_operator import __version__
from tests.cluster import binaries
from tests.e2e.asker import Asker
from tests.e2e.client import curl, in_url, my_service, ways
from tests.e2e.hands import Hands
from tests.e2e.release import AGENT, CHART, Mode, Release
from tests.e2e.terminal import Terminal, eventually


@pytest.fixture(autouse=True)
def nothing_lost(installed: Release, asker: Asker) -> Iterator[None]:  # noqa: ARG001 (it is to be there)
    """Whatever a step does, the endless client loses nothing."""
    asker.ask_services()
    yield
    asker.nothing_lost()


def walk(terminal: Terminal) -> None:
    """Redirects of both kinds work; and without its policy the Service is its own again. Over IPv6, too."""
    for way in ways(terminal):
        url = my_service(terminal, way)
        terminal.apply(way.manifest("lrp-svc.yaml"))
        eventually(lambda url=url: curl(terminal, url) == "hello from lrp-pod")
        assert curl(terminal, way.address) == "hello from lrp-pod"
        terminal(f"kubectl delete clrp {way.service_policy}")
        eventually(lambda url=url: curl(terminal, url) == "hello from web")


@pytest.mark.parametrize("mode", ["tc", "sockets"])
def test_beside_kube_proxy(terminal: Terminal, release: Release, mode: Mode) -> None:
    release.upgrade(mode)
    release.agent("lrpctl status")
    walk(terminal)


@pytest.mark.parametrize("mode", ["replace", "host-only"])
def test_instead_of_kube_proxy(terminal: Terminal, release: Release, mode: Mode) -> None:
    release.upgrade(mode)
    if "LRP_E2E_NODE" in os.environ:
        without_kube_proxy(terminal, Hands(Path(os.environ["LRP_E2E_NODE"])))
    release.agent("lrpctl status")
    walk(terminal)
    # A Service that kube-proxy, had it been left there, would not know.
    service = terminal.get("service my-service")
    terminal.apply({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": f"new-{mode}", "namespace": "default"},
        "spec": {
            "selector": service["spec"]["selector"], "ports": [{"port": 81, "targetPort": 8080}],
            "ipFamilyPolicy": "PreferDualStack",
        },
    })  # fmt: skip
    addresses = terminal.get(f"service new-{mode}")["spec"]["clusterIPs"]
    assert len(addresses) == len(ways(terminal))
    for url in [f"http://{in_url(address)}:81/" for address in addresses]:
        eventually(lambda url=url: curl(terminal, url) == "hello from web")
    terminal(f"kubectl delete service new-{mode}")


def without_kube_proxy(terminal: Terminal, hands: Hands) -> None:
    """Stop kube-proxy and remove its rules, as people do; may be called twice."""
    terminal.say("kube-proxy is stopped, and its rules are removed (kube-proxy --cleanup).")
    hands.stop("kube-proxy")
    hands.run(str(binaries.program("kube-proxy")), "--cleanup")
    assert not any("my-service" in found for found in rules(hands))


def rules(hands: Hands) -> list[str]:
    """What kube-proxy has told the kernel, in either of its modes: for IPv4, for IPv6."""
    kinds = [("iptables-save", "ip"), ("ip6tables-save", "ip6")]
    return [hands.run("sh", "-c", f"{save}; nft list table {family} kube-proxy || true") for save, family in kinds]


def test_kube_proxy_comes_back(terminal: Terminal, release: Release, hands: Hands) -> None:
    """First kube-proxy, then the mode that leaves Services to it."""
    hands.start("kube-proxy")
    eventually(lambda: all("my-service" in found for found in rules(hands)))
    release.upgrade("sockets")
    walk(terminal)


def test_chart_upgrade(terminal: Terminal, release: Release, tmp_path: Path) -> None:
    """The same images in the next chart: every object gets its new labels, every agent is replaced."""
    terminal(f"helm package {CHART} --version 0.99.0 --app-version {__version__} -d {tmp_path}")
    before = agents(terminal)
    release.upgrade("sockets", chart=tmp_path / "lrp-operator-0.99.0.tgz")
    assert not agents(terminal) & before
    walk(terminal)


def agents(terminal: Terminal) -> set[str]:
    """The agents' pods."""
    found = terminal.get("-n kube-system pods -l app.kubernetes.io/component=agent")["items"]
    return {pod["metadata"]["name"] for pod in found}


def test_agents_are_replaced(terminal: Terminal, release: Release) -> None:
    terminal("kubectl apply -f examples/lrp-svc.yaml")
    url = my_service(terminal)
    eventually(lambda: curl(terminal, url) == "hello from lrp-pod")
    terminal(f"kubectl -n kube-system rollout restart {AGENT}")
    release.rolled_out()
    assert curl(terminal, url) == "hello from lrp-pod"
    release.agent("lrpctl service list")
    terminal("kubectl delete clrp lrp-svc")


def test_helm_test(terminal: Terminal) -> None:
    assert "Phase:          Succeeded" in terminal("helm test lrp-operator -n kube-system --timeout 3m")
