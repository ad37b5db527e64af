"""kube-proxy's rules on a lab node, as kube-proxy 1.34 writes them for Services with ClusterIPs.

    proxy = KubeProxy(node, "nftables")
    proxy.write([Service("default/web:http", "10.96.0.7", 80, ["10.244.0.2:8080", "10.244.2.2:8080"])])
    proxy.write([])
    proxy.remove()

Both modes do the same to a packet. Its way begins in `nat`, at prerouting (a pod's) or output (the node's own), where
a Service's first packet is given an endpoint at random; connection tracking does the same to the rest of the flow, and
the reverse to the answers. Who could not be answered through this node otherwise is marked there and masqueraded at
postrouting. In between, `filter` refuses what goes to a Service without endpoints.

The node needs a route to the ClusterIPs, as every node has one by default: it looks for a way before these rules see
what its own processes send, and before `filter` sees what pods send. So use a node of a `Network`.

Node ports, external addresses, load balancers' addresses and session affinity are left out.
"""

from base64 import b32encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import ip_network
from typing import Literal

from lab.network import POD_NETWORKS
from lab.node import Node

Mode = Literal["iptables", "nftables"]


@dataclass(frozen=True, slots=True)
class Service:
    """One port of a Service. name: "namespace/name:port's name"; endpoints: "10.244.0.2:80" or "[fd00::2]:80"."""

    name: str
    ip: str
    port: int
    endpoints: Sequence[str] = ()
    protocol: Literal["TCP", "UDP"] = "TCP"

    @property
    def version(self) -> int:
        """Of which IP it is."""
        return 6 if ":" in self.ip else 4


@dataclass
class KubeProxy:
    """The rules of one node. pods: where pods' addresses are from, one network for each family (--cluster-cidr)."""

    node: Node
    mode: Mode
    pods: Sequence[str] = POD_NETWORKS
    _chains: dict[int, list[str]] = field(default_factory=dict, init=False)

    def write(self, services: Sequence[Service]) -> None:
        """Install the rules for these Services, and no others. What is there is replaced a whole table at a time."""
        text = ""
        for version in (4, 6):
            own = [service for service in services if service.version == version]
            pods = next(pods for pods in self.pods if ip_network(pods).version == version)
            if self.mode == "iptables":
                self._write_iptables(own, pods, version)
            else:
                text += nft_rules(own, pods, version)
        if text:
            self.node.run(["nft", "-f", "-"], stdin=text)

    def _write_iptables(self, services: Sequence[Service], pods: str, version: int) -> None:
        chains = [name for service in services for name in _chains_of(service)]
        stale = [name for name in self._chains.get(version, ()) if name not in chains]
        text = iptables_rules(services, pods, stale)
        if version not in self._chains:
            text += iptables_jumps("-I")
        self.node.run([_RESTORE[version], "--noflush"], stdin=text)
        self._chains[version] = chains

    def remove(self) -> None:
        """Take every rule away again; those of others stay. May be called twice."""
        if self.mode == "nftables":
            self.node.run(["nft", "-f", "-"], stdin="".join(_NFT_REMOVE.format(ip=ip) for ip in ("ip", "ip6")))
        for version, chains in self._chains.items():
            self.node.run([_RESTORE[version], "--noflush"], stdin=iptables_jumps("-D") + iptables_removal(chains))
        self._chains.clear()


_RESTORE = {4: "iptables-restore", 6: "ip6tables-restore"}

_NAT_JUMPS = """\
*nat
{do} PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
{do} OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
{do} POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
COMMIT
"""

# Each is put before the last: KUBE-FORWARD comes first in FORWARD.
_FILTER_JUMPS = """\
*filter
{do} FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
{do} OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
{do} FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
COMMIT
"""

_NAT = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
{chains}\
# What is not marked keeps its source.
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
# The mark has done its work: a packet that goes round again, in a tunnel for example, must not be masqueraded twice.
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
# Two flows to one endpoint must not race for one source port: any free one, at random.
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
# MASQUERADE is for postrouting only, but the reasons for it are known earlier: they leave a mark.
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
{rules}\
COMMIT
"""

_FILTER = """\
*filter
:KUBE-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
{rules}\
# A packet of a flow that conntrack can't place would pass untranslated, and the client would end the connection that it
# does not know (kubernetes/kubernetes#74839).
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
# What was marked goes on, though somebody else's policy for FORWARD be to drop,
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
# and so does the rest of such a flow, and its answers.
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack \
--ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""

