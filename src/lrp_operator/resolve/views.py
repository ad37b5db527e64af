"""Objects as resolution sees them: tenants' input made clean, once, at the door.

Everything that a tenant may have written wrongly (an address that is none, a port out of range, a protocol that
nobody knows) is left out here and never raises; behind this door every address is 4 or 16 bytes and every port a
Port. Two versions of an object that look the same from here are the same: a heartbeat in a pod's status costs
nothing.
"""

from collections.abc import Iterable

from msgspec import Struct

from lrp_operator.api import objects
from lrp_operator.api.addresses import Protocol, parse_ip
from lrp_operator.api.crd import PolicyInvalid, parse_policy
from lrp_operator.api.policy import PolicyRules
from lrp_operator.resolve.age import Age

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
DEFAULT_AFFINITY_SECONDS = 10800
MAX_AFFINITY_SECONDS = 86400
_IP_TYPES = ("IPv4", "IPv6")
_NODE_IP_TYPES = ("InternalIP", "ExternalIP")
_PROTOCOLS = {protocol.name: protocol for protocol in Protocol}


class Port(Struct, frozen=True, order=True, gc=False):
    """A port that an object declares. name: lower-cased, empty if there is none."""

    number: int
    protocol: Protocol
    name: str = ""

    def __str__(self) -> str:
        return f"{self.number}/{self.protocol.name}"


class PolicyView(Struct, frozen=True):
    """A policy as it was written and as it was read. rules: None if it is invalid, and then problem says why."""

    written: objects.Policy
    age: Age
    rules: PolicyRules | None
    problem: str = ""


class PodView(Struct, frozen=True):
    """A pod of this node.

    ports: those declared by containers that keep running. declares_ports: whether there is any, well formed or not.
    """

    key: str
    namespace: str
    uid: str
    labels: dict[str, str]
    ips: tuple[bytes, ...]
    ports: frozenset[Port]
    declares_ports: bool
    ready: bool
    terminating: bool
    host_network: bool

    @property
    def can_serve(self) -> bool:
        """Whether connections may be sent to it at all."""
        return self.ready and not self.terminating


class ServiceView(Struct, frozen=True):
    """A Service.

    cluster_ips: empty for headless and ExternalName Services. node_ports: number and protocol, no name.
    affinity_seconds: 0 without session affinity. foreign_proxy: another proxy than kube-proxy serves it.
    """

    key: str
    age: Age
    headless: bool
    external_name: bool
    cluster_ips: tuple[bytes, ...]
    external_ips: tuple[bytes, ...]
    load_balancer_ips: tuple[bytes, ...]
    ports: tuple[Port, ...]
    node_ports: tuple[Port, ...]
    affinity_seconds: int
    local_only: bool
    foreign_proxy: bool


class EndpointView(Struct, frozen=True, gc=False):
    """An endpoint of a Service, its conditions' defaults filled in. draining: terminating, but still serving."""

    ip: bytes
    ready: bool
    draining: bool
    local: bool


class SliceView(Struct, frozen=True):
    """An EndpointSlice that belongs to a Service ("namespace/name")."""

    service: str
    endpoints: tuple[EndpointView, ...]
    ports: tuple[Port, ...]


def view_policy(policy: objects.Policy) -> PolicyView:
    """Read a policy."""
    age = Age.of(policy.metadata.creation_timestamp)
    try:
        return PolicyView(policy, age, parse_policy(policy))
    except PolicyInvalid as invalid:
        return PolicyView(policy, age, None, str(invalid))


def view_pod(pod: objects.Pod) -> PodView:
    """See a pod."""
    meta, spec, status = pod.metadata, pod.spec, pod.status
    sidecars = [c for c in spec.init_containers or () if c.restart_policy == "Always"]
    declared = [port for c in (*(spec.containers or ()), *sidecars) for port in c.ports or ()]
    addresses = [status.pod_ip, *(entry.ip for entry in status.pod_ips or ())]
    return PodView(
        key=meta.key,
        namespace=meta.namespace,
        uid=meta.uid,
        labels=meta.labels or {},
        ips=_ips(addresses),
        ports=frozenset(_ports((p.container_port, p.protocol, p.name) for p in declared)),
        declares_ports=bool(declared),
        ready=any(c.type == "Ready" and c.status == "True" for c in status.conditions or ()),
        terminating=bool(meta.deletion_timestamp),
        host_network=bool(spec.host_network),
    )


