"""Beside kube-proxy: its rules serve what is not redirected, and its conntrack never sees half a connection of ours."""

from collections.abc import Iterator

import pytest

from lab import KubeProxy, Network, Service
from lab.node import Node
from tests.datapath.tc.tcworld import DNS, TCP, UDP, VIP, WAYS, WEB, TcWorld
from tests.datapath.world import exchange, name_in, socket_in

pytestmark = pytest.mark.privileged

OTHER = {"4": "10.96.0.20", "6": "fd00:96::20"}


class Beside:
    """A node with kube-proxy's rules and the TC level, and another node where Services have their endpoints."""

    def __init__(self, near: Node, remote: Node, mode: str, *, bridged: bool) -> None:
        self.tc = TcWorld(near, bridged=bridged)
        self.sees_bridged = True  # whether netfilter sees what one pod of a bridge sends to another
        self.remote = remote.pod("remote")
        self.remote.serve_tcp(WEB, "remote")
        self.remote.serve_udp(DNS, "remote")
        self.proxy = KubeProxy(near, mode)  # type: ignore[arg-type]
        self.proxy.write(
            [
                Service(f"default/{name}{way}:{port}{protocol}", vip[way], port, [self._endpoint(way, port)], protocol)
                for name, vip in (("ours", VIP), ("other", OTHER))
                for way in WAYS
                for port, protocol in ((WEB, "TCP"), (DNS, "UDP"))
            ]
        )

    def _endpoint(self, way: str, port: int) -> str:
        return f"{self.remote.ipv4}:{port}" if way == "4" else f"[{self.remote.ipv6}]:{port}"


@pytest.fixture(
    scope="module",
    params=["iptables routed", "nftables routed", "iptables bridged 0", "iptables bridged 1", "nftables bridged 0"],
)
def beside(request: pytest.FixtureRequest) -> Iterator[Beside]:
    mode, shape, *filtered = request.param.split()
    with Network() as network:
        world = Beside(network.node(), network.node(), mode, bridged=shape == "bridged")
        if filtered:
            world.sees_bridged = filtered == ["1"]
            world.tc.node.filter_bridged(on=world.sees_bridged)
        world.tc.open()
        yield world
        world.tc.close()
        world.proxy.remove()


@pytest.mark.parametrize("way", WAYS)
def test_redirected_services_go_through_us_and_others_through_the_rules(beside: Beside, way: str) -> None:
    tc = beside.tc
    tc.program()
    for vip, name in ((VIP, "remote"), (OTHER, "remote")):
        assert tc.client.ask_tcp(vip[way], WEB).name == tc.client.ask_udp(vip[way], DNS).name == name
    tc.program(tc.entry(way, TCP, tc.one), tc.entry(way, UDP, tc.one))
    payload = bytes(40_000)
    for vip, name in ((VIP, "one"), (OTHER, "remote")):
        stream = tc.client.ask_tcp(vip[way], WEB, payload=payload, timeout=10)
        assert (stream.name, stream.peer, stream.echo) == (name, (vip[way], WEB), payload)
        datagram = tc.client.ask_udp(vip[way], DNS, payload=bytes(4000))
        assert (datagram.name, datagram.peer, len(datagram.echo)) == (name, (vip[way], DNS), 4000)
    assert tc.node.ask_udp(VIP[way], DNS).name == "remote", "the node's own sockets are kube-proxy's"


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_lasts_beside_the_rule_that_drops_what_is_invalid(beside: Beside, way: str) -> None:
    """Many packets each way, with pauses that let conntrack decide what it has seen."""
    tc = beside.tc
    tc.program(tc.entry(way, TCP, tc.one))
    with socket_in(tc.client, way, 1) as sock:
        sock.connect((VIP[way], WEB))
        assert name_in(sock.recv(200)) == "one"
        for number in range(50):
            sock.sendall(bytes([number]) * 1000)
            got = b""
            while len(got) < 1000:
                got += sock.recv(2000)
            assert got == bytes([number]) * 1000


@pytest.mark.parametrize("way", WAYS)
def test_what_conntrack_remembers_sends_nothing_elsewhere(beside: Beside, way: str) -> None:
    """One socket's datagrams before, with and after the policy: conntrack has an entry for its port all the time."""
    tc = beside.tc
    tc.program()
    with socket_in(tc.client, way) as sock:
        for entries, name in (([], "remote"), ([tc.entry(way, UDP, tc.one)], "one"), ([], "remote")):
            tc.program(*entries)
            for _ in range(3):
                assert exchange(sock, (VIP[way], DNS)) == (name, (VIP[way], DNS))


@pytest.mark.parametrize("way", WAYS)
def test_an_endpoint_of_the_service_that_becomes_the_backend(beside: Beside, way: str) -> None:
    """Conntrack has translated this very pair of addresses and ports before; now the TC level does.

    Where netfilter does not see bridged packets, kube-proxy can't serve a Service by a pod of the client's own bridge
    (the reply is not translated back); then only our part is looked at.
    """
    tc = beside.tc
    endpoint = tc.one.ipv4 if way == "4" else tc.one.ipv6
    services = [
        Service(
            f"default/s{way}:dns", VIP[way], DNS, [f"[{endpoint}]:{DNS}" if way == "6" else f"{endpoint}:{DNS}"], "UDP"
        )
    ]
    tc.program()
    beside.proxy.write(services)
    with socket_in(tc.client, way) as sock:
        for entries in ([], [tc.entry(way, UDP, tc.one)], []):
            tc.program(*entries)
            for _ in range(3 if entries or beside.sees_bridged else 0):
                assert exchange(sock, (VIP[way], DNS)) == ("one", (VIP[way], DNS))
