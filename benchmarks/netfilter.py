"""kube-proxy's rules, as it writes them for Services with ClusterIPs: what redirects cost where packets are rewritten.

Both kinds mark what must be masqueraded (senders outside of the pods' network, and an endpoint that reaches itself),
pick an endpoint at random and rewrite the destination. iptables walks one rule for each Service until its own comes;
nft looks the Service up in one map. Connection tracking remembers each flow, in both.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha256

from benchmarks.crowd import crowd, under_test
from lrp_operator.api.addresses import L4Addr, format_ip
from lrp_operator.resolve.model import FrontendEntry

PODS = "10.0.0.0/8"
"""The pods' network, the crowd's endpoints included."""

_NAT_HEAD = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
"""

_NAT_TAIL = """\
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
"""

_FILTER = """\
*filter
:KUBE-FORWARD - [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""

_NFT_CHAINS = """\
  chain mark-for-masquerade {
    meta mark set meta mark or 0x4000
  }
  chain masquerading {
    meta mark & 0x4000 == 0 return
    meta mark set meta mark xor 0x4000
    masquerade fully-random
  }
  chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
  }
  chain cluster-ips-check {
    ip daddr @cluster-ips reject
  }
  chain nat-prerouting {
    type nat hook prerouting priority dstnat
    jump services
  }
  chain nat-output {
    type nat hook output priority -100
    jump services
  }
  chain nat-postrouting {
    type nat hook postrouting priority srcnat
    jump masquerading
  }
  chain filter-forward {
    type filter hook forward priority filter
    ct state new jump cluster-ips-check
  }
  chain filter-output {
    type filter hook output priority filter
    ct state new jump cluster-ips-check
  }
}
"""


def services(count: int, backend: str) -> list[FrontendEntry]:
    """So many Services; those under test in the middle, which is the average place in a list that is walked."""
    tested = under_test(backend)
    others = list(crowd(count - len(tested)))
    middle = len(others) // 2
    return [*others[:middle], *tested, *others[middle:]]


def iptables_rules(entries: Sequence[FrontendEntry]) -> str:
    """What iptables-restore is given."""
    return _NAT_HEAD + "".join(line + "\n" for line in _iptables_lines(entries)) + _NAT_TAIL + _FILTER


def _iptables_lines(entries: Sequence[FrontendEntry]) -> Iterator[str]:
    for entry in entries:
        yield f":KUBE-SVC-{_digest(entry)} - [0:0]"
        for backend in entry.backends:
            yield f":KUBE-SEP-{_digest(entry, backend)} - [0:0]"
    for entry in entries:
        yield from _iptables_service(entry)


def _iptables_service(entry: FrontendEntry) -> Iterator[str]:
    chain, protocol = f"KUBE-SVC-{_digest(entry)}", entry.frontend.protocol.name.lower()
    to_frontend = f"-d {format_ip(entry.frontend.ip)}/32 -p {protocol} -m {protocol} --dport {entry.frontend.port}"
    comment = f'-m comment --comment "{entry.policy}"'
    yield f"-A KUBE-SERVICES {to_frontend} {comment} -j {chain}"
    yield f"-A {chain} ! -s {PODS} {to_frontend} {comment} -j KUBE-MARK-MASQ"
    for number, backend in enumerate(entry.backends):
        endpoint, left = f"KUBE-SEP-{_digest(entry, backend)}", len(entry.backends) - number
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        yield f"-A {chain} {comment} {chance}-j {endpoint}"
        yield f"-A {endpoint} -s {format_ip(backend.ip)}/32 {comment} -j KUBE-MARK-MASQ"
        target = f"{format_ip(backend.ip)}:{backend.port}"
        yield f"-A {endpoint} -p {protocol} {comment} -m {protocol} -j DNAT --to-destination {target}"


def nft_rules(entries: Sequence[FrontendEntry]) -> str:
    """What nft -f is given."""
    ips = ", ".join(sorted({format_ip(entry.frontend.ip) for entry in entries}))
    ways = ",\n".join(
        f"{format_ip(e.frontend.ip)} . {e.frontend.protocol.name.lower()} . {e.frontend.port} : goto {_nft_name(e)}"
        for e in entries
    )
    chains = "".join(line + "\n" for entry in entries for line in _nft_service(entry))
    return (
        "table ip kube-proxy {\n"
        f"  set cluster-ips {{ type ipv4_addr; elements = {{ {ips} }} }}\n"
        f"{chains}"
        "  map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = {\n"
        f"{ways}\n}} }}\n"
        f"{_NFT_CHAINS}"
    )


def _nft_name(entry: FrontendEntry) -> str:
    return f"service-{_digest(entry)}"


def _nft_service(entry: FrontendEntry) -> Iterator[str]:
    frontend, protocol = entry.frontend, entry.frontend.protocol.name.lower()
    endpoints = [(f"endpoint-{_digest(entry, backend)}", backend) for backend in entry.backends]
    for name, backend in endpoints:
        ip = format_ip(backend.ip)
        yield f"  chain {name} {{\n    ip saddr {ip} jump mark-for-masquerade"
        yield f"    meta l4proto {protocol} dnat to {ip}:{backend.port}\n  }}"
    numbered = ", ".join(f"{number} : goto {name}" for number, (name, _) in enumerate(endpoints))
    yield f"  chain {_nft_name(entry)} {{"
    to_frontend = f"ip daddr {format_ip(frontend.ip)} {protocol} dport {frontend.port}"
    yield f"    {to_frontend} ip saddr != {PODS} jump mark-for-masquerade"
    yield f"    numgen random mod {len(endpoints)} vmap {{ {numbered} }}\n  }}"


def _digest(entry: FrontendEntry, backend: L4Addr | None = None) -> str:
    return sha256(f"{entry.frontend} {backend}".encode()).hexdigest()[:16].upper()
