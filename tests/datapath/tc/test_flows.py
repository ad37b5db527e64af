"""The flows' tables: what keeps a connection safe, what bounds them, and what is swept out."""

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from lab import Node
from lrp_operator.datapath import flows, layout
from lrp_operator.datapath.flows import now_ticks
from lrp_operator.kernel import bpf
from tests.datapath.tc.tcworld import DNS, FAMILY, FAR, TCP, UDP, VIP, WAYS, WEB, TcWorld
from tests.datapath.world import exchange, name_in, socket_in

pytestmark = pytest.mark.privileged

SO_LINGER_RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def small_world() -> Iterator[TcWorld]:
    """A node with room for eight connections of each family."""
    with Node() as node:
        world = TcWorld(node, bridged=False, max_flows=8, terminate_tcp=True)
        world.open()
        yield world
        world.close()


@pytest.fixture
def small(small_world: TcWorld) -> TcWorld:
    """The same, without any connection of an earlier test."""
    small_world.program()
    for way in WAYS:
        opened = table(small_world, f"flows{way}")
        for key, _ in list(opened.items()):
            opened.delete(key)
        opened.close()
    return small_world


def connected(tc: TcWorld, way: str, to: str) -> socket.socket:
    sock = socket_in(tc.client, way, socket.SOCK_STREAM)
    sock.connect((to, WEB))
    return sock


def table(tc: TcWorld, name: str) -> bpf.Map:
    return bpf.Map.open(tc.settings.bpf_root / "flows-v1" / name)


@pytest.mark.parametrize("way", WAYS)
def test_when_the_table_is_full_connections_go_to_the_original(small: TcWorld, way: str) -> None:
    """They are not lost: the client's next SYN, a second later, passes untouched."""
    small.program(small.entry(way, TCP, small.one, vip=FAR))
    failed = bpf.Map.open(next(small.settings.bpf_root.glob("tables-*")) / "counters")
    before = _failures(failed)
    with ExitStack() as stack:
        held = [stack.enter_context(connected(small, way, FAR[way])) for _ in range(10)]
        names = [name_in(sock.recv(200)) for sock in held]
        assert names == ["one"] * 8 + ["far"] * 2
        assert _failures(failed) - before == 2
        for sock in held:  # who has a place keeps it
            sock.sendall(b"still there")
            assert sock.recv(100) == b"still there"
        standing(small, way, 8)
        for sock in held:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, SO_LINGER_RESET)
    failed.close()
    standing(small, way, 0, silent=1000)
    assert small.client.ask_tcp(FAR[way], WEB).name == "one"


def _failures(counters: bpf.Map) -> int:
    """What id 0 counts as failed."""
    value = counters.lookup(bytes(4))
    assert value is not None
    return sum(struct.unpack("=4Q", cpu)[3] for cpu in counters.per_cpu(value))


def standing(tc: TcWorld, way: str, expected: int, silent: int = 0) -> None:
    """See how many connections stand after a sweep, if nothing had passed for so many ticks.

    A late acknowledgement may pass meanwhile; then it is tried again.
    """
    for _ in range(100):
        if silent:
            _age(tc, way, silent)
        found = tc.flows()[f"ipv{way}"]
        if found == expected:
            return
    pytest.fail(f"{found} connections stand, not {expected}")


def _age(tc: TcWorld, way: str, ticks: int, name: str = "flows", flags: int = 0) -> None:
    """Let all connections look as if nothing had passed for so long. flags: and as if this had passed then."""
    opened = table(tc, f"{name}{way}")
    struct_of = flows.FLOW[4 if way == "4" else 16]
    for key, value in list(opened.items()):
        fields = list(struct_of.unpack(value))
        fields[4] = (now_ticks() - ticks) & 0xFFFFFFFF
        fields[7] |= flags
        opened.update(key, struct_of.pack(*fields))
    opened.close()


