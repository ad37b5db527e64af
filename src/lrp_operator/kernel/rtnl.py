"""What a node's namespace knows about links, addresses, routes and neighbours: questions to rtnetlink, one each.

Every answer is asked for when it is needed and kept nowhere: a question takes 10 to 30 microseconds, and what is not
kept is never stale.
"""

import errno
import socket
import struct
from dataclasses import dataclass

from lrp_operator.kernel.netlink import NetlinkError, NetlinkSocket, attribute, attributes
from lrp_operator.kernel.netns import Where

_GETLINK, _GETADDR, _GETROUTE = 18, 22, 26
_NEWNEIGH, _DELNEIGH, _GETNEIGH = 28, 29, 30
_GETNSID = 90
_CREATE_OR_REPLACE = 0x500

_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst length, src length, tos, table, protocol, scope, type, flags
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_NSID = struct.Struct("=Bxxx")  # family

_LINK_MAC, _LINK_NAME, _LINK_PEER, _LINK_MASTER, _LINK_INFO, _LINK_NSID, _LINK_TARGET_NSID = 1, 3, 5, 10, 18, 37, 46
_INFO_KIND = 1
_ROUTE_DST, _ROUTE_OIF, _ROUTE_GATEWAY, _ROUTE_VIA = 1, 4, 5, 18
_NEIGH_DST, _NEIGH_MAC, _NEIGH_MASTER = 1, 2, 9
_NSID_ID, _NSID_FD = 1, 3

_SCOPE_LINK = 253
_USE = 0x01  # NTF_USE: treat the neighbour as just used, which makes the kernel ask for it
_RTN_LOCAL = 2

NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE, NUD_NOARP, NUD_PERMANENT = 0x02, 0x04, 0x08, 0x10, 0x40, 0x80
NUD_HEARSAY = NUD_STALE | NUD_DELAY | NUD_PROBE  # it had this hardware address once
NUD_CERTAIN = NUD_REACHABLE | NUD_NOARP | NUD_PERMANENT


@dataclass(frozen=True, slots=True)
class Route:
    """Where an address leads: a link's index, or the node itself (local), perhaps by way of another machine."""

    link: int
    gateway: bool
    local: bool


