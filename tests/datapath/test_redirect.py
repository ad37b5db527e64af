"""Real sockets between pods: who answers, and whom the client believes to be talking to."""

import errno
import os
import socket
from pathlib import Path

import pytest

from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath import engine
from lrp_operator.resolve.model import Delta, FrontendType
from tests.datapath.world import (
    DNS,
    FAR,
    TCP,
    UDP,
    VIP,
    VIP2,
    WAYS,
    WEB,
    World,
    ask,
    entry,
    exchange,
    socket_in,
)

pytestmark = pytest.mark.privileged

IPPROTO_MPTCP = 262
UNSPEC = bytes(16)  # struct sockaddr of family AF_UNSPEC


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("way", WAYS)
def test_tcp(world: World, way: str) -> None:
    world.program(world.entry(way, TCP, world.one))
    reply = world.client.ask_tcp(VIP[way], WEB, payload=b"echo this")
    assert (reply.name, reply.peer, reply.echo) == ("one", (VIP[way], WEB), b"echo this")
    own = world.client.ipv6 if way == "6" else world.client.ipv4
    assert reply.seen[0] == own, "the pod sees the client itself"


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_udp(world: World, way: str, *, connected: bool) -> None:
    world.program(world.entry(way, UDP, world.one))
    reply = world.client.ask_udp(VIP[way], DNS, payload=b"echo this", connected=connected)
    assert (reply.name, reply.peer, reply.echo) == ("one", (VIP[way], DNS), b"echo this")


@pytest.mark.parametrize("way", WAYS)
def test_only_the_frontends_own_port_protocol_and_family_are_redirected(world: World, way: str) -> None:
    wanted = world.entry(way, UDP, world.one, vip=FAR)
    world.program(wanted)
    assert world.client.ask_udp(FAR[way], DNS).name == "one"
    assert world.client.ask_tcp(FAR[way], WEB).name == "far"
    across = "4" if way == "6" else "6"
    assert world.client.ask_udp(FAR[across], DNS).name == "far"
    elsewhere = entry(L4Addr(wanted.frontend.ip, 5353, UDP), *wanted.backends)
    world.program(elsewhere)
    assert world.client.ask_udp(FAR[way], DNS).name == "far"


def test_a_mapped_address_and_ipv4_are_one_frontend(world: World) -> None:
    world.program(world.entry("4", UDP, world.one), world.entry("6", UDP, world.two))
    with socket_in(world.client, "mapped") as sock:
        assert exchange(sock, (VIP["mapped"], DNS)) == ("one", (VIP["mapped"], DNS))
        assert exchange(sock, (VIP["6"], DNS)) == ("two", (VIP["6"], DNS))


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("way", WAYS)
def test_mptcp_sockets_are_redirected_as_tcp(world: World, way: str) -> None:
    world.program(world.entry(way, TCP, world.one))
    with socket_in(world.client, way, socket.SOCK_STREAM, IPPROTO_MPTCP) as sock:
        sock.connect((VIP[way], WEB))
        assert b"one" in sock.recv(100)
        assert sock.getpeername()[:2] == (VIP[way], WEB)


