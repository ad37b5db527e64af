"""What a rollout happens on: a lab node with a real agent that follows a directory of manifests, and a cluster's DNS.

The Service kube-dns has its own backend on another node (`far`), which kube-proxy's rules lead to. Pods with DNS
servers come and go on this node; what the cluster says of them is written as the kubelet and the controllers would
have it said, and each file is replaced atomically. Nobody here tells the agent anything else.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

import yaml

from lab import Node, Pod, Server
from lab.serving import family_of
from lrp_operator.agent.apimodel import ServiceFrontend, Services, Status
from lrp_operator.cli.client import AgentError, Client
from lrp_operator.kernel.netns import in_netns
from tests.rollout import answerer
from tests.rollout.clients.resolver import query

Manifest = dict[str, Any]

NODE = "worker-1"
PORT = 53
VIP, VIP6 = "10.96.0.10", "fd00:96::10"
OTHER_VIP = "10.96.0.11"
NAMESPACE = "kube-system"
LABELS = {"k8s-app": "node-local-dns"}
PATIENCE = 30.0
_PROGRAMS = Path(sys.executable).parent

# Any address of the Services' network is kube-proxy's: two tests give a Service another one.
KUBE_PROXY = """
table inet kube-proxy {{
  chain services {{
    type nat hook prerouting priority dstnat;
    ip daddr {{ {vip}, {other} }} meta l4proto {{ tcp, udp }} th dport {port} dnat ip to {far}
    ip6 daddr {vip6} meta l4proto {{ tcp, udp }} th dport {port} dnat ip6 to {far6}
  }}
}}
"""


class Cluster:
    """A node, its agent and what the cluster says. Use it as a context manager, around a lab node."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.node = node
        self.directory = directory
        self.manifests = directory / "manifests"
        self.manifests.mkdir()
        self._socket = directory / "agent.sock"
        self._log = directory / "agent.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        self._said = 0
        self.far = node.pod("far", ipv4="10.244.1.51", ipv6="fd00:10:244:1::33")
        self.serve(self.far)
        rules = KUBE_PROXY.format(vip=VIP, other=OTHER_VIP, vip6=VIP6, port=PORT, far=self.far.ipv4, far6=self.far.ipv6)
        node.run(["nft", rules])

    def __enter__(self) -> Self:
        self.write_dns_service()
        self.start_agent()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_agent()
        self.node.run([_PROGRAMS / "lrp-agent", "cleanup", *self._roots()])

    # --- Pods and what is said of them

    def serve(self, pod: Pod, port: int = PORT, says: str = "") -> Server:
        """Start a DNS server in a pod. Its answers are the pod's own address, or another one to know it by."""
        return pod.serve(partial(answerer.serve, says or pod.ipv4, port))

    def dns_pod(self, labels: dict[str, str] | None = None) -> Pod:
        """Make a pod for a DNS server, at an address of its own, with nothing in it yet."""
        # Other runs on this machine have pods too, and sockets are ended by address, in every namespace. An address
        # comes again only after many pods, as from a real node's range.
        self._made += 1
        run, number = os.getpid() % 0x7FFF, self._made % 250 + 1
        return self.node.pod(
            f"dns-{self._made}",
            ipv4=f"10.{128 + (run >> 8)}.{run & 255}.{number}",
            ipv6=f"fd00:{run:x}::{number:x}",
            labels=LABELS if labels is None else labels,
        )

    def probe(self, pod: Pod) -> None:
        """Wait until a pod answers the node, in both families: the kubelet calls no pod ready before its probe does."""

        def answers() -> bool:
            return all(in_netns(self.node.netns, partial(_answers, address)) for address in pod.addresses)

        wait(answers, f"{pod.short_name} to answer")

    def write(self, name: str, *manifests: Manifest) -> None:
        """Say something: replace a file in one step, as a directory of manifests is kept."""
        new = self.manifests / f".{name}.new"
        new.write_text(yaml.safe_dump_all(manifests))
        new.replace(self.manifests / f"{name}.yaml")

    def write_dns_service(self) -> None:
        """Say what is to be said of kube-dns."""
        self.write("kube-dns", service("kube-dns", VIP, VIP6), endpoints("kube-dns", self.far))

    def delete(self, name: str) -> None:
        """Take what a file says back; it may have gone."""
        (self.manifests / f"{name}.yaml").unlink(missing_ok=True)

    # --- The agent

    def _roots(self) -> list[str]:
        return ["--cgroup-root", str(self.node.cgroup), "--bpf-root", str(self.node.bpf / "lrp")]

    def start_agent(self) -> None:
        """Start the agent and wait until what it was told is in force."""
        options = ["--manifests", str(self.manifests), "--node-name", NODE, "--bpf-lb-sock", "true"]
        with self._log.open("ab") as log:
            self._process = self.node.popen(
                [_PROGRAMS / "lrp-agent", *options, *self._roots()],
                env=os.environ | {"LRP_API_SOCKET": str(self._socket)},
                stdout=log,
                stderr=log,
            )
        wait(self._is_ready, "the agent to be ready")

    def stop_agent(self) -> None:
        """Stop it as a service manager does."""
        if self._process is not None:
            self._process.terminate()
            assert self._process.wait(timeout=10) == 0, self.log()

    def log(self) -> str:
        """Return what it wrote."""
        return self._log.read_text() if self._log.exists() else ""

    def _is_ready(self) -> bool:
        assert self._process
        assert self._process.poll() is None, self.log()
        try:
            return Client(self._socket).get("status", Status).ready
        except AgentError:
            return False

    def frontends(self) -> dict[str, ServiceFrontend]:
        """What the agent says of its frontends."""
        return {entry.frontend: entry for entry in Client(self._socket).get("services", Services).frontends}

    def backends(self, vip: str = VIP, port: int = PORT) -> set[str]:
        """The addresses that UDP datagrams to a ClusterIP are redirected to now, in the kernel."""
        written = f"[{vip}]" if ":" in vip else vip
        entry = self.frontends().get(f"{written}:{port}/UDP")
        return {b.backend for b in entry.backends if b.state == "active"} if entry else set()

    def settled(self) -> None:
        """Wait until the agent has read everything that was said until now."""
        self._said += 1
        mark = f"mark-{self._said}"
        self.write("mark", service(mark, OTHER_VIP), policy(mark))
        wait(lambda: any(f.service == f"{NAMESPACE}/{mark}" for f in self.frontends().values()), "the agent to read")
        self.delete("mark")

    def redirected_to(self, pods: Iterable[Pod], vip: str = VIP, port: int = PORT) -> None:
        """Wait until datagrams to a ClusterIP go to these pods' port; to none: to the Service's own backends."""
        wanted = {f"{pod.ipv4}:{port}/UDP" for pod in pods}
        wait(lambda: self.backends(vip) == wanted, f"{vip} to be redirected to {sorted(wanted) or 'nobody here'}")


