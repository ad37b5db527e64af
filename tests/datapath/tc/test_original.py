"""Where kube-proxy is replaced: an exempt pod's packets go to the Service's own endpoints, as if it had no policy."""

from collections.abc import Iterator

import pytest

from lab import Node
from lrp_operator.api.addresses import L4Addr
from lrp_operator.resolve.model import FrontendEntry
from tests.datapath.tc.tcworld import DNS, TCP, UDP, VIP, WAYS, WEB, TcWorld
from tests.datapath.world import exchange, socket_in, with_original

pytestmark = pytest.mark.privileged


@pytest.fixture(scope="module", params=["routed", "bridged"])
def shared_replacing(request: pytest.FixtureRequest) -> Iterator[TcWorld]:
    with Node() as node:
        world = TcWorld(node, bridged=request.param == "bridged", cluster_ip=True)
        world.open()
        yield world
        world.close()


@pytest.fixture
def tc(shared_replacing: TcWorld, _root: None) -> Iterator[TcWorld]:
    shared_replacing.program()
    yield shared_replacing
    shared_replacing.program()


def entries(tc: TcWorld, way: str, *endpoints: str, affinity_seconds: int = 0) -> list[FrontendEntry]:
    """Everything of a Service is redirected to `one` and `two`; its own endpoints are others."""
    found = []
    for protocol, port in ((UDP, DNS), (TCP, WEB)):
        pods = [getattr(tc, name) for name in endpoints]
        own = [L4Addr.make(pod.ipv4 if way == "4" else pod.ipv6, port, protocol) for pod in pods]
        redirected = tc.entry(way, protocol, tc.one, tc.two)
        found.append(with_original(redirected, *own, affinity_seconds=affinity_seconds))
    return found


@pytest.mark.parametrize("way", WAYS)
def test_an_exempt_pod_has_the_services_endpoints_whoever_would_have_been_chosen(tc: TcWorld, way: str) -> None:
    wanted = entries(tc, way, "far")
    tc.program(*wanted, skips=[tc.skip(tc.one, *wanted)])
    for _ in range(6):
        for connected in (False, True):
            reply = tc.one.ask_udp(VIP[way], DNS, connected=connected)
            assert (reply.name, reply.peer) == ("far", (VIP[way], DNS))
        reply = tc.one.ask_tcp(VIP[way], WEB, payload=b"x" * 9000)
        assert (reply.name, reply.peer, len(reply.echo)) == ("far", (VIP[way], WEB), 9000)
    assert tc.client.ask_udp(VIP[way], DNS).name in {"one", "two"}
    hits = [tc.datapath.hits()[e.frontend] for e in wanted]
    assert [(h.redirected, h.skipped) for h in hits] == [(1, 12), (0, 6)]


@pytest.mark.parametrize("way", WAYS)
def test_an_event_tells_the_endpoint(tc: TcWorld, way: str) -> None:
    wanted = entries(tc, way, "far")
    tc.program(*wanted, skips=[tc.skip(tc.one, *wanted)])
    tc.datapath.watch_events(on=True)
    tc.one.ask_udp(VIP[way], DNS)
    tc.one.ask_tcp(VIP[way], WEB)
    told = [(event.hook, event.action, event.backend) for event in tc.datapath.read_events()]
    tc.datapath.watch_events(on=False)
    assert told == [("packet", "skipped", e.original.backends[0]) for e in wanted if e.original]


@pytest.mark.parametrize("way", WAYS)
def test_a_service_without_endpoints_refuses_it_and_nobody_else(tc: TcWorld, way: str) -> None:
    wanted = entries(tc, way)
    tc.program(*wanted, skips=[tc.skip(tc.one, *wanted)])
    with pytest.raises(ConnectionRefusedError):
        tc.one.ask_tcp(VIP[way], WEB, timeout=0.5)
    with pytest.raises(ConnectionRefusedError):
        tc.one.ask_udp(VIP[way], DNS, timeout=0.5, connected=True)
    assert tc.client.ask_tcp(VIP[way], WEB).name in {"one", "two"}


@pytest.mark.parametrize("way", WAYS)
def test_a_flow_follows_what_becomes_of_it(tc: TcWorld, way: str) -> None:
    """One source port: redirected, exempt, the policy gone, and redirected again."""
    wanted = entries(tc, way, "far")
    plain = [e.original for e in wanted if e.original]
    to = (VIP[way], DNS)
    with socket_in(tc.one, way) as sock:
        for table, exempt, names in (
            (wanted, False, {"one", "two"}),
            (wanted, True, {"far"}),
            (plain, False, {"far"}),
            (wanted, True, {"far"}),
            (wanted, False, {"one", "two"}),
        ):
            tc.program(*table, skips=[tc.skip(tc.one, *wanted)] if exempt else [])
            for _ in range(3):
                name, source = exchange(sock, to)
                assert name in names
                assert source == to


@pytest.mark.parametrize("way", WAYS)
def test_one_source_port_to_the_service_and_to_its_endpoint(tc: TcWorld, way: str) -> None:
    """Both are answered by the endpoint, each as whom it was sent to."""
    wanted = entries(tc, way, "far")
    tc.program(*wanted, skips=[tc.skip(tc.one, *wanted)])
    itself = (tc.far.ipv4 if way == "4" else tc.far.ipv6, DNS)
    for first, second in (((VIP[way], DNS), itself), (itself, (VIP[way], DNS))):
        with socket_in(tc.one, way) as sock:
            for _ in range(3):
                assert exchange(sock, first) == ("far", first)
                assert exchange(sock, second) == ("far", second)


@pytest.mark.parametrize("way", WAYS)
def test_session_affinity_is_the_services(tc: TcWorld, way: str) -> None:
    wanted = entries(tc, way, "far", "two", affinity_seconds=600)
    tc.program(*wanted, skips=[tc.skip(tc.one, *wanted)])
    assert len({tc.one.ask_udp(VIP[way], DNS).name for _ in range(12)}) == 1
    loose = entries(tc, way, "far", "two")
    tc.program(*loose, skips=[tc.skip(tc.one, *loose)])
    assert {tc.one.ask_udp(VIP[way], DNS).name for _ in range(30)} == {"far", "two"}
