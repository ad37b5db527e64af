"""Sections 3 and 4: which pods serve, at which addresses, and what is said when none does."""

from typing import Any

import pytest

from lrp_operator.api.objects import Condition, ContainerPort, Pod
from tests.unit.resolve.builders import METADATA_IP, changed, frontend_verdicts, pod, policy, reasons, run, table

FRONTEND = f"{METADATA_IP}:8080/TCP"
SERVED = {FRONTEND: ["10.244.0.1:80/TCP"]}


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (pod(), None),
        (pod(host_network=True), None),
        (pod(node="n2"), "NoLocalPod"),
        (pod(node=None), "NoLocalPod"),
        (pod(ns="other"), "NoLocalPod"),
        (pod(labels={"app": "other"}), "NoLocalPod"),
        (pod(labels={}), "NoLocalPod"),
        (pod(ready=False), "NoReadyPod"),
        (pod(terminating=True), "NoReadyPod"),
        (changed(pod(), status__conditions=None), "NoReadyPod"),
        (changed(pod(), status__conditions=[Condition("Ready", "Unknown")]), "NoReadyPod"),
        (changed(pod(), status__conditions=[Condition("ContainersReady", "True")]), "NoReadyPod"),
        (pod(ports=["81/TCP"]), "NoMatchingPort"),
        (pod("a", "fd00::1"), "NoMatchingPort"),
    ],
)
def test_who_serves(candidate: Pod, reason: str | None) -> None:
    result = run(policy(), candidate)
    assert reasons(result) == {FRONTEND: reason}
    assert table(result) == ({} if reason else SERVED)


@pytest.mark.parametrize(
    ("selector", "labels", "selected"),
    [
        ({}, {}, True),
        ({"matchLabels": {"a": "1", "b": "2"}}, {"a": "1", "b": "2", "c": "3"}, True),
        ({"matchLabels": {"a": "1", "b": "2"}}, {"a": "1"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, {"a": "2"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, {"a": "3"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {"a": "1"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"b": ""}, False),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"b": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": ""}, False),
        ({"matchLabels": {"b": "1"}, "matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, False),
    ],
)
def test_selectors(selector: dict[str, Any], labels: dict[str, str], selected: bool) -> None:
    assert table(run(policy(selector=selector), pod(labels=labels))) == (SERVED if selected else {})


def test_every_ready_pod_serves_in_the_order_of_addresses() -> None:
    pods = [pod("a", "10.244.0.20"), pod("b", "10.244.0.3"), pod("c", "10.244.0.100", ready=False)]
    assert table(run(policy(), *pods)) == {FRONTEND: ["10.244.0.3:80/TCP", "10.244.0.20:80/TCP"]}


def test_every_address_of_a_pod_counts_once_whichever_field_it_is_in() -> None:
    only_pod_ip = changed(pod("a", "10.244.0.1"), status__pod_ips=None)
    only_pod_ips = changed(pod("b", "10.244.0.2", "10.244.0.3"), status__pod_ip=None)
    both = pod("c", "10.244.0.4")
    backends = table(run(policy(), only_pod_ip, only_pod_ips, both))[FRONTEND]
    assert backends == [f"10.244.0.{n}:80/TCP" for n in (1, 2, 3, 4)]


def test_a_mapped_address_is_the_ipv4_address_on_both_sides() -> None:
    result = run(policy(ip="::ffff:169.254.169.254"), pod("a", "::ffff:10.244.0.1"))
    assert table(result) == SERVED


def test_two_pods_on_the_host_network_with_one_address_are_one_backend() -> None:
    pods = [pod(name, "192.168.0.1", host_network=True) for name in "ab"]
    assert table(run(policy(), *pods)) == {FRONTEND: ["192.168.0.1:80/TCP"]}


def test_families_never_cross() -> None:
    result = run(policy(ip="fd00::a9fe"), pod("a", "10.244.0.1"), pod("b", "fd00::1"))
    assert table(result) == {"[fd00::a9fe]:8080/TCP": ["[fd00::1]:80/TCP"]}


@pytest.mark.parametrize(
    ("candidate", "serves"),
    [
        (pod(ports=[], sidecar_ports=["80/TCP"]), True),
        (pod(ports=["81/TCP"], sidecar_ports=["80/TCP"]), True),
        (pod(ports=[], sidecar_ports=["81/TCP"]), False),  # it declares a port, but not this one
        (pod(ports=["81/TCP"], init_ports=["80/TCP"]), False),  # an init container that ends serves nothing
        (pod(ports=[], init_ports=["81/TCP"]), True),  # and does not count as declaring ports
        (changed(pod(), spec__containers=None, spec__init_containers=None), True),
    ],
)
def test_ports_of_init_containers_count_if_they_keep_running(candidate: Pod, serves: bool) -> None:
    assert table(run(policy(), candidate)) == (SERVED if serves else {})


def test_an_absent_protocol_is_tcp() -> None:
    candidate = pod()
    assert candidate.spec.containers is not None
    candidate.spec.containers[0].ports[:] = [ContainerPort(80)]  # type: ignore[index]
    assert table(run(policy(), candidate)) == SERVED


@pytest.mark.parametrize(
    ("pods", "message"),
    [
        ([], "No pod of namespace default on node n1 matches the localEndpointSelector."),
        ([pod(ready=False)], "No selected pod is ready: default/a is not ready."),
        (
            [pod("a", ready=False), pod("b", terminating=True)],
            "No selected pod is ready: default/a is not ready, default/b is terminating.",
        ),
        (
            [pod(name, ready=False) for name in "abcde"],
            "No selected pod is ready: " + ", ".join(f"default/{name} is not ready" for name in "abc") + " and 2 more.",
        ),
        ([pod(ports=["81/TCP"])], "No ready pod declares container port 80/TCP: default/a."),
        (
            [pod("a", "fd00::1"), pod("b", ports=["81/TCP"])],
            "No ready pod with the port has an IPv4 address: default/a.",
        ),
    ],
)
def test_what_is_in_the_way_is_named(pods: list[Pod], message: str) -> None:
    assert frontend_verdicts(run(policy(), *pods))[FRONTEND].message == message


def test_what_the_policy_itself_lacks_is_named() -> None:
    named = policy(ports=["1/TCP:a", "2/UDP:b"], backends=["80/TCP:a"])
    verdicts = frontend_verdicts(run(named, pod(ports=["80/TCP:x"])))
    assert verdicts[f"{METADATA_IP}:1/TCP"].message == (
        "No ready pod declares container port 80/TCP named a: default/a."
    )
    assert verdicts[f"{METADATA_IP}:2/UDP"].message == "redirectBackend.toPorts has no UDP port named b."


def test_a_redirected_frontend_has_no_message() -> None:
    (verdict,) = frontend_verdicts(run(policy(), pod())).values()
    assert (verdict.redirected, verdict.reason, verdict.message, verdict.drop) == (True, None, "", False)
