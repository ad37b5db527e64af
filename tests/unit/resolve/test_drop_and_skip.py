"""Section 5's drop and section 8: frontends that are held, and pods that reach the original."""

import pytest

from lrp_operator.api.addresses import parse_ip
from lrp_operator.api.objects import ClusterObject, Pod, Policy
from lrp_operator.resolve.engine import ClusterIPs, ResolveOptions, Resolver
from lrp_operator.resolve.model import FrontendEntry, Resolution
from tests.unit.resolve.builders import (
    METADATA_IP,
    NODE,
    endpoint,
    endpoint_slice,
    frontend_verdicts,
    pod,
    policy,
    reasons,
    run,
    service,
    table,
    texts,
    verdict,
)

FRONTEND = f"{METADATA_IP}:8080/TCP"
OTHER = {"app": "other"}


def skips(result: Resolution) -> dict[str, list[str]]:
    return {entry.pod: texts(entry.frontends) for entry in result.skips}


@pytest.mark.parametrize(
    ("pods", "reason"),
    [([], "NoLocalPod"), ([pod(ready=False)], "NoReadyPod"), ([pod(ports=["81/TCP"])], "NoMatchingPort")],
)
def test_a_policy_with_drop_holds_its_frontend_without_a_backend(pods: list[Pod], reason: str) -> None:
    result = run(policy(drop=True), *pods)
    (entry,) = result.frontends
    assert (entry.type, entry.policy, entry.backends, entry.refuse) == ("LocalRedirect", "default/p", (), True)
    (held,) = frontend_verdicts(result).values()
    assert (held.redirected, held.reason, held.drop) == (False, reason, True)
    assert held.message.endswith(" Connects are refused (lrp-operator.io/on-no-backend: drop).")
    assert verdict(result).message == "0 of 1 frontends redirected on node n1, 1 refused."


def test_a_policy_with_drop_and_a_backend_redirects_as_any_other() -> None:
    result = run(policy(drop=True), pod())
    assert table(result) == {FRONTEND: ["10.244.0.1:80/TCP"]}
    assert not result.frontends[0].refuse


def test_drop_holds_only_what_the_policy_has() -> None:
    result = run(
        service(ports=["53/UDP"]),
        policy("old", created="2024-01-01T00:00:00Z"),
        policy("conflict", created="2024-02-01T00:00:00Z", drop=True),
        policy("owned", ip="10.96.0.10", ports=["53/UDP"], backends=["53/UDP"], drop=True),
    )
    assert result.frontends == ()
    for name in ("conflict", "owned"):
        (lost,) = frontend_verdicts(result, f"default/{name}").values()
        assert not lost.drop


def test_a_port_that_the_policy_does_not_serve_is_refused_too_with_drop() -> None:
    dns = service(ports=["53/UDP:dns", "9153/TCP:metrics"])
    result = run(dns, policy(service="dns", backends=["53/UDP"], drop=True), pod(ports=["53/UDP"]))
    assert table(result) == {"10.96.0.10:53/UDP": ["10.244.0.1:53/UDP"], "10.96.0.10:9153/TCP": []}
    assert reasons(result) == {"10.96.0.10:53/UDP": None, "10.96.0.10:9153/TCP": "NoMatchingPort"}


def test_every_selected_local_pod_is_exempt_ready_or_not() -> None:
    result = run(
        policy(skip=True),
        pod("ready", "10.244.0.1", "fd00::1"),
        pod("unready", "10.244.0.2", ready=False),
        pod("ending", "10.244.0.3", terminating=True),
        pod("portless", "10.244.0.4", ports=["81/TCP"]),
        pod("elsewhere", "10.244.0.5", node="n2"),
        pod("unselected", "10.244.0.6", labels=OTHER),
        pod("foreign", "10.244.0.7", ns="other"),
    )
    assert skips(result) == {f"default/{name}": [FRONTEND] for name in ("ending", "portless", "ready", "unready")}
    entry = next(entry for entry in result.skips if entry.pod == "default/ready")
    assert (entry.uid, entry.ips, entry.host_network) == (
        "uid-ready",
        (parse_ip("10.244.0.1"), parse_ip("fd00::1")),
        False,
    )


def test_without_the_field_nobody_is_exempt() -> None:
    assert run(policy(), pod()).skips == ()


def test_a_pod_is_exempt_from_all_that_its_policy_redirects_whether_or_not_it_serves_it() -> None:
    ports, backends = ["1/TCP:a", "2/TCP:b", "3/TCP:c"], ["80/TCP:a", "81/TCP:b"]
    result = run(
        policy(skip=True, ports=ports, backends=backends),
        pod("a", "10.244.0.1", ports=["80/TCP:a"]),
        pod("b", "10.244.0.2", ports=["81/TCP:b"]),
    )
    redirected = [f"{METADATA_IP}:1/TCP", f"{METADATA_IP}:2/TCP"]  # 3/TCP is served by nobody: it is not redirected
    assert skips(result) == {"default/a": redirected, "default/b": redirected}


def test_a_pod_is_exempt_from_no_other_policys_frontends() -> None:
    result = run(
        policy("mine", skip=True),
        policy("theirs", ip="1.1.1.1"),
        policy("both", ip="2.2.2.2", skip=True),
        pod("a"),
        pod("b", "10.244.0.2", labels=OTHER),
    )
    assert skips(result) == {"default/a": ["2.2.2.2:8080/TCP", FRONTEND]}


def test_a_policy_that_redirects_nothing_exempts_nobody() -> None:
    assert run(policy(skip=True), pod(ready=False)).skips == ()
    lost = policy("lost", skip=True, created=None)
    assert run(policy("old", selector={"matchLabels": OTHER}), lost, pod()).skips == ()