def view_service(service: objects.Service) -> ServiceView:
    """See a Service."""
    meta, spec = service.metadata, service.spec
    written = [spec.cluster_ip, *(spec.cluster_ips or ())]
    headless, external_name = "None" in written, spec.type == "ExternalName"
    balancer = service.status.load_balancer
    ports = spec.ports or ()
    return ServiceView(
        key=meta.key,
        age=Age.of(meta.creation_timestamp),
        headless=headless,
        external_name=external_name,
        cluster_ips=() if headless or external_name else _ips(written),
        external_ips=_ips(spec.external_ips or ()),
        load_balancer_ips=_ips(ingress.ip for ingress in (balancer and balancer.ingress) or ()),
        ports=tuple(_ports((p.port, p.protocol, p.name) for p in ports)),
        node_ports=tuple(_ports((p.node_port, p.protocol, None) for p in ports)),
        affinity_seconds=_affinity_seconds(spec),
        local_only=spec.internal_traffic_policy == "Local",
        foreign_proxy=PROXY_NAME_LABEL in (meta.labels or {}),
    )


def view_slice(slice_: objects.EndpointSlice, node: str) -> SliceView | None:
    """See an EndpointSlice from a node; None if it is no Service's, or not one of IP addresses."""
    meta = slice_.metadata
    service = (meta.labels or {}).get(SERVICE_NAME_LABEL)
    if not service or slice_.address_type not in _IP_TYPES:
        return None
    endpoints = (_endpoint(endpoint, node) for endpoint in slice_.endpoints or ())
    return SliceView(
        service=f"{meta.namespace}/{service}",
        endpoints=tuple(endpoint for endpoint in endpoints if endpoint),
        ports=tuple(_ports((p.port, p.protocol, p.name) for p in slice_.ports or ())),
    )


def view_node_ips(node: objects.Node | None) -> frozenset[bytes]:
    """See a node: the addresses at which it serves nodePorts."""
    addresses = (node.status.addresses if node else None) or ()
    return frozenset(_ips(address.address for address in addresses if address.type in _NODE_IP_TYPES))


def _endpoint(endpoint: objects.Endpoint, node: str) -> EndpointView | None:
    """See an endpoint. Only its first address counts: the API gives the others no meaning."""
    ips = _ips(endpoint.addresses[:1])
    if not ips:
        return None
    state = endpoint.conditions or objects.EndpointConditions()
    ready = state.ready is not False
    serving = ready if state.serving is None else state.serving
    draining = serving and state.terminating is True
    return EndpointView(ip=ips[0], ready=ready, draining=draining, local=endpoint.node_name == node)


def _affinity_seconds(spec: objects.ServiceSpec) -> int:
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    return seconds if seconds is not None and 0 < seconds <= MAX_AFFINITY_SECONDS else DEFAULT_AFFINITY_SECONDS


def _ports(written: Iterable[tuple[int | None, str | None, str | None]]) -> list[Port]:
    """Keep the ports that are ports; an absent protocol is TCP."""
    ports = []
    for number, protocol_name, name in written:
        protocol = _PROTOCOLS.get(protocol_name or "TCP")
        if number is not None and 0 < number < 65536 and protocol is not None:
            ports.append(Port(number, protocol, (name or "").lower()))
    return ports


def _ips(written: Iterable[str | None]) -> tuple[bytes, ...]:
    """Keep the addresses that are addresses, each once, IPv4 first, then numerically."""
    ips = set()
    for text in written:
        try:
            ips.add(parse_ip(text or ""))
        except ValueError:
            continue
    return tuple(sorted(ips, key=lambda ip: (len(ip), ip)))
