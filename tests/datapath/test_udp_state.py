"""What an unconnected UDP socket remembers of the frontends that it talks to."""

import selectors
import socket
from collections.abc import Callable, Iterator

import pytest

from lrp_operator.api.addresses import L4Addr
from tests.datapath.world import (
    DNS,
    UDP,
    VIP,
    VIP2,
    WAYS,
    World,
    address_of,
    ask,
    entry,
    exchange,
    name_in,
    socket_in,
    written,
)

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("memory")]


def frontend(way: str, number: int) -> tuple[str, L4Addr]:
    host = {"4": f"10.97.0.{number}", "6": f"fd00:97::{number:x}", "mapped": f"::ffff:10.97.0.{number}"}[way]
    return host, L4Addr.make(host, DNS, UDP)


@pytest.fixture(scope="module")
def ports(shared_world: World) -> Iterator[list[int]]:
    """Seventy echoing ports of one pod: seventy backends."""
    pod = shared_world.one

    def ready_server(send: Callable[[object], None]) -> None:
        sockets = []
        for host, family in (("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6)):
            for port in range(6000, 6070):
                sock = socket.socket(family, socket.SOCK_DGRAM)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind((host, port))
                sockets.append(sock)
        selector = selectors.DefaultSelector()
        for sock in sockets:
            selector.register(sock, selectors.EVENT_READ)
        send("ready")
        while True:
            for key, _ in selector.select():
                data, client = key.fileobj.recvfrom(100)  # type: ignore[union-attr]
                key.fileobj.sendto(data, client)  # type: ignore[union-attr]

    child = pod._fork(ready_server)
    child.result(10)
    yield list(range(6000, 6070))
    child.end()


@pytest.mark.parametrize("way", WAYS)
def test_one_socket_and_64_frontends(world: World, way: str, ports: list[int]) -> None:
    hosts = {frontend(way, n): ports[n - 1] for n in range(1, 65)}
    world.program(*(entry(f, address_of(world.one, way, port, UDP)) for (_, f), port in hosts.items()))
    with socket_in(world.client, way) as sock:
        for host, _ in hosts:
            sock.sendto(host.encode(), (host, DNS))
        answers = [sock.recvfrom(100) for _ in hosts]
        assert {(text.decode(), *source[:2]) for text, source in answers} == {(host, host, DNS) for host, _ in hosts}
        # Once more, in another order, now that all are known.
        for host, _ in reversed(hosts):
            sock.sendto(host.encode(), (host, DNS))
            answer, source = sock.recvfrom(100)
            assert (answer.decode(), source[:2]) == (host, (host, DNS))


@pytest.mark.parametrize("way", ["4", "6"])
def test_an_entry_used_again_takes_the_new_frontends_name(world: World, way: str, ports: list[int]) -> None:
    """The 69th frontend of a socket takes the place of the fifth, even where they share a backend."""
    servers = [*ports[:68], ports[4]]
    hosts = [frontend(way, n) for n in range(1, 70)]
    backends = [address_of(world.one, way, port, UDP) for port in servers]
    world.program(*(entry(f, b) for (_, f), b in zip(hosts, backends, strict=True)))
    with socket_in(world.client, way) as sock:
        for host, _ in hosts:
            sock.sendto(b"?", (host, DNS))
            assert sock.recvfrom(100)[1][:2] == (host, DNS)


@pytest.mark.parametrize("way", WAYS)
def test_a_socket_stays_with_its_backend_while_that_is_there(world: World, way: str) -> None:
    everyone = [world.one, world.two, world.three]
    world.program(world.entry(way, UDP, *everyone))
    with socket_in(world.client, way) as sock:
        name, _ = exchange(sock, (VIP[way], DNS))
        assert {exchange(sock, (VIP[way], DNS))[0] for _ in range(15)} == {name}
        # The run is written anew, and the backend stands elsewhere in it.
        world.program(world.entry(way, UDP, world.pods[name]))
        assert exchange(sock, (VIP[way], DNS))[0] == name
        world.program(world.entry(way, UDP, *everyone))
        assert {exchange(sock, (VIP[way], DNS)) for _ in range(15)} == {(name, (VIP[way], DNS))}
        rest = [pod for pod in everyone if pod.short_name != name]
        world.program(world.entry(way, UDP, *rest))
        moved, source = exchange(sock, (VIP[way], DNS))
        assert moved != name
        assert source == (VIP[way], DNS)
        # Having moved it stays where it is now.
        world.program(world.entry(way, UDP, *everyone))
        assert {exchange(sock, (VIP[way], DNS))[0] for _ in range(15)} == {moved}


@pytest.mark.parametrize("way", WAYS)
def test_of_two_frontends_with_one_backend_the_last_sent_to_wins(world: World, way: str) -> None:
    world.program(world.entry(way, UDP, world.one), world.entry(way, UDP, world.one, vip=VIP2))
    with socket_in(world.client, way) as sock:
        for vip in (VIP, VIP2, VIP, VIP, VIP2, VIP2):
            assert exchange(sock, (vip[way], DNS)) == ("one", (vip[way], DNS))


@pytest.mark.parametrize("way", WAYS)
def test_a_socket_that_dials_the_pod_itself_sees_the_pod(world: World, way: str) -> None:
    world.program(world.entry(way, UDP, world.one))
    pod = (written(world.one, way), DNS)
    with socket_in(world.client, way) as sock:
        for _ in range(2):
            assert exchange(sock, (VIP[way], DNS)) == ("one", (VIP[way], DNS))
            assert exchange(sock, pod) == ("one", pod)
    with socket_in(world.client, way) as sock:
        sock.connect((VIP[way], DNS))
        assert ask(sock) == "one"
        sock.connect(pod)
        assert ask(sock) == "one"
        assert sock.getpeername()[:2] == pod


def test_a_late_answer_of_a_backend_that_left_still_shows_the_frontend(world: World) -> None:
    world.program(world.entry("4", UDP, world.one))
    with socket_in(world.client, "4") as sock:
        sock.sendto(b"?", (VIP["4"], DNS))
        world.program()
        answer, source = sock.recvfrom(100)
        assert (name_in(answer), source) == ("one", (VIP["4"], DNS))


def test_sockets_do_not_share_what_they_remember(world: World) -> None:
    world.program(world.entry("4", UDP, world.one))
    with socket_in(world.client, "4") as redirected, socket_in(world.client, "4") as direct:
        assert exchange(redirected, (VIP["4"], DNS)) == ("one", (VIP["4"], DNS))
        assert exchange(direct, (world.one.ipv4, DNS)) == ("one", (world.one.ipv4, DNS))
        assert exchange(redirected, (VIP["4"], DNS)) == ("one", (VIP["4"], DNS))
