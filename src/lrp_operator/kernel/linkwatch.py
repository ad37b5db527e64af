"""When to look for pods' links again: the kernel tells of links, routes and neighbours that come, change and go.

Only that something changed is passed on, never what: whoever is told looks for itself (podlink.py), and finds things as
they are by then. So an overrun of the socket (ENOBUFS) loses nothing: it is a change like any other. The socket is a
plain one and goes on working after it.

A neighbour's entry is touched every half minute without any news in it, also by podlink's own asking. It counts as a
change only when an address moves to another hardware address, appears or is lost.
"""

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator

from lrp_operator.kernel.netlink import attributes, messages
from lrp_operator.kernel.netns import Where, in_netns

_GROUPS = 0x1 | 0x4 | 0x40 | 0x400  # RTMGRP_LINK, _NEIGH, _IPV4_ROUTE, _IPV6_ROUTE
_NEWNEIGH, _DELNEIGH = 28, 29
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_DST, _MAC = 1, 2
_FAILED = 0x20
_SO_RCVBUFFORCE = 33
_ROOM = 4 << 20


class LinkWatch:
    """Changes in one namespace: the calling thread's, unless another is given. For select, epoll or asyncio."""

    def __init__(self, where: Where | None = None) -> None:
        self._socket = _open() if where is None else in_netns(where, _open)
        self._macs: dict[tuple[int, bytes], bytes] = {}

    def fileno(self) -> int:
        """The descriptor that becomes readable when there may be news."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop watching. May be called twice."""
        self._socket.close()

    def changed(self) -> bool:
        """Read away what has arrived; tell whether there was any change in it. Does not wait."""
        news = False
        while True:
            try:
                datagram = self._socket.recv(1 << 16)
            except BlockingIOError:
                return news
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # What was lost may have been anything: forget what was known, too.
                self._macs.clear()
                news = True
                continue
            for kind, _, _, content in messages(datagram):
                news = self._is_news(kind, content) or news

    async def changes(self, settle: float = 0.05) -> AsyncIterator[None]:
        """Yield after every burst of changes, for ever: one new pod is a dozen of them. settle: a burst's length."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self.fileno(), readable.set)
        try:
            while True:
                await readable.wait()
                news = self.changed()
                readable.clear()
                if news:
                    await asyncio.sleep(settle)
                    self.changed()
                    yield
        finally:
            loop.remove_reader(self.fileno())

    def _is_news(self, kind: int, content: bytes) -> bool:
        if kind not in {_NEWNEIGH, _DELNEIGH}:
            return True
        family, index, state, _, _ = _NEIGHBOUR.unpack_from(content)
        if family not in {socket.AF_INET, socket.AF_INET6}:
            return False  # a bridge has learned an address; that tells nothing about who has which IP address
        found = attributes(content[_NEIGHBOUR.size :])
        key = (index, found.get(_DST, b""))
        mac = found.get(_MAC, b"")
        if kind == _DELNEIGH or state & _FAILED or not mac:
            return self._macs.pop(key, None) is not None
        before = self._macs.get(key)
        self._macs[key] = mac
        return before != mac


def _open() -> socket.socket:
    netlink = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )
    try:
        netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
    except PermissionError:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)  # as much as anybody may have
    try:
        netlink.bind((0, _GROUPS))
    except BaseException:
        netlink.close()
        raise
    return netlink
