"""The TC level on a real kernel: pods' packets are redirected at their links, of pods that are wired in both ways."""

import errno
from collections.abc import Iterator
from functools import partial

from lab import Pod
from lrp_operator.api.addresses import Protocol
from tests.datapath.tc.tcworld import DNS, FAR, TCP, UDP, VIP, WAYS, WEB, TcWorld
from tests.kernels.rows import Row
from tests.kernels.smoke import PATIENCE, node, same, tried

_BIG = bytes(range(256)) * 64  # super-packets, both ways; no more than a server's send takes at once on Linux 5.10


def check() -> Iterator[Row]:
    """Do every trial on one node, from a pod on its bridge and from one with routes."""
    with node() as made:
        world = TcWorld(made, bridged=True)
        routed = world.pod("routed", bridge=False)
        world.open()
        for wiring, client in (("bridged", world.client), ("routed", routed)):
            for protocol in (TCP, UDP):
                yield tried("tc", f"{protocol.name} from a {wiring} pod", partial(_answered, world, client, protocol))
            yield tried("tc", f"going back from a {wiring} pod", partial(_back_again, world, client))
            yield tried("tc", f"refusing a {wiring} pod", partial(_refused, world, client))
        world.close()


def _answered(world: TcWorld, client: Pod, protocol: Protocol) -> str:
    """The backend answers, the client sees the frontend, and the backend the client."""
    for way in WAYS:
        world.program(world.entry(way, protocol, world.one))
        if protocol is TCP:
            reply = client.ask_tcp(VIP[way], WEB, payload=_BIG, timeout=PATIENCE)
            same(reply.echo == _BIG, wanted=True)
        else:
            reply = client.ask_udp(VIP[way], DNS, timeout=PATIENCE)
        same((reply.name, reply.peer[0]), ("one", VIP[way]))
        same(reply.seen[0], client.ipv4 if way == "4" else client.ipv6)
    return ""


def _back_again(world: TcWorld, client: Pod) -> str:
    """What is redirected goes to the original once it is not any more."""
    for way in WAYS:
        world.program(world.entry(way, UDP, world.one, vip=FAR))
        same(client.ask_udp(FAR[way], DNS, timeout=PATIENCE).name, "one")
        world.program()
        same(client.ask_udp(FAR[way], DNS, timeout=PATIENCE).name, "far")
    return ""


def _refused(world: TcWorld, client: Pod) -> str:
    """A frontend without a backend answers at once that nobody is there."""
    for way in WAYS:
        world.program(world.entry(way, TCP))
        try:
            raise AssertionError(f"{client.ask_tcp(VIP[way], WEB, timeout=PATIENCE).name} answers")
        except ConnectionRefusedError as error:
            same(error.errno, errno.ECONNREFUSED)
    return ""
