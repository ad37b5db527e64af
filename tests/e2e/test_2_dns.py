"""Node-local DNS, as examples/node-local-dns has it: pods ask the cluster's DNS, the cache beside them answers."""

import re
from collections.abc import Iterator

import pytest

from tests.e2e import pods
from tests.e2e.asker import Asker
from tests.e2e.client import cluster_dns
from tests.e2e.release import Release
from tests.e2e.terminal import Terminal, eventually

NAME = "kubernetes.default.svc.cluster.local"
CACHE, COREDNS = ("k8s-app=node-local-dns", 9253), ("k8s-app=kube-dns", 9153)
QUERIES = 50


@pytest.fixture(autouse=True)
def nothing_lost(installed: Release, asker: Asker) -> Iterator[None]:  # noqa: ARG001 (it is to be there)
    """Whatever a step does, the endless client gets all its answers, from the cluster's DNS, too."""
    asker.ask_services()
    yield
    asker.nothing_lost()


def dig(terminal: Terminal, *options: str) -> str:
    """What the client pod is told of a name that it asks for once."""
    return terminal(f"kubectl exec netshoot -- dig +tries=1 +time=3 {' '.join(options)} {NAME}")


def queries(terminal: Terminal, server: tuple[str, int]) -> int:
    """How many queries for addresses the servers with a label have counted themselves; CoreDNS asks itself others."""
    label, port = server
    addresses = [pod["status"]["podIP"] for pod in terminal.get(f"-n kube-system pods -l {label}")["items"]]
    texts = [terminal.quietly(f"kubectl exec netshoot -- curl -sS http://{it}:{port}/metrics") for it in addresses]
    counts = re.findall(r'^coredns_dns_requests_total\{.*type="A".*\} (\S+)$', "\n".join(texts), re.MULTILINE)
    return int(sum(map(float, counts)))


def test_before(terminal: Terminal) -> None:
    terminal.apply(pods.pod("netshoot", "client", {}))
    terminal("kubectl wait pod/netshoot --for=condition=Ready --timeout=60s")
    assert f"nameserver {cluster_dns(terminal)}" in terminal("kubectl exec netshoot -- cat /etc/resolv.conf")
    assert "status: NOERROR" in dig(terminal)


def test_cache_is_installed(terminal: Terminal) -> None:
    terminal.apply(*pods.example("node-local-dns/manifests/cache.yaml", {"k8s-dns-node-cache": "node-cache"}))
    terminal("kubectl -n kube-system rollout status daemonset/node-local-dns --timeout=120s")
    terminal("kubectl get ds -n kube-system node-local-dns")
    before = queries(terminal, CACHE)
    for _ in range(3):
        dig(terminal)
    assert queries(terminal, CACHE) == before, "nobody sends it anything yet"


def test_policy_sends_queries_to_the_cache(terminal: Terminal, release: Release) -> None:
    address = cluster_dns(terminal)
    terminal("kubectl apply -f examples/node-local-dns/manifests/policy.yaml")
    eventually(lambda: release.row(f"{address}:53/UDP")[1] == "LocalRedirect")
    release.agent("lrpctl lrp list")
    answer = dig(terminal)
    assert "status: NOERROR" in answer
    assert f"SERVER: {address}#53" in answer, "the client believes that the address it asked has answered"
    assert f"nameserver {address}" in terminal("kubectl exec netshoot -- cat /etc/resolv.conf")


@pytest.mark.parametrize("options", ["+notcp", "+tcp"])
def test_the_cache_is_hit(terminal: Terminal, options: str) -> None:
    """By both servers' own count; the cache asks again what it has forgotten, which is seldom."""
    dig(terminal, options)
    cache, coredns = queries(terminal, CACHE), queries(terminal, COREDNS)
    script = f"n=0; while [ $((n+=1)) -le {QUERIES} ]; do dig {options} +short +tries=1 +time=3 {NAME}; done"
    terminal(f"kubectl exec netshoot -- sh -c '{script}' | sort | uniq -c")
    cache, coredns = queries(terminal, CACHE) - cache, queries(terminal, COREDNS) - coredns
    terminal.say(
        f"{QUERIES} queries {options}, beside the endless client's: the cache counts {cache}, CoreDNS {coredns}."
    )
    assert cache >= QUERIES
    assert coredns <= cache // 10


def test_observe(release: Release, terminal: Terminal) -> None:
    """What the seed watches with `hubble observe`."""
    terminal("kubectl exec netshoot -- sh -c 'sleep 2; dig +short google.com' >/dev/null 2>&1 &")
    seen = release.agent("lrpctl observe --protocol udp --port 53 --last 10000 --duration 6 | grep netshoot")
    assert f"{cluster_dns(terminal)}:53/UDP redirected to" in seen


def test_answers_go_on_through_a_restart_of_the_cache(terminal: Terminal) -> None:
    terminal("kubectl -n kube-system rollout restart daemonset/node-local-dns")
    terminal("kubectl -n kube-system rollout status daemonset/node-local-dns --timeout=120s")
    assert "status: NOERROR" in dig(terminal)


def test_answers_go_on_without_the_cache(terminal: Terminal) -> None:
    """Its pod is deleted, and until the next one is ready the cluster's DNS answers, as without the policy."""
    terminal("kubectl -n kube-system delete pod -l k8s-app=node-local-dns")
    assert "status: NOERROR" in dig(terminal)
    terminal("kubectl -n kube-system rollout status daemonset/node-local-dns --timeout=120s")


def test_taken_away(terminal: Terminal) -> None:
    terminal("kubectl -n kube-system delete clrp nodelocaldns")
    before = queries(terminal, CACHE)
    assert "status: NOERROR" in dig(terminal)
    assert queries(terminal, CACHE) == before
    terminal("kubectl delete -f examples/node-local-dns/manifests/cache.yaml --wait")
    terminal("kubectl delete pod netshoot --now --wait=false")
