from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from lrp_operator.api.nodestate import NodeReport, PolicyReport
from lrp_operator.api.objects import Policy
from lrp_operator.api.status import MAX_FRONTENDS, MAX_MESSAGE, PolicyStatus
from lrp_operator.controller.fold import Known, differs, fold, standings_in
from lrp_operator.controller.reports import NodeReports
from lrp_operator.resolve.cluster import ClusterResolver
from lrp_operator.resolve.engine import ResolveOptions
from tests.unit.resolve.builders import pod, policy, service
from tests.unit.resolve.test_cluster import a_node

FRONTEND = "169.254.169.254:8080/TCP"
OLD, NEW = "2024-01-01T00:00:00Z", "2024-06-01T00:00:00Z"
BEFORE, NOW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def written(**more: Any) -> Policy:
    made = policy(**more)
    return structs.replace(made, metadata=structs.replace(made.metadata, uid="u1", generation=3))


def says(**more: Any) -> NodeReport:
    entry = PolicyReport(
        **{"policy": "default/p", "uid": "u1", "generation": 3, "frontends": 1, "redirected": 1} | more
    )
    return NodeReport("1", "socket", in_force=True, policies=(entry,))


def status(
    *objects: Any, reports: dict[str, NodeReport] | None = None, before: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """The status of default/p among nodes n1 and n2."""
    resolver, told = ClusterResolver(ResolveOptions(**options)), NodeReports()
    for obj in (a_node("n1"), a_node("n2"), *objects):
        resolver.upsert(obj)
    resolver.resolve()
    for node, report in (reports or {}).items():
        told.put(node, report)
    picture = resolver.picture("default/p")
    assert picture is not None
    (meta,) = (obj.metadata for obj in objects if isinstance(obj, Policy) and obj.metadata.key == "default/p")
    found = fold(meta, Known(picture, told, resolver.nodes), before or {}, NOW)
    PolicyStatus.model_validate(found)
    return found


def standing(found: dict[str, Any]) -> dict[str, str]:
    return {kind: f"{status} {reason}" for kind, (status, reason) in standings_in(found).items()}


def message(found: dict[str, Any], kind: str) -> str:
    (text,) = (condition["message"] for condition in found["conditions"] if condition["type"] == kind)
    return str(text)


def counts(found: dict[str, Any]) -> tuple[int, int, int, int]:
    return found["backends"], found["nodesWanted"], found["nodesProgrammed"], found["nodesFallingBack"]


def test_programmed() -> None:
    found = status(written(), pod("a", node="n1"), pod("b", node="n1"), reports={"n1": says()})
    assert standing(found) == {
        "Accepted": "True Accepted",
        "Resolved": "True Resolved",
        "Programmed": "True Programmed",
        "Degraded": "False AsExpected",
    }
    assert counts(found) == (2, 1, 1, 1)
    assert (found["ok"], found["observedGeneration"]) == (True, 3)
    assert found["frontends"] == [{"frontend": FRONTEND, "nodesRedirecting": 1}]
    assert message(found, "Programmed") == "The node with a pod that can serve redirects."


@pytest.mark.parametrize(
    ("report", "reason", "degraded", "words"),
    [
        (None, "NodesPending", "False", "n1 (no agent has reported)"),
        (NodeReport("1", "m", in_force=True), "NodesPending", "False", "n1 (not in its agent's report)"),
        (says(uid="u0"), "NodesPending", "False", "n1 (its agent has an earlier version of the policy)"),
        (says(generation=2), "NodesPending", "False", "n1 (its agent has an earlier version of the policy)"),
        (says(redirected=0), "NodesPending", "False", "n1 (0 of 1 frontends redirected)"),
        (
            says(redirected=0, reason="NotProgrammed", message="The map is full."),
            "NodesFailing",
            "True",
            "n1 (0 of 1 frontends redirected: The map is full)",
        ),
        (NodeReport("1", "m", in_force=False, message="No cgroup."), "NodesFailing", "True", "n1 (No cgroup)"),
        (
            NodeReport("1", "m", in_force=True, omitted_policies=7),
            "NodesPending",
            "False",
            "n1 (not in its agent's report (it leaves out 7 policies))",
        ),
    ],
)
def test_a_node_that_is_not_programmed_is_named_with_the_reason(
    report: NodeReport | None, reason: str, degraded: str, words: str
) -> None:
    reports = {"n2": says()} | ({"n1": report} if report else {})
    found = status(written(), pod("a", node="n1"), pod("b", node="n2"), reports=reports)
    assert standing(found)["Programmed"] == f"False {reason}"
    assert standing(found)["Degraded"].split()[0] == degraded
    assert message(found, "Programmed") == f"1 of 2 nodes redirect. Not yet: {words}."
    assert counts(found) == (2, 2, 1, 0)


def test_a_node_that_is_gone_counts_for_nothing() -> None:
    found = status(written(), pod("a", node="gone"), reports={"gone": says()})
    assert standing(found)["Programmed"] == "False NodesPending"
    assert "gone (the Node is gone)" in message(found, "Programmed")
    assert counts(found) == (1, 1, 0, 2)


def test_trouble_is_told_even_where_all_is_redirected_or_nothing_wanted() -> None:
    trouble = {"reason": "Shadowed", "message": "another program is in the way"}
    found = status(written(), pod("a", node="n1"), reports={"n1": says(**trouble)})
    assert standing(found)["Programmed"] == "True Programmed"
    assert message(found, "Degraded") == "Something is wrong on n1 (another program is in the way)."
    found = status(written(), pod("a", node="n1"), reports={"n1": says(), "n2": says(redirected=0, **trouble)})
    assert message(found, "Degraded") == "Something is wrong on n2 (another program is in the way)."
    found = status(written(), pod("a", node="n1"), reports={"n1": says(), "n2": says(uid="u0", **trouble)})
    assert standing(found)["Degraded"] == "False AsExpected"  # that was another policy


@pytest.mark.parametrize(
    ("objects", "options", "accepted", "resolved", "words"),
    [
        ([written(backends=["80/UDP"])], {}, "False Invalid", "False Invalid", "protocol"),
        (
            [written()],
            {"address_matcher_namespaces": ("x",)},
            "False NamespaceNotAllowed",
            "False NamespaceNotAllowed",
            "Namespace default may not use addressMatcher",
        ),
        ([written(service="dns")], {}, "True Accepted", "False ServiceNotFound", "Service default/dns does not exist"),
        (
            [written(service="dns", ports=["99/UDP"], backends=["53/UDP"]), service()],
            {},
            "True Accepted",
            "False ServicePortNotFound",
            "Service default/dns has no port 99/UDP",
        ),
        (
            [written(created=NEW), policy("old", created=OLD), pod("a", node="n1")],
            {},
            "True Accepted",
            "False Conflict",
            f"1 of 1 frontends can't be had. {FRONTEND}: Policy default/old has this frontend: it is older.",
        ),
        (
            [written(ip="10.96.0.10", ports=["53/UDP"], backends=["53/UDP"]), service(), pod("a", node="n1")],
            {},
            "True Accepted",
            "False AddressOwnedByService",
            "10.96.0.10:53/UDP is a ClusterIP of Service default/dns",
        ),
    ],
)
def test_what_is_in_the_way_is_named_and_everywhere_the_same(
    objects: list[Any], options: dict[str, Any], accepted: str, resolved: str, words: str
) -> None:
    found = status(*objects, **options)
    reason = resolved.split()[1]
    assert standing(found) == {
        "Accepted": accepted,
        "Resolved": resolved,
        "Programmed": f"False {reason}",
        "Degraded": f"True {reason}",
    }
    assert words in message(found, "Resolved")
    assert words in message(found, "Programmed")
    assert found["ok"] is accepted.startswith("True")


def test_frontends_that_no_pod_serves_do_not_keep_a_policy_from_being_programmed() -> None:
    """The worked example of node-local DNS: 9153/TCP stays with the Service."""
    dns = service("kube-dns", ports=["53/UDP:dns", "53/TCP:dns-tcp", "9153/TCP:metrics"])
    cache = pod("a", node="n1", ports=["53/UDP:dns", "53/TCP:dns-tcp", "9253/TCP:metrics"])
    local = written(service="kube-dns", backends=["53/UDP:dns", "53/TCP:dns-tcp"])
    found = status(dns, cache, local, reports={"n1": says(frontends=3, redirected=2)})
    assert standing(found)["Programmed"] == "True Programmed"
    assert [(f["frontend"], f["nodesRedirecting"], f.get("reason")) for f in found["frontends"]] == [
        ("10.96.0.10:53/TCP", 1, None),
        ("10.96.0.10:53/UDP", 1, None),
        ("10.96.0.10:9153/TCP", 0, "NoMatchingPort"),
    ]


def test_since_when_a_condition_stands() -> None:
    first = status(written(), pod("a", node="n1"))
    before = first | {"conditions": [c | {"lastTransitionTime": BEFORE} for c in first["conditions"]]}
    found = status(written(), pod("a", node="n1"), reports={"n1": says()}, before=before)
    since = {condition["type"]: condition["lastTransitionTime"] for condition in found["conditions"]}
    assert since == {"Accepted": BEFORE, "Resolved": BEFORE, "Programmed": NOW, "Degraded": BEFORE}


def test_what_differs() -> None:
    shown = status(written(), pod("a", node="n1"))
    later = shown | {"conditions": [c | {"lastTransitionTime": BEFORE} for c in reversed(shown["conditions"])]}
    theirs = {"type": "example.com/Checked", "status": "True", "reason": "x", "message": "", "lastTransitionTime": NOW}
    assert not differs(shown, later)
    assert not differs(shown, shown | {"conditions": [*shown["conditions"], theirs]})
    assert not differs(shown, shown | {"unknown": 1})
    assert differs(shown, {})
    assert differs(shown, shown | {"nodesWanted": 2})
    assert differs(shown, {key: value for key, value in shown.items() if key != "backends"})
    assert differs(shown, shown | {"omittedFrontends": 2})
    assert differs(shown, shown | {"conditions": shown["conditions"][1:]})


def test_a_status_is_bounded_however_large_the_policy() -> None:
    ports = [f"{port}/TCP:a" for port in range(1, 2001)]
    other = policy("old", ip="169.254.169.254", ports=ports, backends=["80/TCP:a"], created=OLD)
    found = status(written(ports=ports, backends=["80/TCP:a"], created=NEW), other)
    assert (len(found["frontends"]), found["omittedFrontends"]) == (MAX_FRONTENDS, 2000 - MAX_FRONTENDS)
    names = ",".join("x" * 60 for _ in range(100))
    found = status(written(), address_matcher_namespaces=(names,))
    assert all(len(condition["message"]) <= MAX_MESSAGE for condition in found["conditions"])


nodes = st.sampled_from(["n1", "n2", "n3"])
reports = st.dictionaries(
    nodes,
    st.builds(
        lambda entry, in_force: NodeReport("1", "m", in_force=in_force, policies=entry),
        st.lists(
            st.builds(
                PolicyReport,
                st.just("default/p"),
                st.sampled_from(["u1", "u0"]),
                st.integers(2, 3),
                st.just(1),
                st.integers(0, 1),
                st.sampled_from([None, "NotProgrammed"]),
            ),
            max_size=1,
        ).map(tuple),
        st.booleans(),
    ),
)


@given(st.dictionaries(nodes, st.booleans()), reports)
@settings(deadline=None)
def test_programmed_is_never_said_too_early(pods: dict[str, bool], told: dict[str, NodeReport]) -> None:
    found = status(written(), *(pod(f"p{n}", node=n, ready=ready) for n, ready in pods.items()), reports=told)
    _, wanted, programmed, falling_back = counts(found)
    done = {
        node
        for node, report in told.items()
        if report.in_force
        and report.policies
        and report.policies[0] == structs.replace(report.policies[0], uid="u1", generation=3, redirected=1)
    }
    here = {node for node, ready in pods.items() if ready}
    assert wanted == len(here)
    assert programmed == len(here & done & {"n1", "n2"})
    assert falling_back == len({"n1", "n2"} - here)
    assert (standing(found)["Programmed"] == "True Programmed") == (0 < wanted == programmed)
