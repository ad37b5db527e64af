"""The cluster's view says of each node what the node's own resolver says."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from lrp_operator.api.objects import Node, ObjectMeta, Pod, Policy, Service
from lrp_operator.resolve.cluster import ClusterResolver, Picture
from lrp_operator.resolve.engine import ResolveOptions, resolve
from tests.unit.resolve.builders import pod, policy, service

FRONTEND = "169.254.169.254:8080/TCP"
OLD, NEW = "2024-01-01T00:00:00Z", "2024-06-01T00:00:00Z"
NODES = ("n1", "n2", "n3")


def for_nodes(written: Policy, selector: str | None) -> Policy:
    if selector is None:
        return written
    annotations = (written.metadata.annotations or {}) | {"lrp-operator.io/node-selector": selector}
    return structs.replace(written, metadata=structs.replace(written.metadata, annotations=annotations))


def a_node(name: str, **labels: str) -> Node:
    return Node(ObjectMeta(name, labels=labels))


def pictures(*objects: Any, **options: Any) -> dict[str, Picture]:
    resolver = ClusterResolver(ResolveOptions(**options))
    for obj in objects:
        resolver.upsert(obj)
    resolver.resolve()
    return {key: found for key in resolver.policies() if (found := resolver.picture(key))}


def shares(picture: Picture) -> dict[str, tuple[list[str], int]]:
    return {node: (sorted(map(str, share.frontends)), share.pods) for node, share in sorted(picture.shares.items())}


def test_nodes_with_a_pod_that_can_serve() -> None:
    found = pictures(
        *map(a_node, NODES),
        policy(),
        pod("a", node="n1"),
        pod("b", node="n1"),
        pod("c", node="n2"),
        pod("d", node="n3", ready=False),
        pod("e", node=None),
        pod("f", node="n3", ns="other"),
    )["default/p"]
    assert shares(found) == {"n1": ([FRONTEND], 2), "n2": ([FRONTEND], 1)}
    assert (found.nodes, found.verdict.accepted, found.verdict.message) == (3, True, "")
    assert list(map(str, found.owned)) == [FRONTEND]


def test_why_no_node_can_serve() -> None:
    (frontend,) = pictures(a_node("n1"), policy())["default/p"].verdict.frontends
    assert (frontend.reason, frontend.message) == (
        "NoLocalPod",
        "No pod of namespace default matches the localEndpointSelector.",
    )
    (frontend,) = pictures(a_node("n1"), policy(), pod(ready=False))["default/p"].verdict.frontends
    assert (frontend.reason, frontend.message) == ("NoReadyPod", "No selected pod is ready: default/a is not ready.")


def test_a_conflict_names_the_winner() -> None:
    found = pictures(policy("old", created=OLD), policy("new", created=NEW), pod())
    (lost,) = found["default/new"].verdict.frontends
    assert (lost.reason, lost.message) == ("Conflict", "Policy default/old has this frontend: it is older.")
    assert (found["default/new"].shares, found["default/new"].owned) == ({}, frozenset())


def test_policies_for_other_nodes_are_no_rivals() -> None:
    objects = [a_node("n1", pool="edge"), a_node("n2"), pod("a", node="n1"), pod("b", node="n2")]
    edge = for_nodes(policy("edge", created=OLD), "pool=edge")
    rest = for_nodes(policy("rest", created=NEW), "!pool")
    found = pictures(*objects, edge, rest)
    assert list(found["default/edge"].shares) == ["n1"]
    assert list(found["default/rest"].shares) == ["n2"]
    assert all(picture.verdict.frontends[0].redirected for picture in found.values())
    assert all(picture.nodes == 1 for picture in found.values())

    everywhere = policy("rest", created=NEW)  # loses on one of its nodes, and is told
    found = pictures(*objects, edge, everywhere)
    assert found["default/rest"].verdict.frontends[0].reason == "Conflict"
    assert list(found["default/rest"].shares) == ["n2"]


def test_a_rival_that_comes_between_takes_the_nodes_that_it_can() -> None:
    """The oldest keeps the frontend in the cluster's eyes; elsewhere it goes from the youngest to the newcomer."""
    resolver = ClusterResolver(ResolveOptions())
    oldest = for_nodes(policy("oldest", created="2023-01-01T00:00:00Z"), "pool=edge")
    for obj in (a_node("n1", pool="edge"), a_node("n2"), pod("b", node="n2"), oldest, policy("youngest", created=NEW)):
        resolver.upsert(obj)
    resolver.resolve()
    found = resolver.picture("default/youngest")
    assert found is not None
    assert list(found.shares) == ["n2"]
    resolver.upsert(policy("newcomer", created=OLD))
    assert "default/youngest" in resolver.resolve()
    found, newcomer = resolver.picture("default/youngest"), resolver.picture("default/newcomer")
    assert found is not None
    assert newcomer is not None
    assert (list(found.shares), list(newcomer.shares)) == ([], ["n2"])


