"""The netlink work: namespaces, veths, bridges, addresses and routes.

pyroute2 in a thread inside the namespace takes 0.3 ms a change, where a process of `ip` takes 5. Everything is in
force when a function returns: IPv6 addresses do without duplicate detection, which would hold them back for a second.

A routed pod is wired as many CNIs do it: the pod has host addresses only (/32, /128) and a gateway that nobody has
(169.254.1.1, fe80::1), whose permanent neighbour entry leads to the node's end of the veth; the node has a route and a
permanent neighbour entry for each of the pod's addresses, since a first ARP request that a busy machine loses is sent
again only a second later. A bridged pod has addresses with the bridge's prefix, and the bridge is its gateway.

A node of a network has an uplink: it is to the network's switch what a bridged pod is to its node, except that every
neighbour is entered for good (`add_hop`), for the same reason.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any

from pyroute2 import IPRoute

from lab.naming import NETNS
from lrp_operator.kernel.netns import CLONE_NEWNET, in_netns

Address = IPv4Interface | IPv6Interface

BRIDGE = "cni0"
GATEWAYS = {4: "169.254.1.1", 6: "fe80::1"}
BRIDGE_PREFIX = {4: 24, 6: 64}
UPLINK = "eth0"
ROUTER = ("172.31.0.254", "fd00:172:31::fe")
_NODES_PREFIX = {4: 24, 6: 64}
_LAST_RESORT = 4294967295  # a route's priority: after every other
_FAMILIES = {4: AF_INET, 6: AF_INET6}
_NODAD = 0x02
_PERMANENT = 0x80
_ONLINK = 4
_MS_BIND = 4096

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Veth:
    """A pod's link: the name and index of the node's end, and the hardware addresses of both ends."""

    name: str
    index: int
    node_mac: str
    pod_mac: str


@dataclass(frozen=True, slots=True)
class Uplink:
    """A node's own link to the other nodes: a veth, as it is seen from the node."""

    name: str
    index: int
    mac: str


@dataclass(frozen=True, slots=True)
class Hop:
    """A neighbour on the nodes' network: its addresses, one of each family, and what is reached through it."""

    mac: str
    addresses: Sequence[str]
    networks: Sequence[str]


def mount(source: str, target: Path, kind: str, flags: int = 0) -> None:
    """Mount a file system."""
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, None):
        code = ctypes.get_errno()
        raise OSError(code, f"can't mount {source} on {target}: {os.strerror(code)}")


def create_netns(name: str, *, forwarding: bool) -> int:
    """Make a named namespace with its loopback up; return a descriptor of it."""
    NETNS.mkdir(exist_ok=True)
    (NETNS / name).touch(exist_ok=False)
    raised: list[BaseException] = []

    def work() -> None:
        try:
            _unshare()
            mount("/proc/thread-self/ns/net", NETNS / name, "", _MS_BIND)
            _settle(forwarding=forwarding)
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            raised.append(error)

    # A thread of its own, which ends here: nothing else may ever run in it.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return os.open(NETNS / name, os.O_RDONLY | os.O_CLOEXEC)


def _unshare() -> None:
    if _libc.unshare(CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"can't make a network namespace: {os.strerror(code)}")


def _settle(*, forwarding: bool) -> None:
    settings = {"ipv6/conf/default/accept_dad": 0, "ipv6/conf/default/accept_ra": 0, "ipv6/conf/all/forwarding": 0}
    if forwarding:
        # A node that refuses says so each time: what it refuses soon after the last would otherwise just be lost.
        unlimited = {"ipv4/icmp_ratelimit": 0, "ipv6/icmp/ratelimit": 0}
        settings |= {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1} | unlimited
    for name, value in settings.items():
        Path("/proc/sys/net", name).write_text(str(value))
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")


def set_up_node(netns: int, addresses: Sequence[str]) -> None:
    """Give a node its own addresses, and no way out: what is no pod's is refused at once, not lost."""

    def work(ip: Any) -> None:
        for address in map(ip_interface, addresses):
            _add_address(ip, 1, address)
        for family in _FAMILIES.values():
            ip.route("add", family=family, dst="default", type="unreachable", priority=_LAST_RESORT)

    _inside(netns, work)


def set_up_switch(netns: int) -> tuple[int, str]:
    """Make what joins nodes: a bridge, which is also their router, and leads nowhere. Returns its index and MAC."""
    mac, indexes = _new_mac(), []

    def work(ip: Any) -> None:
        # With an address of its own choice, or the bridge would change it with every port that joins.
        ip.link("add", ifname=BRIDGE, kind="bridge", address=mac)
        indexes.append(_index(ip, BRIDGE))
        ip.link("set", index=indexes[0], state="up")
        for address in ROUTER:
            _add_address(ip, indexes[0], _on_network(address))

    set_up_node(netns, ())
    _inside(netns, work)
    return indexes[0], mac


def add_uplink(switch: int, node: int, port: str, addresses: Sequence[str]) -> Uplink:
    """Join a node to the switch by a veth, which has the node's addresses."""
    veth = _add_veth(switch, node, port, lambda ip: ip.link("set", index=_index(ip, port), master=_index(ip, BRIDGE)))
    indexes: list[int] = []

    def on_node(ip: Any) -> None:
        indexes.append(_set_up_pod(ip, [_on_network(address) for address in addresses]))

    _inside(node, on_node)
    return Uplink(UPLINK, indexes[0], veth.pod_mac)


