"""Sections 2 and 5: which frontends a policy has, and which container ports serve each."""

import pytest

from lrp_operator.resolve.model import FrontendType
from tests.unit.resolve.builders import (
    METADATA_IP,
    frontend_verdicts,
    pod,
    policy,
    reasons,
    run,
    service,
    table,
    verdict,
)

A53U = "10.244.0.1:53/UDP"

# Each row: what it shows | the policy's frontend ports | its backend ports | the pod's ports | who serves what.
ADDRESS_KINDS = """
single port                                | 8080/TCP        | 80/TCP            | 80/TCP            | 8080/TCP=80
single port: names are ignored             | 8080/TCP:x      | 80/TCP:y          | 80/TCP:z          | 8080/TCP=80
single port: the first backend port        | 8080/TCP        | 80/TCP:a 81/TCP:b | 80/TCP 81/TCP     | 8080/TCP=80
single port: a pod without ports           | 8080/TCP        | 80/TCP            |                   | 8080/TCP=80
single port: another port declared         | 8080/TCP        | 80/TCP            | 81/TCP            |
single port: with another protocol         | 8080/TCP        | 80/TCP            | 80/UDP            |
single port: SCTP is declared too          | 8080/TCP        | 80/TCP            | 80/SCTP           |
named ports                                | 1/TCP:a 2/TCP:b | 80/TCP:a 81/TCP:b | 80/TCP:a 81/TCP:b | 1/TCP=80 2/TCP=81
named ports: in any case                   | 1/TCP:A 2/TCP:b | 80/TCP:a 81/TCP:B | 80/TCP:A 81/TCP:b | 1/TCP=80 2/TCP=81
named ports: another container port name   | 1/TCP:a 2/TCP:b | 80/TCP:a 81/TCP:b | 80/TCP:b 81/TCP:b | 2/TCP=81
named ports: the name at another number    | 1/TCP:a 2/TCP:b | 80/TCP:a 81/TCP:b | 81/TCP:a          |
named ports: an unnamed container port     | 1/TCP:a 2/TCP:b | 80/TCP:a 81/TCP:b | 80/TCP 81/TCP:b   | 2/TCP=81
named ports: a pod without ports           | 1/TCP:a 2/TCP:b | 80/TCP:a 81/TCP:b |                   |
named ports: no backend port has the name  | 1/TCP:a 2/TCP:b | 80/TCP:a          | 80/TCP:a          | 1/TCP=80
named ports: protocols never cross         | 1/TCP:a 1/UDP:b | 53/UDP:a 53/TCP:b | 53/UDP:a 53/TCP:b |
named ports: one name on both protocols    | 1/TCP:a 1/UDP:a | 53/UDP:a 54/TCP:a | 53/UDP:a 54/TCP:a | 1/TCP=54 1/UDP=53
named ports: one frontend written twice    | 1/TCP:a 1/TCP:b | 80/TCP:a 81/TCP:b | 80/TCP:a 81/TCP:b | 1/TCP=80,81
named ports: two backend ports of one name | 1/TCP:a 2/TCP:b | 80/TCP:a 81/TCP:a | 80/TCP:a 81/TCP:a | 1/TCP=80,81
"""

