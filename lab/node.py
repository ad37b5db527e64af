"""Node and Pod: what they are made of, and how they go.

A node is used as a context manager. When it is left, for whatever reason, all of it is removed; SIGTERM and SIGHUP
are turned into an exception for that, so that they clean up as Ctrl-C does. What a killed run leaves is swept away by
the next one (cleanup.py).
"""

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from lab import cleanup, wiring
from lab.naming import claim, new_name
from lab.place import Place
from lrp_operator.kernel.cgroup import find_root

NODE_ADDRESSES = ("172.31.0.1", "fd00:172:31::1")
_LONGEST_IFNAME = 15


class TerminatedError(KeyboardInterrupt):
    """SIGTERM or SIGHUP, taken as Ctrl-C is."""


@dataclass(eq=False)
class Pod(Place):
    """A pod: a namespace joined to its node by a veth. It also stands for any other endpoint, near or far."""

    node: "Node"
    short_name: str
    addresses: tuple[str, ...]
    veth: wiring.Veth
    bridged: bool
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def ipv4(self) -> str:
        """Its first IPv4 address."""
        return next(address for address in self.addresses if ":" not in address)

    @property
    def ipv6(self) -> str:
        """Its first IPv6 address."""
        return next(address for address in self.addresses if ":" in address)

    def manifest(
        self, namespace: str = "default", ports: Sequence[tuple[str, int, str]] = (), *, ready: bool = True
    ) -> dict[str, Any]:
        """The pod as Kubernetes would describe it. ports: (name, number, protocol)."""
        container_ports = [
            {"name": name, "containerPort": port, "protocol": protocol} for name, port, protocol in ports
        ]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.short_name, "namespace": namespace, "labels": dict(self.labels)},
            "spec": {
                "nodeName": self.node.name,
                "containers": [{"name": "main", "image": "none", "ports": container_ports}],
            },
            "status": {
                "phase": "Running",
                "podIP": self.addresses[0],
                "podIPs": [{"ip": address} for address in self.addresses],
                "conditions": [{"type": "Ready", "status": str(ready)}],
            },
        }

    def check_sources(self) -> None:
        """Let the node drop what the pod sends with an address that is not its own (strict rp_filter), as CNIs do."""
        self.node.set(f"ipv4/conf/{wiring.BRIDGE if self.bridged else self.veth.name}/rp_filter", 1)

    def remove(self) -> None:
        """End the pod: its processes, its veth, its namespace. Its name and addresses are free again."""
        if self.node.pods.pop(self.short_name, None) is None:
            return
        cleanup.kill_cgroup(self.cgroup)
        self.end_processes()
        # At once, rather than when the namespace's last user has gone: the kernel's own clean-up takes its time.
        wiring.delete_link(self.node.netns, self.veth.index)
        cleanup.remove_netns(self.name)
        os.close(self.netns)
        cleanup.remove_cgroup(self.cgroup)


