"""Where kube-proxy is replaced: who is exempt from a Service's policy has the Service's own endpoints."""

import socket
from collections.abc import Iterator

import pytest

from lrp_operator.resolve.model import FrontendEntry
from tests.datapath.test_skip import skip
from tests.datapath.world import (
    DNS,
    TCP,
    UDP,
    VIP,
    WAYS,
    WEB,
    InNode,
    World,
    address_of,
    ask,
    exchange,
    socket_in,
    with_original,
)

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module")
def shared_replacing(shared_world: World) -> Iterator[InNode]:
    with shared_world.instead(cluster_ip=True) as datapath:
        yield datapath


@pytest.fixture
def replacing(world: World, shared_replacing: InNode) -> Iterator[InNode]:
    """A datapath that replaces kube-proxy; nothing is programmed yet."""
    yield shared_replacing
    world.program(datapath=shared_replacing)


def entries(world: World, *endpoints: str, affinity_seconds: int = 0) -> list[FrontendEntry]:
    """Everything of a Service is redirected to `one`; its own endpoints are others."""
    found = []
    for way in ("4", "6"):
        for protocol, port in ((UDP, DNS), (TCP, WEB)):
            own = [address_of(world.pods[name], way, port, protocol) for name in endpoints]
            redirected = world.entry(way, protocol, world.one)
            found.append(with_original(redirected, *own, affinity_seconds=affinity_seconds))
    return found


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("way", WAYS)
def test_an_exempt_pod_has_the_services_endpoints(world: World, replacing: InNode, way: str) -> None:
    wanted = entries(world, "two")
    world.program(*wanted, skips=[skip(world.client, *wanted)], datapath=replacing)
    for pod, name in ((world.client, "two"), (world.other_client, "one")):
        asked = [pod.ask_udp(VIP[way], DNS, connected=connected) for connected in (False, True)]
        asked.append(pod.ask_tcp(VIP[way], WEB))
        assert [(reply.name, reply.peer[0]) for reply in asked] == [(name, VIP[way])] * 3
    counted = [replacing.hits()[e.frontend] for e in wanted if e.frontend.is_ipv4 == (way != "6")]
    assert [(h.redirected, h.skipped, h.failed) for h in counted] == [(2, 2, 0), (1, 1, 0)]


def test_what_is_in_the_maps_is_told(world: World, replacing: InNode) -> None:
    wanted = entries(world, "two", "three")
    world.program(*wanted, skips=[skip(world.client, *wanted)], datapath=replacing)
    rows = replacing.frontends()
    assert {row.flags for row in rows} == {("local-redirect", "skip", "original")}
    for row, entry in zip(rows, sorted(wanted, key=lambda e: e.frontend.sort_key), strict=True):
        assert entry.original
        slots = [*row.backends, *row.original]
        assert [slot.backend for slot in slots] == [*entry.backends, *entry.original.backends]
        assert [slot.slot for slot in slots] == list(range(row.backends[0].slot, row.backends[0].slot + 3))
    world.program(*wanted, datapath=replacing)
    assert {(row.flags, row.original) for row in replacing.frontends()} == {(("local-redirect",), None)}


@pytest.mark.parametrize("way", WAYS)
def test_an_event_tells_the_endpoint(world: World, replacing: InNode, way: str) -> None:
    wanted = entries(world, "two")
    world.program(*wanted, skips=[skip(world.client, *wanted)], datapath=replacing)
    replacing.watch_events(on=True)
    world.client.ask_udp(VIP[way], DNS)
    world.client.ask_tcp(VIP[way], WEB)
    told = [(event.hook, event.action, event.backend) for event in replacing.read_events()]
    endpoints = [address_of(world.two, way, port, protocol) for port, protocol in ((DNS, UDP), (WEB, TCP))]
    assert told == [("sendmsg", "skipped", endpoints[0]), ("connect", "skipped", endpoints[1])]


