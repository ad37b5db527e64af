"""What holds for every cluster and every history of one (strategies.py has the worlds in which it is tried)."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, target
from hypothesis import strategies as st

from lrp_operator.api.addresses import L4Addr, parse_ip
from lrp_operator.api.objects import ClusterObject, Pod, Policy
from lrp_operator.resolve.engine import ClusterIPs, ResolveOptions, Resolver, resolve
from lrp_operator.resolve.model import FrontendType, Resolution
from tests.unit.resolve import strategies
from tests.unit.resolve.builders import NODE, pod, policy, run

SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
Cluster = list[ClusterObject]


def redirects(result: Resolution) -> int:
    return sum(entry.type is FrontendType.LOCAL_REDIRECT for entry in result.frontends)


def check_entries(result: Resolution, mode: ClusterIPs) -> None:
    """One entry per address in output order; never a redirect to nothing; families and protocols never cross."""
    frontends = [entry.frontend for entry in result.frontends]
    assert frontends == sorted(set(frontends), key=lambda frontend: frontend.sort_key)
    for entry in result.frontends:
        assert list(entry.backends) == sorted(set(entry.backends), key=lambda backend: backend.sort_key)
        for backend in entry.backends:
            assert backend.is_ipv4 == entry.frontend.is_ipv4
            assert backend.protocol == entry.frontend.protocol
            assert 0 < backend.port < 65536
        if mode is not ClusterIPs.LIST:
            assert entry.refuse == (not entry.backends)
        if entry.type is FrontendType.LOCAL_REDIRECT:
            assert entry.policy is not None
            assert entry.refuse == (not entry.backends)
        else:
            assert mode is not ClusterIPs.OMIT
            assert entry.policy is None


def check_verdicts(result: Resolution, policies: dict[str, Policy]) -> None:
    """Every policy has a verdict that agrees with the table; a frontend has one owner; only drop holds an empty one."""
    entries = {entry.frontend: entry for entry in result.frontends}
    assert [verdict.policy for verdict in result.verdicts] == sorted(policies)
    holders: Counter[L4Addr] = Counter()
    for verdict in result.verdicts:
        assert verdict.message
        for found in verdict.frontends:
            assert verdict.accepted
            assert bool(found.reason) == bool(found.message) == (not found.redirected)
            entry = entries.get(found.frontend)
            mine = entry is not None and entry.policy == verdict.policy
            assert mine == (found.redirected or found.drop)
            assert not mine or bool(entry and entry.backends) == found.redirected
            annotations = policies[verdict.policy].metadata.annotations or {}
            assert not found.drop or annotations["lrp-operator.io/on-no-backend"] == "drop"
            holders[found.frontend] += mine
    owned = {frontend for frontend, entry in entries.items() if entry.policy}
    assert dict.fromkeys(owned, 1) == +holders


def check_backends(result: Resolution, policies: dict[str, Policy], pods: list[Pod]) -> None:
    """Every redirected backend belongs to a ready, non-terminating, selected pod of this node and namespace."""
    for entry in result.frontends:
        if entry.policy is None:
            continue
        owner = policies[entry.policy]
        for backend in entry.backends:
            assert any(may_serve(owner, pod) and backend.ip in addresses(pod) for pod in pods)


def check_skips(result: Resolution, policies: dict[str, Policy], pods: list[Pod]) -> None:
    """A pod is exempt from what a policy with the field, which selects it, has in the table; nobody else is."""
    expected: dict[str, set[L4Addr]] = {}
    for entry in result.frontends:
        owner = policies.get(entry.policy or "")
        if owner is not None and owner.spec.get("skipRedirectFromBackend"):
            for pod in pods:
                if is_selected(owner, pod):
                    expected.setdefault(pod.metadata.key, set()).add(entry.frontend)
    assert {skip.pod: set(skip.frontends) for skip in result.skips} == expected


def is_selected(owner: Policy, pod: Pod) -> bool:
    if pod.spec.node_name != NODE or pod.metadata.namespace != owner.metadata.namespace:
        return False
    selector, labels = owner.spec["redirectBackend"]["localEndpointSelector"], pod.metadata.labels or {}
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        holds(expression, labels) for expression in selector.get("matchExpressions", [])
    )


def holds(expression: dict[str, Any], labels: dict[str, str]) -> bool:
    value = labels.get(expression["key"])
    return {
        "In": lambda: value in expression["values"],
        "NotIn": lambda: value not in expression["values"],
        "Exists": lambda: value is not None,
        "DoesNotExist": lambda: value is None,
    }[expression["operator"]]()


def may_serve(owner: Policy, pod: Pod) -> bool:
    ready = any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ())
    return ready and pod.metadata.deletion_timestamp is None and is_selected(owner, pod)


def addresses(pod: Pod) -> set[bytes]:
    found = set()
    for text in [pod.status.pod_ip or "", *(entry.ip for entry in pod.status.pod_ips or ())]:
        try:
            found.add(parse_ip(text))
        except ValueError:
            continue
    return found


def check_originals(result: Resolution, cluster: Cluster, options: ResolveOptions) -> None:
    """Where kube-proxy is replaced, the exempt have what they would have without any policy; else they are let pass."""
    without = resolve([obj for obj in cluster if not isinstance(obj, Policy)], NODE, options)
    plain = {entry.frontend: entry for entry in without.frontends}
    policies = {obj.metadata.key: obj for obj in cluster if isinstance(obj, Policy)}
    for entry in result.frontends:
        owner = policies.get(entry.policy or "")
        skips = owner is not None and owner.spec.get("skipRedirectFromBackend")
        wanted = plain.get(entry.frontend) if skips and options.cluster_ips is ClusterIPs.SERVE else None
        assert entry.original == wanted


@settings(SETTINGS, max_examples=700)
@given(strategies.clusters, strategies.options)
def test_what_holds_for_every_cluster(cluster: Cluster, options: ResolveOptions) -> None:
    result = resolve(cluster, NODE, options)
    target(redirects(result))
    policies = {obj.metadata.key: obj for obj in cluster if isinstance(obj, Policy)}
    pods = [obj for obj in cluster if isinstance(obj, Pod)]
    check_entries(result, options.cluster_ips)
    check_verdicts(result, policies)
    check_backends(result, policies, pods)
    check_skips(result, policies, pods)
    check_originals(result, cluster, options)


@settings(SETTINGS, max_examples=300)
@given(strategies.clusters, strategies.options, st.randoms(use_true_random=False))
def test_the_order_of_objects_does_not_matter(cluster: Cluster, options: ResolveOptions, random: Any) -> None:
    shuffled = cluster[:]
    random.shuffle(shuffled)
    assert resolve(shuffled, NODE, options) == resolve(cluster, NODE, options)


@settings(SETTINGS, max_examples=600)
@given(strategies.histories, strategies.options)
def test_incremental_equals_from_scratch(history: list[Any], options: ResolveOptions) -> None:
    resolver = Resolver(NODE, options)
    now: dict[tuple[type[ClusterObject], str], ClusterObject] = {}
    followed = Follower()
    for event in [*history, strategies.RESOLVE]:
        if event == strategies.RESOLVE:
            followed.take(resolver)
            assert resolver.resolution() == resolve(now.values(), NODE, options)
        elif isinstance(event, tuple):
            resolver.delete(*event)
            now.pop(event, None)
        else:
            resolver.upsert(event)
            now[strategies.identity(event)] = event


class Follower:
    """What one knows who only takes the changes, as the datapath does."""

    def __init__(self) -> None:
        self.state: list[dict[Any, Any]] = [{}, {}, {}]

    def take(self, resolver: Resolver) -> None:
        delta = resolver.resolve()
        for known, changes in zip(self.state, (delta.frontends, delta.verdicts, delta.skips), strict=True):
            for key, value in changes.items():
                assert known.get(key) != value, "a change that changes nothing"
                known[key] = value
                if value is None:
                    del known[key]
        whole = resolver.resolution()
        frontends, verdicts, skips = self.state
        assert frontends == {entry.frontend: entry for entry in whole.frontends}
        assert verdicts == {verdict.policy: verdict for verdict in whole.verdicts}
        assert skips == {skip.pod: skip for skip in whole.skips}
        again = resolver.resolve()
        assert [again.frontends, again.verdicts, again.skips] == [{}, {}, {}]


def test_the_checks_can_fail() -> None:
    """A check that accepts everything would prove nothing: each rejects a resolution made wrong."""
    objects = [policy(), pod()]
    good = run(*objects)
    policies, pods = {"default/p": objects[0]}, [objects[1]]
    (entry,) = good.frontends
    wrong_family = L4Addr.make("fd00::1", 80, entry.frontend.protocol)
    elsewhere = L4Addr.make("10.9.9.9", 80, entry.frontend.protocol)
    for bad in ((), (wrong_family,)):
        with pytest.raises(AssertionError):
            check_entries(with_backends(good, bad), ClusterIPs.OMIT)
    with pytest.raises(AssertionError):
        check_backends(with_backends(good, (elsewhere,)), policies, pods)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        check_verdicts(Resolution(NODE, (), good.verdicts, ()), policies)  # type: ignore[arg-type]


def with_backends(result: Resolution, backends: tuple[L4Addr, ...]) -> Resolution:
    (entry,) = result.frontends
    wrong = type(entry)(entry.frontend, entry.type, entry.policy, entry.service, backends)
    return Resolution(NODE, (wrong,), result.verdicts, ())
