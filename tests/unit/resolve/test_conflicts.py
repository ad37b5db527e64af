"""Section 6: who has a frontend."""

from ipaddress import ip_network

import pytest

from lrp_operator.api.objects import ClusterObject, Node, NodeAddress, NodeStatus, ObjectMeta, Policy, Service
from lrp_operator.resolve.engine import ResolveOptions, Resolver
from tests.unit.resolve.builders import (
    METADATA_IP,
    NODE,
    frontend_verdicts,
    node,
    pod,
    policy,
    reasons,
    run,
    service,
    table,
    verdict,
)

FRONTEND = f"{METADATA_IP}:8080/TCP"
OLD, NEW = "2024-01-01T00:00:00Z", "2024-06-01T00:00:00Z"


def holder(*policies: Policy) -> str | None:
    (entry,) = run(*policies, pod("a"), pod("b", ns="other")).frontends
    return entry.policy


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (policy("z", created=OLD), policy("a", created=NEW)),
        (policy("z", created=NEW), policy("a", created=None)),
        (policy("z", created=NEW), policy("a", created="yesterday")),
        (policy("a", created=OLD), policy("b", created=OLD)),
        (policy("a", created=None), policy("b", created=None)),
        (policy("z"), policy("a", ns="other")),  # equally old: default comes before other
        (policy("z", created="2024-01-01T02:00:00+02:00"), policy("a", created="2024-01-01T00:00:01Z")),
    ],
)
def test_the_older_has_it_then_the_first_by_name(first: Policy, second: Policy) -> None:
    assert holder(first, second) == holder(second, first) == first.metadata.key


def test_the_loser_is_told_who_has_it_and_why() -> None:
    result = run(policy("old", created=OLD), policy("new", created=NEW), pod())
    (lost,) = frontend_verdicts(result, "default/new").values()
    assert (lost.redirected, lost.reason) == (False, "Conflict")
    assert lost.message == "Policy default/old has this frontend: it is older."
    assert verdict(result, "default/new").reason == "Accepted"

    result = run(policy("a"), policy("b"), pod())
    (lost,) = frontend_verdicts(result, "default/b").values()
    assert lost.message == "Policy default/a has this frontend: it is equally old and comes first by name."


def test_a_policy_without_a_backend_holds_its_frontend() -> None:
    result = run(
        policy("old", created=OLD, selector={"matchLabels": {"app": "gone"}}), policy("new", created=NEW), pod()
    )
    assert result.frontends == ()
    assert reasons(result, "default/old") == {FRONTEND: "NoLocalPod"}
    assert reasons(result, "default/new") == {FRONTEND: "Conflict"}


def test_a_rejected_policy_holds_nothing() -> None:
    broken = policy("old", created=OLD, backends=["80/UDP"])
    result = run(broken, policy("new", created=NEW), pod())
    assert verdict(result, "default/old").reason == "Invalid"
    assert reasons(result, "default/new") == {FRONTEND: None}


def test_conflicts_are_per_port_and_protocol() -> None:
    udp = policy("udp", service="dns", ports=["53/UDP"], backends=["53/UDP"], created=OLD)
    everything = policy("all", service="dns", backends=["53/TCP"], created=NEW)
    result = run(service(), udp, everything, pod(ports=[]))
    assert {str(entry.frontend): entry.policy for entry in result.frontends} == {
        "10.96.0.10:53/TCP": "default/all",
        "10.96.0.10:53/UDP": "default/udp",
    }
    assert reasons(result, "default/all") == {"10.96.0.10:53/TCP": None, "10.96.0.10:53/UDP": "Conflict"}


def test_the_loser_gets_the_frontend_when_the_winner_goes() -> None:
    resolver = Resolver(NODE, ResolveOptions())
    for obj in (policy("old", created=OLD), policy("new", created=NEW), pod()):
        resolver.upsert(obj)
    resolver.resolve()
    resolver.delete(Policy, "default/old")
    delta = resolver.resolve()
    (entry,) = delta.frontends.values()
    assert entry is not None
    assert entry.policy == "default/new"
    assert set(delta.verdicts) == {"default/old", "default/new"}


NODE_IP = "192.168.0.1"


@pytest.mark.parametrize(
    ("owner", "ip", "port", "message"),
    [
        (
            service(),
            "10.96.0.10",
            "53/TCP",
            "10.96.0.10:53/TCP is a ClusterIP of Service default/dns; a serviceMatcher",
        ),
        (
            service("dns", "None", external_ips=["1.2.3.4"]),
            "1.2.3.4",
            "53/TCP",
            "is an external IP of Service default/dns.",
        ),
        (service(load_balancer_ips=["5.6.7.8"]), "5.6.7.8", "53/TCP", "is a load-balancer IP of Service default/dns."),
        (service(node_ports=[30053]), NODE_IP, "30053/UDP", "is a nodePort of Service default/dns at an address of"),
        (service("dns", "fd00::10"), "fd00::10", "53/UDP", "[fd00::10]:53/UDP is a ClusterIP of Service default/dns"),
    ],
)
def test_an_address_of_a_service_is_never_taken(owner: Service, ip: str, port: str, message: str) -> None:
    taker = policy(ip=ip, ports=[port], backends=["80/TCP", "80/UDP"][port.endswith("UDP") :][:1], created=OLD)
    here = pod("a", "10.244.0.1", "fd00::1", ports=[])
    result = run(owner, taker, here, node(NODE_IP))
    (lost,) = frontend_verdicts(result).values()
    assert (lost.reason, lost.redirected) == ("AddressOwnedByService", False)
    assert message in lost.message
    assert result.frontends == ()

    (found,) = frontend_verdicts(run(taker, here, node(NODE_IP))).values()  # the Service gone, the policy gets it
    assert found.redirected


