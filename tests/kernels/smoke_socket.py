"""The socket level on a real kernel: redirects where sockets connect and send, a little of everything."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial

from lab import Place
from lrp_operator.api.addresses import Protocol, parse_ip
from lrp_operator.datapath.model import SocketLevel
from lrp_operator.kernel import features
from lrp_operator.kernel.features import KernelFeatures
from lrp_operator.resolve.model import Delta, FrontendType, SkipEntry
from tests.datapath.world import (
    DNS,
    FAR,
    TCP,
    UDP,
    VIP,
    WAYS,
    WEB,
    InNode,
    World,
    address_of,
    ask,
    socket_in,
    with_original,
)
from tests.kernels.rows import Row
from tests.kernels.smoke import PATIENCE, node, same, tried

_MPTCP = 262
_WAYS = {"4": "IPv4", "6": "IPv6", "mapped": "IPv4-mapped"}


def check() -> Iterator[Row]:
    """Do every trial on one node, whose pods the agent's datapath redirects."""
    trials: dict[str, Callable[[World, KernelFeatures], str]] = {}
    for way in WAYS:
        trials[f"{_WAYS[way]} TCP"] = partial(_answered, way=way, protocol=TCP)
        trials[f"{_WAYS[way]} UDP"] = partial(_answered, way=way, protocol=UDP)
    trials |= {
        "going back": _back_again,
        "refusing": _refused,
        "ending UDP sockets": _ended,
        "skipRedirectFromBackend": _exempt,
        "MPTCP": _mptcp,
        "session affinity and hostNamespaceOnly": _replaced,
    }
    found = features.probe()
    with node() as made:
        world = World(made)
        world.datapath.open()
        for subject, trial in trials.items():
            yield tried("socket", subject, partial(trial, world, found))
        world.datapath.close()


def _answered(world: World, _found: KernelFeatures, *, way: str, protocol: Protocol) -> str:
    """The backend answers, and the client sees the frontend."""
    world.program(world.entry(way, protocol, world.one))
    replies = [_ask(world.client, way, protocol)]
    if protocol is UDP:
        replies.append(_ask(world.client, way, protocol, connected=True))
    for reply in replies:
        same(reply, ("one", VIP[way]))
    return ""


def _ask(
    place: Place, way: str, protocol: Protocol, *, to: dict[str, str] = VIP, connected: bool = False
) -> tuple[str, str]:
    """Who answers, and whom the client sees."""
    if protocol is TCP:
        reply = place.ask_tcp(to[way], WEB, timeout=PATIENCE)
    else:
        reply = place.ask_udp(to[way], DNS, timeout=PATIENCE, connected=connected)
    return reply.name, reply.peer[0]


def _back_again(world: World, _found: KernelFeatures) -> str:
    """What is redirected goes to the original once it is not any more."""
    world.program(world.entry("4", UDP, world.one, vip=FAR))
    same(_ask(world.client, "4", UDP, to=FAR)[0], "one")
    world.program()
    same(_ask(world.client, "4", UDP, to=FAR)[0], "far")
    return ""


def _refused(world: World, found: KernelFeatures) -> str:
    world.program(*(world.entry(way, protocol) for way in ("4", "6") for protocol in (TCP, UDP)))
    wanted = errno.ECONNREFUSED if found.set_retval else errno.EPERM
    for way in WAYS:
        for kind, port in ((socket.SOCK_STREAM, WEB), (socket.SOCK_DGRAM, DNS)):
            with socket_in(world.client, way, kind) as sock:
                code = sock.connect_ex((VIP[way], port))
                same(errno.errorcode.get(code), errno.errorcode[wanted])
    return "" if found.set_retval else f"it says {os.strerror(wanted)}"


