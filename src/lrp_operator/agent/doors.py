"""The agent's doors: a unix socket for `lrpctl`, and addresses for health checks and Prometheus.

The socket is its owner's alone (mode 0600): it tells which pod talks to what.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Self


class SocketInUseError(Exception):
    """Another program answers on the API socket; the text says so."""


@dataclass(frozen=True, slots=True)
class Doors:
    """Where the agent listens. metrics, healthz: "host:port" or None."""

    api_socket: Path
    metrics: str | None = None
    healthz: str | None = None

    @classmethod
    def checked(cls, api_socket: Path, metrics: str, healthz: str) -> Self:
        """Read them from the command line; empty means none. Raises ValueError with a sentence."""
        for address in filter(None, (metrics, healthz)):
            split_address(address)
        return cls(api_socket, metrics or None, healthz or None)


def split_address(text: str) -> tuple[str | None, int]:
    """Read "host:port", "[host]:port" or ":port" (every address). Raises ValueError with a sentence."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise ValueError(f"{text!r} is no address such as 127.0.0.1:9881, [::1]:9881 or :9881")
    return host.strip("[]") or None, int(port)


def refuse_socket_in_use(path: Path) -> None:
    """Raise SocketInUseError if a program answers on a unix socket; a stale one is nobody's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
        except OSError:
            return
    raise SocketInUseError(f"another program answers on {path}: stop it, or give this agent another --api-socket")


def private_socket(path: Path) -> socket.socket:
    """Make a listening unix socket for its owner alone, in place of a stale one. Raises OSError, SocketInUseError."""
    refuse_socket_in_use(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_socket():
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener
