"""Netlink, as little of it as sockdiag.py and podlink.py need: requests, dumps, attributes.

Why not pyroute2 here? It filters dumps in Python, which takes many times as long; its sockets are bound to the thread
that made them, and an overrun leaves them unusable for good; and the agent would carry it for as long as it runs.
Here a socket is a plain socket. It serves the namespace that it was opened in, from any one thread at a time.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator

from lrp_operator.kernel.netns import Where, in_netns

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_DUMP_INTR = 0x010
NLM_F_DUMP = 0x300
_NLA_TYPE_MASK = 0x3FFF

_SOL_NETLINK = 270
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_ATTR_MSG = 1  # of an extended acknowledgement: a sentence from the kernel

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_BUFFER = 1 << 17  # a dump comes in parts of at most 32 KiB
_PATIENCE = 5.0
_DUMP_ATTEMPTS = 8

Message = tuple[int, bytes]
"""A message's type and its body."""


class NetlinkError(OSError):
    """The kernel refused a request: errno says why, and the text what it said about it."""


class DumpInterruptedError(OSError):
    """A table changed under each of several dumps, so that none of them is whole."""


class NetlinkSocket:
    """A netlink socket of one namespace (the caller's own if none is given)."""

    def __init__(self, protocol: int, where: Where | None = None) -> None:
        def opened() -> socket.socket:
            return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)

        self._socket = opened() if where is None else in_netns(where, opened)
        # The kernel must answer within this time; an agent that waits for ever helps nobody.
        self._socket.settimeout(_PATIENCE)
        self._sequence = 0
        for option in (_NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            try:
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            except OSError as error:  # older kernels: shorter errors, longer dumps
                if error.errno != errno.ENOPROTOOPT:
                    self._socket.close()
                    raise

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self._socket.close()

    def request(self, kind: int, body: bytes, flags: int = 0) -> Message | None:
        """Ask one question and return its one answer, or None if the kernel only acknowledges. Raises NetlinkError."""
        answer = None
        for answered, content in self._exchange(kind, body, flags | NLM_F_ACK):
            answer = (answered, content)
        return answer

    def requests(self, kind: int, bodies: list[bytes]) -> list[int]:
        """Send many requests in one go; return an errno for each, 0 for those that were granted."""
        first = self._sequence + 1
        datagram = b"".join(self._message(kind, body, NLM_F_ACK) for body in bodies)
        self._socket.send(datagram)
        outcomes: dict[int, int] = {}
        while len(outcomes) < len(bodies):
            for answered, _, sequence, content in messages(self._socket.recv(_BUFFER)):
                if answered == NLMSG_ERROR and sequence >= first:
                    outcomes[sequence - first] = -struct.unpack_from("=i", content)[0]
        return [outcomes[number] for number in range(len(bodies))]

    def dump(self, kind: int, body: bytes) -> list[Message]:
        """Read a table. A dump that the kernel marks as interrupted by a change is begun anew."""
        for _ in range(_DUMP_ATTEMPTS):
            try:
                return list(self._exchange(kind, body, NLM_F_DUMP))
            except DumpInterruptedError:
                continue
        raise DumpInterruptedError("a kernel table changed under each of several attempts to read it")

    def _message(self, kind: int, body: bytes, flags: int) -> bytes:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        length = _HEADER.size + len(body)
        padding = bytes(-length % 4)
        return _HEADER.pack(length, kind, flags | NLM_F_REQUEST, self._sequence, 0) + body + padding

    def _exchange(self, kind: int, body: bytes, flags: int) -> Iterator[Message]:
        """Send, and yield what comes back up to the acknowledgement or the end of the dump."""
        self._socket.send(self._message(kind, body, flags))
        interrupted = False
        while True:
            for answered, marks, sequence, content in messages(self._socket.recv(_BUFFER)):
                if sequence != self._sequence:
                    continue  # of a dump that was given up
                interrupted = interrupted or bool(marks & NLM_F_DUMP_INTR)
                if answered in {NLMSG_ERROR, NLMSG_DONE}:
                    _check(answered, marks, content)
                    if interrupted:
                        raise DumpInterruptedError
                    return
                yield answered, content


def messages(datagram: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Take a datagram apart: type, flags, sequence and body of each message."""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, datagram[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _check(kind: int, flags: int, content: bytes) -> None:
    """Raise what an acknowledgement or the end of a dump says went wrong."""
    code = -struct.unpack_from("=i", content)[0] if len(content) >= 4 else 0
    if code == 0:
        return
    said = ""
    capped = 0x100  # the refused request is not repeated in full
    if kind == NLMSG_ERROR and flags & 0x200:  # attributes follow
        (length,) = struct.unpack_from("=I", content, 4)
        start = 4 + (_HEADER.size if flags & capped else (length + 3) & ~3)
        said = attributes(content[start:]).get(_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")
    raise NetlinkError(code, f"{os.strerror(code)}: {said}" if said else os.strerror(code))


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute, padded."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Decode attributes: type -> value, the last of a kind."""
    found = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _NLA_TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found