def test_a_selector_that_matches_no_node() -> None:
    found = pictures(a_node("n1"), for_nodes(policy(), "pool=edge"), pod())["default/p"]
    assert (found.verdict.accepted, found.verdict.reason, found.nodes) == (True, "NodeNotSelected", 0)
    assert found.verdict.message == "No node matches lrp-operator.io/node-selector."
    found = pictures(a_node("n1"), a_node("n2", pool="edge"), for_nodes(policy(), "pool=edge"), pod())["default/p"]
    assert found.verdict.frontends[0].message == (
        "No pod of namespace default on a node that matches lrp-operator.io/node-selector"
        " matches the localEndpointSelector."
    )


def test_only_what_a_change_concerns_is_told() -> None:
    resolver = ClusterResolver(ResolveOptions())
    other = policy("q", ip="169.254.1.1", selector={"matchLabels": {"app": "x"}})
    for obj in (*map(a_node, NODES), policy(), other, pod("a", node="n1")):
        resolver.upsert(obj)
    assert resolver.resolve() == {"default/p", "default/q"}
    assert resolver.resolve() == set()
    resolver.upsert(pod("a", node="n1"))
    assert resolver.resolve() == set()
    resolver.upsert(pod("b", node="n2"))
    assert resolver.resolve() == {"default/p"}
    resolver.upsert(a_node("n1", x="y"))
    assert resolver.resolve() == set()
    resolver.delete(Node, "/n3")
    assert resolver.resolve() == {"default/p", "default/q"}
    resolver.delete(Policy, "default/q")
    assert resolver.resolve() == {"default/q"}
    assert resolver.picture("default/q") is None


# --- Whatever happens -------------------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c"])
selectors = st.sampled_from([None, None, "pool=edge", "!pool", "pool in (core)"])
policies = st.builds(
    lambda name, created, selector, of_service, app: for_nodes(
        policy(
            name,
            service="dns" if of_service else None,
            ports=["53/UDP"] if of_service else ["80/TCP"],
            backends=["53/UDP"] if of_service else ["80/TCP"],
            created=created,
            selector={"matchLabels": {"app": app}},
        ),
        selector,
    ),
    names,
    st.sampled_from([OLD, NEW]),
    selectors,
    st.booleans(),
    st.sampled_from(["x", "y"]),
)
pods = st.builds(
    lambda name, node, ready, app, number: pod(
        name, f"10.244.0.{number}", ports=["80/TCP", "53/UDP"], node=node, ready=ready, labels={"app": app}
    ),
    names,
    st.sampled_from(NODES),
    st.booleans(),
    st.sampled_from(["x", "y"]),
    st.integers(1, 5),
)
services = st.builds(lambda ports: service(ports=ports), st.sampled_from([["53/UDP"], ["53/TCP"], ["80/TCP"]]))
nodes = st.builds(
    lambda name, pool: Node(ObjectMeta(name, labels={"pool": pool} if pool else {})),
    st.sampled_from(NODES),
    st.sampled_from([None, "edge", "core"]),
)
objects = st.one_of(policies, pods, services, nodes)
events = st.lists(st.tuples(objects, st.booleans()), max_size=25)


@given(events, st.sampled_from([0, 1, 2]), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_every_order_of_events_gives_what_the_nodes_themselves_say(
    happened: list[tuple[Any, bool]], limit: int, batch: int
) -> None:
    options = ResolveOptions(max_frontends_per_namespace=limit)
    resolver = ClusterResolver(options)
    there: dict[tuple[type, str], Any] = {(Node, f"/{name}"): a_node(name) for name in NODES}
    for obj in there.values():
        resolver.upsert(obj)
    told: dict[str, Picture | None] = {}
    for index, (obj, gone) in enumerate(happened):
        key = (type(obj), obj.metadata.key)
        if gone and key[0] is not Node:
            there.pop(key, None)
            resolver.delete(*key)
        else:
            there[key] = obj
            resolver.upsert(obj)
        if index % batch == 0:
            told |= {key: resolver.picture(key) for key in resolver.resolve()}
    told |= {key: resolver.picture(key) for key in resolver.resolve()}

    current = {key: found for key in resolver.policies() if (found := resolver.picture(key))}
    assert {key: found for key, found in told.items() if found} == current  # nothing changed untold
    kinds = {Policy, Service, Pod, Node}
    assert {key for kind, key in there if kind is Policy and kind in kinds} == set(current)
    for name in NODES:
        here = resolve(there.values(), name, options)
        redirected = {
            verdict.policy: frozenset(f.frontend for f in verdict.frontends if f.redirected)
            for verdict in here.verdicts
            if any(f.redirected for f in verdict.frontends)
        }
        assert redirected == {
            key: found.shares[name].frontends for key, found in current.items() if name in found.shares
        }
        assert {verdict.policy: verdict.accepted for verdict in here.verdicts} == {
            key: found.verdict.accepted for key, found in current.items()
        }
