"""Real sockets in pods whose packets are redirected at their links: who answers, and as whom."""

import errno
import socket

import pytest

from lrp_operator.api.addresses import L4Addr
from lrp_operator.resolve.model import FrontendType
from tests.datapath.tc.tcworld import DNS, FAR, TCP, UDP, VIP, WAYS, WEB, TcWorld
from tests.datapath.world import entry, exchange, name_in, socket_in

pytestmark = pytest.mark.privileged

SO_NO_CHECK = 11
LOOPBACK = {"4": "169.254.42.1", "6": "100:0:0:1::2a01"}


def own(tc: TcWorld, way: str) -> str:
    return tc.client.ipv4 if way == "4" else tc.client.ipv6


@pytest.mark.parametrize("way", WAYS)
def test_tcp(tc: TcWorld, way: str) -> None:
    tc.program(tc.entry(way, TCP, tc.one))
    big = bytes(range(256)) * 180  # super-packets, both ways
    reply = tc.client.ask_tcp(VIP[way], WEB, payload=big, timeout=10)
    assert (reply.name, reply.peer, reply.echo) == ("one", (VIP[way], WEB), big)
    assert reply.seen[0] == own(tc, way), "the pod sees the client itself"


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_udp(tc: TcWorld, way: str, *, connected: bool) -> None:
    tc.program(tc.entry(way, UDP, tc.one))
    reply = tc.client.ask_udp(VIP[way], DNS, payload=b"echo this", connected=connected)
    assert (reply.name, reply.peer, reply.echo) == ("one", (VIP[way], DNS), b"echo this")
    assert reply.seen[0] == own(tc, way)


@pytest.mark.parametrize("way", WAYS)
def test_only_the_frontends_own_port_protocol_and_family_are_redirected(tc: TcWorld, way: str) -> None:
    wanted = tc.entry(way, UDP, tc.one, vip=FAR)
    tc.program(wanted)
    assert tc.client.ask_udp(FAR[way], DNS).name == "one"
    assert tc.client.ask_tcp(FAR[way], WEB).name == "far"
    assert tc.client.ask_udp(FAR["4" if way == "6" else "6"], DNS).name == "far"
    tc.program(entry(L4Addr(wanted.frontend.ip, 5353, UDP), *wanted.backends))
    assert tc.client.ask_udp(FAR[way], DNS).name == "far"


@pytest.mark.parametrize("way", WAYS)
def test_the_nodes_own_sockets_are_left_alone(tc: TcWorld, way: str) -> None:
    tc.program(tc.entry(way, UDP, tc.one, vip=FAR), tc.entry(way, TCP, tc.one, vip=FAR))
    assert (tc.node.ask_udp(FAR[way], DNS).name, tc.node.ask_tcp(FAR[way], WEB).name) == ("far", "far")


@pytest.mark.parametrize("size", [1000, 4000, 60000])
@pytest.mark.parametrize("way", WAYS)
def test_datagrams_in_pieces(tc: TcWorld, way: str, size: int) -> None:
    """Both ways: what is sent comes back."""
    tc.program(tc.entry(way, UDP, tc.one))
    payload = bytes(i * 7 & 255 for i in range(size))
    reply = tc.client.ask_udp(VIP[way], DNS, payload=payload)
    assert (reply.name, reply.peer, reply.echo) == ("one", (VIP[way], DNS), payload)


def test_datagrams_without_checksum(tc: TcWorld) -> None:
    tc.program(tc.entry("4", UDP, tc.one))
    with socket_in(tc.client, "4") as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        assert exchange(sock, (VIP["4"], DNS), b"x" * 1000) == ("one", (VIP["4"], DNS))


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("way", WAYS)
def test_a_pod_that_is_its_own_backend(tc: TcWorld, way: str, protocol: int) -> None:
    tc.program(tc.entry(way, TCP, tc.one), tc.entry(way, UDP, tc.one))
    for name in ("all", "eth0"):
        tc.one.set(f"ipv4/conf/{name}/rp_filter", 1)
    for _ in range(3):
        ask = tc.one.ask_tcp if protocol == TCP else tc.one.ask_udp
        reply = ask(VIP[way], WEB if protocol == TCP else DNS, payload=b"x" * 9000)
        assert (reply.name, reply.peer[0], len(reply.echo)) == ("one", VIP[way], 9000)
        assert reply.seen[0] == LOOPBACK[way]


