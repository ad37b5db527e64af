"""The tables that rows are measured with: the frontends under test, and a crowd of others beside them."""

from collections.abc import Iterator
from ipaddress import IPv4Address

from benchmarks.topology import FRONTEND, OWN_PORT, TCP_PORT, UDP_PORT
from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.resolve.model import FrontendEntry, FrontendType

BACKENDS = 3
"""Of each frontend in the crowd."""

PORTS = ((TCP_PORT, Protocol.TCP), (UDP_PORT, Protocol.UDP), (OWN_PORT, Protocol.TCP), (OWN_PORT, Protocol.UDP))

_CROWD = IPv4Address("10.97.0.0")
_CROWDS_BACKENDS = IPv4Address("10.128.0.0")


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


def crowd(count: int) -> Iterator[FrontendEntry]:
    """Frontends that nobody dials, with backends that do not exist."""
    for number in range(count):
        frontend = L4Addr((_CROWD + number).packed, 80, Protocol.TCP)
        backends = [
            L4Addr((_CROWDS_BACKENDS + number * BACKENDS + i).packed, 8080, Protocol.TCP) for i in range(BACKENDS)
        ]
        yield FrontendEntry(frontend, FrontendType.LOCAL_REDIRECT, f"default/p{number}", None, tuple(backends))
