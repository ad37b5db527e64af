"""Tenants' input never raises: what is garbage is left out, and the rest works."""

from typing import Any

import pytest

from lrp_operator.api.objects import (
    ClusterObject,
    Container,
    ContainerPort,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    NodeAddress,
    NodeStatus,
    ObjectMeta,
    Pod,
    PodIP,
    PodSpec,
    PodStatus,
    Policy,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from lrp_operator.resolve.engine import ClusterIPs
from tests.unit.resolve.builders import (
    METADATA_IP,
    NODE,
    changed,
    endpoint,
    endpoint_slice,
    node,
    pod,
    policy,
    run,
    service,
    table,
    verdict,
)

BAD_IPS = [
    "",
    "None",
    "nonsense",
    "10.0.0",
    "010.0.0.1",
    "10.0.0.1/32",
    "fe80::1%eth0",
    "1" * 5000,
    "\uff11.1.1.1",
    "\0",
]
FRONTEND = f"{METADATA_IP}:8080/TCP"


@pytest.mark.parametrize("bad", BAD_IPS)
def test_an_address_that_is_none_is_left_out(bad: str) -> None:
    pods = [pod("a", bad), pod("b", "10.244.0.2", bad), changed(pod("c", "10.244.0.3"), status__pod_ip=bad)]
    assert table(run(policy(), *pods)) == {FRONTEND: ["10.244.0.2:80/TCP", "10.244.0.3:80/TCP"]}

    objects = [
        service("dns", "10.96.0.10", bad, ports=["53/UDP"], external_ips=[bad], load_balancer_ips=[bad]),
        endpoint_slice(endpoint(bad), endpoint("10.0.0.1"), ports=["53/UDP"]),
        node(bad),
    ]
    expected = {"10.96.0.10:53/UDP": ["10.0.0.1:53/UDP"]} if bad != "None" else {}
    assert table(run(*objects, cluster_ips=ClusterIPs.SERVE)) == expected


@pytest.mark.parametrize("number", [0, -1, 65536, 1 << 70])
@pytest.mark.parametrize("protocol", ["TCP", "tcp", "bogus", ""])
def test_a_port_that_is_none_is_left_out(number: int, protocol: str) -> None:
    dns = service(ports=["53/TCP"])
    assert dns.spec.ports is not None
    dns.spec.ports.append(ServicePort(number, "x", protocol, number))
    slice_ = endpoint_slice(endpoint("10.0.0.1"), ports=["53/TCP"])
    assert slice_.ports is not None
    slice_.ports.append(EndpointPort(number, "", protocol))
    result = run(dns, slice_, cluster_ips=ClusterIPs.SERVE)
    assert table(result) == {"10.96.0.10:53/TCP": ["10.0.0.1:53/TCP"]}


def test_a_container_port_that_is_none_serves_nothing_and_still_is_a_declared_one() -> None:
    candidate = pod(ports=["70000/TCP"])
    assert table(run(policy(), candidate)) == {}


def test_protocols_are_written_in_capitals() -> None:
    assert run(service(ports=["53/tcp", "53/Udp"]), cluster_ips=ClusterIPs.LIST).frontends == ()


def test_an_endpoint_has_one_address_that_counts() -> None:
    endpoints = [Endpoint([]), Endpoint(["10.0.0.1", "10.0.0.9"]), Endpoint(["nonsense", "10.0.0.9"])]
    result = run(service(ports=["53/UDP"]), endpoint_slice(*endpoints, ports=["53/UDP"]), cluster_ips=ClusterIPs.SERVE)
    assert table(result) == {"10.96.0.10:53/UDP": ["10.0.0.1:53/UDP"]}


BARE = ObjectMeta("dns", "default")
BARE_OBJECTS: list[ClusterObject] = [
    Policy(BARE),
    Pod(BARE),
    Pod(BARE, PodSpec(NODE, None, None, None), PodStatus(None, None, None)),
    Pod(
        BARE,
        PodSpec(NODE, host_network=True, containers=[Container()], init_containers=[Container()]),
        PodStatus("", [PodIP()], []),
    ),
    Pod(BARE, PodSpec(NODE, host_network=True, containers=[Container([ContainerPort(0)])])),
    Service(BARE),
    Service(BARE, ServiceSpec(ports=[ServicePort(53)]), ServiceStatus(LoadBalancerStatus())),
    Service(BARE, ServiceSpec(cluster_ips=[]), ServiceStatus(LoadBalancerStatus([LoadBalancerIngress()]))),
    EndpointSlice(BARE),
    EndpointSlice(ObjectMeta("x", "default", labels={"kubernetes.io/service-name": ""}), "IPv4", [Endpoint([])]),
    EndpointSlice(ObjectMeta("x", "default", labels={"kubernetes.io/service-name": "dns"}), "", None, None),
    Node(ObjectMeta(NODE)),
    Node(ObjectMeta(NODE), NodeStatus([NodeAddress("", ""), NodeAddress("InternalIP", "")])),
]


@pytest.mark.parametrize("bare", BARE_OBJECTS)
@pytest.mark.parametrize("mode", list(ClusterIPs))
def test_objects_with_nothing_in_them(bare: ClusterObject, mode: ClusterIPs) -> None:
    result = run(bare, policy(), policy("s", service="dns"), pod("a"), cluster_ips=mode)
    assert verdict(result).reason == "Accepted"


@pytest.mark.parametrize("spec", [None, [], 1, "x", True, {}, {"redirectFrontend": None}, {"redirectBackend": [[]]}])
def test_a_spec_of_any_shape_rejects_its_policy_alone(spec: Any) -> None:
    broken = Policy(ObjectMeta("broken", "default", generation=7), spec)
    result = run(broken, policy(), pod())
    found = verdict(result, "default/broken")
    assert (found.accepted, found.reason, found.frontends, found.generation) == (False, "Invalid", (), 7)
    assert "spec" in found.message
    assert table(result) == {FRONTEND: ["10.244.0.1:80/TCP"]}


def test_the_message_of_an_invalid_policy_is_the_parsers() -> None:
    found = verdict(run(policy(backends=["80/UDP"])))
    assert found.message.startswith("spec.redirectBackend.toPorts[0].protocol: must be TCP")


def test_a_node_of_another_name_is_not_this_node() -> None:
    assert run(node("10.0.0.1", name="n2"), policy(), pod()).node == NODE