def _ended(world: World, _found: KernelFeatures) -> str:
    """The owner of a connected socket is told at once, and reaches the next backend."""
    for way in WAYS:
        world.program(world.entry(way, UDP, world.one))
        with socket_in(world.client, way) as sock:
            sock.settimeout(PATIENCE)
            sock.connect((VIP[way], DNS))
            same(ask(sock), "one")
            same(world.program(world.entry(way, UDP, world.two)).sockets_ended, 1)
            try:
                raise AssertionError(f"the socket lives, and received {sock.recv(100)!r}")
            except ConnectionAbortedError:
                sock.connect((VIP[way], DNS))
            same(ask(sock), "two")
    return ""


def _exempt(world: World, found: KernelFeatures) -> str:
    if not (found.netns_cookie_helper and found.netns_cookie_option):
        return "this kernel does not tell cookies"
    entries = [world.entry(way, protocol, world.one, vip=FAR) for way in ("4", "6") for protocol in (TCP, UDP)]
    ips = tuple(parse_ip(address) for address in world.client.addresses)
    frontends = tuple(entry.frontend for entry in entries)
    world.program(*entries, skips=[SkipEntry("default/client", "uid", ips, host_network=False, frontends=frontends)])
    for way in WAYS:
        for protocol in (TCP, UDP):
            same(_ask(world.client, way, protocol, to=FAR)[0], "far")
            same(_ask(world.other_client, way, protocol, to=FAR)[0], "one")
    return ""


def _mptcp(world: World, found: KernelFeatures) -> str:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP).close()
    except OSError:
        return "this kernel was built without"
    for way in WAYS:
        world.program(world.entry(way, TCP, world.one))
        with socket_in(world.client, way, socket.SOCK_STREAM, _MPTCP) as sock:
            sock.settimeout(PATIENCE)
            sock.connect((VIP[way], WEB))
            assert b"one" in sock.recv(100)
            if found.mptcp:
                same(sock.getpeername()[:2], (VIP[way], WEB))
    return "" if found.mptcp else "getpeername shows the pod's address"


def _reaches_the_endpoints(world: World, datapath: InNode) -> None:
    """The node is exempt from a Service's policy, and is sent to the Service's own endpoint."""
    entries = [
        with_original(world.entry(way, protocol, world.one), address_of(world.two, way, port, protocol))
        for way in ("4", "6")
        for protocol, port in ((TCP, WEB), (UDP, DNS))
    ]
    skip = SkipEntry("default/p", "uid", (), host_network=True, frontends=tuple(entry.frontend for entry in entries))
    datapath.update(Delta({entry.frontend: entry for entry in entries}, {}, {skip.pod: skip}))
    same(datapath.flush(complete=True).problems, ())
    for way in WAYS:
        for protocol in (TCP, UDP):
            same(_ask(world.node, way, protocol), ("two", VIP[way]))


def _replaced(world: World, found: KernelFeatures) -> str:
    """A client stays with its backend; and where the kernel can, the node's own sockets are redirected, a pod's not."""
    host_only = found.netns_cookie_helper and found.netns_cookie_option
    level = SocketLevel.HOST_ONLY if host_only else SocketLevel.EVERYWHERE
    entries = [
        world.entry(way, UDP, world.one, world.two, vip=FAR, type=FrontendType.CLUSTER_IP, affinity_seconds=1000)
        for way in ("4", "6")
    ]
    with world.instead(socket_level=level, cluster_ip=True) as datapath:
        datapath.update(Delta({entry.frontend: entry for entry in entries}, {}, {}))
        same(datapath.flush(complete=True).problems, ())
        for way in WAYS:
            names = {_ask(world.node, way, UDP, to=FAR)[0] for _ in range(6)}
            assert len(names) == 1, f"with session affinity, {names} answer"
            assert names <= {"one", "two"}, f"{names} answer the node"
            if host_only:
                same(_ask(world.client, way, UDP, to=FAR)[0], "far")
        if host_only:
            _reaches_the_endpoints(world, datapath)
    return "" if host_only else "session affinity only: this kernel does not tell cookies"