@pytest.mark.parametrize("way", WAYS)
def test_an_exempt_pod_reaches_the_original_whoever_would_have_been_chosen(tc: TcWorld, way: str) -> None:
    entries = [tc.entry(way, protocol, tc.one, tc.two, vip=FAR) for protocol in (TCP, UDP)]
    tc.program(*entries, skips=[tc.skip(tc.one, *entries)])
    asked = [(tc.one.ask_udp(FAR[way], DNS).name, tc.one.ask_tcp(FAR[way], WEB).name) for _ in range(8)]
    assert set(asked) == {("far", "far")}
    assert tc.client.ask_udp(FAR[way], DNS).name in {"one", "two"}
    (row,) = {(skip.netns_cookie, skip.ifindex, skip.pod) for skip in tc.datapath.skips()}
    assert row == (0, tc.one.veth.index, "default/one")
    assert tc.datapath.hits()[entries[1].frontend].skipped == 8
    tc.program(*entries)
    assert tc.one.ask_udp(FAR[way], DNS).name in {"one", "two"}


@pytest.mark.parametrize("way", WAYS)
def test_a_refused_frontend_says_so_at_once(tc: TcWorld, way: str) -> None:
    tc.program(tc.entry(way, UDP), tc.entry(way, TCP))
    with pytest.raises(ConnectionRefusedError):
        tc.client.ask_tcp(VIP[way], WEB, timeout=0.5)
    with pytest.raises(ConnectionRefusedError):
        tc.client.ask_udp(VIP[way], DNS, timeout=0.5, connected=True)
    hits = tc.datapath.hits()
    assert {hit.refused for hit in hits.values()} == {1}


@pytest.mark.parametrize("way", WAYS)
def test_one_source_port_to_the_frontend_and_to_the_backend_itself(tc: TcWorld, way: str) -> None:
    """Datagrams and connections, in both orders: each gets its own answer."""
    tc.program(tc.entry(way, UDP, tc.one), tc.entry(way, TCP, tc.one))
    itself = tc.one.ipv4 if way == "4" else tc.one.ipv6
    for first, second in ((VIP[way], itself), (itself, VIP[way])):
        with socket_in(tc.client, way) as sock:
            for _ in range(3):
                sock.sendto(b"a", (first, DNS))
                sock.sendto(b"b", (second, DNS))
                answers = [sock.recvfrom(1000) for _ in range(2)]
                assert {(answer[-1:], source[0]) for answer, source in answers} == {(b"a", first), (b"b", second)}
        with _bound(tc, way, 0) as one, _bound(tc, way, one.getsockname()[1]) as two:
            one.connect((first, WEB))
            two.connect((second, WEB))
            assert {name_in(sock.recv(200)) for sock in (one, two)} == {"one"}
            for sock, said in ((one, b"to the first"), (two, b"to the second"), (one, b"again")):
                sock.sendall(said)
                assert sock.recv(200) == said


