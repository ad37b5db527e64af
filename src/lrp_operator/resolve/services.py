"""The ClusterIP side: the addresses that Services have, and the endpoints behind a ClusterIP without a policy.

Two readers, two rules (options.ClusterIPs). The datapath that replaces kube-proxy SERVEs by semantics.md, section 9:
ready endpoints, else those still serving while they terminate, else connects are refused; internalTrafficPolicy Local
keeps to this node; Services of another proxy are not ours. People who LIST (section 10) see every ClusterIP and port
as it is: its ready endpoints wherever they are, and nothing refused.
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.resolve.model import FrontendEntry, FrontendType
from lrp_operator.resolve.options import ClusterIPs
from lrp_operator.resolve.views import EndpointView, Port, ServiceView, SliceView


class AddressKind(StrEnum):
    """As what an address belongs to a Service, as people call it."""

    CLUSTER_IP = "ClusterIP"
    EXTERNAL_IP = "external IP"
    LOAD_BALANCER_IP = "load-balancer IP"
    NODE_PORT = "nodePort"


def addresses_of(service: ServiceView, node_ips: Iterable[bytes]) -> dict[L4Addr, AddressKind]:
    """List every address, port and protocol that belongs to a Service on a node with these addresses."""
    rows = (
        (node_ips, service.node_ports, AddressKind.NODE_PORT),
        (service.load_balancer_ips, service.ports, AddressKind.LOAD_BALANCER_IP),
        (service.external_ips, service.ports, AddressKind.EXTERNAL_IP),
        (service.cluster_ips, service.ports, AddressKind.CLUSTER_IP),  # last: it is what the others are about
    )
    return {L4Addr(ip, port.number, port.protocol): kind for ips, ports, kind in rows for ip in ips for port in ports}


def is_shown(service: ServiceView, kind: AddressKind, frontend: L4Addr, mode: ClusterIPs) -> bool:
    """Whether a frontend of a Service is in the table where no policy redirects it."""
    if kind is not AddressKind.CLUSTER_IP:
        return False
    match mode:
        case ClusterIPs.OMIT:
            return False
        case ClusterIPs.SERVE:
            return not service.foreign_proxy and frontend.protocol != Protocol.SCTP
        case ClusterIPs.LIST:
            return True


def cluster_ip_entry(
    frontend: L4Addr, service: ServiceView, slices: Iterable[SliceView], mode: ClusterIPs
) -> FrontendEntry:
    """Make the table's entry for a ClusterIP frontend that no policy redirects."""
    endpoints = list(_endpoints_at(frontend, service, slices))
    if mode is ClusterIPs.SERVE:
        endpoints = _serving(service, endpoints)
    else:
        endpoints = [(endpoint, port) for endpoint, port in endpoints if endpoint.ready]
    backends = {L4Addr(endpoint.ip, port.number, port.protocol) for endpoint, port in endpoints}
    return FrontendEntry(
        frontend=frontend,
        type=FrontendType.CLUSTER_IP,
        policy=None,
        service=service.key,
        backends=tuple(sorted(backends, key=lambda backend: backend.sort_key)),
        refuse=mode is ClusterIPs.SERVE and not backends,
        affinity_seconds=service.affinity_seconds,
    )


def _endpoints_at(
    frontend: L4Addr, service: ServiceView, slices: Iterable[SliceView]
) -> Iterator[tuple[EndpointView, Port]]:
    """Find a frontend's endpoints in any state: joined by the port's name and protocol, of the frontend's family."""
    number, protocol = frontend.port, frontend.protocol
    names = {port.name for port in service.ports if port.number == number and port.protocol == protocol}
    for slice_ in slices:
        ports = [port for port in slice_.ports if port.name in names and port.protocol == protocol]
        for endpoint in slice_.endpoints:
            if len(endpoint.ip) == len(frontend.ip):
                yield from ((endpoint, port) for port in ports)


def _serving(service: ServiceView, endpoints: Sequence[tuple[EndpointView, Port]]) -> list[tuple[EndpointView, Port]]:
    """Keep the endpoints that kube-proxy would use."""
    near = [pair for pair in endpoints if pair[0].local or not service.local_only]
    ready = [pair for pair in near if pair[0].ready]
    return ready or [pair for pair in near if pair[0].draining]
