"""A DNS server for one purpose: each answer says which server gave it.

Every question of type A is answered with the server's own address, every other one with nothing (NOERROR), over UDP
and TCP. An answer takes a moment, as one from a cache that must ask elsewhere does: so that at any time some queries
are on their way while the pod behind the Service changes.
"""

import contextlib
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable

from lab.serving import listen

DELAY = 0.005  # seconds until a datagram is answered
_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHHIH")
_A, _IN = 1, 1
_POINTER_TO_QUESTION = 0xC00C
_RESPONSE, _RECURSION = 0x8400, 0x0180


def answer(query: bytes, address: str) -> bytes | None:
    """The answer to a query; None to what is no query."""
    if len(query) < _HEADER.size:
        return None
    number, flags, questions, *_ = _HEADER.unpack_from(query)
    end = _HEADER.size
    while end < len(query) and query[end]:
        end += query[end] + 1
    end += 1 + 4
    if flags & 0x8000 or questions != 1 or end > len(query):
        return None
    kind = int.from_bytes(query[end - 4 : end - 2], "big")
    records = b""
    if kind == _A:
        records = _RECORD.pack(_POINTER_TO_QUESTION, _A, _IN, 0, 4) + socket.inet_aton(address)
    head = _HEADER.pack(number, _RESPONSE | (flags & _RECURSION), 1, 1 if records else 0, 0, 0)
    return head + query[_HEADER.size : end] + records


class _Answerer:
    """The server's loop: datagrams wait their moment in a queue, TCP is answered at once."""

    def __init__(self, address: str, port: int) -> None:
        self._address = address
        self._selector = selectors.DefaultSelector()
        self._waiting: deque[tuple[float, socket.socket, bytes, tuple[str, int]]] = deque()
        for sock in listen(socket.SOCK_DGRAM, port):
            self._selector.register(sock, selectors.EVENT_READ, self._take)
        for sock in listen(socket.SOCK_STREAM, port):
            self._selector.register(sock, selectors.EVENT_READ, self._accept)

    def run(self) -> None:
        while True:
            pause = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None
            for key, _ in self._selector.select(pause):
                # A client may go away at any moment; that is its own affair.
                with contextlib.suppress(OSError):
                    key.data(key.fileobj)
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                _, sock, reply, client = self._waiting.popleft()
                with contextlib.suppress(OSError):
                    sock.sendto(reply, client)

    def _take(self, sock: socket.socket) -> None:
        query, client = sock.recvfrom(4096)
        reply = answer(query, self._address)
        if reply is not None:
            self._waiting.append((time.monotonic() + DELAY, sock, reply, client))

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        self._selector.register(connection, selectors.EVENT_READ, self._converse)

    def _converse(self, connection: socket.socket) -> None:
        try:
            query = connection.recv(4096)
            reply = answer(query[2:], self._address)
            if reply is not None:
                connection.sendall(len(reply).to_bytes(2, "big") + reply)
                return
        except OSError:
            pass
        self._selector.unregister(connection)
        connection.close()


def serve(address: str, port: int, ready: Callable[[int], None]) -> None:
    """Answer with `address` on a port, until killed."""
    answerer = _Answerer(address, port)
    ready(port)
    answerer.run()
