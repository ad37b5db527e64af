"""The table of sockets: places are taken, given back, and never shared."""

import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lrp_operator.datapath import engine
from lrp_operator.kernel import bpf
from lrp_operator.kernel.features import KernelFeatures, probe
from tests.datapath.world import (
    DNS,
    TCP,
    UDP,
    VIP,
    WAYS,
    WEB,
    World,
    ask,
    exchange,
    socket_in,
)

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("vacant")]

SO_COOKIE = 57


@pytest.fixture
def tables(world: World) -> Iterator[dict[str, bpf.Map]]:
    opened = {name: bpf.Map.open(world.settings.bpf_root / "sockets-v1" / name) for name in ("places4", "places6")}
    yield opened
    for table in opened.values():
        table.close()


def owners(tables: dict[str, bpf.Map]) -> dict[str, dict[int, int]]:
    """Place -> its owner's cookie, of those that are taken."""
    return {
        name: {
            struct.unpack("=I", key)[0]: cookie
            for key, value in table.items()
            if (cookie := struct.unpack_from("=Q", value)[0])
        }
        for name, table in tables.items()
    }


def cookie_of(sock: socket.socket) -> int:
    return struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]


@pytest.mark.parametrize("way", WAYS)
def test_a_socket_has_its_place_until_it_is_closed(world: World, tables: dict[str, bpf.Map], way: str) -> None:
    world.program(world.entry(way, UDP, world.one), world.entry(way, TCP, world.one))
    mine, others = ("places6", "places4") if way == "6" else ("places4", "places6")
    size = tables[mine].info.max_entries
    with (
        socket_in(world.client, way) as connected,
        socket_in(world.client, way) as unconnected,
        socket_in(world.client, way, socket.SOCK_STREAM) as stream,
        socket_in(world.client, way) as direct,
    ):
        connected.connect((VIP[way], DNS))
        exchange(unconnected, (VIP[way], DNS))
        stream.connect((VIP[way], WEB))
        direct.connect((VIP[way], DNS + 1))
        cookies = {cookie_of(sock) for sock in (connected, unconnected, stream)}
        assert owners(tables) == {mine: {cookie % size: cookie for cookie in cookies}, others: {}}
    assert owners(tables) == {mine: {}, others: {}}


def test_a_place_that_is_taken_stays_its_owners(world: World, tables: dict[str, bpf.Map]) -> None:
    """Another socket has the place: this one is remembered in socket storage, and the other's place is left alone."""
    world.program(world.entry("4", UDP, world.one))
    table = tables["places4"]
    with socket_in(world.client, "4") as sock:
        place = struct.pack("=I", cookie_of(sock) % table.info.max_entries)
        other = struct.pack("=Q", cookie_of(sock) + table.info.max_entries) + b"\7" * (table.info.value_size - 8)
        table.update(place, other)
        sock.connect((VIP["4"], DNS))
        assert ask(sock) == "one"
        assert sock.getpeername() == (VIP["4"], DNS)
        assert table.lookup(place) == other
    assert table.lookup(place) == other
    table.update(place, bytes(len(other)))


def test_a_new_owner_inherits_nothing(world: World, tables: dict[str, bpf.Map]) -> None:
    world.program(world.entry("4", UDP, world.one))
    with socket_in(world.client, "4") as first:
        first.connect((VIP["4"], DNS))
        [place] = owners(tables)["places4"]
    assert not any(tables["places4"].lookup(struct.pack("=I", place)) or b"?")


def test_without_the_hook_all_is_in_socket_storage(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without the sock_release hook (before 5.9): stands in for one by what the probe says."""
    found = probe()
    older = replace(found, hooks=found.hooks - {bpf.AttachType.INET_SOCK_RELEASE})

    def probe_older() -> KernelFeatures:
        return older

    monkeypatch.setattr(engine.features, "probe", probe_older)
    with world.instead() as datapath:
        world.program(*(world.entry(way, UDP, world.one) for way in ("4", "6")), datapath=datapath)
        assert not any("release" in name for name in datapath.status().programs)
        for way in WAYS:
            with socket_in(world.client, way) as sock:
                sock.connect((VIP[way], DNS))
                assert ask(sock) == "one"
                assert sock.getpeername()[:2] == (VIP[way], DNS)
        places = bpf.Map.open(Path(datapath.inner.settings.bpf_root) / "sockets-v1" / "places4")
        assert not any(value[0] for _, value in places.items())
        places.close()