def _answers(address: str) -> bool:
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.1)
        sock.connect((address, PORT))
        try:
            sock.send(query(0))
            return bool(sock.recv(512))
        except (TimeoutError, ConnectionRefusedError):
            return False


def wait(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that comes soon."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:g} s in vain for {what}"
        time.sleep(0.02)


# --- What a cluster says


def service(name: str, *cluster_ips: str) -> Manifest:
    """A Service with DNS ports."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "clusterIP": cluster_ips[0],
            "clusterIPs": list(cluster_ips),
            "ports": [
                {"name": "dns", "port": PORT, "protocol": "UDP"},
                {"name": "dns-tcp", "port": PORT, "protocol": "TCP"},
            ],
        },
    }


def endpoints(name: str, far: Pod) -> Manifest:
    """Its own backend, on another node."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-v4",
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [far.ipv4], "conditions": {"ready": True}, "nodeName": "worker-2"}],
        "ports": [{"name": "dns", "port": PORT, "protocol": "UDP"}, {"name": "dns-tcp", "port": PORT}],
    }


def policy(service_name: str = "kube-dns", *, port: int = PORT, labels: dict[str, str] | None = None) -> Manifest:
    """Queries to a DNS Service go to the local pods with these labels, on this port; both protocols."""
    ports = [{"port": str(port), "name": name, "protocol": p} for name, p in (("dns", "UDP"), ("dns-tcp", "TCP"))]
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumLocalRedirectPolicy",
        "metadata": {"name": f"local-{service_name}", "namespace": NAMESPACE},
        "spec": {
            "redirectFrontend": {"serviceMatcher": {"serviceName": service_name, "namespace": NAMESPACE}},
            "redirectBackend": {
                "localEndpointSelector": {"matchLabels": LABELS if labels is None else labels},
                "toPorts": ports,
            },
        },
    }


def described(
    pod: Pod, name: str = "", *, ready: bool, terminating: bool = False, ports: Sequence[int] = (PORT,)
) -> Manifest:
    """A DNS pod as the cluster describes it. name: where it is not the lab's own name for it."""
    declared = [(word, port, protocol) for port in ports for word, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))]
    said = pod.manifest(NAMESPACE, declared, ready=ready)
    said["spec"]["nodeName"] = NODE
    said["metadata"]["name"] = name or pod.short_name
    if terminating:
        said["metadata"]["deletionTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        said["metadata"]["deletionGracePeriodSeconds"] = 30
    return said
