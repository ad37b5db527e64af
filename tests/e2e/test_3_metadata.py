"""The metadata service intercepted, as examples/metadata-proxy does it: pods reach the proxy, the proxy the original.

The original is the amazon-ec2-metadata-mock in the world around the node, where a cloud has it; so these steps are for
a node of our own. In the place of kube2iam, which asks AWS for roles, is a proxy that passes requests on and says so.
"""

import subprocess
from collections.abc import Iterator

import pytest

from tests.cluster import binaries
from tests.e2e import pods
from tests.e2e.hands import Hands
from tests.e2e.images import name_of
from tests.e2e.node import METADATA_IP
from tests.e2e.release import Release
from tests.e2e.terminal import Terminal, eventually

URL = f"http://{METADATA_IP}/latest/meta-data/instance-id"
INSTANCE = "i-1234567890abcdef0"
PROXY = "daemonset/metadata-proxy"


@pytest.fixture(scope="module", autouse=True)
def metadata_service(hands: Hands, installed: Release) -> Iterator[None]:  # noqa: ARG001 (they are to be there)
    """The cloud's own service."""
    command = [str(binaries.program("ec2-metadata-mock")), "--hostname", METADATA_IP, "--port", "80"]
    log = hands.room / "log" / "metadata.log"
    with log.open("wb") as words, subprocess.Popen(command, stdout=words, stderr=words) as service:
        eventually(lambda: "Initiating" in log.read_text() or service.poll() is not None)
        yield
        service.terminate()


def ask(terminal: Terminal, *, check: bool = True) -> str:
    """What the client pod gets, with headers."""
    return terminal(f"kubectl exec mediabot -- curl -sSi --max-time 3 {URL}", check=check)


def test_before(terminal: Terminal) -> None:
    answer = ask(terminal)
    assert INSTANCE in answer
    assert "Via:" not in answer


def test_no_proxy_no_answer(terminal: Terminal, release: Release) -> None:
    """The policy asks for it: rather refused than the real service."""
    terminal("kubectl apply -f examples/metadata-proxy/manifests/policy.yaml")
    eventually(lambda: "curl: (7)" in ask(terminal, check=False))
    release.agent("lrpctl lrp list")


def test_pods_reach_the_proxy_and_the_proxy_reaches_the_original(terminal: Terminal, release: Release) -> None:
    manifests = pods.example("metadata-proxy/manifests/proxy.yaml", {"kube2iam": "web"})
    for container in manifests[-1]["spec"]["template"]["spec"]["containers"]:
        container |= {"command": ["/e2e-pod", "proxy"], "args": ["-port=8181", f"-to=http://{METADATA_IP}"]}
    terminal.say(f"The proxy's image is {name_of('web')} here.")
    terminal.apply(*manifests)
    terminal(f"kubectl -n kube-system rollout status {PROXY} --timeout=120s")
    answer = eventually(lambda: found if "Via: 1.1 metadata-proxy-" in (found := ask(terminal)) else "")
    assert INSTANCE in answer, "the proxy was answered by the original, and not by itself"
    release.agent("lrpctl bpf skip list")
    release.row(f"{METADATA_IP}:80/TCP")


def test_a_new_proxy_is_exempt_from_its_first_request(terminal: Terminal) -> None:
    terminal(f"kubectl -n kube-system rollout restart {PROXY}")
    terminal(f"kubectl -n kube-system rollout status {PROXY} --timeout=120s")
    terminal("kubectl -n kube-system logs -l app=metadata-proxy")
    answer = ask(terminal)
    assert INSTANCE in answer
    assert answer.count("Via:") == 1, "it came by the proxy, and once"


def test_taken_away(terminal: Terminal) -> None:
    terminal("kubectl -n kube-system delete clrp metadata-proxy")
    eventually(lambda: "Via:" not in ask(terminal))
    assert INSTANCE in ask(terminal)
    terminal("kubectl delete -f examples/metadata-proxy/manifests/proxy.yaml --wait=false")
