"""Who is exempt reaches the original destination; who is not in scope is left alone."""

import pytest

from lab import Pod
from lrp_operator.api.addresses import parse_ip
from lrp_operator.datapath.model import SocketLevel
from lrp_operator.resolve.model import Delta, FrontendEntry, SkipEntry
from tests.datapath.world import DNS, FAR, TCP, UDP, VIP, WAYS, WEB, World, exchange, socket_in

pytestmark = pytest.mark.privileged


def skip(pod: Pod, *entries: FrontendEntry, host_network: bool = False) -> SkipEntry:
    ips = tuple(parse_ip(address) for address in pod.addresses)
    return SkipEntry(f"default/{pod.short_name}", "uid", ips, host_network, tuple(e.frontend for e in entries))


def redirected(world: World) -> list[FrontendEntry]:
    """Everything of a remote endpoint, so that who is exempt gets an answer from there."""
    return [world.entry(way, protocol, world.one, vip=FAR) for way in ("4", "6") for protocol in (UDP, TCP)]


@pytest.mark.parametrize("way", WAYS)
def test_an_exempt_pod_reaches_the_original_others_do_not(world: World, way: str) -> None:
    entries = redirected(world)
    world.program(*entries, skips=[skip(world.client, *entries)])
    asked = [
        pod.ask_udp(FAR[way], DNS, connected=connected)
        for pod in (world.client, world.other_client)
        for connected in (0, 1)
    ] + [pod.ask_tcp(FAR[way], WEB) for pod in (world.client, world.other_client)]
    assert [reply.name for reply in asked] == ["far", "far", "one", "one", "far", "one"]
    assert {reply.peer[0] for reply in asked} == {FAR[way]}
    hits = world.datapath.hits()
    counted = [hits[e.frontend] for e in entries if e.frontend.is_ipv4 == (way != "6")]
    assert [(h.redirected, h.skipped) for h in counted] == [(2, 2), (1, 1)]
    cookies = {(k.netns_cookie, k.pod) for k in world.datapath.skips()}
    assert cookies == {(world.client.cookie, "default/client")}
    # And back.
    world.program(*entries)
    assert world.client.ask_udp(FAR[way], DNS).name == "one"
    assert world.datapath.skips() == []


def test_an_exemption_is_of_one_protocol_and_port(world: World) -> None:
    entries = redirected(world)
    world.program(*entries, skips=[skip(world.client, entries[0])])  # IPv4, UDP
    assert entries[0].frontend.protocol is UDP
    assert world.client.ask_udp(FAR["4"], DNS).name == "far"
    assert world.client.ask_tcp(FAR["4"], WEB).name == "one"
    assert world.client.ask_udp(FAR["6"], DNS).name == "one"
    flags = {(row.frontend, "skip" in row.flags) for row in world.datapath.frontends()}
    assert flags == {(e.frontend, e is entries[0]) for e in entries}


def test_an_exempt_pod_is_not_refused(world: World) -> None:
    refused = world.entry("4", UDP, vip=FAR)
    world.program(refused, skips=[skip(world.client, refused)])
    assert world.client.ask_udp(FAR["4"], DNS).name == "far"
    with pytest.raises(ConnectionRefusedError):
        world.other_client.ask_udp(FAR["4"], DNS)


def test_an_answer_of_the_original_is_not_taken_for_another_frontends(world: World) -> None:
    """The original of one frontend is the backend of another, and one socket talks to both."""
    other, exempt = world.entry("4", UDP, world.far), world.entry("4", UDP, world.one, vip=FAR)
    world.program(other, exempt, skips=[skip(world.client, exempt)])
    with socket_in(world.client, "4") as sock:
        for _ in range(2):
            assert exchange(sock, (VIP["4"], DNS)) == ("far", (VIP["4"], DNS))
            assert exchange(sock, (FAR["4"], DNS)) == ("far", (FAR["4"], DNS))


def test_a_pod_on_the_nodes_own_network(world: World) -> None:
    entries = redirected(world)
    world.program(*entries)
    assert world.node.ask_udp(FAR["4"], DNS).name == "one"
    world.program(*entries, skips=[skip(world.client, *entries, host_network=True)])
    assert [world.node.ask_udp(FAR[way], DNS).name for way in WAYS] == ["far"] * 3
    assert [world.client.ask_udp(FAR[way], DNS).name for way in WAYS] == ["one"] * 3
    assert {k.netns_cookie for k in world.datapath.skips()} == {world.node.cookie}


def test_a_pod_that_comes_later_is_exempt_once_its_link_is_there(world: World) -> None:
    wanted = world.entry("4", UDP, world.one, vip=FAR)
    late = SkipEntry(
        "default/late", "uid", (parse_ip("10.244.0.77"),), host_network=False, frontends=(wanted.frontend,)
    )
    world.program(wanted)
    world.datapath.update(Delta({}, {}, {late.pod: late}))
    report = world.datapath.flush(complete=True)
    assert len(report.problems) == 1
    assert "default/late" in report.problems[0]
    assert "skipRedirectFromBackend is not in force" in report.problems[0]
    assert world.datapath.status().problems == report.problems
    pod = world.node.pod("late", ipv4="10.244.0.77")
    try:
        assert pod.ask_udp(FAR["4"], DNS).name == "one"
        world.datapath.relocate()
        assert world.datapath.flush(complete=True).problems == ()
        assert pod.ask_udp(FAR["4"], DNS).name == "far"
    finally:
        pod.remove()
        world.datapath.update(Delta({}, {}, {late.pod: None}))
        world.datapath.flush(complete=True)
    assert world.datapath.skips() == []


def test_a_foreign_exemption_is_removed(world: World) -> None:
    wanted = world.entry("4", UDP, world.one, vip=FAR)
    world.program(wanted, skips=[skip(world.other_client, wanted)])
    maps = world.datapath.inner._opened._maps
    from lrp_operator.datapath.layout import client_key  # noqa: PLC0415 (only here)

    maps["skip4"].update(client_key(world.client.cookie, wanted.frontend), b"\1")
    assert world.client.ask_udp(FAR["4"], DNS).name == "far"
    world.datapath.reconcile()
    assert world.client.ask_udp(FAR["4"], DNS).name == "one"
    assert world.other_client.ask_udp(FAR["4"], DNS).name == "far"


def test_host_namespace_only(world: World) -> None:
    with world.instead(socket_level=SocketLevel.HOST_ONLY) as datapath:
        world.program(*redirected(world), datapath=datapath)
        assert [world.node.ask_udp(FAR[way], DNS).name for way in WAYS] == ["one"] * 3
        assert [world.node.ask_tcp(FAR[way], WEB).name for way in WAYS] == ["one"] * 3
        assert [world.client.ask_udp(FAR[way], DNS).name for way in WAYS] == ["far"] * 3
        assert [world.client.ask_tcp(FAR[way], WEB).name for way in WAYS] == ["far"] * 3


def test_switched_off(world: World) -> None:
    with world.instead(socket_level=SocketLevel.OFF) as datapath:
        world.program(*redirected(world), datapath=datapath)
        assert [world.node.ask_udp(FAR[way], DNS).name for way in WAYS] == ["far"] * 3
        assert datapath.status().programs == {}
