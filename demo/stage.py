"""The stage: a node named worker-1, its pods with servers in them, and what kube-proxy would have written.

The names and addresses are those of `examples/worker-1`, so that the manifests there are true of this node. Pods with
addresses from 10.244.1.0/24 stand for pods of another node: the agent is told of no such pod.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demo.telling import NotAsToldError
from lab import Node, Place, Pod

CLUSTER_DNS = "10.96.0.10"
PATIENCE = 30.0

KUBE_PROXY = """
table ip kube-proxy {
  chain services {
    type nat hook prerouting priority dstnat;
    ip daddr 10.96.61.7 tcp dport 80 dnat to 10.244.1.23:8080
    ip daddr 10.96.0.10 udp dport 53 dnat to numgen random mod 2 map { 0 : 10.244.1.51, 1 : 10.244.1.68 }
    ip daddr 10.96.0.10 tcp dport 53 dnat to numgen random mod 2 map { 0 : 10.244.1.51, 1 : 10.244.1.68 }
  }
}
"""
"""The two Services as kube-proxy balances them: destination addresses are rewritten on the packets' way."""


@dataclass
class Stage:
    """Everything that the story plays on. directory: for the servers' files and the agent's."""

    node: Node
    directory: Path
    client: Pod

    @classmethod
    def build(cls, node: Node, directory: Path) -> "Stage":
        """Make the pods, start their servers, and wait until each of them answers."""
        stage = cls(node, directory, node.pod("client", ipv4="10.244.0.30", ipv6="fd00:10:244::1e"))
        proxy = node.pod("lrp-pod", ipv4="10.244.0.17", ipv6="fd00:10:244::11")
        web = node.pod("web", ipv4="10.244.1.23")
        cache = node.pod("node-local-dns-7c9zt", ipv4="10.244.0.225")
        stage.serve_http(proxy, 80, "lrp-pod here on worker-1")
        stage.serve_http(web, 8080, "web far away on worker-2")
        for name, address in (("coredns-1", "10.244.1.51"), ("coredns-2", "10.244.1.68")):
            stage.serve_dns(
                node.pod(name, ipv4=address), f"{name} far away on worker-2", "--host-record=my-service,10.96.61.7"
            )
        stage.serve_dns(cache, f"{cache.short_name} here on worker-1", "--server=10.244.1.51", "--server=10.244.1.68")
        stage.start_kube_proxy()
        return stage

    def start_kube_proxy(self) -> None:
        """Install the rules."""
        self.node.run(["nft", KUBE_PROXY])

    def serve_http(self, pod: Pod, port: int, who: str) -> None:
        """Serve one page that says who serves it."""
        root = self.directory / pod.short_name
        root.mkdir()
        (root / "index.html").write_text(f"hello from {who}\n")
        command: list[str | Path] = [sys.executable, "-m", "http.server", str(port), "--directory", root]
        pod.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        answers(pod, ["curl", "-s", f"http://{pod.ipv4}:{port}/"])

    def serve_dns(self, pod: Pod, who: str, *options: str) -> None:
        """Serve DNS with dnsmasq, with a TXT record `whoami` that tells the servers apart."""
        own = ["--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file="]
        record = f"--txt-record=whoami,{who}"
        command = ["dnsmasq", "--keep-in-foreground", *own, "--port=53", record, *options]
        pod.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        answers(pod, ["dig", "+short", "+time=1", f"@{pod.ipv4}", "TXT", "whoami"])


def answers(place: Place, command: list[str]) -> None:
    """Wait until a command succeeds with some output."""

    def works() -> bool:
        done = place.run(command, check=False)
        return done.returncode == 0 and bool(done.stdout.strip())

    wait(works, f"an answer to {' '.join(command)}")


def wait(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that comes soon."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise NotAsToldError(f"waited {PATIENCE:g} s in vain for {what}")
        time.sleep(0.05)