_OWN_CHAINS = {
    "nat": ["KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"],
    "filter": ["KUBE-SERVICES", "KUBE-FORWARD"],
}


def iptables_rules(services: Sequence[Service], pods: str, stale: Sequence[str] = ()) -> str:
    """What iptables-restore --noflush is given: a chain that it names is emptied first. stale: chains to delete."""
    chains = [*stale, *(name for service in services for name in _chains_of(service))]
    served = [line for service in services if service.endpoints for line in _iptables_service(service, pods)]
    refused = [_refusal(service) for service in services if not service.endpoints]
    nat = _NAT.format(
        chains="".join(f":{name} - [0:0]\n" for name in chains),
        rules="".join(f"{line}\n" for line in (*served, *(f"-X {name}" for name in stale))),
    )
    return nat + _FILTER.format(rules="".join(f"{line}\n" for line in refused))


def iptables_jumps(do: Literal["-I", "-D"]) -> str:
    """Where the kernel's chains lead to kube-proxy's. kube-proxy puts its own before what is there."""
    return _NAT_JUMPS.format(do=do) + _FILTER_JUMPS.format(do=do)


def iptables_removal(chains: Sequence[str]) -> str:
    """Empties and deletes kube-proxy's chains; nothing may jump to them any more."""
    text = ""
    for table, own in _OWN_CHAINS.items():
        names = [*own, *(chains if table == "nat" else ())]
        lines = [f"*{table}", *(f":{name} - [0:0]" for name in names), *(f"-X {name}" for name in names), "COMMIT"]
        text += "".join(f"{line}\n" for line in lines)
    return text


def _iptables_service(service: Service, pods: str) -> Iterator[str]:
    chain, *endpoints = _chains_of(service)
    protocol = service.protocol.lower()
    comment = f'-m comment --comment "{service.name} cluster IP"'
    frontend = f"{comment} -m {protocol} -p {protocol} -d {service.ip} --dport {service.port}"
    yield f"-A KUBE-SERVICES {frontend} -j {chain}"
    # Who is no pod (the node itself, or a machine outside that has a route to the ClusterIPs by this node) is known to
    # endpoints on other nodes by an address that they would not answer through this node.
    yield f"-A {chain} {frontend} ! -s {pods} -j KUBE-MARK-MASQ"
    for number, (name, endpoint) in enumerate(zip(endpoints, service.endpoints, strict=True)):
        # Of those that are left, each is as likely as the others; the last one takes what comes to it.
        left = len(endpoints) - number
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        yield f'-A {chain} -m comment --comment "{service.name} -> {endpoint}" {chance}-j {name}'
    for name, endpoint in zip(endpoints, service.endpoints, strict=True):
        comment = f'-m comment --comment "{service.name}"'
        # Hairpin: an endpoint that reaches itself must not see its own address, or it would answer past the node.
        yield f"-A {name} {comment} -s {_host(endpoint)} -j KUBE-MARK-MASQ"
        yield f"-A {name} {comment} -m {protocol} -p {protocol} -j DNAT --to-destination {endpoint}"


def _refusal(service: Service) -> str:
    """Nobody is there to answer: say so at once (icmp-port-unreachable), rather than let clients wait."""
    protocol = service.protocol.lower()
    frontend = f"-m {protocol} -p {protocol} -d {service.ip} --dport {service.port}"
    return f'-A KUBE-SERVICES -m comment --comment "{service.name} has no endpoints" {frontend} -j REJECT'


def _chains_of(service: Service) -> list[str]:
    """The names of a Service's chains: its own, and one for each endpoint. Without endpoints it has none."""
    if not service.endpoints:
        return []
    known_as = service.name + service.protocol.lower()
    hashed = (("KUBE-SEP-", known_as + endpoint) for endpoint in service.endpoints)
    return [prefix + _hash(text)[:16] for prefix, text in (("KUBE-SVC-", known_as), *hashed)]


_NFT_REMOVE = "add table {ip} kube-proxy\ndelete table {ip} kube-proxy\n"