def add_hop(netns: int, link: int, hop: Hop) -> None:
    """Tell a node, or the switch, of a neighbour behind one of its links."""
    gateways = {ip_address(address).version: address for address in hop.addresses}

    def work(ip: Any) -> None:
        for version, gateway in gateways.items():
            family = _FAMILIES[version]
            ip.neigh("add", index=link, dst=gateway, lladdr=hop.mac, state=_PERMANENT, family=family)
        for version, network in ((ip_network(network).version, network) for network in hop.networks):
            ip.route("add", family=_FAMILIES[version], dst=network, gateway=gateways[version], oif=link)

    _inside(netns, work)


def refuse(netns: int, networks: Sequence[str]) -> None:
    """Refuse what goes to a node's own pods' networks and is no pod's: else it would go round by the router."""

    def work(ip: Any) -> None:
        for network in networks:
            ip.route("add", family=_FAMILIES[ip_network(network).version], dst=network, type="unreachable")

    _inside(netns, work)


def add_routed(node: int, pod: int, name: str, addresses: Sequence[Address]) -> Veth:
    """Join a pod to its node by a veth with a route to each of its addresses."""
    veth = _add_veth(node, pod, name, lambda _: None)

    def in_pod(ip: Any) -> None:
        eth0 = _set_up_pod(ip, addresses)
        for version in sorted({address.version for address in addresses}):
            gateway = GATEWAYS[version]
            ip.neigh("add", index=eth0, dst=gateway, lladdr=veth.node_mac, state=_PERMANENT, family=_FAMILIES[version])
            ip.route("add", family=_FAMILIES[version], dst="default", gateway=gateway, oif=eth0, flags=_ONLINK)

    def on_node(ip: Any) -> None:
        for address in addresses:
            family, host = _FAMILIES[address.version], str(address.ip)
            ip.route("add", family=family, dst=str(address), oif=veth.index)
            ip.neigh("add", index=veth.index, dst=host, lladdr=veth.pod_mac, state=_PERMANENT, family=family)

    _inside(pod, in_pod)
    _inside(node, on_node)
    return veth


def add_bridged(node: int, pod: int, name: str, addresses: Sequence[Address]) -> Veth:
    """Join a pod to its node by a veth that is a port of the node's bridge, which is made when first needed."""

    def join(ip: Any) -> None:
        bridge = _bridge(ip)
        for gateway in {_gateway(address) for address in addresses}:
            _add_address(ip, bridge, gateway, exists_ok=True)
        ip.link("set", index=_index(ip, name), master=bridge)

    veth = _add_veth(node, pod, name, join)

    def in_pod(ip: Any) -> None:
        _set_up_pod(ip, addresses)
        for gateway in {address.version: _gateway(address) for address in addresses}.values():
            ip.route("add", family=_FAMILIES[gateway.version], dst="default", gateway=str(gateway.ip))

    _inside(pod, in_pod)
    return veth


def delete_link(netns: int, index: int) -> None:
    """Delete a link, and with a veth its other end."""
    _inside(netns, lambda ip: ip.link("del", index=index))


def as_host(address: str) -> Address:
    """An address as a routed pod carries it: /32 or /128."""
    return ip_interface(address)


def as_bridged(address: str) -> Address:
    """An address as a bridged pod carries it: with the bridge's prefix."""
    return ip_interface(f"{address}/{BRIDGE_PREFIX[ip_interface(address).version]}")


def _on_network(address: str) -> Address:
    """An address as a node of a network carries it."""
    return ip_interface(f"{address}/{_NODES_PREFIX[ip_address(address).version]}")


def _gateway(address: Address) -> Address:
    """The bridge's own address on a pod's network: the first."""
    return ip_interface(f"{address.network.network_address + 1}/{address.network.prefixlen}")


def _inside(netns: int, work: Callable[[Any], Any]) -> None:
    def run() -> None:
        with IPRoute() as ip:
            work(ip)

    in_netns(netns, run)


def _new_mac() -> str:
    """A random, locally administered, unicast hardware address."""
    return ":".join(f"{byte:02x}" for byte in b"\x02" + os.urandom(5))


def _index(ip: Any, name: str) -> int:
    found: list[int] = ip.link_lookup(ifname=name)
    return found[0]


def _add_veth(node: int, pod: int, name: str, then: Callable[[Any], None]) -> Veth:
    node_mac, pod_mac = _new_mac(), _new_mac()
    indexes: list[int] = []

    def work(ip: Any) -> None:
        peer = {"ifname": "eth0", "net_ns_fd": pod, "address": pod_mac}
        ip.link("add", ifname=name, kind="veth", address=node_mac, peer=peer)
        indexes.append(_index(ip, name))
        then(ip)
        ip.link("set", index=indexes[0], state="up")

    _inside(node, work)
    return Veth(name, indexes[0], node_mac, pod_mac)


def _set_up_pod(ip: Any, addresses: Sequence[Address]) -> int:
    eth0 = _index(ip, "eth0")
    ip.link("set", index=eth0, state="up")
    for address in addresses:
        _add_address(ip, eth0, address)
    return eth0


def _bridge(ip: Any) -> int:
    if not ip.link_lookup(ifname=BRIDGE):
        ip.link("add", ifname=BRIDGE, kind="bridge")
        ip.link("set", index=_index(ip, BRIDGE), state="up")
    return _index(ip, BRIDGE)


def _add_address(ip: Any, index: int, address: Address, *, exists_ok: bool = False) -> None:
    flags = {"flags": _NODAD} if address.version == 6 else {}
    ip.addr(
        "replace" if exists_ok else "add",
        index=index,
        address=str(address.ip),
        prefixlen=address.network.prefixlen,
        family=_FAMILIES[address.version],
        **flags,
    )
