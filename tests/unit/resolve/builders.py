"""Objects in one line each, and resolutions as texts, so that a test reads like the rule that it is about.

Ports are written `80/TCP`, with a name `80/TCP:web`.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import structs

from lrp_operator.api.addresses import L4Addr
from lrp_operator.api.objects import (
    ClientIPConfig,
    ClusterObject,
    Condition,
    Container,
    ContainerPort,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    NodeAddress,
    NodeStatus,
    ObjectMeta,
    Pod,
    PodIP,
    PodSpec,
    PodStatus,
    Policy,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    SessionAffinityConfig,
)
from lrp_operator.resolve.engine import ClusterIPs, ResolveOptions, resolve
from lrp_operator.resolve.model import FrontendVerdict, PolicyVerdict, Resolution
from lrp_operator.resolve.options import IPNetwork

NODE = "n1"
METADATA_IP = "169.254.169.254"


def split_port(text: str) -> tuple[int, str, str | None]:
    number, _, rest = text.partition("/")
    protocol, _, name = rest.partition(":")
    return int(number), protocol, name or None


def policy_port(text: str) -> dict[str, str]:
    number, protocol, name = split_port(text)
    return {"port": str(number), "protocol": protocol} | ({"name": name} if name else {})


def policy(
    name: str = "p",
    *,
    ip: str = METADATA_IP,
    service: str | None = None,
    ports: Sequence[str] = (),
    backends: Sequence[str] = ("80/TCP",),
    selector: dict[str, Any] | None = None,
    ns: str = "default",
    created: str | None = "2024-01-01T00:00:00Z",
    skip: bool = False,
    drop: bool = False,
) -> Policy:
    """One with a serviceMatcher if a service is given, else with an addressMatcher, of 8080/TCP if nothing else."""
    written = [policy_port(port) for port in ports]
    matcher: dict[str, Any] = {"addressMatcher": {"ip": ip, "toPorts": written or [policy_port("8080/TCP")]}}
    if service is not None:
        matcher = {"serviceMatcher": {"serviceName": service, "namespace": ns, "toPorts": written}}
    spec = {
        "redirectFrontend": matcher,
        "redirectBackend": {
            "localEndpointSelector": {"matchLabels": {"app": "proxy"}} if selector is None else selector,
            "toPorts": [policy_port(port) for port in backends],
        },
        "skipRedirectFromBackend": skip,
    }
    annotations = {"lrp-operator.io/on-no-backend": "drop"} if drop else None
    return Policy(ObjectMeta(name, ns, annotations=annotations, creation_timestamp=created), spec)


def pod(
    name: str = "a",
    *ips: str,
    ports: Sequence[str] = ("80/TCP",),
    sidecar_ports: Sequence[str] = (),
    init_ports: Sequence[str] = (),
    labels: dict[str, str] | None = None,
    ns: str = "default",
    node: str | None = NODE,
    ready: bool = True,
    terminating: bool = False,
    host_network: bool = False,
) -> Pod:
    """A ready pod of this node, app=proxy, with address 10.244.0.1 unless others are given."""

    def container(written: Sequence[str], restart: str | None = None) -> Container:
        ports = [ContainerPort(number, name, protocol) for number, protocol, name in map(split_port, written)]
        return Container(ports, restart)

    addresses = ips or ("10.244.0.1",)
    return Pod(
        ObjectMeta(
            name,
            ns,
            uid=f"uid-{name}",
            labels={"app": "proxy"} if labels is None else labels,
            deletion_timestamp="2024-05-01T00:00:00Z" if terminating else None,
        ),
        PodSpec(node, host_network, [container(ports)], [container(init_ports), container(sidecar_ports, "Always")]),
        PodStatus(addresses[0], [PodIP(ip) for ip in addresses], [Condition("Ready", "True" if ready else "False")]),
    )


def service(
    name: str = "dns",
    *cluster_ips: str,
    ports: Sequence[str] = ("53/UDP:dns", "53/TCP:dns-tcp"),
    node_ports: Sequence[int | None] = (),
    ns: str = "default",
    external_ips: Sequence[str] = (),
    load_balancer_ips: Sequence[str] = (),
    labels: dict[str, str] | None = None,
    created: str | None = None,
    affinity: str | None = None,
    affinity_seconds: int | None = None,
    **spec: Any,
) -> Service:
    """One with ClusterIP 10.96.0.10 unless others are given."""
    addresses = list(cluster_ips or ("10.96.0.10",))
    written = [
        ServicePort(number, port_name, protocol, node_port)
        for (number, protocol, port_name), node_port in zip(
            map(split_port, ports), [*node_ports, *[None] * len(ports)], strict=False
        )
    ]
    return Service(
        ObjectMeta(name, ns, labels=labels, creation_timestamp=created),
        ServiceSpec(
            cluster_ip=addresses[0],
            cluster_ips=addresses,
            external_ips=list(external_ips),
            ports=written,
            session_affinity=affinity,
            session_affinity_config=SessionAffinityConfig(ClientIPConfig(affinity_seconds)),
            **spec,
        ),
        ServiceStatus(LoadBalancerStatus([LoadBalancerIngress(ip) for ip in load_balancer_ips])),
    )


def endpoint(ip: str, node: str | None = "n2", **conditions: bool) -> Endpoint:
    return Endpoint([ip], EndpointConditions(**conditions), node)


def endpoint_slice(
    *endpoints: Endpoint,
    name: str = "dns-x",
    of: str = "dns",
    ports: Sequence[str] = ("53/UDP:dns", "53/TCP:dns-tcp"),
    ns: str = "default",
    family: str = "IPv4",
) -> EndpointSlice:
    written = [EndpointPort(number, port_name, protocol) for number, protocol, port_name in map(split_port, ports)]
    labels = {"kubernetes.io/service-name": of}
    return EndpointSlice(ObjectMeta(name, ns, labels=labels), family, list(endpoints), written)


def node(*addresses: str, name: str = NODE) -> Node:
    return Node(ObjectMeta(name), NodeStatus([NodeAddress("InternalIP", ip) for ip in addresses]))


def changed(obj: Any, **fields: Any) -> Any:
    """The same object with other metadata, spec or status: `changed(pod, spec__node_name="n2")`."""
    for path, value in fields.items():
        part, _, name = path.partition("__")
        inner = structs.replace(getattr(obj, part), **{name: value})
        obj = structs.replace(obj, **{part: inner})
    return obj


def run(
    *objects: ClusterObject, cidrs: Sequence[IPNetwork] = (), cluster_ips: ClusterIPs = ClusterIPs.OMIT
) -> Resolution:
    return resolve(objects, NODE, ResolveOptions(tuple(cidrs), cluster_ips))


def texts(addresses: Sequence[L4Addr]) -> list[str]:
    return [str(address) for address in addresses]


def table(resolution: Resolution) -> dict[str, list[str]]:
    """Frontend -> backends, in output order."""
    return {str(entry.frontend): texts(entry.backends) for entry in resolution.frontends}


def verdict(resolution: Resolution, name: str = "default/p") -> PolicyVerdict:
    return next(verdict for verdict in resolution.verdicts if verdict.policy == name)


def frontend_verdicts(resolution: Resolution, name: str = "default/p") -> dict[str, FrontendVerdict]:
    return {str(verdict.frontend): verdict for verdict in verdict(resolution, name).frontends}


def reasons(resolution: Resolution, name: str = "default/p") -> dict[str, str | None]:
    """Frontend -> why a policy does not redirect it (None: it does)."""
    return {frontend: verdict.reason for frontend, verdict in frontend_verdicts(resolution, name).items()}