@pytest.mark.parametrize(
    ("objects", "ip", "port"),
    [
        ([service()], "10.96.0.10", "54/TCP"),  # another port
        ([service(ports=["53/TCP"])], "10.96.0.10", "53/UDP"),  # another protocol
        ([service(node_ports=[30053]), node(NODE_IP, name="n2")], NODE_IP, "30053/UDP"),  # another node's address
        ([service(node_ports=[30053])], NODE_IP, "30053/UDP"),  # nothing says that it is this node's
        ([service(node_ports=[30053]), node("hostname")], NODE_IP, "30053/UDP"),
        ([service(node_ports=[30053]), node(NODE_IP)], NODE_IP, "53/UDP"),  # the Service's port, but not its nodePort
    ],
)
def test_what_does_not_belong_to_a_service_can_be_taken(objects: list[ClusterObject], ip: str, port: str) -> None:
    taker = policy(ip=ip, ports=[port], backends=[f"80/{port[-3:]}"])
    assert reasons(run(*objects, taker, pod(ports=[]))) == {f"{ip}:{port}": None}


def test_a_service_matcher_takes_what_an_older_address_matcher_may_not() -> None:
    by_address = policy("address", ip="10.96.0.10", ports=["53/UDP"], backends=["53/UDP"], created=OLD)
    by_service = policy("service", service="dns", ports=["53/UDP"], backends=["53/UDP"], created=NEW)
    result = run(service(), by_address, by_service, pod(ports=[]))
    assert reasons(result, "default/address") == {"10.96.0.10:53/UDP": "AddressOwnedByService"}
    assert reasons(result, "default/service") == {"10.96.0.10:53/UDP": None}


def test_a_node_port_goes_with_the_nodes_addresses() -> None:
    resolver = Resolver(NODE, ResolveOptions())
    taker = policy(ip=NODE_IP, ports=["30053/UDP"], backends=["53/UDP"])
    for obj in (service(node_ports=[30053]), taker, pod(ports=[])):
        resolver.upsert(obj)
    resolver.resolve()
    for addresses, reason in (([NODE_IP], "AddressOwnedByService"), (["192.168.0.2"], None)):
        resolver.upsert(node(*addresses))
        resolver.resolve()
        assert reasons(resolver.resolution()) == {f"{NODE_IP}:30053/UDP": reason}


@pytest.mark.parametrize(
    ("cidrs", "allowed"),
    [
        ([], True),
        (["169.254.0.0/16"], True),
        (["10.0.0.0/8", "169.254.169.254/32"], True),
        (["10.0.0.0/8"], False),
        (["::/0"], False),
        (["::ffff:169.254.0.0/112"], True),  # written as mapped, it is the IPv4 network
    ],
)
def test_address_matcher_cidrs(cidrs: list[str], allowed: bool) -> None:
    result = run(policy(), pod(), cidrs=[ip_network(cidr) for cidr in cidrs])
    assert bool(table(result)) == allowed
    found = verdict(result)
    assert (found.accepted, found.reason) == ((True, "Accepted") if allowed else (False, "AddressNotAllowed"))
    if not allowed:
        assert found.frontends == ()
        networks = ", ".join(cidrs)
        assert found.message == (
            f"Address {METADATA_IP} is outside localRedirectPolicies.addressMatcherCIDRs ({networks})."
        )


def test_an_address_that_is_not_allowed_is_not_held() -> None:
    result = run(
        service("dns", METADATA_IP, ports=["8080/TCP"]),
        policy("a", created=OLD),
        policy("b", service="dns", created=NEW),
        pod(),
        cidrs=[ip_network("10.0.0.0/8")],
    )
    assert reasons(result, "default/b") == {FRONTEND: None}


def test_service_frontends_are_not_bound_to_the_cidrs() -> None:
    result = run(service(), policy(service="dns"), pod(), cidrs=[ip_network("203.0.113.0/24")])
    assert table(result) == {"10.96.0.10:53/TCP": ["10.244.0.1:80/TCP"]}


@pytest.mark.parametrize(("kind", "owned"), [("InternalIP", True), ("ExternalIP", True), ("Hostname", False)])
def test_the_nodes_addresses_are_its_internal_and_external_ones(kind: str, owned: bool) -> None:
    here = Node(ObjectMeta(NODE), NodeStatus([NodeAddress(kind, NODE_IP)]))
    taker = policy(ip=NODE_IP, ports=["30053/UDP"], backends=["53/UDP"])
    result = run(service(node_ports=[30053]), here, taker, pod(ports=[]))
    assert reasons(result) == {f"{NODE_IP}:30053/UDP": "AddressOwnedByService" if owned else None}
