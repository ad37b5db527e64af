"""Transport addresses: the one value that frontends, backends and eBPF map keys are all made of.

An IPv4-mapped IPv6 address (::ffff:a.b.c.d), wherever one is written, is the IPv4 address (semantics.md, section 3).
"""

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

from msgspec import Struct


class Protocol(IntEnum):
    """Transport protocols by their IANA number, as the kernel's maps carry them."""

    TCP = 6
    UDP = 17
    SCTP = 132  # listed for Services that have it, never redirected


class L4Addr(Struct, frozen=True, gc=False):
    """An address, port and protocol: a frontend, or a backend.

    ip: the address in network byte order, 4 or 16 bytes; never an IPv4-mapped IPv6 address.
    port: a number in host order.
    """

    ip: bytes
    port: int
    protocol: Protocol

    @classmethod
    def make(cls, ip: str, port: int, protocol: Protocol) -> "L4Addr":
        """Build one from a written address. Raises ValueError if it is no IP address."""
        return cls(parse_ip(ip), port, protocol)

    @property
    def is_ipv4(self) -> bool:
        """Whether the address family is IPv4."""
        return len(self.ip) == 4

    @property
    def sort_key(self) -> tuple[int, bytes, int, int]:
        """The order of every output: IPv4 first, then address numerically, port, protocol."""
        return (len(self.ip), self.ip, self.port, self.protocol)

    def __str__(self) -> str:
        host = format_ip(self.ip) if self.is_ipv4 else f"[{format_ip(self.ip)}]"
        return f"{host}:{self.port}/{self.protocol.name}"


def parse_ip(text: str) -> bytes:
    """Return the 4 or 16 bytes, network order, of a written address; a mapped one gives the IPv4 address.

    Raises ValueError if the text is no address, or one with a zone or prefix length.
    """
    if "%" in text or "/" in text:
        raise ValueError(f"{text!r} is not a plain IP address (no zone, no prefix length)")
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).packed


def format_ip(ip: bytes) -> str:
    """Write an address (4 or 16 bytes, network order) as people do."""
    return str(IPv4Address(ip) if len(ip) == 4 else IPv6Address(ip))