def test_a_held_frontend_is_reached_by_the_pods_that_are_to_become_its_backends() -> None:
    # A metadata proxy may need the original before it is ready: refused, it never would be.
    assert skips(run(policy(skip=True, drop=True), pod(ready=False))) == {"default/a": [FRONTEND]}


def test_exemption_is_per_protocol() -> None:
    dns = service(ports=["53/UDP:dns", "53/TCP:dns"])
    result = run(dns, policy(service="dns", skip=True, backends=["53/UDP"]), pod(ports=["53/UDP"]))
    assert skips(result) == {"default/a": ["10.96.0.10:53/UDP"]}


REMOTE = endpoint_slice(endpoint("10.0.0.1", ready=True), endpoint("10.0.0.2", ready=True), ports=["53/UDP:dns"])
BY_NAME = {"service": "dns", "ports": ["53/UDP"], "backends": ["53/UDP"]}


def original(*objects: ClusterObject, mode: ClusterIPs = ClusterIPs.SERVE) -> FrontendEntry | None:
    """What those who are exempt have of the one frontend that is redirected."""
    found = run(*objects, pod(ports=["53/UDP"]), cluster_ips=mode).frontends
    (entry,) = (entry for entry in found if entry.policy)
    return entry.original


def test_where_kube_proxy_is_replaced_the_exempt_have_the_services_own_entry() -> None:
    """By all rules for a Service without a policy: affinity, internalTrafficPolicy, refused without endpoints."""
    for said in ({}, {"affinity": "ClientIP"}, {"internal_traffic_policy": "Local"}):
        dns = service(ports=["53/UDP:dns"], **said)
        found = original(dns, REMOTE, policy(skip=True, **BY_NAME))
        assert (found,) == run(dns, REMOTE, cluster_ips=ClusterIPs.SERVE).frontends
    assert found is not None
    assert found.refuse, "it has no endpoint on this node"


@pytest.mark.parametrize("mode", [ClusterIPs.OMIT, ClusterIPs.LIST])
def test_where_kube_proxy_stays_the_exempt_are_let_pass(mode: ClusterIPs) -> None:
    assert original(service(ports=["53/UDP:dns"]), REMOTE, policy(skip=True, **BY_NAME), mode=mode) is None


def test_who_has_no_exemption_needs_no_original() -> None:
    assert original(service(ports=["53/UDP:dns"]), REMOTE, policy(**BY_NAME)) is None


def test_an_address_and_a_service_of_another_proxy_are_let_pass() -> None:
    theirs = service(ports=["53/UDP:dns"], labels={"service.kubernetes.io/service-proxy-name": "other"})
    assert original(theirs, REMOTE, policy(skip=True, **BY_NAME)) is None
    assert original(policy(skip=True, ports=["53/UDP"], backends=["53/UDP"]), REMOTE) is None


def test_the_original_follows_the_services_endpoints() -> None:
    resolver = Resolver(NODE, ResolveOptions(cluster_ips=ClusterIPs.SERVE))
    for obj in (service(ports=["53/UDP:dns"]), REMOTE, policy(skip=True, **BY_NAME), pod(ports=["53/UDP"])):
        resolver.upsert(obj)
    resolver.resolve()
    resolver.upsert(endpoint_slice(endpoint("10.0.0.3", ready=True), ports=["53/UDP:dns"]))
    (changed,) = resolver.resolve().frontends.values()
    assert changed is not None
    assert changed.original is not None
    assert (texts(changed.backends), texts(changed.original.backends)) == (["10.244.0.1:53/UDP"], ["10.0.0.3:53/UDP"])
    resolver.delete(Policy, "default/p")
    assert list(resolver.resolve().frontends.values()) == [changed.original]


def test_a_backend_on_the_host_network_exempts_the_host_and_the_verdict_says_so() -> None:
    result = run(policy(skip=True), pod("a", "192.168.0.1", host_network=True), pod("b", "10.244.0.2"))
    assert [(entry.pod, entry.host_network) for entry in result.skips] == [("default/a", True), ("default/b", False)]
    assert verdict(result).message == (
        "1 of 1 frontends redirected on node n1."
        " skipRedirectFromBackend exempts all of the node's own network, as these pods are on it: default/a."
    )


def test_a_pod_that_is_replaced_is_another_entry() -> None:
    resolver = Resolver(NODE, ResolveOptions())
    resolver.upsert(policy(skip=True))
    resolver.upsert(pod("a", "10.244.0.1"))
    resolver.upsert(pod("b", "10.244.0.2"))
    resolver.resolve()
    resolver.upsert(pod("a", "10.244.0.9"))
    delta = resolver.resolve()
    (entry,) = delta.skips.values()
    assert entry is not None
    assert entry.ips == (parse_ip("10.244.0.9"),)
    resolver.delete(Pod, "default/a")
    assert resolver.resolve().skips == {"default/a": None}


def test_exemption_follows_an_edited_selector() -> None:
    resolver = Resolver(NODE, ResolveOptions())
    for obj in (policy(skip=True), pod("a"), pod("b", "10.244.0.2"), pod("c", "10.244.0.3", labels=OTHER)):
        resolver.upsert(obj)
    resolver.resolve()
    both = {"matchExpressions": [{"key": "app", "operator": "Exists"}]}
    for selector, exempt in ((both, "abc"), ({"matchLabels": OTHER}, "c"), (None, "ab")):
        resolver.upsert(policy(skip=True, selector=selector))
        resolver.resolve()
        assert skips(resolver.resolution()) == {f"default/{name}": [FRONTEND] for name in exempt}
