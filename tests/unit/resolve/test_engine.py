"""Change tracking: what a change does not concern is not looked at, and a Delta has only what differs."""

from typing import Any

import pytest

from lrp_operator.api.objects import EndpointSlice, Node, Pod, Policy, Service
from lrp_operator.resolve import engine, views
from lrp_operator.resolve.engine import ClusterIPs, ResolveOptions, Resolver
from lrp_operator.resolve.model import Delta
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
)

FRONTEND = f"{METADATA_IP}:8080/TCP"


def resolver(*objects: Any, mode: ClusterIPs = ClusterIPs.OMIT) -> Resolver:
    made = Resolver(NODE, ResolveOptions(cluster_ips=mode))
    for obj in objects:
        made.upsert(obj)
    return made


def names(delta: Delta) -> tuple[list[str], list[str], list[str]]:
    return [str(frontend) for frontend in delta.frontends], list(delta.verdicts), list(delta.skips)


NOTHING: tuple[list[str], list[str], list[str]] = ([], [], [])


def test_before_anything_there_is_nothing() -> None:
    made = resolver()
    assert names(made.resolve()) == NOTHING
    assert (made.resolution().frontends, made.resolution().verdicts) == ((), ())


def test_the_resolution_is_as_the_last_resolve_left_it() -> None:
    made = resolver(policy(), pod())
    assert made.resolution().frontends == ()
    made.resolve()
    assert table(made.resolution()) == {FRONTEND: ["10.244.0.1:80/TCP"]}


@pytest.mark.parametrize(
    "kind_key",
    [
        (Policy, "default/p"),
        (Service, "default/dns"),
        (EndpointSlice, "a/b"),
        (Pod, "a/b"),
        (Node, "/n1"),
        (Node, "/n2"),
    ],
)
def test_what_is_not_there_can_be_deleted(kind_key: tuple[Any, str]) -> None:
    made = resolver()
    made.delete(*kind_key)
    assert names(made.resolve()) == NOTHING


def test_everything_deleted_leaves_nothing() -> None:
    objects = [policy(skip=True), policy("s", service="dns"), service(node_ports=[30000]), node("1.1.1.1"), pod()]
    made = resolver(*objects, endpoint_slice(endpoint("10.0.0.1")), mode=ClusterIPs.SERVE)
    made.resolve()
    for obj in [*objects, endpoint_slice()]:
        made.delete(type(obj), obj.metadata.key)
    delta = made.resolve()
    assert set(delta.frontends.values()) == set(delta.verdicts.values()) == set(delta.skips.values()) == {None}
    assert made.resolution() == run()
    rooms = [made, made._book, made._selection]
    kept = {key: value for room in rooms for key, value in vars(room).items() if isinstance(value, dict) and value}
    assert kept == {}, "an index that only grows"


def test_a_change_that_resolution_does_not_see_touches_nothing() -> None:
    made = resolver(policy(), pod(), service(), node("1.1.1.1"))
    made.resolve()
    made.upsert(changed(pod(), metadata__annotations={"a": "b"}))
    made.upsert(changed(service(), metadata__uid="other"))
    made.upsert(policy())
    made.upsert(node("1.1.1.1"))
    assert made._touched == engine.Touched()


def test_a_delta_has_only_what_differs_in_output_order() -> None:
    made = resolver(
        policy("a", ip="9.9.9.9", skip=True), policy("b", ip="fd00::a"), policy("c", ip="10.9.9.9", skip=True)
    )
    assert names(made.resolve()) == ([], ["default/a", "default/b", "default/c"], [])
    made.upsert(pod())
    assert names(made.resolve()) == (
        ["9.9.9.9:8080/TCP", "10.9.9.9:8080/TCP"],
        ["default/a", "default/b", "default/c"],
        ["default/a"],
    )
    made.upsert(pod("z", "fd00::1"))
    assert names(made.resolve()) == (["[fd00::a]:8080/TCP"], ["default/b"], ["default/z"])