class Node(Place):
    """A node. bpf: a bpffs of its own; cgroup: covers the node's own processes and, one level below, its pods'.

    number: tells nodes apart whose pods are to have different addresses; networks: where those are from.
    uplink: its link to the other nodes of its network, if it is on one (network.py makes such nodes).
    """

    def __init__(
        self, addresses: Sequence[str] = NODE_ADDRESSES, *, number: int = 0, switch: int | None = None
    ) -> None:
        """Describe a node. switch: the namespace that it is plugged into; its addresses are on loopback without one."""
        self.addresses = tuple(addresses)
        self.number = number
        self.networks = (f"10.244.{2 * number}.0/23", f"fd00:10:244:{2 * number:x}::/63")
        self.uplink: wiring.Uplink | None = None
        self.pods: dict[str, Pod] = {}
        self._switch = switch
        name = new_name()
        super().__init__(name, -1, find_root().path / name)
        self.bpf = Path()

    def __enter__(self) -> Self:
        first_time()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _build(self) -> None:
        directory = claim(self.name)
        self.bpf = directory / "bpf"
        self.bpf.mkdir()
        wiring.mount("bpf", self.bpf, "bpf")
        self.cgroup.mkdir()
        self.netns = wiring.create_netns(self.name, forwarding=True)
        if self._switch is None:
            wiring.set_up_node(self.netns, self.addresses)
        else:
            wiring.set_up_node(self.netns, ())
            wiring.refuse(self.netns, self.networks)
            self.uplink = wiring.add_uplink(self._switch, self.netns, f"port-{self.number}", self.addresses)

    def close(self) -> None:
        """Remove the node and its pods. May be called twice."""
        with undisturbed():
            cleanup.kill_cgroup(self.cgroup)
            for place in (*self.pods.values(), self):
                place.end_processes()
                if place.netns >= 0:
                    os.close(place.netns)
                    place.netns = -1
            self.pods.clear()
            cleanup.remove_node(self.name)

    def pod(
        self,
        name: str,
        *,
        ipv4: str | Sequence[str] = (),
        ipv6: str | Sequence[str] = (),
        bridge: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> Pod:
        """Make a pod with one or several addresses; without any it gets one of each family from `networks`.

        bridge: make its veth a port of the node's bridge instead of routing its addresses to it.
        """
        if name in self.pods:
            raise ValueError(f"{self.name} has a pod named {name} already")
        written = (*_listed(ipv4), *_listed(ipv6))
        addresses = tuple(str(ip_address(address)) for address in written) or self._next_addresses(bridge=bridge)
        full_name = f"{self.name}-{name}"
        netns = wiring.create_netns(full_name, forwarding=False)
        try:
            veth = self._wire(netns, name, addresses, bridge=bridge)
            cgroup = self.cgroup / name
            cgroup.mkdir()
        except BaseException:
            os.close(netns)
            cleanup.remove_netns(full_name)
            raise
        pod = Pod(full_name, netns, cgroup, self, name, addresses, veth, bridge, dict(labels or {}))
        self.pods[name] = pod
        return pod

    def filter_bridged(self, *, on: bool) -> None:
        """Show what passes the node's bridge to iptables and nftables, or hide it (a new namespace shows it)."""
        for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
            self.set(f"bridge/{name}", int(on))

    def _wire(self, netns: int, name: str, addresses: Sequence[str], *, bridge: bool) -> wiring.Veth:
        link = f"veth-{name}"[:_LONGEST_IFNAME]
        if bridge:
            return wiring.add_bridged(self.netns, netns, link, [wiring.as_bridged(address) for address in addresses])
        return wiring.add_routed(self.netns, netns, link, [wiring.as_host(address) for address in addresses])

    def _next_addresses(self, *, bridge: bool) -> tuple[str, str]:
        taken = {address for pod in self.pods.values() for address in pod.addresses}
        subnet = 2 * self.number + (1 if bridge else 0)
        number = next(n for n in range(2, 255) if f"10.244.{subnet}.{n}" not in taken)
        return f"10.244.{subnet}.{number}", str(ip_address(f"fd00:10:244:{subnet:x}::{number:x}"))


def _listed(addresses: str | Sequence[str]) -> tuple[str, ...]:
    return (addresses,) if isinstance(addresses, str) else tuple(addresses)


_seen_first = False


def first_time() -> None:
    """Before a process's first node: sweep, and learn to clean up on SIGTERM and SIGHUP."""
    global _seen_first  # noqa: PLW0603 (signal handlers and leftovers are the process's, not an object's)
    if _seen_first:
        return
    _seen_first = True
    if os.geteuid():
        raise PermissionError("a lab node takes root: it makes network namespaces and cgroups")
    cleanup.sweep()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _terminate)


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise TerminatedError(signal.Signals(number).name)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold signals back for the moment that removal takes: a second Ctrl-C must not cut it short."""
    waiting = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
