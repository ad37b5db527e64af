"""Ending sockets whose peer is gone, so that their owners connect anew at once.

A UDP socket that was connected to a backend keeps sending there when the backend has ended, and nobody tells it. So
sockets whose remote address is such a backend are destroyed (SOCK_DESTROY): their owner's next call fails with
ECONNABORTED, and resolvers open a new socket, which is redirected to a backend that lives.

How: for each namespace, family and protocol one dump, which the kernel itself filters by the remote addresses
(inet_diag bytecode), then one destroy request for each socket found. An IPv4 backend is also the peer of IPv6 sockets
that hold its mapped address (::ffff:a.b.c.d). A socket is named by its addresses and its cookie, so that one that has
been closed meanwhile (ENOENT) is never mistaken for another that took its place.

WHOSE SOCKETS? A socket that its owner connected to the pod's own address, without any redirect, has the same remote
address as one that was redirected there: nothing here can tell the two apart. Therefore `confirm` is asked for each
socket found; its cookie is the one that socket storage is listed with (sockstorage), which tells whether it is ours.
"""

import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from lrp_operator.kernel.netlink import NetlinkError, NetlinkSocket, attribute
from lrp_operator.kernel.netns import NetnsError, NetnsRef, in_each_netns, list_netns, own_netns

Remote = tuple[bytes, int]
"""An address (4 or 16 bytes, network order) and a port."""

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
SOCK_DESTROY = 21

# enum tcp_states of the kernel, which UDP sockets use too: a connected one is ESTABLISHED, any other CLOSE.
_ESTABLISHED, _TIME_WAIT, _CLOSE, _LISTEN, _LAST = 1, 6, 7, 10, 12
_ALIVE = {
    socket.IPPROTO_UDP: 1 << _ESTABLISHED,
    socket.IPPROTO_TCP: sum(1 << state for state in range(1, _LAST + 1) if state not in {_TIME_WAIT, _CLOSE, _LISTEN}),
}

_REQUEST = struct.Struct("=BBBxI")  # family, protocol, extensions, states; the socket's identity follows
_REPLY = struct.Struct("=BBBB")  # family, state, timer, retransmits; the socket's identity follows
_IDENTITY = struct.Struct("!HH16s16s4s8s")  # ports, addresses; interface and cookie in the machine's order
_NO_IDENTITY = bytes(_IDENTITY.size)

_BYTECODE = 1  # the request's attribute that holds the filter
_OP_JUMP, _OP_DESTINATION = 1, 8
_OP = struct.Struct("=BBH")  # code, distance when it holds, distance when it does not
_HOST = struct.Struct("=BBxxi")  # family, prefix length, port; the address follows
_FILTERED_AT_MOST = 64  # the kernel walks the filter for each socket; beyond this, filtering here is the cheaper way

_MAPPED = bytes(10) + b"\xff\xff"
_BATCH = 64  # acknowledgements of one batch fit any receive buffer
_ROUNDS = 16


class SockDiagError(Exception):
    """Sockets can't be listed or ended; the text is one sentence for people."""


class DestroyUnsupportedError(SockDiagError):
    """The kernel was built without INET_DIAG_DESTROY."""


@dataclass(frozen=True, slots=True)
class SocketInfo:
    """A connected socket. A mapped address is given as the IPv4 address that it is; family tells the socket's own."""

    cookie: int
    family: int
    protocol: int
    local: Remote
    remote: Remote
    netns: NetnsRef


@dataclass(frozen=True, slots=True)
class EndReport:
    """How many sockets were ended; problems: sentences about namespaces that could not be searched."""

    ended: int
    problems: tuple[str, ...] = ()


Confirm = Callable[[SocketInfo], bool]


def end_sockets(protocol: int, remotes: Collection[Remote], confirm: Confirm | None = None) -> int:
    """End the calling thread's namespace's sockets of a protocol that are connected to one of the given addresses.

    Returns how many were ended. Raises DestroyUnsupportedError, or SockDiagError when it is not allowed.
    """
    return _end_here(protocol, remotes, confirm, own_netns())


def end_sockets_everywhere(
    protocol: int,
    remotes: Collection[Remote],
    confirm: Confirm | None = None,
    namespaces: Iterable[NetnsRef] | None = None,
) -> EndReport:
    """Do the same in every namespace given, or else in every one that can be found on this machine."""
    if not remotes:
        return EndReport(0)
    problems: tuple[str, ...] = ()
    if namespaces is None:
        listing = list_netns()
        namespaces, problems = listing.namespaces, listing.unreadable
    try:
        results = in_each_netns(namespaces, lambda netns: _end_here(protocol, remotes, confirm, netns))
    except NetnsError as error:
        raise SockDiagError(f"sockets in pods can't be ended: {error}") from error
    return EndReport(sum(ended for _, ended in results), problems)


def _cookie(identity: bytes) -> int:
    low, high = struct.unpack("=II", _IDENTITY.unpack(identity)[5])
    return int(high << 32 | low)


def _end_here(protocol: int, remotes: Collection[Remote], confirm: Confirm | None, netns: NetnsRef) -> int:
    if not remotes:
        return 0
    diag = NetlinkSocket(NETLINK_SOCK_DIAG)
    try:
        return sum(
            _Search(diag, family, protocol, wanted, netns).end(confirm) for family, wanted in _by_family(remotes)
        )
    except NetlinkError as error:
        raise _explained(error) from error
    finally:
        diag.close()