@pytest.mark.parametrize("way", WAYS)
def test_new_flows_never_displace_an_idle_connection(small: TcWorld, way: str) -> None:
    """Worth many times the LRU's capacity."""
    small.program(small.entry(way, TCP, small.one), small.entry(way, UDP, small.one))
    with connected(small, way, VIP[way]) as idle:
        assert name_in(idle.recv(200)) == "one"

        def many() -> int:
            for _ in range(1500):
                with socket.socket(socket.AF_INET if way == "4" else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                    sock.settimeout(3)
                    exchange(sock, (VIP[way], DNS))
            return table(small, f"recent{way}").info.max_entries

        assert small.client.call(many) < 1500
        idle.sendall(b"still there")
        assert idle.recv(100) == b"still there"


@pytest.mark.parametrize("way", WAYS)
def test_what_is_swept_out_and_what_is_not(small: TcWorld, way: str) -> None:
    small.program(small.entry(way, TCP, small.one))
    with connected(small, way, VIP[way]) as idle:
        assert name_in(idle.recv(200)) == "one"
        small.client.ask_tcp(VIP[way], WEB)  # closed by both
        standing(small, way, 2)  # a retransmission may still come
        standing(small, way, 1, silent=flows._ENDED + 2)
        half = _half_closed(small, way)
        standing(small, way, 2, silent=flows._ENDED + 2)
        standing(small, way, 1, silent=flows._HALF_CLOSED + 2)
        for sock in half:
            sock.close()
        idle.sendall(b"still there")
        assert idle.recv(100) == b"still there"
        standing(small, way, 0, silent=flows._SILENT + 2)


def _half_closed(tc: TcWorld, way: str) -> list[socket.socket]:
    """A connection that only its client has ended: the server takes its time."""
    server = socket_in(tc.two, way, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("::" if way == "6" else "0.0.0.0", 8081))
    server.listen()
    tc.program(tc.entry(way, TCP, tc.one), tc.entry(way, TCP, tc.two, vip=FAR, port=8081))
    sock = connected(tc, way, FAR[way])
    sock.shutdown(socket.SHUT_WR)
    accepted, _ = server.accept()
    assert accepted.recv(10) == b""
    return [sock, accepted, server]


def test_flows_of_a_pod_that_is_gone_are_swept_out(small: TcWorld) -> None:
    small.program(small.entry("4", TCP, small.one))
    late = small.pod("late")
    small.tell_pods()
    small.datapath.flush(complete=True)
    with socket_in(late, "4", socket.SOCK_STREAM) as sock:
        sock.connect((VIP["4"], WEB))
        assert name_in(sock.recv(200)) == "one"
        standing(small, "4", 1)
        late.remove()
        small.tell_pods()
        standing(small, "4", 0)


@pytest.mark.parametrize("way", WAYS)
def test_connections_are_ended_when_their_backend_leaves_where_that_is_asked_for(small: TcWorld, way: str) -> None:
    small.program(small.entry(way, TCP, small.one, vip=FAR))
    with connected(small, way, FAR[way]) as ours, connected(small, way, _itself(small, way)) as direct:
        assert {name_in(sock.recv(200)) for sock in (ours, direct)} == {"one"}
        assert small.program(small.entry(way, TCP, small.two, vip=FAR)).sockets_ended == 1
        with pytest.raises(ConnectionAbortedError):
            ours.recv(10)
        direct.sendall(b"not a redirected one")
        assert direct.recv(100) == b"not a redirected one"
        assert small.client.ask_tcp(FAR[way], WEB).name == "two"


def _itself(tc: TcWorld, way: str) -> str:
    return tc.one.ipv4 if way == "4" else tc.one.ipv6


@pytest.mark.parametrize("way", WAYS)
def test_a_port_that_is_used_again_chooses_again(small: TcWorld, way: str) -> None:
    """A new connection from the port of an old one is not taken for it."""
    port = 0
    for pod in (small.one, small.two, small.one):
        small.program(small.entry(way, TCP, pod))
        with socket_in(small.client, way, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, SO_LINGER_RESET)
            sock.bind(("::" if way == "6" else "0.0.0.0", port))
            sock.connect((VIP[way], WEB))
            port = sock.getsockname()[1]
            assert name_in(sock.recv(200)) == pod.short_name
            sock.sendall(b"x" * 5000)
            assert sock.recv(1) == b"x"


def closes_first(port: int) -> Callable[[Callable[[int], None]], None]:
    """A server that greets, and closes: what is left of a connection is left with it, for a minute."""

    def serve(ready: Callable[[int], None]) -> None:
        with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
            ready(port)
            while True:
                with listener.accept()[0] as connection:
                    connection.send(b"hello")

    return serve


def greeted(way: str, to: str, port: int, source_port: int) -> bytes:
    """What a server says to a client that has this port."""
    with socket.socket(FAMILY[way], socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", source_port))
        sock.settimeout(10)
        sock.connect((to, port))
        greeting = sock.recv(100)
        assert sock.recv(100) == b""
        return greeting


@pytest.fixture
def unstamped(tc: TcWorld) -> Iterator[TcWorld]:
    """A client without TCP's timestamps: they would decide in place of sequence numbers, which differ by port."""
    tc.client.set("ipv4/tcp_timestamps", 0)
    yield tc
    tc.client.set("ipv4/tcp_timestamps", 1)


PORTS = range(20000, 20020)


@pytest.mark.parametrize("way", WAYS)
def test_a_backend_may_still_have_an_earlier_connection_of_these_ports(unstamped: TcWorld, way: str) -> None:
    """It was made before the frontend. The backend, which closed it, answers a SYN by telling where that one is.

    The client is to hear this (a challenge ACK) from the frontend, for then it sends its SYN again at once. If it heard
    it from the backend itself, it would end that connection, and go on a second later; so that is dropped.
    """
    tc, backend = unstamped, unstamped.one.ipv4 if way == "4" else unstamped.one.ipv6
    server = tc.one.serve(closes_first(port := 8000 + int(way)))
    try:
        tc.client.call(lambda: [greeted(way, backend, port, source) for source in PORTS])
        tc.program(tc.entry(way, TCP, tc.one, port=port))
        rule = f"{'ip' if way == '4' else 'ip6'} saddr {backend} drop"
        tc.client.run(["nft", "add table inet aside; add chain inet aside in { type filter hook input priority 0; }"])
        tc.client.run(["nft", f"add rule inet aside in {rule}"])
        greetings = tc.client.call(lambda: [greeted(way, VIP[way], WEB, source) for source in PORTS], timeout=300)
        assert greetings == [b"hello"] * len(PORTS)
    finally:
        tc.client.run(["nft", "delete table inet aside"], check=False)
        server.stop()


@pytest.mark.parametrize("way", WAYS)
def test_so_may_one_that_is_new_to_the_frontend(unstamped: TcWorld, way: str) -> None:
    """And the flow that the ports had before, to another backend, is no hindrance."""
    tc, address = unstamped, unstamped.two.ipv4 if way == "4" else unstamped.two.ipv6
    servers = [pod.serve(closes_first(port := 8010 + int(way))) for pod in (tc.one, tc.two)]
    try:
        tc.client.call(lambda: [greeted(way, address, port, source) for source in PORTS])
        for pod in (tc.one, tc.two):
            tc.program(tc.entry(way, TCP, pod, port=port))
            greetings = tc.client.call(lambda: [greeted(way, VIP[way], WEB, source) for source in PORTS], timeout=300)
            assert greetings == [b"hello"] * len(PORTS)
    finally:
        for server in servers:
            server.stop()


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_of_these_ports_that_goes_on_is_not_ended(tc: TcWorld, way: str) -> None:
    """It is older than the frontend, and the client's socket for it is there. The new one gets another port."""
    address = tc.one.ipv4 if way == "4" else tc.one.ipv6
    with ExitStack() as stack:
        for source in PORTS[:3]:
            old, new = (stack.enter_context(socket_in(tc.client, way, socket.SOCK_STREAM)) for _ in range(2))
            for sock, to in ((old, address), (new, VIP[way])):
                sock.settimeout(10)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, SO_LINGER_RESET)
                sock.bind(("", source))
                sock.connect((to, WEB))
                assert name_in(sock.recv(200)) == "one"
                tc.program(tc.entry(way, TCP, tc.one))
            both_go_on(old, new)
            tc.program()


@pytest.mark.parametrize("way", WAYS)
def test_nor_is_one_that_the_flows_give_up(tc: TcWorld, way: str) -> None:
    """Its client has ended its half, and nothing has passed for long: its port may be another's, and both go on."""
    tc.program(tc.entry(way, TCP, tc.one), tc.entry(way, TCP, tc.one, vip=FAR))
    with socket_in(tc.client, way, socket.SOCK_STREAM) as old, socket_in(tc.client, way, socket.SOCK_STREAM) as new:
        for sock, to in ((old, VIP[way]), (new, FAR[way])):
            sock.settimeout(10)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, SO_LINGER_RESET)
            sock.bind(("", PORTS[-1]))
            sock.connect((to, WEB))
            assert name_in(sock.recv(200)) == "one"
            _age(tc, way, 70, flags=layout.FLOW_FIN_SENT if sock is old else 0)
            _age(tc, way, 70, "recent")
        both_go_on(old, new)


