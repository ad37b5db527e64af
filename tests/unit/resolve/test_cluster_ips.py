"""Section 9 (served in kube-proxy's place) and section 10's listing: ClusterIPs without a policy."""

from typing import Any

import pytest

from lrp_operator.api.objects import ClusterObject, Endpoint, EndpointPort, Service
from lrp_operator.resolve.engine import ClusterIPs
from lrp_operator.resolve.model import FrontendEntry, FrontendType
from tests.unit.resolve.builders import changed, endpoint, endpoint_slice, node, pod, policy, run, service, table, texts

SERVE, LIST = ClusterIPs.SERVE, ClusterIPs.LIST
UDP = "10.96.0.10:53/UDP"


def entry(mode: ClusterIPs, *objects: ClusterObject) -> FrontendEntry:
    (found,) = run(*objects, cluster_ips=mode).frontends
    return found


def backends(mode: ClusterIPs, *endpoints: Endpoint, **fields: Any) -> list[str]:
    slice_ = endpoint_slice(*endpoints, ports=["53/UDP:dns"])
    return texts(entry(mode, service(ports=["53/UDP:dns"], **fields), slice_).backends)


READY = endpoint("10.0.0.1", ready=True)
SILENT = endpoint("10.0.0.2")
UNREADY = endpoint("10.0.0.3", ready=False)
DRAINING = endpoint("10.0.0.4", ready=False, serving=True, terminating=True)
DONE = endpoint("10.0.0.5", ready=False, serving=False, terminating=True)
SERVING = endpoint("10.0.0.6", ready=False, serving=True, terminating=False)
LOCAL = endpoint("10.0.0.7", node="n1", ready=True)
LOCAL_DRAINING = endpoint("10.0.0.8", node="n1", ready=False, serving=True, terminating=True)


@pytest.mark.parametrize(
    ("endpoints", "served", "listed"),
    [
        ([READY, SILENT, UNREADY, DRAINING, DONE, SERVING], [1, 2], [1, 2]),
        ([UNREADY, DRAINING, DONE, SERVING], [4], []),
        ([UNREADY, DONE, SERVING], [], []),
        ([], [], []),
    ],
)
def test_ready_endpoints_then_draining_ones_then_none(
    endpoints: list[Endpoint], served: list[int], listed: list[int]
) -> None:
    assert backends(SERVE, *endpoints) == [f"10.0.0.{n}:53/UDP" for n in served]
    assert backends(LIST, *endpoints) == [f"10.0.0.{n}:53/UDP" for n in listed]


def test_no_endpoints_are_refused_where_they_are_served_and_only_there() -> None:
    for objects in (
        [service(ports=["53/UDP"])],
        [service(ports=["53/UDP"]), endpoint_slice(UNREADY, ports=["53/UDP"])],
    ):
        assert entry(SERVE, *objects).refuse
        assert not entry(LIST, *objects).refuse
    full = [service(ports=["53/UDP"]), endpoint_slice(READY, ports=["53/UDP"])]
    assert not entry(SERVE, *full).refuse


@pytest.mark.parametrize(
    ("endpoints", "served"),
    [
        ([READY, LOCAL], [7]),
        ([READY, LOCAL, LOCAL_DRAINING], [7]),
        ([READY, LOCAL_DRAINING], [8]),
        ([READY], []),
    ],
)
def test_internal_traffic_policy_local(endpoints: list[Endpoint], served: list[int]) -> None:
    found = backends(SERVE, *endpoints, internal_traffic_policy="Local")
    assert found == [f"10.0.0.{n}:53/UDP" for n in served]
    assert len(backends(SERVE, *endpoints, internal_traffic_policy="Cluster")) == sum(
        e.conditions is not None and e.conditions.ready is True for e in endpoints
    )


@pytest.mark.parametrize(
    ("affinity", "seconds", "expected"),
    [
        (None, None, 0),
        ("None", 60, 0),
        ("ClientIP", None, 10800),
        ("ClientIP", 60, 60),
        ("ClientIP", 86400, 86400),
        ("ClientIP", -1, 10800),
        ("ClientIP", 86401, 10800),
    ],
)
def test_session_affinity(affinity: str | None, seconds: int | None, expected: int) -> None:
    for_clients = service(ports=["53/UDP"], affinity=affinity, affinity_seconds=seconds)
    assert entry(SERVE, for_clients).affinity_seconds == expected
    assert entry(SERVE, changed(for_clients, spec__session_affinity_config=None)).affinity_seconds == (
        10800 if affinity == "ClientIP" else 0
    )


@pytest.mark.parametrize(
    ("left_out", "listed"),
    [
        (service("dns", "None"), False),
        (service(type="ExternalName"), False),
        (service("dns", ""), False),
        (service(ports=["53/UDP"], labels={"service.kubernetes.io/service-proxy-name": ""}), True),
        (service(ports=["53/SCTP"]), True),
    ],
)
def test_services_that_are_not_served(left_out: Service, listed: bool) -> None:
    assert run(left_out, cluster_ips=SERVE).frontends == ()
    assert bool(run(left_out, cluster_ips=LIST).frontends) == listed


def test_nothing_of_this_is_in_the_table_where_kube_proxy_stays() -> None:
    assert run(service(), endpoint_slice(READY)).frontends == ()


