"""The little servers and clients: each answer says who gave it, and whom the server saw asking.

A server's process listens for TCP or UDP on both families. It greets each TCP connection with one line, then echoes
what it gets; it answers each datagram with that line followed by the datagram. The line is JSON, so that names may
hold anything.

Clients return a `Reply`: what the server said, and whom the client believes it is talking to, which is where reverse
translation shows.
"""

import contextlib
import json
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass

Where = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. name: the server's; seen: the client's address as the server saw it.

    peer: whom the client sees: getpeername of a connected socket, the datagram's source otherwise.
    echo: what came back of what was sent.
    """

    name: str
    seen: Where
    peer: Where
    echo: bytes = b""


def listen(kind: socket.SocketKind, port: int) -> list[socket.socket]:
    """Bind a port on both families. Port 0 picks one that both have free."""
    sockets = []
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        port = sock.getsockname()[1]
        if kind == socket.SOCK_STREAM:
            sock.listen(1024)
        sock.setblocking(False)  # noqa: FBT003 (its only parameter)
        sockets.append(sock)
    return sockets


def serve(kind: socket.SocketKind, port: int, name: str, ready: Callable[[int], None]) -> None:
    """Serve until killed. `ready` is told the port once connections are accepted."""
    selector = selectors.DefaultSelector()
    sockets = listen(kind, port)
    for sock in sockets:
        selector.register(sock, selectors.EVENT_READ, _accept if kind == socket.SOCK_STREAM else _answer)
    ready(sockets[0].getsockname()[1])
    while True:
        for key, _ in selector.select():
            # A client may go away at any moment; that is its own affair.
            with contextlib.suppress(OSError):
                key.data(key.fileobj, name, selector)


def _line(name: str, client: Where) -> bytes:
    return json.dumps([name, client[0], client[1]]).encode() + b"\n"


def _accept(listener: socket.socket, name: str, selector: selectors.BaseSelector) -> None:
    connection, client = listener.accept()
    connection.setblocking(False)  # noqa: FBT003 (as above)
    try:
        connection.send(_line(name, client))
        selector.register(connection, selectors.EVENT_READ, _echo)
    except OSError:
        connection.close()


def _echo(connection: socket.socket, _name: str, selector: selectors.BaseSelector) -> None:
    try:
        data = connection.recv(65536)
        if data:
            connection.send(data)
            return
    except OSError:
        data = b""
    selector.unregister(connection)
    connection.close()


def _answer(sock: socket.socket, name: str, _selector: selectors.BaseSelector) -> None:
    data, client = sock.recvfrom(65536)
    sock.sendto(_line(name, client) + data, client)


def family_of(host: str) -> socket.AddressFamily:
    """The family of a written address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def ask_tcp(host: str, port: int, *, timeout: float = 2.0, payload: bytes = b"") -> Reply:
    """Connect, read the greeting and, if there is a payload, its echo."""
    with socket.socket(family_of(host), socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect((host, port))
        with sock.makefile("rb") as stream:
            greeting = stream.readline()
            sock.sendall(payload)
            return _reply(greeting, sock.getpeername(), stream.read(len(payload)))


def ask_udp(host: str, port: int, *, timeout: float = 2.0, payload: bytes = b"", connected: bool = False) -> Reply:
    """Send one datagram, from a connected socket or not, and read its answer."""
    with socket.socket(family_of(host), socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        if connected:
            sock.connect((host, port))
            sock.send(payload)
            answer, peer = sock.recv(65536), sock.getpeername()
        else:
            sock.sendto(payload, (host, port))
            answer, peer = sock.recvfrom(65536)
        greeting, _, echo = answer.partition(b"\n")
        return _reply(greeting, peer, echo)


def _reply(greeting: bytes, peer: tuple[str, int], echo: bytes) -> Reply:
    if not greeting:
        raise ConnectionResetError("the connection was closed without a word")
    name, host, port = json.loads(greeting)
    return Reply(name, (host, port), (peer[0], peer[1]), echo)
