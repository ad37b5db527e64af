"""Two nodes on a network; the first has a real agent that follows a directory of manifests, and pods of both shapes.

A routed pod is behind a veth that the node routes to, a bridged one behind a port of the node's bridge. For each shape
there are a client, two backends, and a Service whose own endpoint is a pod of the second node. An address outside of
the cluster is another pod there. What kube-proxy would do, its rules do (lab.kubeproxy), where the test wants it.

All that the agent knows of this it is told in manifests, each replaced atomically.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml

from lab import KubeProxy, Network, Node, Place, Pod, Service
from lab.serving import Reply, ask_tcp, ask_udp
from lrp_operator.agent.apimodel import Services, Status
from lrp_operator.cli.client import AgentError, Client
from tests.modes.modes import Mode

T = TypeVar("T")
Manifest = dict[str, Any]
Shape = Literal["routed", "bridged"]
Version = Literal[4, 6]

SHAPES: tuple[Shape, ...] = ("routed", "bridged")
VERSIONS: tuple[Version, ...] = (4, 6)
PATIENCE = 120.0
WEB, DNS = 80, 53  # Services' ports, and addresses'
OWN_WEB, OWN_DNS = 8080, 5353  # where pods listen
OTHER_WEB, OTHER_DNS = 8081, 5354  # where backends listen, too
BULK = 8082  # where a backend may be made to listen
_MARKS = "2001:db8:77::"
_PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Target:
    """What clients dial: an address of each family, at WEB (TCP) and DNS (UDP)."""

    name: str
    ipv4: str
    ipv6: str

    def ip(self, version: Version) -> str:
        return self.ipv4 if version == 4 else self.ipv6


def service_of(shape: Shape) -> Target:
    """The Service of a shape's clients, which a policy may redirect."""
    number = SHAPES.index(shape) + 1
    return Target(f"web-{shape}", f"10.96.0.{number}", f"fd00:96::{number}")


PLAIN = Target("plain", "10.96.0.9", "fd00:96::9")
"""A Service without a policy."""


def address_of(shape: Shape) -> Target:
    """An address outside of the cluster, which a policy may redirect; else a pod of the second node has it."""
    number = SHAPES.index(shape) + 1
    return Target(f"meta-{shape}", f"192.0.2.{number}", f"2001:db8::{number}")