def test_the_entry_of_a_cluster_ip() -> None:
    found = entry(SERVE, service(ports=["53/UDP:dns"]), endpoint_slice(READY))
    assert (found.type, found.policy, found.service) == (FrontendType.CLUSTER_IP, None, "default/dns")


def test_an_sctp_port_is_listed_with_its_endpoints() -> None:
    objects = [service(ports=["7/SCTP:x"]), endpoint_slice(READY, ports=["77/SCTP:x"])]
    assert table(run(*objects, cluster_ips=LIST)) == {"10.96.0.10:7/SCTP": ["10.0.0.1:77/SCTP"]}


def test_families_and_protocols_never_cross() -> None:
    dual = service("dns", "10.96.0.10", "fd00:96::10")
    slices = [
        endpoint_slice(READY, name="v4", ports=["53/UDP:dns"]),
        endpoint_slice(endpoint("fd00::1"), name="v6", ports=["53/TCP:dns-tcp", "53/TCP:dns"], family="IPv6"),
    ]
    assert table(run(dual, *slices, cluster_ips=SERVE)) == {
        "10.96.0.10:53/TCP": [],
        "10.96.0.10:53/UDP": ["10.0.0.1:53/UDP"],
        "[fd00:96::10]:53/TCP": ["[fd00::1]:53/TCP"],
        "[fd00:96::10]:53/UDP": [],
    }


def test_ports_are_joined_by_name_and_may_differ_per_slice() -> None:
    slices = [
        endpoint_slice(READY, name="a", ports=["5353/UDP:dns", "9/UDP:other"]),
        endpoint_slice(SILENT, name="b", ports=["5454/UDP:dns"]),
    ]
    found = entry(SERVE, service(ports=["53/UDP:dns"]), *slices)
    assert texts(found.backends) == ["10.0.0.1:5353/UDP", "10.0.0.2:5454/UDP"]


def test_a_port_without_a_name_joins_one_without_a_name() -> None:
    slice_ = endpoint_slice(READY, ports=["5353/UDP"])
    for name in (None, ""):
        unnamed = changed(slice_, metadata__labels=slice_.metadata.labels)
        assert unnamed.ports is not None
        unnamed.ports[:] = [EndpointPort(5353, name, "UDP")]
        assert texts(entry(SERVE, service(ports=["53/UDP"]), unnamed).backends) == ["10.0.0.1:5353/UDP"]


def test_an_endpoint_in_two_slices_is_one() -> None:
    slices = [endpoint_slice(READY, name="a"), endpoint_slice(READY, UNREADY, name="b")]
    assert texts(entry(SERVE, service(ports=["53/UDP:dns"]), *slices).backends) == ["10.0.0.1:53/UDP"]


@pytest.mark.parametrize("field", ["of", "ns"])
def test_slices_of_other_services_do_not_count(field: str) -> None:
    other = endpoint_slice(READY, **{field: "other"})  # type: ignore[arg-type]
    assert entry(SERVE, service(ports=["53/UDP:dns"]), other).backends == ()


def test_names_of_hosts_are_not_endpoints() -> None:
    assert entry(SERVE, service(ports=["53/UDP:dns"]), endpoint_slice(READY, family="FQDN")).backends == ()


@pytest.mark.parametrize("mode", [SERVE, LIST])
def test_a_policy_takes_what_it_redirects_and_leaves_the_rest(mode: ClusterIPs) -> None:
    objects = [service(), endpoint_slice(READY), policy(service="dns", backends=["53/UDP"])]
    before = run(*objects, pod(ready=False), cluster_ips=mode)
    assert [(e.type, e.policy) for e in before.frontends] == [(FrontendType.CLUSTER_IP, None)] * 2
    after = run(*objects, pod(ports=[]), cluster_ips=mode)
    assert table(after) == {"10.96.0.10:53/TCP": ["10.0.0.1:53/TCP"], UDP: ["10.244.0.1:53/UDP"]}
    assert [(e.type, e.policy, e.affinity_seconds) for e in after.frontends] == [
        (FrontendType.CLUSTER_IP, None, 0),
        (FrontendType.LOCAL_REDIRECT, "default/p", 0),
    ]


def test_of_two_services_with_one_cluster_ip_the_older_has_it() -> None:
    old = service("z", ports=["53/UDP"], created="2024-01-01T00:00:00Z")
    new = service("a", ports=["53/UDP"], created="2024-02-01T00:00:00Z")
    assert entry(SERVE, new, old).service == "default/z"
    claimant = service("b", "10.96.0.11", ports=["53/UDP"], external_ips=["10.96.0.10"], created="2023-01-01T00:00:00Z")
    assert {e.service for e in run(new, claimant, cluster_ips=SERVE).frontends} == {"default/a", "default/b"}


@pytest.mark.parametrize("mode", [SERVE, LIST])
def test_only_cluster_ips_are_in_the_table(mode: ClusterIPs) -> None:
    addresses = {"external_ips": ["1.2.3.4"], "load_balancer_ips": ["5.6.7.8"]}
    everywhere = service(ports=["53/UDP"], node_ports=[30053], type="LoadBalancer", **addresses)
    assert table(run(everywhere, node("192.168.0.1"), cluster_ips=mode)) == {UDP: []}