# The same; the Service's ports are 53/UDP named u, 53/TCP t and 91/TCP m.
SERVICE_KINDS = """
all ports, one: names are ignored   |                   | 53/UDP            | 53/UDP            | 53/UDP=53
all ports, one: of its protocol     |                   | 80/TCP            | 80/TCP:x          | 53/TCP=80 91/TCP=80
all ports, one: no ports declared   |                   | 53/UDP            |                   | 53/UDP=53
all ports, two: by its names        |                   | 53/UDP:u 54/TCP:t | 53/UDP:u 54/TCP:t | 53/UDP=53 53/TCP=54
all ports, two: no ports declared   |                   | 53/UDP:u 54/TCP:t |                   |
single port: names are ignored      | 53/UDP:x          | 53/UDP:y          | 53/UDP:z          | 53/UDP=53
single port: the first backend port | 91/TCP            | 80/TCP:a 81/TCP:b | 80/TCP 81/TCP     | 91/TCP=80
single port: a pod without ports    | 53/UDP            | 53/UDP            |                   | 53/UDP=53
named ports: by the Service's       | 53/UDP:u 53/TCP:t | 53/UDP:u 54/TCP:t | 53/UDP:u 54/TCP:t | 53/UDP=53 53/TCP=54
named ports: not by the matcher's   | 53/UDP:x 53/TCP:y | 53/UDP:u 54/TCP:y | 53/UDP:u 54/TCP:y | 53/UDP=53
named ports: the others stay        | 53/UDP:u 91/TCP:m | 53/UDP:u 80/TCP:m | 53/UDP:u 80/TCP:m | 53/UDP=53 91/TCP=80
named ports: a pod without ports    | 53/UDP:u 53/TCP:t | 53/UDP:u 54/TCP:t |                   |
"""


def rows(text: str) -> dict[str, list[list[str]]]:
    lines = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    return {line[0]: [cell.split() for cell in line[1:]] for line in lines}


def served(ip: str, expected: list[str]) -> dict[str, list[str]]:
    """Spell out `8080/TCP=80,81`: the frontend at this address, served by these ports of the one pod."""
    pairs = [text.split("=") for text in expected]
    return {
        f"{ip}:{port}": [f"10.244.0.1:{backend}/{port.partition('/')[2]}" for backend in backends.split(",")]
        for port, backends in pairs
    }


@pytest.mark.parametrize(
    ("ports", "backends", "declared", "expected"), rows(ADDRESS_KINDS).values(), ids=rows(ADDRESS_KINDS)
)
def test_address_kinds(ports: list[str], backends: list[str], declared: list[str], expected: list[str]) -> None:
    result = run(policy(ports=ports, backends=backends), pod(ports=declared))
    assert table(result) == served(METADATA_IP, expected)
    assert set(reasons(result)) == {f"{METADATA_IP}:{port.partition(':')[0]}" for port in ports}


@pytest.mark.parametrize(
    ("ports", "backends", "declared", "expected"), rows(SERVICE_KINDS).values(), ids=rows(SERVICE_KINDS)
)
def test_service_kinds(ports: list[str], backends: list[str], declared: list[str], expected: list[str]) -> None:
    dns = service(ports=["53/UDP:u", "53/TCP:t", "91/TCP:m"])
    result = run(dns, policy(service="dns", ports=ports, backends=backends), pod(ports=declared))
    assert table(result) == served("10.96.0.10", expected)
    asked = ports or ["53/UDP", "53/TCP", "91/TCP"]
    assert set(reasons(result)) == {f"10.96.0.10:{port.partition(':')[0]}" for port in asked}


def test_a_service_port_without_a_name_joins_nothing_where_names_matter() -> None:
    result = run(
        service(ports=["53/UDP"]), policy(service="dns", backends=["53/UDP:a", "53/TCP:b"]), pod(ports=["53/UDP"])
    )
    (found,) = frontend_verdicts(result).values()
    assert found.reason == "NoMatchingPort"
    assert found.message == "The Service's port has no name to join it with a port of redirectBackend.toPorts."


def test_a_service_port_written_twice_is_one_frontend_with_either_name() -> None:
    twice = service(ports=["53/UDP:a", "53/UDP:b"])
    result = run(twice, policy(service="dns", backends=["1/UDP:a", "2/UDP:b"]), pod(ports=["1/UDP:a", "2/UDP:b"]))
    assert table(result) == {"10.96.0.10:53/UDP": ["10.244.0.1:1/UDP", "10.244.0.1:2/UDP"]}


def test_sctp_is_never_redirected() -> None:
    result = run(service(ports=["53/SCTP", "53/UDP"]), policy(service="dns", backends=["53/UDP"]), pod(ports=[]))
    assert table(result) == {"10.96.0.10:53/UDP": [A53U]}
    assert set(reasons(result)) == {"10.96.0.10:53/UDP"}