class Ground:
    """Nodes, pods and the agent. Use it as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifests = folder / "manifests"
        self.manifests.mkdir()
        self._socket = folder / "agent.sock"
        self.log_path = folder / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._network = Network()
        self._marks = 0
        self._slow_marks = 0
        self.node: Node
        self.far_node: Node

    def __enter__(self) -> Self:
        self._network.__enter__()
        try:
            self._build()
        except BaseException:
            self._network.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(AssertionError):
            self.kill()
        self._network.close()

    def _build(self) -> None:
        self.node, self.far_node = self._network.node(), self._network.node()
        self.clients = {shape: self._pod(f"{shape}-c", shape) for shape in SHAPES}
        self.clients["routed"].labels = {"mark": "yes"}  # see `settled`
        self.backends = {shape: [self._backend(shape, n) for n in (1, 2)] for shape in SHAPES}
        self.far = self._serving(self.far_node.pod("far"))
        for shape in SHAPES:
            target = address_of(shape)
            pod = self._serving(self.far_node.pod(target.name, ipv4=target.ipv4, ipv6=target.ipv6), WEB, DNS)
            for address, gateway in zip(pod.addresses, self.far_node.addresses, strict=True):
                self.node.run(["ip", "route", "add", address, "via", gateway])
        self.node_server = [self.node.serve_tcp(OWN_WEB, "node"), self.node.serve_udp(OWN_DNS, "node")]
        self.write("services", *(m for t in (*map(service_of, SHAPES), PLAIN) for m in self.service(t)))
        for shape in SHAPES:
            for pod in (self.clients[shape], *self.backends[shape]):
                self.tell_pod(pod)
        self.tell_pod(self.far)

    def _pod(self, name: str, shape: Shape) -> Pod:
        # Other runs on this machine have pods too, and sockets are ended by address, in every namespace: so pods have
        # addresses that no other run's have. The first number of each is the bridge's.
        run, number = os.getpid() % 0x7FFF, len(self.node.pods) + 2
        half = 128 * (shape == "bridged")
        ipv4, ipv6 = f"10.{128 + (run >> 8)}.{run & 255}.{half + number}", f"fd00:{run:x}:{half:x}::{number:x}"
        pod = self.node.pod(name, ipv4=ipv4, ipv6=ipv6, bridge=shape == "bridged")
        for address, gateway in zip(pod.addresses, self.node.addresses, strict=True):
            self.far_node.run(["ip", "route", "add", address, "via", gateway])
        return pod

    def _backend(self, shape: Shape, number: int) -> Pod:
        pod = self._serving(self._pod(f"{shape}-{number}", shape), OTHER_WEB, OTHER_DNS)
        pod.labels = {"shape": shape, "number": str(number)}
        return self._serving(pod)

    @staticmethod
    def _serving(pod: Pod, web: int = OWN_WEB, dns: int = OWN_DNS) -> Pod:
        says = pod.short_name if web != OTHER_WEB else f"{pod.short_name} elsewhere"
        pod.serve_tcp(web, says)
        pod.serve_udp(dns, says)
        return pod

    # --- What the agent is told

    def write(self, name: str, *manifests: Manifest) -> None:
        """Say something: replace a file in one step."""
        new = self.manifests / f".{name}.new"
        new.write_text(yaml.safe_dump_all(manifests))
        new.replace(self.manifests / f"{name}.yaml")

    def delete(self, name: str) -> None:
        """Take what a file says back; it may have gone."""
        (self.manifests / f"{name}.yaml").unlink(missing_ok=True)

    def tell_pod(self, pod: Pod, *, ready: bool = True) -> None:
        """Say how a pod is."""
        ports = [("web", OWN_WEB, "TCP"), ("dns", OWN_DNS, "UDP")]
        if "number" in pod.labels:
            ports += [("web", OTHER_WEB, "TCP"), ("web", BULK, "TCP"), ("dns", OTHER_DNS, "UDP")]
        self.write(pod.short_name, pod.manifest(ports=ports, ready=ready))

    def service(self, target: Target, endpoints: Sequence[Pod] | None = None) -> list[Manifest]:
        """A Service and its own endpoints, of both families."""
        ports = [("web", WEB, OWN_WEB, "TCP"), ("dns", DNS, OWN_DNS, "UDP")]
        said: list[Manifest] = [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": target.name, "namespace": "default"},
                "spec": {
                    "clusterIP": target.ipv4,
                    "clusterIPs": [target.ipv4, target.ipv6],
                    "ports": [
                        {"name": name, "port": port, "targetPort": own, "protocol": protocol}
                        for name, port, own, protocol in ports
                    ],
                },
            }
        ]
        for version in VERSIONS:
            addresses = [pod.ipv4 if version == 4 else pod.ipv6 for pod in endpoints or [self.far]]
            said.append(
                {
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {
                        "name": f"{target.name}-{version}",
                        "namespace": "default",
                        "labels": {"kubernetes.io/service-name": target.name},
                    },
                    "addressType": f"IPv{version}",
                    "endpoints": [
                        {"addresses": [ip], "conditions": {"ready": True}, "nodeName": self.far_node.name}
                        for ip in addresses
                    ],
                    "ports": [{"name": name, "port": own, "protocol": protocol} for name, _, own, protocol in ports],
                }
            )
        return said

    def kube_proxy(self, mode: Literal["iptables", "nftables"]) -> KubeProxy:
        """Install kube-proxy's rules for all Services."""
        proxy = KubeProxy(self.node, mode, pods=self._pod_networks())
        services = []
        for target in (*map(service_of, SHAPES), PLAIN):
            for ip, to in ((target.ipv4, self.far.ipv4), (target.ipv6, f"[{self.far.ipv6}]")):
                services.append(Service(f"default/{target.name}:web", ip, WEB, [f"{to}:{OWN_WEB}"]))
                services.append(Service(f"default/{target.name}:dns", ip, DNS, [f"{to}:{OWN_DNS}"], "UDP"))
        proxy.write(services)
        return proxy

    def _pod_networks(self) -> tuple[str, str]:
        return "10.128.0.0/9", "fd00::/16"

    def settled(self) -> None:
        """Wait until the agent has written all that was said until now."""
        self._marks += 1
        ip = f"{_MARKS}{self._marks:x}"
        mark = policy("mark", Target("mark", "", ip), {"mark": "yes"}, protocols=("TCP",))
        self.write("mark", *mark)
        wait(lambda: self._is_active(f"[{ip}]:{WEB}/TCP"), "the agent to write what it was told", self.log)
        wait(self.is_ready, "the agent to be ready", self.log)

    def _is_active(self, frontend: str) -> bool:
        with suppress(AgentError):
            found = Client(self._socket).get("services", Services).frontends
            return any(f.frontend == frontend and any(b.state == "active" for b in f.backends) for f in found)
        return False

    # --- The agent

    def roots(self) -> list[str]:
        """Where it works, as flags."""
        return ["--cgroup-root", str(self.node.cgroup), "--bpf-root", str(self.node.bpf / "lrp")]

    def start(self, mode: Mode, *flags: str, env: dict[str, str] | None = None) -> None:
        """Start the agent; it is not waited for."""
        config = self.folder / "values.yaml"
        config.write_text(mode.text)
        command = [str(_PROGRAMS / "lrp-agent"), "--config", str(config), "--manifests", str(self.manifests)]
        with self.log_path.open("ab") as log:
            self.process = self.node.popen(
                [*command, "--node-name", self.node.name, *self.roots(), *flags],
                env=os.environ | {"LRP_API_SOCKET": str(self._socket)} | (env or {}),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def started(self, mode: Mode, *flags: str, env: dict[str, str] | None = None) -> Status:
        """Start the agent, and wait until all that it was told is in force."""
        self.start(mode, *flags, env=env)
        wait(self.is_ready, "the agent to be ready", self.log)
        return self.status()

    def kill(self) -> None:
        """Kill -9 it."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """Stop it as a service manager does."""
        assert self.process
        self.process.terminate()
        assert self.process.wait(timeout=20) == 0, self.log()
        self.process = None

    def cleanup(self) -> None:
        """Remove every trace of it from the kernel."""
        self.kill()
        self.node.run([_PROGRAMS / "lrp-agent", "cleanup", *self.roots()])

    def status(self) -> Status:
        """What it says of itself."""
        return Client(self._socket).get("status", Status)

    def is_ready(self) -> bool:
        """Whether this process is, not one that was before."""
        assert self.process
        assert self.process.poll() is None, self.log()
        with suppress(AgentError):
            status = self.status()
            return status.pid == self.process.pid and status.ready and all(p.state == "attached" for p in status.links)
        return False

    def log(self) -> str:
        """Return the end of what it wrote."""
        return self.log_path.read_text()[-4000:] if self.log_path.exists() else ""


def policy(
    name: str,
    target: Target,
    labels: dict[str, str],
    *,
    protocols: Iterable[str] = ("TCP", "UDP"),
    other_port: bool = False,
    skip: bool = False,
    drop: bool = False,
) -> list[Manifest]:
    """Redirect a target to local pods: a Service by one policy, an address by one for each family and protocol."""
    ports = {"TCP": ("web", WEB, OTHER_WEB if other_port else OWN_WEB)}
    ports["UDP"] = ("dns", DNS, OTHER_DNS if other_port else OWN_DNS)
    meta: Manifest = {"namespace": "default"}
    if drop:
        meta["annotations"] = {"lrp-operator.io/on-no-backend": "drop"}
    backend: Manifest = {"localEndpointSelector": {"matchLabels": labels}}
    more: Manifest = {"skipRedirectFromBackend": True} if skip else {}

    def made(suffix: str, frontend: Manifest, own: list[Manifest]) -> Manifest:
        spec = {"redirectFrontend": frontend, "redirectBackend": {**backend, "toPorts": own}, **more}
        return {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumLocalRedirectPolicy",
            "metadata": {"name": f"{name}{suffix}", **meta},
            "spec": spec,
        }

    chosen = [(protocol, *ports[protocol]) for protocol in protocols]
    own = [{"name": word, "port": str(to), "protocol": protocol} for protocol, word, _, to in chosen]
    if target.ipv4.startswith("10.96."):
        return [made("", {"serviceMatcher": {"serviceName": target.name, "namespace": "default"}}, own)]
    return [
        made(f"-{version}-{word}", {"addressMatcher": {"ip": ip, "toPorts": [at]}}, [to])
        for version, ip in ((4, target.ipv4), (6, target.ipv6))
        if ip
        for (protocol, word, port, _), to in zip(chosen, own, strict=True)
        for at in [{"name": word, "port": str(port), "protocol": protocol}]
    ]


# --- Asking


@dataclass(frozen=True, slots=True)
class Said:
    """What a client saw of one exchange. way: such as "TCP/IPv4"; name: who answered, or the error's name."""

    way: str
    name: str
    peer: tuple[str, int] | None
    seen: str = ""


def ask(place: Place, target: Target, *, only: str = "", timeout: float = 3.0) -> list[Said]:
    """Have a place dial a target by every protocol and family; what it saw. only: such as "TCP"."""
    return place.call(partial(_ask, target, only, timeout), timeout=60)


def _ask(target: Target, only: str, timeout: float) -> list[Said]:
    said = []
    for version in VERSIONS:
        ip = target.ip(version)
        ways: list[tuple[str, Callable[[], Reply]]] = [
            ("TCP", partial(ask_tcp, ip, WEB, timeout=timeout, payload=b"x" * 3000)),
            ("UDP", partial(ask_udp, ip, DNS, timeout=timeout)),
            ("UDP connected", partial(ask_udp, ip, DNS, timeout=timeout, connected=True)),
        ]
        said += [_said(f"{way}/IPv{version}", how) for way, how in ways if way.startswith(only)]
    return said


def _said(way: str, how: Callable[[], Reply]) -> Said:
    try:
        reply = how()
    except OSError as error:
        return Said(way, type(error).__name__, None)
    return Said(way, reply.name, reply.peer, reply.seen[0])


def wrong(said: Iterable[Said], target: Target, names: Iterable[str]) -> list[str]:
    """What is not as it should be: answers of others than these, or not from the target's own address."""
    found = []
    for one in said:
        ip, port = target.ipv4 if "IPv4" in one.way else target.ipv6, WEB if one.way.startswith("TCP") else DNS
        if one.name not in names:
            found.append(f"{one.way} to {target.name}: {one.name} instead of {' or '.join(names)}")
        elif one.peer != (ip, port):
            found.append(f"{one.way} to {target.name}: answered by {one.name} from {one.peer}, not from {ip}:{port}")
    return found


def wait(condition: Callable[[], bool], what: str, log: Callable[[], str] = str) -> None:
    """Wait for something that comes soon."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:g} s in vain for {what}\n{log()}"
        time.sleep(0.02)
