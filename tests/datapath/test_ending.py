"""When a backend goes, sockets that are connected to it are ended, and no others."""

import socket

import pytest

from lrp_operator.datapath import engine, remembered
from lrp_operator.datapath.ending import Ender
from lrp_operator.kernel.sockstorage import StorageUnreadableError
from lrp_operator.resolve.model import Delta
from tests.datapath.world import (
    DNS,
    FAR,
    TCP,
    UDP,
    VIP,
    VIP2,
    WAYS,
    WEB,
    InNode,
    World,
    ask,
    exchange,
    socket_in,
    written,
)

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


@pytest.mark.parametrize("way", WAYS)
def test_only_sockets_of_the_frontend_that_lost_the_backend(world: World, way: str) -> None:
    both = [world.entry(way, UDP, world.one), world.entry(way, UDP, world.one, vip=VIP2)]
    world.program(*both)
    with (
        socket_in(world.client, way) as through_one,
        socket_in(world.client, way) as through_two,
        socket_in(world.client, way) as direct,
    ):
        through_one.connect((VIP[way], DNS))
        through_two.connect((VIP2[way], DNS))
        direct.connect((written(world.one, way), DNS))
        assert [ask(sock) for sock in (through_one, through_two, direct)] == ["one"] * 3

        assert world.program(both[1]).sockets_ended == 1
        with pytest.raises(ConnectionAbortedError):
            through_one.recv(100)
        assert [ask(sock) for sock in (through_two, direct)] == ["one"] * 2

        assert world.program().sockets_ended == 1
        with pytest.raises(ConnectionAbortedError):
            through_two.recv(100)
        assert ask(direct) == "one"


def test_what_a_killed_agent_left_undone_is_made_up_for(world: World) -> None:
    """The maps were changed, and nobody came to ending the sockets: the next agent finds them stale."""
    world.program(world.entry("4", UDP, world.one))
    with socket_in(world.client, "4") as sock:
        sock.connect((VIP["4"], DNS))
        with pytest.MonkeyPatch.context() as killed:
            killed.setattr(Ender, "end_stale", lambda *_: (0, []))
            world.program(world.entry("4", UDP, world.two))
        assert ask(sock) == "one"

        with InNode(world.node, world.settings) as successor:
            successor.update(Delta({e.frontend: e for e in [world.entry("4", UDP, world.two)]}, {}, {}))
            assert successor.flush(complete=False).sockets_ended == 0
            assert successor.flush(complete=True).sockets_ended == 1
        with pytest.raises(ConnectionAbortedError):
            sock.recv(100)


def test_sockets_are_looked_for_once_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connect that is under way when the backend leaves shows only later where it went."""
    monkeypatch.setattr(engine, "_SECOND_LOOK", 1e-9)
    world.program(world.entry("4", UDP, world.one))
    with socket_in(world.client, "4") as sock:
        sock.connect((VIP["4"], DNS))
        with pytest.MonkeyPatch.context() as not_there_yet:
            not_there_yet.setattr(Ender, "end_stale", lambda *_: (0, []))
            assert world.program(world.entry("4", UDP, world.two)).again_in > 0
        report = world.datapath.flush(complete=True)
        assert (report.sockets_ended, report.again_in) == (1, 0)
        with pytest.raises(ConnectionAbortedError):
            sock.recv(100)


def test_a_backend_that_comes_and_goes(world: World) -> None:
    """What a socket remembered while it was not connected counts when it is."""
    one, two = world.entry("4", UDP, world.one), world.entry("4", UDP, world.two)
    world.program(one)
    with socket_in(world.client, "4") as sock:
        exchange(sock, (VIP["4"], DNS))
        world.program(two)
        world.datapath.reconcile()
        world.datapath.reconcile()
        world.program(one)
        sock.connect((VIP["4"], DNS))
        assert ask(sock) == "one"
        assert world.program(two).sockets_ended == 1
        with pytest.raises(ConnectionAbortedError):
            sock.recv(100)


def test_an_unconnected_socket_is_left_alone(world: World) -> None:
    world.program(world.entry("4", UDP, world.one))
    with socket_in(world.client, "4") as sock:
        assert exchange(sock, (VIP["4"], DNS)) == ("one", (VIP["4"], DNS))
        assert world.program(world.entry("4", UDP, world.two)).sockets_ended == 0
        assert exchange(sock, (VIP["4"], DNS)) == ("two", (VIP["4"], DNS))


def test_without_the_iterator_sockets_are_ended_by_address(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that can't list socket storage: stands in for one by refusing the iterator here."""

    def refuse(*_: object) -> None:
        raise StorageUnreadableError("this kernel can't list what sockets remember: no BTF")

    monkeypatch.setattr(remembered, "SocketStorage", refuse)
    with world.instead() as datapath:
        both = [world.entry("4", UDP, world.one), world.entry("4", UDP, world.one, vip=VIP2)]
        world.program(*both, datapath=datapath)
        with socket_in(world.client, "4") as sock, socket_in(world.client, "4") as direct:
            sock.connect((VIP["4"], DNS))
            direct.connect((world.one.ipv4, DNS))
            assert world.program(both[1], datapath=datapath).sockets_ended == 0
            assert world.program(datapath=datapath).sockets_ended == 2
        [feature] = [f for f in datapath.status().features if f.name == "listing of socket storage"]
        assert not feature.available
        assert "own address" in feature.consequence


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