@dataclass(frozen=True, slots=True)
class Link:
    """A link. peer, peer_nsid: the index of a veth's other end, and the id of its namespace if that is another one."""

    index: int
    name: str
    kind: str
    mac: bytes
    master: int
    peer: int
    peer_nsid: int | None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Who has an address on a link, as far as is known."""

    mac: bytes
    state: int


def family_of(ip: bytes) -> int:
    """The family of an address of 4 or 16 bytes."""
    return socket.AF_INET if len(ip) == 4 else socket.AF_INET6


class Rtnl:
    """Questions to one namespace. For one thread at a time."""

    def __init__(self, where: Where | None = None) -> None:
        self._netlink = NetlinkSocket(socket.NETLINK_ROUTE, where)

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self._netlink.close()

    def _ask(self, kind: int, body: bytes) -> bytes | None:
        """Ask for one thing; None where there is no such thing."""
        try:
            answer = self._netlink.request(kind, body)
        except NetlinkError as error:
            if error.errno in {errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL}:
                return None
            raise
        return answer[1] if answer else None

    def route(self, ip: bytes) -> Route | None:
        """Where the node would send a packet for an address; None if nowhere."""
        head = _ROUTE.pack(family_of(ip), len(ip) * 8, 0, 0, 0, 0, 0, 0, 0)
        try:
            answer = self._ask(_GETROUTE, head + attribute(_ROUTE_DST, ip))
        except NetlinkError as error:
            # A route of type unreachable, prohibit or blackhole, or none at all, each is told as an error of its own.
            if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}:
                return None
            raise
        if answer is None:
            return None
        found = attributes(answer[_ROUTE.size :])
        return Route(
            link=_number(found.get(_ROUTE_OIF)),
            gateway=_ROUTE_GATEWAY in found or _ROUTE_VIA in found,
            local=_ROUTE.unpack_from(answer)[7] == _RTN_LOCAL,
        )

    def link(self, index: int, nsid: int | None = None) -> Link | None:
        """A link by its index, of this namespace or of the one with the id given."""
        target = b"" if nsid is None else attribute(_LINK_TARGET_NSID, struct.pack("=i", nsid))
        answer = self._ask(_GETLINK, _LINK.pack(0, 0, index, 0, 0) + target)
        if answer is None:
            return None
        return _link(answer)

    def links(self) -> list[Link]:
        """All links of this namespace."""
        return [_link(answer) for _, answer in self._netlink.dump(_GETLINK, _LINK.pack(0, 0, 0, 0, 0))]

    def has_default_route(self, index: int) -> bool:
        """Whether a default route, of either family and in any table, leaves by a link."""
        leaving = attribute(_ROUTE_OIF, struct.pack("=I", index))
        for family in (socket.AF_INET, socket.AF_INET6):
            for _, answer in self._netlink.dump(_GETROUTE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + leaving):
                if _ROUTE.unpack_from(answer)[1] == 0 and _leaves_by(answer, index):
                    return True
        return False

    def is_on_a_network(self, index: int) -> bool:
        """Whether a link has an address of the node's in a subnet that others may share.

        A single address (/32, /128) is none: CNIs give their gateway's to each pod's veth. Link-local ones don't count.
        """
        for _, answer in self._netlink.dump(_GETADDR, _ADDRESS.pack(0, 0, 0, 0, index)):
            family, prefix, _, scope, on = _ADDRESS.unpack_from(answer)
            if on == index and scope < _SCOPE_LINK and prefix < (32 if family == socket.AF_INET else 128):
                return True
        return False

    def neighbour(self, index: int, ip: bytes) -> Neighbour | None:
        """Who has an address on a link; None if that has never been asked."""
        answer = self._ask(_GETNEIGH, _neighbour(index, ip))
        if answer is None:
            return None
        state = _NEIGHBOUR.unpack_from(answer)[2]
        return Neighbour(attributes(answer[_NEIGHBOUR.size :]).get(_NEIGH_MAC, b""), state)

    def ask_for_neighbour(self, index: int, ip: bytes) -> None:
        """Make the kernel ask, by ARP or neighbour discovery, who has an address. The answer comes later."""
        self._netlink.request(_NEWNEIGH, _neighbour(index, ip, flags=_USE), _CREATE_OR_REPLACE)

    def confirm_neighbour(self, index: int, ip: bytes) -> None:
        """Make the kernel ask a neighbour, at the hardware address that it knows, whether it is still there."""
        self._netlink.request(_NEWNEIGH, _neighbour(index, ip, state=NUD_PROBE), _CREATE_OR_REPLACE)

    def forget_neighbour(self, index: int, ip: bytes) -> None:
        """Drop what is known about who has an address."""
        self._ask(_DELNEIGH, _neighbour(index, ip))

    def bridge_port(self, bridge: int, mac: bytes) -> int | None:
        """Behind which of a bridge's ports a hardware address was last seen."""
        master = attribute(_NEIGH_MASTER, struct.pack("=I", bridge))
        head = _NEIGHBOUR.pack(socket.AF_BRIDGE, 0, 0, 0, 0)
        answer = self._ask(_GETNEIGH, head + attribute(_NEIGH_MAC, mac) + master)
        # That asks for entries without a VLAN. A bridge that filters VLANs has others: look through them all.
        answers = [answer] if answer else [entry for _, entry in self._netlink.dump(_GETNEIGH, head + master)]
        for entry in answers:
            port, state = _NEIGHBOUR.unpack_from(entry)[1:3]
            # A permanent entry is the port's own address, not that of somebody behind it.
            if attributes(entry[_NEIGHBOUR.size :]).get(_NEIGH_MAC) == mac and not state & NUD_PERMANENT:
                return int(port)
        return None

    def nsid(self, fd: int) -> int | None:
        """The id that this namespace knows another one by, if it has given it one."""
        answer = self._ask(_GETNSID, _NSID.pack(0) + attribute(_NSID_FD, struct.pack("=I", fd)))
        found = attributes(answer[_NSID.size :]).get(_NSID_ID) if answer else None
        if found is None:
            return None
        number: int = struct.unpack("=i", found)[0]
        return number if number >= 0 else None


def _link(answer: bytes) -> Link:
    found = attributes(answer[_LINK.size :])
    peer_nsid = found.get(_LINK_NSID)
    return Link(
        index=_LINK.unpack_from(answer)[2],
        name=_text(found.get(_LINK_NAME, b"")),
        kind=_text(attributes(found.get(_LINK_INFO, b"")).get(_INFO_KIND, b"")),
        mac=found.get(_LINK_MAC, b""),
        master=_number(found.get(_LINK_MASTER)),
        peer=_number(found.get(_LINK_PEER)),
        peer_nsid=None if peer_nsid is None else struct.unpack("=i", peer_nsid)[0],
    )


def _neighbour(index: int, ip: bytes, state: int = 0, flags: int = 0) -> bytes:
    return _NEIGHBOUR.pack(family_of(ip), index, state, flags, 0) + attribute(_NEIGH_DST, ip)


def _leaves_by(route: bytes, index: int) -> bool:
    """Kernels that filter a dump also name routes with several next hops; those that can't name every route."""
    oif = attributes(route[_ROUTE.size :]).get(_ROUTE_OIF)
    return oif is None or _number(oif) == index


def _number(value: bytes | None) -> int:
    return int(struct.unpack("=I", value)[0]) if value else 0


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
