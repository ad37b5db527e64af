"""Which frontends a policy claims, and which container ports may serve each.

The five kinds of semantics.md, section 2:

    kind                     claimed                                  a container port serves it when it is
    address, single port     the address with the port                the first backend port
    address, named ports     the address with each port               a backend port with the frontend's name
    service, all ports       the ClusterIPs with every Service port   the backend port; if there are several,
                                                                      one with the Service port's name
    service, single port     the ClusterIPs with the port             the first backend port
    service, named ports     the ClusterIPs with each port selected   a backend port with the Service port's name

Where names matter, the container port's own name must be that name too. What a policy claims depends on its own words
and on its Service alone; whether it gets it is for ownership.py to say, and what serves it for backends.py.
"""

from msgspec import Struct

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.api.policy import AddressMatcher, PolicyPort, PolicyRules, ServiceMatcher
from lrp_operator.resolve.model import PolicyReason
from lrp_operator.resolve.options import ResolveOptions
from lrp_operator.resolve.views import Port, ServiceView

REJECTED = frozenset(
    {
        PolicyReason.INVALID,
        PolicyReason.NAMESPACE_NOT_ALLOWED,
        PolicyReason.ADDRESS_NOT_ALLOWED,
        PolicyReason.TOO_MANY_FRONTENDS,
    }
)


class Claim(Struct, frozen=True):
    """One frontend that a policy wants.

    targets: container ports that serve it, all of its protocol; a target without a name takes any container port of its
        number, and pods that declare no ports at all.
    names: what the frontend is called (perhaps nothing); None where names do not matter.
    """

    frontend: L4Addr
    targets: tuple[Port, ...]
    names: frozenset[str] | None = None


class Claims(Struct, frozen=True):
    """What a policy claims, in output order, or why nothing.

    service: the one that a serviceMatcher found. missing: ports it asks for that the Service does not have.
    """

    reason: PolicyReason
    frontends: tuple[Claim, ...] = ()
    service: ServiceView | None = None
    missing: tuple[Port, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether the policy is accepted; a rejected one claims nothing."""
        return self.reason not in REJECTED


class _Join(Struct, frozen=True):
    """How frontends and container ports are joined: by which backend ports, and whether names matter."""

    backend_ports: tuple[PolicyPort, ...]
    by_name: bool


def claims_of(rules: PolicyRules, namespace: str, service: ServiceView | None, options: ResolveOptions) -> Claims:
    """Work out what a valid policy of a namespace claims. service: the one its serviceMatcher names, if it exists."""
    join = _join_of(rules)
    if isinstance(rules.frontend, AddressMatcher):
        if not options.allows_namespace(namespace):
            return Claims(PolicyReason.NAMESPACE_NOT_ALLOWED)
        if not options.allows_address(rules.frontend.ip):
            return Claims(PolicyReason.ADDRESS_NOT_ALLOWED)
        ports = [Port(port.port, port.protocol, port.name) for port in rules.frontend.ports]
        return Claims(PolicyReason.ACCEPTED, _claims((rules.frontend.ip,), ports, join))
    if service is None:
        return Claims(PolicyReason.SERVICE_NOT_FOUND)
    if not service.cluster_ips:
        return Claims(PolicyReason.SERVICE_HAS_NO_CLUSTER_IP, service=service)
    ports, missing = _select_ports(rules.frontend, service)
    reason = PolicyReason.ACCEPTED if ports else PolicyReason.SERVICE_PORT_NOT_FOUND
    return Claims(reason, _claims(service.cluster_ips, ports, join), service, missing)


def _join_of(rules: PolicyRules) -> _Join:
    """Tell the kinds apart, by how many ports there are as written."""
    frontend_ports = len(rules.frontend.ports)
    if frontend_ports == 1:
        return _Join(rules.backend_ports[:1], by_name=False)
    if frontend_ports == 0:  # a Service, all ports
        return _Join(rules.backend_ports, by_name=len(rules.backend_ports) > 1)
    return _Join(rules.backend_ports, by_name=True)


def _select_ports(matcher: ServiceMatcher, service: ServiceView) -> tuple[list[Port], tuple[Port, ...]]:
    """Split what a serviceMatcher asks for into the Service's ports, as they are named there, and missing ones."""
    offered = [port for port in service.ports if port.protocol != Protocol.SCTP]
    if not matcher.ports:
        return offered, ()
    wanted = {(port.port, port.protocol) for port in matcher.ports}
    missing = wanted - {(port.number, port.protocol) for port in offered}
    selected = [port for port in offered if (port.number, port.protocol) in wanted]
    return selected, tuple(Port(*port) for port in sorted(missing))


def _claims(ips: tuple[bytes, ...], ports: list[Port], join: _Join) -> tuple[Claim, ...]:
    """Claim each address with each port; a port and protocol written twice is one frontend, with either name."""
    names: dict[tuple[int, Protocol], set[str]] = {}
    for port in ports:
        names.setdefault((port.number, port.protocol), set()).add(port.name)
    claims = [
        _claim(L4Addr(ip, number, protocol), frozenset(called), join)
        for ip in ips
        for (number, protocol), called in names.items()
    ]
    return tuple(sorted(claims, key=lambda claim: claim.frontend.sort_key))


def _claim(frontend: L4Addr, names: frozenset[str], join: _Join) -> Claim:
    ports = [port for port in join.backend_ports if port.protocol == frontend.protocol]
    if not join.by_name:
        return Claim(frontend, tuple(sorted({Port(port.port, port.protocol) for port in ports})))
    names -= {""}
    targets = {Port(port.port, port.protocol, port.name) for port in ports if port.name in names}
    return Claim(frontend, tuple(sorted(targets)), names)
