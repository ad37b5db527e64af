"""`helm uninstall`: nothing of it is left on the node, and the endless client has noticed nothing."""

import pytest

from tests.e2e.asker import Asker
from tests.e2e.client import curl, my_service, ways
from tests.e2e.hands import Hands
from tests.e2e.release import Release
from tests.e2e.terminal import Terminal, eventually


def test_uninstall(terminal: Terminal, release: Release, asker: Asker) -> None:
    for way in ways(terminal):
        terminal.apply(way.manifest("lrp-svc.yaml"))
        eventually(lambda way=way: curl(terminal, my_service(terminal, way)) == "hello from lrp-pod")
    release.uninstall()
    for way in ways(terminal):
        eventually(lambda way=way: curl(terminal, my_service(terminal, way)) == "hello from web")
        assert "curl: (" in curl(terminal, way.address, check=False)
    everything = "kubectl -n kube-system get pods,daemonsets,deployments,configmaps"
    eventually(lambda: "lrp-operator" not in terminal.quietly(everything))
    terminal(everything)
    asker.nothing_lost()


def test_nothing_is_left_on_the_node(hands: Hands) -> None:
    print(f"e2e-node$ find /sys/fs/bpf\n{(pinned := hands.run('find', '/sys/fs/bpf'))}")
    assert "lrp" not in pinned
    assert "lrp-operator" not in hands.run("ls", "/var/lib")


@pytest.mark.parametrize("command", ["kubectl get clrp -A", "kubectl get crds"])
def test_policies_stay(terminal: Terminal, command: str) -> None:
    assert "lrp-addr" in terminal(command) or "ciliumlocalredirectpolicies" in terminal(command)
