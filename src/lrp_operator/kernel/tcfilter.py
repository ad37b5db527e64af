"""eBPF filters on a link's clsact qdisc: the TC hooks of kernels before tcx (Linux 6.6), and of others on any kernel.

A filter is known by its hook, priority, handle and protocol; those with a lower priority run first. Ours is replaced in
place (RTM_NEWTFILTER over the same four), which is atomic. Others' filters and qdiscs are looked at and never touched.
A clsact that we have added stays when our filter goes: somebody else may have put filters there, or be about to.
"""

import errno
import socket
import struct
from dataclasses import dataclass
from enum import IntEnum

from lrp_operator.kernel import bpf
from lrp_operator.kernel.netlink import NetlinkError, NetlinkSocket, attribute, attributes
from lrp_operator.kernel.netns import Where

_NEWQDISC, _GETQDISC = 36, 38
_NEWTFILTER, _DELTFILTER, _GETTFILTER = 44, 45, 46
_CREATE, _EXCLUSIVE = 0x400, 0x200
_REPLACE = 0x100
_ECHO = 0x8  # else the answer goes to whoever listens, and not to who asks

_HEADER = struct.Struct("=BxxxiIII")  # family, index, handle, parent, info
_KIND, _OPTIONS = 1, 2
_FD, _NAME, _FLAGS, _ID = 6, 7, 8, 11
_DIRECT_ACTION = 1
_CLSACT_HANDLE, _CLSACT_PARENT = 0xFFFF0000, 0xFFFFFFF1
_ALL_PROTOCOLS = socket.htons(3)  # ETH_P_ALL

HANDLE = 1


class Hook(IntEnum):
    """The hooks of clsact, as parents of filters."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter. program: the id of its eBPF program, 0 for other kinds; name: the program's or the kind's."""

    priority: int
    handle: int
    program: int
    name: str


class TcFilters:
    """Filters of one network namespace: the calling thread's, unless another is given. Raises OSError throughout."""

    def __init__(self, where: Where | None = None) -> None:
        self._netlink = NetlinkSocket(socket.NETLINK_ROUTE, where)

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self._netlink.close()

    def list(self, index: int, hook: Hook) -> list[Filter]:
        """All filters of a hook, in the order in which they run; none where there is no clsact."""
        try:
            answers = self._netlink.dump(_GETTFILTER, _HEADER.pack(0, index, 0, hook, 0))
        except NetlinkError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT, errno.ENODEV}:
                return []
            raise
        found = [_parse(content) for kind, content in answers if kind == _NEWTFILTER]
        return sorted((one for one in found if one), key=lambda one: one.priority)

    def put(self, index: int, hook: Hook, priority: int, program: bpf.Fd, name: str) -> None:
        """Make our filter of this priority hold a program; add the clsact if there is none."""
        self._add_clsact(index)
        options = (
            attribute(_FD, struct.pack("=I", program.number))
            + attribute(_NAME, name.encode() + b"\0")
            + attribute(_FLAGS, struct.pack("=I", _DIRECT_ACTION))
        )
        head = _HEADER.pack(0, index, HANDLE, hook, priority << 16 | _ALL_PROTOCOLS)
        body = head + attribute(_KIND, b"bpf\0") + attribute(_OPTIONS, options)
        self._netlink.request(_NEWTFILTER, body, _CREATE | _REPLACE)

    def remove(self, index: int, hook: Hook, priority: int) -> None:
        """Remove our filter of this priority, if it is there."""
        head = _HEADER.pack(0, index, HANDLE, hook, priority << 16 | _ALL_PROTOCOLS)
        try:
            self._netlink.request(_DELTFILTER, head + attribute(_KIND, b"bpf\0"))
        except NetlinkError as error:
            if error.errno not in {errno.ENOENT, errno.EINVAL, errno.ENODEV}:
                raise

    def has_clsact(self, index: int) -> bool:
        """Whether a link has a clsact qdisc; an ingress qdisc stands in the same place, and has one hook only."""
        try:
            answer = self._netlink.request(_GETQDISC, _HEADER.pack(0, index, 0, _CLSACT_PARENT, 0), _ECHO)
        except NetlinkError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT, errno.ENODEV}:
                return False
            raise
        return answer is not None and attributes(answer[1][_HEADER.size :]).get(_KIND, b"").rstrip(b"\0") == b"clsact"

    def _add_clsact(self, index: int) -> None:
        head = _HEADER.pack(0, index, _CLSACT_HANDLE, _CLSACT_PARENT, 0)
        try:
            self._netlink.request(_NEWQDISC, head + attribute(_KIND, b"clsact\0"), _CREATE | _EXCLUSIVE)
        except NetlinkError as error:
            # An ingress qdisc has the same handle, takes filters for the clsact's egress, and runs them at ingress.
            if error.errno != errno.EEXIST or not self.has_clsact(index):
                raise


def _parse(content: bytes) -> Filter | None:
    """A filter of a dump; None for the entry that stands for all filters of a priority."""
    _, _, handle, _, info = _HEADER.unpack_from(content)
    found = attributes(content[_HEADER.size :])
    kind = found.get(_KIND, b"").rstrip(b"\0").decode(errors="replace")
    if not handle and _OPTIONS not in found:
        return None
    options = attributes(found.get(_OPTIONS, b""))
    program = struct.unpack("=I", options[_ID])[0] if kind == "bpf" and _ID in options else 0
    name = options.get(_NAME, b"").rstrip(b"\0").decode(errors="replace") if kind == "bpf" else ""
    return Filter(info >> 16, handle, program, name or kind)
