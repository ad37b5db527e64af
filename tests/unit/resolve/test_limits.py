"""What an administrator allows, and which nodes a policy is for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from lrp_operator.api.objects import Node, ObjectMeta, Policy
from lrp_operator.resolve.engine import WHOLE_CLUSTER, ResolveOptions, Resolver, resolve
from lrp_operator.resolve.model import Resolution
from tests.unit.resolve.builders import NODE, pod, policy, reasons, service, table, verdict

OLD, NEW = "2024-01-01T00:00:00Z", "2024-06-01T00:00:00Z"


def on_nodes(selector: str, **more: Any) -> Policy:
    written = policy(**more)
    annotations = (written.metadata.annotations or {}) | {"lrp-operator.io/node-selector": selector}
    return structs.replace(written, metadata=structs.replace(written.metadata, annotations=annotations))


def labelled(**labels: str) -> Node:
    return Node(ObjectMeta(NODE, labels=labels))


def run(*objects: Any, node: str = NODE, **options: Any) -> Resolution:
    return resolve(objects, node, ResolveOptions(**options))


# --- Namespaces that may use addressMatcher ---------------------------------------------------------------------------


@pytest.mark.parametrize(("allowed", "reason"), [((), "Accepted"), (("default", "x"), "Accepted"), (("x",), None)])
def test_namespaces_that_may_name_addresses(allowed: tuple[str, ...], reason: str | None) -> None:
    result = run(policy(), pod(), address_matcher_namespaces=allowed)
    found = verdict(result)
    assert found.reason == (reason or "NamespaceNotAllowed")
    assert found.accepted == (reason is not None)
    assert bool(table(result)) == found.accepted
    if not found.accepted:
        assert found.message == (
            "Namespace default may not use addressMatcher: it is not among"
            " localRedirectPolicies.addressMatcherNamespaces (x)."
        )


def test_services_may_be_named_in_every_namespace() -> None:
    result = run(policy(service="dns"), service(), pod(), address_matcher_namespaces=("x",))
    assert verdict(result).accepted
    assert table(result)


# --- Frontends per namespace ------------------------------------------------------------------------------------------


def two_ports(name: str, **more: Any) -> Policy:
    return policy(name, ports=["1/TCP:a", "2/TCP:b"], backends=["80/TCP:a"], **more)


def test_the_youngest_policy_is_shut_out_as_a_whole() -> None:
    old, new = two_ports("z", created=OLD), two_ports("a", ip="169.254.1.1", created=NEW)
    single = policy("single", ip="169.254.1.2", created=NEW)
    result = run(new, single, old, pod(), max_frontends_per_namespace=3)
    assert verdict(result, "default/z").accepted
    assert verdict(result, "default/single").accepted  # there is room left for it
    shut_out = verdict(result, "default/a")
    assert (shut_out.accepted, shut_out.reason, shut_out.frontends) == (False, "TooManyFrontends", ())
    assert shut_out.message == (
        "Namespace default may have 3 frontends (localRedirectPolicies.maxFrontendsPerNamespace):"
        " older policies have 2, and this one asks for 2."
    )


def test_other_namespaces_have_their_own_limit() -> None:
    result = run(
        two_ports("p", created=OLD), two_ports("p", ip="169.254.1.1", ns="other"), max_frontends_per_namespace=2
    )
    assert all(found.accepted for found in result.verdicts)


def test_what_is_shut_out_holds_nothing_and_comes_in_when_there_is_room() -> None:
    resolver = Resolver(NODE, ResolveOptions(max_frontends_per_namespace=1))
    first, second = policy("a", ip="169.254.1.1", created=OLD), policy("b", created=OLD)
    other = policy("c", ns="other", created=NEW)
    for obj in (first, second, other, pod(), pod("o", ns="other")):
        resolver.upsert(obj)
    resolver.resolve()
    assert reasons(resolver.resolution(), "other/c") == {"169.254.169.254:8080/TCP": None}
    resolver.delete(Policy, "default/a")
    delta = resolver.resolve()
    assert set(delta.verdicts) == {"default/a", "default/b", "other/c"}
    assert reasons(resolver.resolution(), "other/c") == {"169.254.169.254:8080/TCP": "Conflict"}


sizes = st.lists(st.tuples(st.integers(1, 4), st.sampled_from([OLD, NEW, None])), max_size=6)


@given(sizes, st.integers(1, 8), st.randoms(use_true_random=False))
def test_the_limit_holds_whatever_the_order_of_events(
    written: list[tuple[int, str | None]], limit: int, random: Any
) -> None:
    policies = [
        policy(
            f"p{index}",
            ip=f"169.254.0.{index}",
            ports=[f"{port}/TCP:a" for port in range(1, size + 1)],
            backends=["80/TCP:a"],
            created=created,
        )
        for index, (size, created) in enumerate(written)
    ]
    at_once = run(*policies, max_frontends_per_namespace=limit)
    assert sum(len(found.frontends) for found in at_once.verdicts) <= limit

    resolver = Resolver(NODE, ResolveOptions(max_frontends_per_namespace=limit))
    events = [*policies, *(policy(f"gone{index}", created=OLD) for index in range(2))]
    random.shuffle(events)
    for event in events:
        resolver.upsert(event)
        resolver.resolve()
    for index in range(2):
        resolver.delete(Policy, f"default/gone{index}")
        resolver.resolve()
    assert resolver.resolution() == at_once


# --- Nodes ------------------------------------------------------------------------------------------------------------


def test_a_policy_applies_only_on_nodes_that_its_selector_matches() -> None:
    result = run(on_nodes("pool=edge"), pod(), labelled(pool="edge"))
    assert table(result)
    for elsewhere in ([labelled(pool="core")], [labelled()], []):
        result = run(on_nodes("pool=edge", drop=True, skip=True), pod(), *elsewhere)
        found = verdict(result)
        assert (found.accepted, found.reason, found.frontends) == (True, "NodeNotSelected", ())
        assert found.message == (
            "Node n1 does not match lrp-operator.io/node-selector: the policy does not apply here."
        )
        assert (result.frontends, result.skips) == ((), ())


def test_where_it_does_not_apply_it_holds_nothing() -> None:
    edge, everywhere = on_nodes("pool=edge", name="edge", created=OLD), policy("everywhere", created=NEW)
    for labels, holder in ((labelled(pool="edge"), "default/edge"), (labelled(), "default/everywhere")):
        (entry,) = run(edge, everywhere, pod(), labels).frontends
        assert entry.policy == holder


def test_a_relabelled_node_changes_sides() -> None:
    resolver = Resolver(NODE, ResolveOptions())
    for obj in (on_nodes("pool=edge"), pod()):
        resolver.upsert(obj)
    resolver.resolve()
    for labels, count in (({"pool": "edge"}, 1), ({"pool": "edge", "x": "y"}, 1), ({}, 0)):
        resolver.upsert(labelled(**labels))
        resolver.resolve()
        assert len(resolver.resolution().frontends) == count
    resolver.upsert(labelled(pool="edge"))
    resolver.delete(Node, f"/{NODE}")
    resolver.resolve()
    assert resolver.resolution().frontends == ()


def test_a_rejected_policy_is_rejected_on_every_node() -> None:
    found = verdict(run(on_nodes("pool=edge"), address_matcher_namespaces=("x",)))
    assert found.reason == "NamespaceNotAllowed"


def test_for_the_cluster_every_node_is_selected() -> None:
    result = run(on_nodes("pool=edge"), pod(), node=WHOLE_CLUSTER)
    assert reasons(result) == {"169.254.169.254:8080/TCP": "NoLocalPod"}