def _by_family(remotes: Collection[Remote]) -> Iterable[tuple[int, list[Remote]]]:
    """Which socket families may hold which of the addresses."""
    ipv4 = [remote for remote in remotes if len(remote[0]) == 4]
    if ipv4:
        yield socket.AF_INET, ipv4
    yield socket.AF_INET6, list(remotes)


@dataclass(frozen=True, slots=True)
class _Search:
    """One namespace's sockets of one family and protocol that are connected to one of the remotes."""

    diag: NetlinkSocket
    family: int
    protocol: int
    remotes: list[Remote]
    netns: NetnsRef

    def end(self, confirm: Confirm | None) -> int:
        """Find and end until nothing is found that has not been tried.

        More than one round is needed where sockets share both addresses (SO_REUSEPORT): the kernel looks the socket
        to destroy up by its addresses, and refuses by the cookie as long as another one stands in front.
        """
        ended = 0
        refused: set[bytes] = set()
        for _ in range(_ROUNDS):
            found = [identity for identity in self.find() if confirm is None or confirm(self.info(identity))]
            outcomes = self.destroy(found)
            ended += outcomes.count(0)
            still = {identity for identity, outcome in zip(found, outcomes, strict=True) if outcome}
            # Refused sockets that remain are worth another round only while others make way for them.
            if not still or (still == refused and 0 not in outcomes):
                break
            refused = still
        return ended

    def find(self) -> list[bytes]:
        """The sockets' identities, as the kernel wrote them."""
        request = _REQUEST.pack(self.family, self.protocol, 0, _ALIVE[self.protocol]) + _NO_IDENTITY
        if len(self.remotes) <= _FILTERED_AT_MOST:
            request += attribute(_BYTECODE, _filter(self.remotes))
        # As the reply has it: port, then 16 bytes of which an IPv4 socket uses the first 4.
        wanted = {(port.to_bytes(2, "big"), _held(self.family, ip)) for ip, port in self.remotes}
        start = _REPLY.size
        return [
            reply[start : start + _IDENTITY.size]
            for _, reply in self.diag.dump(SOCK_DIAG_BY_FAMILY, request)
            if (reply[start + 2 : start + 4], reply[start + 20 : start + 36]) in wanted
        ]

    def destroy(self, identities: list[bytes]) -> list[int]:
        """Destroy sockets; return an errno for each: ENOENT for one that has gone by itself."""
        head = _REQUEST.pack(self.family, self.protocol, 0, _ALIVE[self.protocol])
        outcomes: list[int] = []
        for first in range(0, len(identities), _BATCH):
            batch = identities[first : first + _BATCH]
            outcomes += self.diag.requests(SOCK_DESTROY, [head + identity for identity in batch])
        for outcome in outcomes:
            if outcome in {errno.EOPNOTSUPP, errno.EPERM}:
                raise NetlinkError(outcome, "")
        return outcomes

    def info(self, identity: bytes) -> SocketInfo:
        """What an identity says, for people and callers."""
        local_port, remote_port, local, remote, _, _ = _IDENTITY.unpack(identity)
        return SocketInfo(
            cookie=_cookie(identity),
            family=self.family,
            protocol=self.protocol,
            local=(_plain(self.family, local), local_port),
            remote=(_plain(self.family, remote), remote_port),
            netns=self.netns,
        )


def _held(family: int, ip: bytes) -> bytes:
    """An address in the 16 bytes that a socket of a family holds it in."""
    if len(ip) == 16:
        return ip
    return _MAPPED + ip if family == socket.AF_INET6 else ip + bytes(12)


def _filter(remotes: list[Remote]) -> bytes:
    """Bytecode that lets a socket pass whose remote address is one of these; IPv4 ones match mapped addresses too.

    For each address: a condition, which falls through to a jump to the end (accept) or else skips it. The last
    condition's way out lies one operation beyond the end, which means: reject.
    """
    code = b""
    for ip, port in reversed(remotes):
        host = _HOST.pack(socket.AF_INET if len(ip) == 4 else socket.AF_INET6, len(ip) * 8, port) + ip
        condition = _OP.size + len(host)
        jump = _OP.pack(_OP_JUMP, _OP.size, _OP.size + len(code)) if code else b""
        code = _OP.pack(_OP_DESTINATION, condition, condition + _OP.size) + host + jump + code
    return code


def _plain(family: int, held: bytes) -> bytes:
    if family == socket.AF_INET:
        return held[:4]
    return held[12:] if held.startswith(_MAPPED) else held


def _explained(error: NetlinkError) -> SockDiagError:
    if error.errno == errno.EOPNOTSUPP:
        return DestroyUnsupportedError(
            "this kernel can't end sockets (it was built without INET_DIAG_DESTROY): "
            "clients of a backend that is gone notice only when they give up waiting"
        )
    if error.errno == errno.EPERM:
        return SockDiagError("ending sockets takes root, or CAP_NET_ADMIN in the pod's namespace")
    if error.errno == errno.ENOENT:
        return SockDiagError("this kernel can't list sockets: its inet_diag, tcp_diag or udp_diag is missing")
    return SockDiagError(f"sockets can't be listed or ended: {error}")
