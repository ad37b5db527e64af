"""The tables that rows are measured with: the frontends under test, and a crowd of others beside them."""

from collections.abc import Iterator
from ipaddress import ip_address

from benchmarks.topology import FRONTEND, OWN_PORT, TCP_PORT, UDP_PORT
from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.resolve.model import FrontendEntry, FrontendType

MIRRORS = {4: ("10.96.0.1", "10.96.0.2"), 6: ("fd00:96::1", "fd00:96::2")}
"""Pairs of frontends that are each other's backend: what is sent to one becomes what is sent to the other."""

OTHER_PORT, SAME_PORT = (80, 8080), (81, 81)
"""Ports of a pair: where the packet's port changes, and where it does not."""

BACKENDS = 3
"""Of each frontend in the crowd."""

PORTS = ((TCP_PORT, Protocol.TCP), (UDP_PORT, Protocol.UDP), (OWN_PORT, Protocol.TCP), (OWN_PORT, Protocol.UDP))

_CROWD = {4: ip_address("10.97.0.0"), 6: ip_address("fd00:97::")}
_CROWDS_BACKENDS = {4: ip_address("10.128.0.0"), 6: ip_address("fd00:128::")}


def under_test(backend: str, *, affinity: bool = False) -> list[FrontendEntry]:
    """The frontends that clients dial, each with one backend on the same port."""
    kind = FrontendType.CLUSTER_IP if affinity else FrontendType.LOCAL_REDIRECT
    return [
        FrontendEntry(
            L4Addr.make(FRONTEND, port, protocol),
            kind,
            None if affinity else "default/tested",
            "default/tested" if affinity else None,
            (L4Addr.make(backend, port, protocol),),
            affinity_seconds=10800 if affinity else 0,
        )
        for port, protocol in PORTS
    ]


def mirrors() -> Iterator[FrontendEntry]:
    """The pairs of both families and protocols."""
    for ips in MIRRORS.values():
        for protocol in (Protocol.TCP, Protocol.UDP):
            for ports in (OTHER_PORT, SAME_PORT):
                one, other = (L4Addr.make(ip, port, protocol) for ip, port in zip(ips, ports, strict=True))
                for frontend, backend in ((one, other), (other, one)):
                    yield FrontendEntry(frontend, FrontendType.LOCAL_REDIRECT, "default/tested", None, (backend,))


def crowd(count: int, version: int = 4) -> Iterator[FrontendEntry]:
    """Frontends that nobody dials, with backends that do not exist."""
    first, first_backend = _CROWD[version], _CROWDS_BACKENDS[version]
    for number in range(count):
        frontend = L4Addr((first + number).packed, 80, Protocol.TCP)
        backends = [L4Addr((first_backend + number * BACKENDS + i).packed, 8080, Protocol.TCP) for i in range(BACKENDS)]
        yield FrontendEntry(frontend, FrontendType.LOCAL_REDIRECT, f"default/p{number}", None, tuple(backends))