def _bound(tc: TcWorld, way: str, port: int) -> socket.socket:
    """A TCP socket bound to a port that another one may be bound to."""
    sock = socket_in(tc.client, way, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((own(tc, way), port))
    return sock


@pytest.mark.parametrize("way", WAYS)
def test_two_frontends_with_one_backend_from_one_port(tc: TcWorld, way: str) -> None:
    tc.program(tc.entry(way, UDP, tc.one), tc.entry(way, UDP, tc.one, vip=FAR))
    with socket_in(tc.client, way) as sock:
        for _ in range(3):
            for to in (VIP[way], FAR[way]):
                sock.sendto(to.encode(), (to, DNS))
            answers = [sock.recvfrom(1000) for _ in range(2)]
            assert {source[0] for _, source in answers} == {VIP[way], FAR[way]}
            assert all(answer.endswith(source[0].encode()) for answer, source in answers)


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_that_is_older_than_the_policy_goes_on(tc: TcWorld, way: str) -> None:
    with socket_in(tc.client, way, socket.SOCK_STREAM) as sock:
        sock.connect((FAR[way], WEB))
        assert name_in(sock.recv(200)) == "far"
        tc.program(tc.entry(way, TCP, tc.one, vip=FAR))
        for _ in range(3):
            sock.sendall(b"still there?")
            assert sock.recv(200) == b"still there?"
        assert tc.client.ask_tcp(FAR[way], WEB).name == "one"


@pytest.mark.parametrize("way", WAYS)
def test_when_a_backend_or_the_policy_goes(tc: TcWorld, way: str) -> None:
    """A connection drains, new ones and datagrams go elsewhere at once."""
    tc.program(tc.entry(way, TCP, tc.one, vip=FAR), tc.entry(way, UDP, tc.one, vip=FAR))
    with socket_in(tc.client, way, socket.SOCK_STREAM) as stream, socket_in(tc.client, way) as datagrams:
        stream.connect((FAR[way], WEB))
        assert name_in(stream.recv(200)) == "one"
        assert exchange(datagrams, (FAR[way], DNS)) == ("one", (FAR[way], DNS))
        for pods, then in (((tc.two,), "two"), ((), "far"), ((tc.two,), "two")):
            tc.program(*[tc.entry(way, protocol, *pods, vip=FAR) for protocol in (TCP, UDP) if pods])
            stream.sendall(b"drains")
            assert stream.recv(200) == b"drains"
            assert exchange(datagrams, (FAR[way], DNS)) == (then, (FAR[way], DNS))
            assert tc.client.ask_tcp(FAR[way], WEB).name == then


@pytest.mark.parametrize("way", WAYS)
def test_several_backends_share_the_load(tc: TcWorld, way: str) -> None:
    wanted = tc.entry(way, TCP, tc.one, tc.two, type=FrontendType.CLUSTER_IP, policy=None)
    tc.program(wanted)

    def many() -> list[str]:
        names = []
        for _ in range(80):
            with socket.create_connection((VIP[way], WEB), timeout=3) as sock:
                names.append(name_in(sock.recv(200)))
        return names

    seen = tc.client.call(many)
    # The chance that one of two gets fewer than 12 of 80 is below 1e-10.
    assert all(seen.count(name) >= 12 for name in ("one", "two"))
    assert tc.datapath.hits()[wanted.frontend].redirected == 80


@pytest.mark.parametrize("way", WAYS)
def test_watching_shows_each_flow(tc: TcWorld, way: str) -> None:
    redirected, refused = tc.entry(way, UDP, tc.one), tc.entry(way, TCP)
    tc.program(redirected, refused)
    tc.datapath.watch_events(on=True)
    try:
        with socket_in(tc.client, way) as sock:
            for _ in range(3):
                exchange(sock, (VIP[way], DNS))
        with pytest.raises(ConnectionRefusedError):
            tc.client.ask_tcp(VIP[way], WEB)
        events = tc.datapath.read_events()
    finally:
        tc.datapath.watch_events(on=False)
    (backend,) = redirected.backends
    assert [(e.hook, e.action, e.frontend, e.backend, e.ifindex, e.pid) for e in events] == [
        ("packet", "redirected", redirected.frontend, backend, tc.client.veth.index, 0),
        ("packet", "refused", refused.frontend, None, tc.client.veth.index, 0),
    ]
    assert tc.datapath.pod_of_link(events[0].ifindex) == "default/client"


@pytest.mark.parametrize("way", WAYS)
def test_a_closed_port_of_the_backend_is_told_in_the_frontends_name(tc: TcWorld, way: str) -> None:
    """The backend's ICMP error quotes the packet as it was translated."""
    tc.program(tc.entry(way, UDP, tc.one, port=5353), tc.entry(way, TCP, tc.one, port=8080))
    with pytest.raises(ConnectionRefusedError):
        tc.client.ask_udp(VIP[way], DNS, connected=True)
    with pytest.raises(ConnectionRefusedError):
        tc.client.ask_tcp(VIP[way], WEB)


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_is_gone_is_told_to_the_backend(tc: TcWorld, way: str) -> None:
    """The client's ICMP error quotes the reply as it was translated back; it reaches the backend in its own words."""
    tc.program(tc.entry(way, UDP, tc.one, port=5300))
    with socket_in(tc.one, way) as server:
        server.bind(("::" if way == "6" else "0.0.0.0", 5300))
        with socket_in(tc.client, way) as sock:
            sock.sendto(b"?", (VIP[way], DNS))
            _, client = server.recvfrom(100)
        server.connect(client)
        server.send(b"you are not there any more")
        with pytest.raises(ConnectionRefusedError):
            server.recv(100)


IP_MTU_DISCOVER, IP_MTU, PMTUDISC_DO = 10, 14, 2
IPV6_MTU_DISCOVER, IPV6_MTU = 23, 24


@pytest.mark.parametrize("shared_tc", ["routed"], indirect=True)  # a bridge drops what is too big, and tells nobody
@pytest.mark.parametrize("way", WAYS)
def test_a_narrow_path_to_the_backend_is_told_to_the_client(tc: TcWorld, way: str) -> None:
    tc.program(tc.entry(way, UDP, tc.two), tc.entry(way, TCP, tc.two))
    level, discover, mtu = (
        (socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_MTU)
        if way == "4"
        else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_MTU)
    )
    tc.node.run(["ip", "link", "set", tc.two.veth.name, "mtu", "1300"])
    try:
        with socket_in(tc.client, way) as sock:
            sock.setsockopt(level, discover, PMTUDISC_DO)
            sock.connect((VIP[way], DNS))
            sock.send(bytes(1400))  # is lost, and the error comes back
            with pytest.raises(OSError, match="too long") as caught:
                sock.send(bytes(1400))
            assert caught.value.errno == errno.EMSGSIZE
            assert sock.getsockopt(level, mtu) == 1300
        payload = bytes(40_000)
        assert tc.client.ask_tcp(VIP[way], WEB, payload=payload, timeout=10).echo == payload
    finally:
        tc.node.run(["ip", "link", "set", tc.two.veth.name, "mtu", "1500"])