@pytest.mark.parametrize("way", WAYS)
def test_a_service_without_endpoints_refuses_them_and_nobody_else(world: World, replacing: InNode, way: str) -> None:
    wanted = entries(world)
    world.program(*wanted, skips=[skip(world.client, *wanted)], datapath=replacing)
    for kind, port in ((socket.SOCK_STREAM, WEB), (socket.SOCK_DGRAM, DNS)):
        with socket_in(world.client, way, kind) as sock, pytest.raises(ConnectionRefusedError):
            sock.connect((VIP[way], port))
    assert world.other_client.ask_tcp(VIP[way], WEB).name == "one"
    hits = replacing.hits()
    assert sum(hits[e.frontend].refused for e in wanted) == 2
    assert not any(hits[e.frontend].skipped for e in wanted)


@pytest.mark.parametrize("way", WAYS)
def test_a_refused_frontend_has_an_original_too(world: World, replacing: InNode, way: str) -> None:
    """A policy that drops: its own pods reach the Service before they are ready."""
    refused = with_original(world.entry(way, UDP), address_of(world.two, way, DNS, UDP))
    world.program(refused, skips=[skip(world.client, refused)], datapath=replacing)
    assert world.client.ask_udp(VIP[way], DNS).name == "two"
    with pytest.raises(ConnectionRefusedError):
        world.other_client.ask_udp(VIP[way], DNS)


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("way", WAYS)
def test_a_socket_follows_what_becomes_of_it(world: World, replacing: InNode, way: str) -> None:
    """Exempt, another endpoint, the policy gone, redirected: always the one address, and an answer from it."""
    to = (VIP[way], DNS)
    with socket_in(world.client, way) as sock:

        def answers(*wanted: FrontendEntry, exempt: bool) -> str:
            skips = [skip(world.client, *wanted)] if exempt else []
            world.program(*wanted, skips=skips, datapath=replacing)
            named = {exchange(sock, to) for _ in range(3)}
            assert {source for _, source in named} == {to}
            return " ".join(name for name, _ in named)

        plain = [e.original for e in entries(world, "three") if e.original]
        assert answers(*entries(world, "two"), exempt=False) == "one"
        assert answers(*entries(world, "two"), exempt=True) == "two"
        assert answers(*entries(world, "three"), exempt=True) == "three"
        assert answers(*plain, exempt=False) == "three"
        assert answers(*entries(world, "two"), exempt=True) == "two"
        assert answers(*entries(world, "two"), exempt=False) == "one"


@pytest.mark.parametrize("way", WAYS)
def test_connected_sockets_are_ended_when_their_endpoint_leaves_and_only_then(
    world: World, replacing: InNode, way: str
) -> None:
    """An endpoint of the Service stands though it is no backend of the policy."""
    wanted = entries(world, "two", "three")
    skips = [skip(world.client, *wanted)]
    world.program(*wanted, skips=skips, datapath=replacing)
    with socket_in(world.client, way) as sock, socket_in(world.other_client, way) as other:
        for one in (sock, other):
            one.connect((VIP[way], DNS))
        name = ask(sock)
        assert ask(other) == "one"
        assert sock.getpeername()[:2] == (VIP[way], DNS)
        assert world.program(*entries(world, name), skips=skips, datapath=replacing).sockets_ended == 0
        (left,) = {"two", "three"} - {name}
        assert world.program(*entries(world, left), skips=skips, datapath=replacing).sockets_ended == 1
        assert ask(other) == "one"


@pytest.mark.parametrize("way", WAYS)
def test_session_affinity_is_the_services(world: World, replacing: InNode, way: str) -> None:
    wanted = entries(world, "two", "three", affinity_seconds=600)
    world.program(*wanted, skips=[skip(world.client, *wanted)], datapath=replacing)
    assert len({world.client.ask_udp(VIP[way], DNS).name for _ in range(12)}) == 1
    loose = entries(world, "two", "three")
    world.program(*loose, skips=[skip(world.client, *loose)], datapath=replacing)
    assert {world.client.ask_udp(VIP[way], DNS).name for _ in range(30)} == {"two", "three"}


def test_the_next_agent_adopts_it(world: World, replacing: InNode) -> None:
    wanted = entries(world, "two")
    skips = [skip(world.client, *wanted)]
    world.program(*wanted, skips=skips, datapath=replacing)
    generations = {row.generation for row in replacing.frontends()}
    replacing.close()
    assert world.client.ask_udp(VIP["4"], DNS).name == "two"
    replacing.open()
    assert world.program(*wanted, skips=skips, datapath=replacing).written == 0
    assert {row.generation for row in replacing.frontends()} == generations
