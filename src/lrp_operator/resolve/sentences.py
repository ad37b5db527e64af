"""What people are told: one function per sentence, each naming the object that is in the way.

Sentences end up in a policy's conditions and are compared to tell whether a verdict changed: nothing in them depends
on a moment or on the order in which things came. What tenants wrote is only quoted as names, which the API server has
checked.
"""

from collections.abc import Sequence

from lrp_operator.api.addresses import L4Addr, format_ip
from lrp_operator.api.policy import AddressMatcher, ServiceMatcher
from lrp_operator.resolve.backends import declares
from lrp_operator.resolve.frontends import Claim
from lrp_operator.resolve.options import IPNetwork
from lrp_operator.resolve.ownership import Claimant, ServiceClaim
from lrp_operator.resolve.rations import Shortage
from lrp_operator.resolve.services import AddressKind
from lrp_operator.resolve.views import PodView, Port, ServiceView

MOST_NAMED = 3  # objects that one sentence lists; the others are counted

REFUSED = "Connects are refused (lrp-operator.io/on-no-backend: drop)."


def address_not_allowed(matcher: AddressMatcher, allowed: Sequence[IPNetwork]) -> str:
    """Say that an address is outside the configured networks."""
    networks = ", ".join(str(network) for network in allowed)
    return f"Address {format_ip(matcher.ip)} is outside localRedirectPolicies.addressMatcherCIDRs ({networks})."


def namespace_not_allowed(namespace: str, allowed: Sequence[str]) -> str:
    """Say that a namespace's policies may not name addresses."""
    return (
        f"Namespace {namespace} may not use addressMatcher: it is not among"
        f" localRedirectPolicies.addressMatcherNamespaces ({', '.join(allowed)})."
    )


def too_many_frontends(namespace: str, shortage: Shortage) -> str:
    """Say that a namespace has no room for a policy's frontends."""
    return (
        f"Namespace {namespace} may have {shortage.limit} frontends (localRedirectPolicies.maxFrontendsPerNamespace):"
        f" older policies have {shortage.taken}, and this one asks for {shortage.asked}."
    )


def node_not_selected(node: str) -> str:
    """Say that a policy is not for a node, or (empty) for none that there is."""
    if not node:
        return "No node matches lrp-operator.io/node-selector."
    return f"Node {node} does not match lrp-operator.io/node-selector: the policy does not apply here."


def service_not_found(matcher: ServiceMatcher) -> str:
    """Say that there is no such Service."""
    return f"Service {matcher.namespace}/{matcher.name} does not exist; it is picked up when it comes."


def no_cluster_ip(service: ServiceView) -> str:
    """Say why a Service has no ClusterIP to redirect."""
    if service.external_name:
        return f"Service {service.key} is of type ExternalName: it has no ClusterIP to redirect."
    if service.headless:
        return f"Service {service.key} is headless (clusterIP: None): it has no ClusterIP to redirect."
    return f"Service {service.key} has no ClusterIP yet."


def ports_not_found(service: ServiceView, missing: Sequence[Port]) -> str:
    """Say which ports a Service does not have, and which it has."""
    offered = ", ".join(str(port) for port in service.ports) or "none"
    if not missing:  # every port was asked for, and there is none that could be redirected
        return f"Service {service.key} has no TCP or UDP port to redirect (its ports: {offered})."
    return f"Service {service.key} has no port {', '.join(str(port) for port in missing)} (its ports: {offered})."


def owned_by_service(frontend: L4Addr, owner: ServiceClaim) -> str:
    """Say whose address an addressMatcher names."""
    match owner.kind:
        case AddressKind.CLUSTER_IP:
            mend = "a serviceMatcher in a policy of its namespace can redirect it"
            return f"{frontend} is a ClusterIP of Service {owner.service}; {mend}."
        case AddressKind.EXTERNAL_IP:
            return f"{frontend} is an external IP of Service {owner.service}."
        case AddressKind.LOAD_BALANCER_IP:
            return f"{frontend} is a load-balancer IP of Service {owner.service}."
        case AddressKind.NODE_PORT:
            return f"{frontend} is a nodePort of Service {owner.service} at an address of this node."


def conflict(holder: Claimant, loser: Claimant) -> str:
    """Say which policy has a frontend, and why that one."""
    why = "is older" if holder.age != loser.age else "is equally old and comes first by name"
    return f"Policy {holder.policy} has this frontend: it {why}."


def no_local_pod(node: str, namespace: str, *, for_some_nodes: bool) -> str:
    """Say that nothing is selected, on a node or (empty) in the cluster."""
    place = f" on node {node}" if node else " on a node that matches lrp-operator.io/node-selector" * for_some_nodes
    return f"No pod of namespace {namespace}{place} matches the localEndpointSelector."


def no_ready_pod(pods: Sequence[PodView]) -> str:
    """Say what keeps each of the selected pods from serving."""
    states = [f"{pod.key} is {'terminating' if pod.terminating else 'not ready'}" for pod in pods]
    return f"No selected pod is ready: {_listed(states)}."


def no_matching_port(claim: Claim, pods: Sequence[PodView]) -> str:
    """Say why none of the pods that could serve does: no backend port, no such container port, no such address."""
    if not claim.targets:
        return _no_backend_port(claim)
    able = [pod for pod in pods if pod.can_serve]
    declaring = [pod for pod in able if any(declares(pod, target) for target in claim.targets)]
    if declaring:
        family = "IPv4" if claim.frontend.is_ipv4 else "IPv6"
        return f"No ready pod with the port has an {family} address: {_listed([pod.key for pod in declaring])}."
    wanted = " or ".join(f"{port} named {port.name}" if port.name else str(port) for port in claim.targets)
    return f"No ready pod declares container port {wanted}: {_listed([pod.key for pod in able])}."


def _no_backend_port(claim: Claim) -> str:
    protocol = claim.frontend.protocol.name
    if claim.names is None:
        return f"redirectBackend.toPorts has no {protocol} port."
    if not claim.names:
        return "The Service's port has no name to join it with a port of redirectBackend.toPorts."
    return f"redirectBackend.toPorts has no {protocol} port named {' or '.join(sorted(claim.names))}."


def redirected(node: str, total: int, redirected_: int, refused: int) -> str:
    """Sum up an accepted policy."""
    text = f"{redirected_} of {total} frontends redirected on node {node}"
    return f"{text}, {refused} refused." if refused else f"{text}."


def host_network_exempt(pods: Sequence[PodView]) -> str:
    """Say that an exemption covers the whole host."""
    names = _listed([pod.key for pod in pods])
    return f"skipRedirectFromBackend exempts all of the node's own network, as these pods are on it: {names}."


def _listed(items: Sequence[str]) -> str:
    rest = len(items) - MOST_NAMED
    return ", ".join(items[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