def test_other_protocols_are_left_alone(world: World) -> None:
    world.program(world.entry("4", UDP, world.one, vip=FAR), world.entry("4", TCP, world.one, vip=FAR))
    before = world.datapath.hits()
    world.client.call(lambda: Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0"))
    with socket_in(world.client, "4", protocol=socket.IPPROTO_ICMP) as sock:
        sock.connect((FAR["4"], DNS))
        sock.send(b"\x08" + bytes(7))
        assert sock.recv(100)[0] == 0, "an echo reply"
    with socket_in(world.client, "4", protocol=socket.IPPROTO_UDPLITE) as sock:
        sock.connect((FAR["4"], DNS))
        assert sock.getpeername() == (FAR["4"], DNS)
    with socket_in(world.client, "4", socket.SOCK_RAW, socket.IPPROTO_UDP) as sock:
        sock.connect((FAR["4"], DNS))
        assert sock.getpeername()[0] == FAR["4"]
    assert world.datapath.hits() == before


@pytest.mark.parametrize("way", WAYS)
def test_a_refused_frontend_says_so_at_once(world: World, way: str) -> None:
    world.program(world.entry(way, UDP), world.entry(way, TCP))
    for kind, port in ((socket.SOCK_STREAM, WEB), (socket.SOCK_DGRAM, DNS)):
        with socket_in(world.client, way, kind) as sock, pytest.raises(ConnectionRefusedError):
            sock.connect((VIP[way], port))
    with socket_in(world.client, way) as sock, pytest.raises(ConnectionRefusedError):
        sock.sendto(b"?", (VIP[way], DNS))
    hits = world.datapath.hits()
    assert [hits[e.frontend].refused for e in (world.entry(way, UDP), world.entry(way, TCP))] == [2, 1]
    world.program(world.entry(way, UDP, world.one))
    assert world.client.ask_udp(VIP[way], DNS).name == "one"


def test_a_connection_outlives_its_redirect(world: World) -> None:
    world.program(world.entry("4", TCP, world.one))
    with socket_in(world.client, "4", socket.SOCK_STREAM) as sock:
        sock.connect((VIP["4"], WEB))
        assert b"one" in sock.recv(100)
        world.program()
        sock.send(b"still there?")
        assert sock.recv(100) == b"still there?"
        assert sock.getpeername() == (VIP["4"], WEB)


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("way", WAYS)
def test_a_tcp_socket_used_again_shows_the_frontend_that_it_dialled_last(world: World, way: str) -> None:
    world.program(world.entry(way, TCP, world.one), world.entry(way, TCP, world.one, vip=VIP2))
    with socket_in(world.client, way, socket.SOCK_STREAM) as sock:
        sock.connect((VIP[way], WEB))
        assert sock.getpeername()[:2] == (VIP[way], WEB)
        disconnect(sock)
        sock.connect((VIP2[way], WEB))
        assert sock.getpeername()[:2] == (VIP2[way], WEB)


def disconnect(sock: socket.socket) -> None:
    """connect(2) to AF_UNSPEC, which Python's sockets can't say."""
    assert engine.bpf._libc.connect(sock.fileno(), UNSPEC, len(UNSPEC)) == 0


@pytest.mark.parametrize("way", ["4", "6"])
def test_several_backends_share_the_load_and_counters_add_up(world: World, way: str) -> None:
    pods = world.pods.values()
    wanted = world.entry(way, UDP, *pods, type=FrontendType.CLUSTER_IP, policy=None)
    world.program(wanted)

    def many() -> list[str]:
        names = []
        for _ in range(120):
            with socket.socket(socket.AF_INET6 if way == "6" else socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(3)
                names.append(exchange(sock, (VIP[way], DNS))[0])
        return names

    seen = world.client.call(many)
    # The chance that one of three gets fewer than 10 of 120 is below 1e-9.
    assert set(seen) == world.pods.keys()
    assert all(seen.count(name) >= 10 for name in world.pods)
    assert world.datapath.hits()[wanted.frontend].redirected == 120
    (row,) = world.datapath.frontends()
    assert (row.frontend, {b.backend for b in row.backends}, row.flags) == (wanted.frontend, set(wanted.backends), ())


def test_counters_start_at_zero_and_survive_updates(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = world.entry("4", UDP, world.one), world.entry("6", UDP, world.one)
    world.program(first, second)
    for _ in range(3):
        world.client.ask_udp(VIP["4"], DNS)
    world.program(world.entry("4", UDP, world.two), second)
    world.client.ask_udp(VIP["4"], DNS)
    assert [world.datapath.hits()[e.frontend].redirected for e in (first, second)] == [4, 0]
    monkeypatch.setattr(engine, "_READ_ALL_COUNTERS_FROM", 0)
    assert [world.datapath.hits()[e.frontend].redirected for e in (first, second)] == [4, 0]
    world.program()
    world.datapath.reconcile()  # ids may be used again at once
    world.program(second, first)
    assert [world.datapath.hits()[e.frontend].redirected for e in (first, second)] == [0, 0]


@pytest.mark.parametrize("way", WAYS)
def test_watching_shows_each_redirect(world: World, way: str) -> None:
    redirected, refused = world.entry(way, UDP, world.one), world.entry(way, TCP)
    world.program(redirected, refused)
    world.client.ask_udp(VIP[way], DNS)
    assert world.datapath.read_events() == [], "nobody watches"
    world.datapath.watch_events(on=True)

    def in_pod() -> int:
        with socket.socket(socket.AF_INET if way == "4" else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"?", (VIP[way], DNS))
            sock.connect((VIP[way], DNS))
        with socket.socket(socket.AF_INET if way == "4" else socket.AF_INET6, socket.SOCK_STREAM) as sock:
            assert sock.connect_ex((VIP[way], WEB)) == errno.ECONNREFUSED
        return os.getpid()

    try:
        pid = world.client.call(in_pod)
        events = world.datapath.read_events()
    finally:
        world.datapath.watch_events(on=False)
    (backend,) = redirected.backends
    assert [(e.hook, e.action, e.frontend, e.backend) for e in events] == [
        ("sendmsg", "redirected", redirected.frontend, backend),
        ("connect", "redirected", redirected.frontend, backend),
        ("connect", "refused", refused.frontend, None),
    ]
    assert {(e.pid, e.netns_cookie) for e in events} == {(pid, world.client.cookie)}
    with open("/proc/self/comm") as comm:  # noqa: PTH123 (one line)
        assert {e.command for e in events} == {comm.read().strip()}
    world.client.ask_udp(VIP[way], DNS)
    assert world.datapath.read_events() == [], "nobody watches any more"


def test_session_affinity(world: World) -> None:
    with world.instead(cluster_ip=True) as datapath:
        pods = world.pods.values()
        sticky = [world.entry(way, UDP, *pods, affinity_seconds=600) for way in ("4", "6")]
        world.program(*sticky, datapath=datapath)
        for way in WAYS:
            asked = [world.client.ask_udp(VIP[way], DNS).name for _ in range(12)]
            assert len(set(asked)) == 1, way
        v4 = world.client.ask_udp(VIP["4"], DNS).name
        assert world.client.ask_udp(VIP["mapped"], DNS).name == v4
        # It stays while its backend stays, whatever else changes; and moves when it goes.
        rest = [pod for pod in pods if pod.short_name != v4]
        world.program(world.entry("4", UDP, world.pods[v4], rest[0], affinity_seconds=600), datapath=datapath)
        assert {world.client.ask_udp(VIP["4"], DNS).name for _ in range(6)} == {v4}
        world.program(world.entry("4", UDP, *rest, affinity_seconds=600), datapath=datapath)
        moved = {world.client.ask_udp(VIP["4"], DNS).name for _ in range(6)}
        assert len(moved) == 1
        assert moved != {v4}
        # Other clients choose for themselves.
        world.program(world.entry("4", UDP, *pods), datapath=datapath)
        assert len({world.client.ask_udp(VIP["4"], DNS).name for _ in range(30)}) > 1
        (row,) = datapath.frontends()
        assert row.flags == ("local-redirect",)


def test_ipv6_switched_off(world: World) -> None:
    with world.instead(ipv6=False) as datapath:
        world.program(
            *(world.entry(way, UDP, world.one, vip=FAR) for way in ("4", "6")),
            datapath=datapath,
        )
        assert [world.client.ask_udp(FAR[way], DNS).name for way in WAYS] == ["one", "far", "one"]
        assert [row.frontend.is_ipv4 for row in datapath.frontends()] == [True]


def test_ipv4_switched_off(world: World) -> None:
    with world.instead(ipv4=False) as datapath:
        world.program(
            *(world.entry(way, UDP, world.one, vip=FAR) for way in ("4", "6")),
            datapath=datapath,
        )
        assert [world.client.ask_udp(FAR[way], DNS).name for way in WAYS] == ["far", "one", "far"]
        assert [row.frontend.is_ipv4 for row in datapath.frontends()] == [False]


def test_entries_for_display_are_not_programmed(world: World) -> None:
    shown = world.entry("4", UDP, vip=FAR, refuse=False, type=FrontendType.CLUSTER_IP)
    world.program(shown)
    assert world.datapath.frontends() == []
    assert world.client.ask_udp(FAR["4"], DNS).name == "far"
    world.program(world.entry("4", UDP, world.one, vip=FAR))
    world.datapath.update(Delta({shown.frontend: shown}, {}, {}))
    assert world.datapath.flush(complete=True).removed == 1


@pytest.mark.usefixtures("memory")
def test_ask_on_a_connected_socket_goes_on_after_updates(world: World) -> None:
    world.program(world.entry("4", UDP, world.one))
    with socket_in(world.client, "4") as sock:
        sock.connect((VIP["4"], DNS))
        assert ask(sock) == "one"
        world.program(world.entry("4", UDP, world.one, world.two))
        assert ask(sock) == "one"
        assert sock.getpeername() == (VIP["4"], DNS)


@pytest.mark.usefixtures("memory")
def test_a_connected_mapped_socket_stays_where_it_was_connected(world: World) -> None:
    """Its sends pass the sendmsg4 hook with an address, though the program named none."""
    with socket_in(world.client, "mapped") as sock:
        sock.connect((FAR["mapped"], DNS))
        assert ask(sock) == "far"
        redirected = world.entry("4", UDP, world.one, vip=FAR)
        world.program(redirected)
        assert ask(sock) == "far", "a frontend that came later is no concern of a socket that is connected"
        sock.connect((FAR["mapped"], DNS))
        for _ in range(3):
            assert ask(sock) == "one"
            assert sock.getpeername()[:2] == (FAR["mapped"], DNS)
        sock.send(b"?")
        assert sock.recvfrom(100)[1][:2] == (FAR["mapped"], DNS)
        assert world.datapath.hits()[redirected.frontend].redirected == 1, "sends on a connected socket don't count"