def test_a_change_and_its_undoing_between_two_resolves_is_no_change() -> None:
    made = resolver(policy(), pod())
    made.resolve()
    made.upsert(pod(ready=False))
    made.upsert(pod())
    assert names(made.resolve()) == NOTHING


def test_a_pod_that_moves_to_another_node_is_gone() -> None:
    made = resolver(policy(), pod())
    made.resolve()
    made.upsert(pod(node="n2"))
    assert list(made.resolve().frontends.values()) == [None]


def test_a_policy_edited_in_place_moves_its_frontend() -> None:
    made = resolver(policy(skip=True), pod())
    made.resolve()
    made.upsert(policy(ip="1.1.1.1"))
    assert names(made.resolve()) == (["1.1.1.1:8080/TCP", FRONTEND], ["default/p"], ["default/a"])
    assert table(made.resolution()) == {"1.1.1.1:8080/TCP": ["10.244.0.1:80/TCP"]}


def test_a_service_that_comes_later_is_picked_up() -> None:
    made = resolver(policy(service="dns", backends=["53/UDP"]), pod(ports=[]))
    made.resolve()
    made.upsert(service(ports=["53/UDP"]))
    assert names(made.resolve()) == (["10.96.0.10:53/UDP"], ["default/p"], [])
    made.upsert(service("dns", "10.96.0.11", ports=["53/UDP"]))
    assert names(made.resolve())[0] == ["10.96.0.10:53/UDP", "10.96.0.11:53/UDP"]


def test_a_slice_that_is_given_to_another_service_moves() -> None:
    services = [service("a", "10.96.0.1", ports=["1/TCP"]), service("b", "10.96.0.2", ports=["1/TCP"])]
    made = resolver(*services, endpoint_slice(endpoint("10.0.0.1"), of="a", ports=["1/TCP"]), mode=ClusterIPs.SERVE)
    made.resolve()
    made.upsert(endpoint_slice(endpoint("10.0.0.1"), of="b", ports=["1/TCP"]))
    made.resolve()
    assert table(made.resolution()) == {"10.96.0.1:1/TCP": [], "10.96.0.2:1/TCP": ["10.0.0.1:1/TCP"]}


def test_a_policy_is_parsed_once_per_version(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    parse = views.parse_policy

    def counting(written: Policy) -> Any:
        parsed.append(written)
        return parse(written)

    monkeypatch.setattr(views, "parse_policy", counting)
    made = resolver(policy())
    for number in range(5):
        made.upsert(pod(str(number), f"10.0.0.{number}"))
        made.upsert(policy())
        made.resolve()
    assert len(parsed) == 1
    made.upsert(policy(ip="1.1.1.1"))
    assert len(parsed) == 2


def test_one_change_looks_at_what_it_concerns_only(monkeypatch: pytest.MonkeyPatch) -> None:
    decided, planned = [], []
    decide, plan = Resolver._decide, Resolver._plan
    monkeypatch.setattr(Resolver, "_decide", lambda *args: (decided.append(args[1]), decide(*args))[1])
    monkeypatch.setattr(Resolver, "_plan", lambda *args: (planned.append(args[1]), plan(*args))[1])
    services = [service(f"s{n}", f"10.96.0.{n}", ports=["53/UDP"]) for n in range(100)]
    policies = [
        policy(f"p{n}", service=f"s{n}", backends=["53/UDP"], selector={"matchLabels": {"app": f"a{n}"}})
        for n in range(100)
    ]
    made = resolver(*services, *policies, mode=ClusterIPs.SERVE)
    made.resolve()
    decided.clear()
    planned.clear()
    made.upsert(endpoint_slice(endpoint("10.0.0.1"), of="s7", ports=["53/UDP"]))
    made.resolve()
    assert ([str(address) for address in decided], planned) == (["10.96.0.7:53/UDP"], [])
    decided.clear()
    made.upsert(pod(labels={"app": "a9"}, ports=[]))
    made.resolve()
    assert ([str(address) for address in decided], planned) == (["10.96.0.9:53/UDP"], ["default/p9"])