_NFT_TABLE = """\
table {ip} kube-proxy {{
  set cluster-ips {{ type {ip_type}; {cluster_ips} }}
  chain mark-for-masquerade {{
    # The reasons to masquerade are known before postrouting: they leave a mark.
    meta mark set meta mark or 0x4000
  }}
  chain masquerading {{
    # What is not marked keeps its source.
    meta mark & 0x4000 == 0 return
    # The mark has done its work: a packet that goes round again must not be masqueraded twice.
    meta mark set meta mark xor 0x4000
    # Two flows to one endpoint must not race for one source port: any free one, at random.
    masquerade fully-random
  }}
  chain reject-chain {{
    # Nobody is there to answer: say so at once, rather than let clients wait.
    reject
  }}
{chains}\
  map service-ips {{ type {ip_type} . inet_proto . inet_service : verdict; {served} }}
  map no-endpoint-services {{ type {ip_type} . inet_proto . inet_service : verdict; {refused} }}
  chain services {{
    # However many Services there are: one lookup.
    {ip} daddr . meta l4proto . th dport vmap @service-ips
  }}
  chain service-endpoints-check {{
    {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services
  }}
  chain cluster-ips-check {{
    # A ClusterIP that is still there behind `services` was asked for a port that its Service does not have.
    {ip} daddr @cluster-ips reject
  }}
  chain nat-prerouting {{
    type nat hook prerouting priority dstnat
    jump services
  }}
  chain nat-output {{
    type nat hook output priority -100
    jump services
  }}
  chain nat-postrouting {{
    type nat hook postrouting priority srcnat
    jump masquerading
  }}
  chain filter-input {{
    type filter hook input priority filter
    ct state new jump service-endpoints-check
  }}
  chain filter-forward {{
    type filter hook forward priority filter
    # As in mode iptables. kube-proxy 1.29 had this here; 1.30 and later do without it (kubernetes/kubernetes#122663),
    # since newer kernels mistake less. It stays in the lab: who gets on with it gets on without it.
    ct state invalid counter drop
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain filter-output {{
    type filter hook output priority filter
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }}
}}
"""


def nft_rules(services: Sequence[Service], pods: str, version: int) -> str:
    """What nft -f is given: the table of one family, instead of the one that is there, if any."""
    ip = {4: "ip", 6: "ip6"}[version]
    served = [service for service in services if service.endpoints]
    refused = [service for service in services if not service.endpoints]
    lines = [line for service in served for line in _nft_service(service, pods)]
    return _NFT_REMOVE.format(ip=ip) + _NFT_TABLE.format(
        ip=ip,
        ip_type={4: "ipv4_addr", 6: "ipv6_addr"}[version],
        cluster_ips=_elements(sorted({service.ip for service in services})),
        chains="".join(f"  {line}\n" for line in lines),
        served=_elements([f"{_nft_frontend(service)} : goto {_nft_chain(service)}" for service in served]),
        refused=_elements([f"{_nft_frontend(service)} : goto reject-chain" for service in refused]),
    )


def _nft_service(service: Service, pods: str) -> Iterator[str]:
    ip = {4: "ip", 6: "ip6"}[service.version]
    chain, protocol = _nft_chain(service), service.protocol.lower()
    endpoints = [(_nft_chain(service, endpoint), endpoint) for endpoint in service.endpoints]
    for name, endpoint in endpoints:
        yield f"chain {name} {{"
        # Hairpin: an endpoint that reaches itself must not see its own address, or it would answer past the node.
        yield f"  {ip} saddr {_host(endpoint)} jump mark-for-masquerade"
        yield f"  meta l4proto {protocol} dnat to {endpoint}"
        yield "}"
    numbered = ", ".join(f"{number} : goto {name}" for number, (name, _) in enumerate(endpoints))
    yield f"chain {chain} {{"
    # Who is no pod is known to endpoints on other nodes by an address that they would not answer through this node.
    yield f"  {ip} daddr {service.ip} {protocol} dport {service.port} {ip} saddr != {pods} jump mark-for-masquerade"
    yield f"  numgen random mod {len(endpoints)} vmap {{ {numbered} }}"
    yield "}"


def _nft_frontend(service: Service) -> str:
    return f"{service.ip} . {service.protocol.lower()} . {service.port}"


def _nft_chain(service: Service, endpoint: str = "") -> str:
    """The name of a Service's chain, or of an endpoint's. A name may have slashes, but no colons and brackets."""
    name, _, port_name = service.name.partition(":")
    text = f"{name}/{service.protocol.lower()}/{port_name}"
    if endpoint:
        text += f"__{_host(endpoint).replace(':', '.')}/{endpoint.rpartition(':')[2]}"
    return f"{'endpoint' if endpoint else 'service'}-{_hash(text)[:8]}-{text}"


def _elements(texts: Sequence[str]) -> str:
    return f"elements = {{ {', '.join(texts)} }}" if texts else ""


def _host(endpoint: str) -> str:
    return endpoint.rpartition(":")[0].strip("[]")


def _hash(text: str) -> str:
    return b32encode(sha256(text.encode()).digest()).decode()