def both_go_on(old: socket.socket, new: socket.socket) -> None:
    for sock in (old, new, old):
        sock.sendall(b"still there?")
        assert sock.recv(12) == b"still there?"


def settled(tc: TcWorld) -> bool:
    """Whether programs are told that no flow is left of a frontend that was removed."""
    opened = bpf.Map.open(next(tc.settings.bpf_root.glob("tables-*")) / "control")
    value = opened.lookup(struct.pack("=I", layout.CONTROL_SETTLED))
    opened.close()
    return bool(value and any(value))


@pytest.mark.parametrize("way", WAYS)
def test_ports_of_a_removed_frontend_may_be_used_again(small: TcWorld, way: str) -> None:
    """What begins then goes to the original, whether the agent has looked at the flows meanwhile or not."""
    look_later(small)
    assert settled(small), "there are no flows"
    port = 0
    for looked in (False, True):
        small.program(small.entry(way, TCP, small.one, vip=FAR))
        for expected in ("one", "far"):
            with socket_in(small.client, way, socket.SOCK_STREAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, SO_LINGER_RESET)
                sock.bind(("", port))
                sock.connect((FAR[way], WEB))
                port = sock.getsockname()[1]
                assert name_in(sock.recv(200)) == expected
                sock.sendall(b"x" * 5000)
                assert sock.recv(1) == b"x"
            small.program()
            assert not settled(small)
            if looked:
                small.datapath.reconcile()
        assert not settled(small), "a flow of it might still be answered"
    look_later(small)
    assert settled(small)


def look_later(tc: TcWorld) -> None:
    """Have the agent look at the flows when what is not answered by now never will be."""
    for way in WAYS:
        _age(tc, way, 100, "recent")
    tc.datapath.reconcile()


def test_an_agent_that_starts_does_not_know(small: TcWorld) -> None:
    look_later(small)
    assert settled(small)
    small.datapath.close()
    small.open()
    assert not settled(small)
    small.program()
    small.datapath.reconcile()
    assert settled(small)
