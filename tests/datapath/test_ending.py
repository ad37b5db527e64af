"""When a backend goes, sockets that are connected to it are ended, and no others."""

import socket

import pytest

from tests.datapath.world import DNS, FAR, TCP, UDP, VIP, VIP2, WAYS, WEB, World, ask, socket_in

pytestmark = pytest.mark.privileged


@pytest.mark.parametrize("way", WAYS)
def test_connected_udp_sockets_are_ended(world: World, way: str) -> None:
    world.program(world.entry(way, UDP, world.one), world.entry(way, TCP, world.one))
    with (
        socket_in(world.client, way) as connected,
        socket_in(world.other_client, way) as another,
        socket_in(world.client, way) as elsewhere,
        socket_in(world.client, way, socket.SOCK_STREAM) as stream,
    ):
        for sock in (connected, another):
            sock.connect((VIP[way], DNS))
            assert ask(sock) == "one"
        elsewhere.connect((FAR[way], DNS))
        stream.connect((VIP[way], WEB))
        stream.recv(100)
        report = world.program(world.entry(way, UDP, world.two))
        assert report.sockets_ended == 2
        for sock in (connected, another):
            with pytest.raises(ConnectionAbortedError):
                sock.recv(100)
        assert ask(elsewhere) == "far"
        stream.send(b"TCP is left alone")
        assert stream.recv(100) == b"TCP is left alone"
        connected.connect((VIP[way], DNS))
        assert ask(connected) == "two"


def test_a_backend_that_another_frontend_still_has_is_spared(world: World) -> None:
    both = [world.entry("4", UDP, world.one), world.entry("4", UDP, world.one, vip=VIP2)]
    world.program(*both)
    with socket_in(world.client, "4") as sock:
        sock.connect((VIP["4"], DNS))
        assert world.program(both[1]).sockets_ended == 0
        assert ask(sock) == "one"
        assert world.program().sockets_ended == 1
        with pytest.raises(ConnectionAbortedError):
            sock.recv(100)


def test_tcp_is_ended_on_request(world: World) -> None:
    with world.instead(terminate_tcp=True) as datapath:
        world.program(*(world.entry(way, TCP, world.one) for way in ("4", "6")), datapath=datapath)
        streams = [socket_in(world.client, way, socket.SOCK_STREAM) for way in WAYS]
        for way, stream in zip(WAYS, streams, strict=True):
            stream.connect((VIP[way], WEB))
            stream.recv(100)
        report = world.program(*(world.entry(way, TCP, world.two) for way in ("4", "6")), datapath=datapath)
        assert report.sockets_ended == 3
        for stream in streams:
            with stream, pytest.raises(ConnectionAbortedError):
                stream.recv(100)
