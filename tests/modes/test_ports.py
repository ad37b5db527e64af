"""A pod's source port comes again while the kernel remembers what it was used for at the TC level.

An ephemeral port is one of 28,000, so any that was used a while ago may be the next; here it is chosen on purpose.
"""

import os
import socket

import pytest

from lab import Pod
from tests.modes.ground import (
    DNS,
    OWN_DNS,
    OWN_WEB,
    SHAPES,
    VERSIONS,
    WEB,
    Ground,
    Target,
    policy,
    service_of,
)
from tests.modes.modes import HOST_ONLY, REPLACED, SOCKETS, TC_ONLY, Mode

pytestmark = pytest.mark.privileged

LONG = bool(os.environ.get("LRP_LONG"))
SMALL = ("--bpf-lb-map-max", "512")
PORTS = range(40000, 40006)


def family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def query(pod: Pod, port: int, ip: str, to: int, kind: socket.SocketKind, *, connected: bool = True) -> object:
    """Ask from a port; the address that the answer comes from."""

    def work() -> object:
        with socket.socket(family(ip), kind) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", port))
            sock.settimeout(2)
            try:
                if connected:
                    sock.connect((ip, to))
                    sock.send(b"?")
                    sock.recv(4096)
                    peer = sock.getpeername()[:2]
                    if kind == socket.SOCK_STREAM:  # with a reset, so that the port is free at once
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    return peer
                sock.sendto(b"?", (ip, to))
                return sock.recvfrom(4096)[1][:2]
            except OSError as error:
                return f"{type(error).__name__} from port {port}"

    return pod.call(work)


def uses(pod: Pod, target: Target) -> list[str]:
    """Ask a target from every port, by every protocol and family; what came from elsewhere than it."""
    found = []
    for version in VERSIONS:
        ip = target.ip(version)
        for to, kind in ((DNS, socket.SOCK_DGRAM), (WEB, socket.SOCK_STREAM)):
            seen = [query(pod, port, ip, to, kind) for port in PORTS]
            found += [f"{kind.name} IPv{version}: {one}" for one in seen if one != (ip, to)]
    return found


def redirect(ground: Ground) -> None:
    """Have every Service with a policy redirected to its first backend."""
    ground.kube_proxy("iptables")
    for shape in SHAPES:
        ground.write(f"p-{shape}", *policy(f"p-{shape}", service_of(shape), {"shape": shape, "number": "1"}))


def mistaken(ground: Ground) -> list[str]:
    """What clients of both shapes get from elsewhere than from their Service."""
    return [one for shape in SHAPES for one in uses(ground.clients[shape], service_of(shape))]


CHANGES = [(TC_ONLY, SOCKETS), (HOST_ONLY, REPLACED)]


@pytest.mark.parametrize(("before", "after"), CHANGES if LONG else CHANGES[:1], ids=str)
def test_after_the_tc_level_has_left(ground: Ground, before: Mode, after: Mode) -> None:
    """Sockets go to the backend by themselves now, from ports whose replies were translated a moment ago."""
    redirect(ground)
    ground.started(before, *SMALL)
    assert mistaken(ground) == []
    ground.stop()
    ground.started(after, *SMALL)
    assert mistaken(ground) == []
    assert mistaken(ground) == []


def test_a_backend_that_was(ground: Ground) -> None:
    """A pod that is no backend any more is asked directly, from ports that were used for the frontend."""
    redirect(ground)
    ground.started(TC_ONLY, *SMALL)
    assert mistaken(ground) == []
    for shape in SHAPES:
        ground.delete(f"p-{shape}")
    ground.settled()
    found = []
    for shape in SHAPES:
        for ip in ground.backends[shape][0].addresses:
            for to, kind in ((OWN_DNS, socket.SOCK_DGRAM), (OWN_WEB, socket.SOCK_STREAM)):
                seen = [query(ground.clients[shape], port, ip, to, kind) for port in PORTS]
                found += [f"{shape}, {kind.name} {ip}: {one}" for one in seen if one != (ip, to)]
    assert found == []


def test_the_fallback(ground: Ground) -> None:
    """A frontend without its policy is the Service's own endpoints' again, also from ports that were redirected."""
    redirect(ground)
    ground.started(TC_ONLY, *SMALL)
    assert mistaken(ground) == []
    for shape in SHAPES:
        ground.delete(f"p-{shape}")
    ground.settled()
    assert mistaken(ground) == []
