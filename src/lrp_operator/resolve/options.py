"""What a resolution is asked for, beside the objects: settings of the node, and of who asks."""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

IPNetwork = IPv4Network | IPv6Network


class ClusterIPs(StrEnum):
    """What becomes of ClusterIP frontends that no policy redirects. One of three, so that they can't be mixed up."""

    OMIT = "omit"  # kube-proxy has them: they are not in the table, EndpointSlices are not read
    SERVE = (
        "serve"  # kube-proxy is replaced (semantics.md, section 9): endpoints by its rules, refused if there are none
    )
    LIST = "list"  # for people, `lrpctl resolve --all` (section 10): every port, SCTP too, with its ready endpoints


@dataclass(frozen=True, slots=True)
class ResolveOptions:
    """How to resolve.

    address_matcher_cidrs: localRedirectPolicies.addressMatcherCIDRs; empty allows every address.
    address_matcher_namespaces: localRedirectPolicies.addressMatcherNamespaces; empty allows every namespace.
    max_frontends_per_namespace: localRedirectPolicies.maxFrontendsPerNamespace; 0 allows any number.
    """

    address_matcher_cidrs: tuple[IPNetwork, ...] = ()
    cluster_ips: ClusterIPs = ClusterIPs.OMIT
    address_matcher_namespaces: tuple[str, ...] = ()
    max_frontends_per_namespace: int = 0

    def allows_namespace(self, namespace: str) -> bool:
        """Whether policies of a namespace may have an addressMatcher."""
        return not self.address_matcher_namespaces or namespace in self.address_matcher_namespaces

    def allows_address(self, ip: bytes) -> bool:
        """Whether an addressMatcher may name this address (4 or 16 bytes, network order)."""
        address = ip_address(ip)
        networks = [unmapped(network) for network in self.address_matcher_cidrs]
        return not networks or any(address in network for network in networks)


def unmapped(network: IPNetwork) -> IPNetwork:
    """Return the IPv4 network that a network of IPv4-mapped IPv6 addresses stands for; any other one as it is."""
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((IPv4Address(mapped), network.prefixlen - 96))
    return network