def test_a_redirected_service_frontend_has_both_its_service_and_its_policy() -> None:
    result = run(service(), policy(service="dns", ports=["53/UDP"], backends=["53/UDP"]), pod(ports=["53/UDP"]))
    (entry,) = result.frontends
    assert (entry.type, entry.service, entry.policy) == (FrontendType.LOCAL_REDIRECT, "default/dns", "default/p")


def test_an_address_frontend_has_no_service() -> None:
    (entry,) = run(policy(), pod()).frontends
    assert (entry.type, entry.service, entry.policy) == (FrontendType.LOCAL_REDIRECT, None, "default/p")


def test_every_cluster_ip_of_the_service_is_a_frontend_of_its_own_family() -> None:
    dual = service("dns", "10.96.0.10", "fd00:96::10", ports=["53/UDP"])
    result = run(dual, policy(service="dns", backends=["53/UDP"]), pod("a", "10.244.0.1", "fd00::1", ports=[]))
    assert table(result) == {"10.96.0.10:53/UDP": [A53U], "[fd00:96::10]:53/UDP": ["[fd00::1]:53/UDP"]}


def test_other_addresses_of_the_service_stay() -> None:
    everywhere = service(
        ports=["53/UDP"],
        node_ports=[30053],
        external_ips=["1.2.3.4"],
        load_balancer_ips=["5.6.7.8"],
        type="LoadBalancer",
    )
    result = run(everywhere, policy(service="dns", backends=["53/UDP"]), pod(ports=[]))
    assert table(result) == {"10.96.0.10:53/UDP": [A53U]}


@pytest.mark.parametrize(
    ("offered", "reason", "message"),
    [
        ([], "ServiceNotFound", "Service default/dns does not exist; it is picked up when it comes."),
        ([service("dns", "None")], "ServiceHasNoClusterIP", "Service default/dns is headless (clusterIP: None)"),
        ([service(type="ExternalName")], "ServiceHasNoClusterIP", "Service default/dns is of type ExternalName"),
        ([service("dns", "")], "ServiceHasNoClusterIP", "Service default/dns has no ClusterIP yet."),
        ([service(ports=["53/TCP", "7/SCTP"])], "ServicePortNotFound", "no port 53/UDP (its ports: 53/TCP, 7/SCTP)."),
        ([service(ports=[])], "ServicePortNotFound", "has no port 53/UDP (its ports: none)."),
        ([service(ns="other")], "ServiceNotFound", "Service default/dns does not exist"),
    ],
)
def test_a_service_that_gives_no_frontend_is_named_and_the_policy_is_accepted(
    offered: list[object], reason: str, message: str
) -> None:
    result = run(*offered, policy(service="dns", ports=["53/UDP"], backends=["53/UDP"]), pod(ports=[]))  # type: ignore[arg-type]
    found = verdict(result)
    assert (found.accepted, found.reason, found.frontends) == (True, reason, ())
    assert message in found.message
    assert result.frontends == ()


def test_a_service_with_sctp_alone_has_no_port_for_a_policy_on_all_ports() -> None:
    found = verdict(run(service(ports=["7/SCTP"]), policy(service="dns"), pod()))
    assert found.reason == "ServicePortNotFound"
    assert found.message == "Service default/dns has no TCP or UDP port to redirect (its ports: 7/SCTP)."


def test_the_ports_that_the_service_has_are_redirected_and_the_missing_ones_named() -> None:
    ports = ["53/UDP:u", "99/TCP:x"]
    offered = service(ports=["53/UDP:u", "53/TCP:t"])
    result = run(offered, policy(service="dns", ports=ports, backends=["53/UDP:u"]), pod(ports=["53/UDP:u"]))
    found = verdict(result)
    assert found.reason == "Accepted"
    assert found.message == (
        "1 of 1 frontends redirected on node n1. Service default/dns has no port 99/TCP (its ports: 53/UDP, 53/TCP)."
    )
    assert table(result) == {"10.96.0.10:53/UDP": [A53U]}
