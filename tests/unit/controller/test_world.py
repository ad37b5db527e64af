from typing import Any

from msgspec import structs

from lrp_operator.api.nodestate import NodeRedirectState, NodeReport, PolicyReport
from lrp_operator.api.objects import Node, ObjectMeta, Pod, Policy
from lrp_operator.controller.policies import SeenPolicy
from lrp_operator.controller.world import World
from lrp_operator.resolve.options import ResolveOptions
from tests.unit.resolve.builders import pod, policy

OLD, NEW = "2024-01-01T00:00:00Z", "2024-06-01T00:00:00Z"
KEY = "default/p"


def seen(version: str, status: dict[str, Any] | None = None, *, generation: int = 1, **more: Any) -> SeenPolicy:
    made = policy(**more)
    meta = structs.replace(made.metadata, uid=f"uid-{made.metadata.name}", generation=generation)
    return SeenPolicy(structs.replace(made, metadata=meta), version, status or {})


def world(*policies: SeenPolicy, told: bool = True) -> World:
    made = World(ResolveOptions())
    made.put([Node(ObjectMeta("n1"))], (), Node)
    made.put_all_policies({found.policy.metadata.key: found for found in policies})
    if told:
        made.namespace_told("default")
    made.settle()
    return made


def test_nothing_is_said_before_the_pods_of_the_namespace_are_known() -> None:
    made = world(seen("1"), told=False)
    assert made.job(KEY) is None
    made.namespace_told("default")
    assert made.settle()[0] == {KEY}
    job = made.job(KEY)
    assert job is not None
    assert job.urgent


def test_what_shows_what_it_should_needs_nothing() -> None:
    made = world(seen("1"))
    job = made.job(KEY)
    assert job is not None
    made.shows(KEY, seen("2", job.status))
    assert made.job(KEY) is None
    assert made.version(KEY) == "2"
    assert made.settle()[0] == set()


def test_an_edit_that_comes_to_light_by_our_own_write_is_taken_in() -> None:
    """The answer to a write has the newest spec; what is told of that version later is no news any more."""
    made = world(seen("1"))
    job = made.job(KEY)
    assert job is not None
    made.shows(KEY, seen("3", job.status, generation=2, ports=["81/TCP"]))
    assert made.settle()[0] == {KEY}
    job = made.job(KEY)
    assert job is not None
    assert job.status["observedGeneration"] == 2
    assert job.status["frontends"][0]["frontend"] == "169.254.169.254:81/TCP"


def test_an_overtaken_reading_is_no_news() -> None:
    made = world(seen("5", generation=2, ports=["81/TCP"]))
    made.put_policy(KEY, seen("4"))
    assert made.version(KEY) == "5"
    made.put_all_policies({KEY: seen("4")})  # a listing is believed: the server may have been restored
    assert made.version(KEY) == "4"


def test_numbers_alone_are_not_urgent() -> None:
    made = world(seen("1"))
    job = made.job(KEY)
    assert job is not None
    made.shows(KEY, seen("2", job.status))
    made.put([Node(ObjectMeta("n2"))], (), Node)
    made.settle()
    job = made.job(KEY)
    assert job is not None
    assert (job.status["nodesFallingBack"], job.urgent) == (2, False)


def test_a_frontend_that_changes_hands_is_told_with_both_owners() -> None:
    made = world(seen("1", name="old", created=OLD), seen("1", name="new", created=NEW))
    made.put_policy("default/old", None)
    _, (handover,) = made.settle()
    assert (str(handover.frontend), handover.before, handover.after) == (
        "169.254.169.254:8080/TCP",
        ("default/old",),
        ("default/new",),
    )
    assert made.settle() == (set(), [])
    made.put_policy("default/new", None)
    _, (handover,) = made.settle()
    assert (handover.before, handover.after) == (("default/new",), ())


def test_reports_concern_the_policies_that_they_name_and_those_that_want_the_node() -> None:
    made = world(seen("1"), seen("1", name="q", ip="169.254.1.1", selector={"matchLabels": {"app": "x"}}))
    made.put([pod("a", node="n1")], (), Pod)
    made.settle()
    entry = PolicyReport("default/q", "uid-q", 1, 1, 0, "NotProgrammed")
    made.put_reports([NodeRedirectState(ObjectMeta("n1"), NodeReport("1", "m", in_force=True, policies=(entry,)))], ())
    assert made.settle()[0] == {KEY, "default/q"}
    made.put_reports((), ["/n1"])
    assert made.settle()[0] == {KEY, "default/q"}


def test_a_namespace_that_is_followed_no_more_leaves_nothing() -> None:
    made = world(seen("1"))
    made.put([pod("a"), pod("b")], (), Pod)
    made.settle()
    made.put_policy(KEY, None)
    made.settle()
    assert made.namespaces == set()
    made.forget_namespace("default")
    made.put_policy(KEY, seen("9"))
    made.namespace_told("default")
    made.settle()
    job = made.job(KEY)
    assert job is not None
    assert job.status["nodesWanted"] == 0


def test_policies_are_read_with_what_they_show() -> None:
    raw = b'{"metadata":{"name":"p","namespace":"ns","resourceVersion":"7"},"spec":{"a":1},"status":{"ok":true}}'
    found = SeenPolicy.read(raw)
    assert (found.policy.metadata.key, found.version, found.status) == ("ns/p", "7", {"ok": True})
    assert isinstance(found.policy, Policy)
