from hypothesis import given
from hypothesis import strategies as st

from lrp_operator.api.nodestate import NodeReport, PolicyReport
from lrp_operator.controller.reports import NodeReports


def report(*policies: PolicyReport, in_force: bool = True) -> NodeReport:
    return NodeReport("1", "socket", in_force, policies=policies)


def test_only_what_changed_is_told() -> None:
    reports = NodeReports()
    first, second = PolicyReport("ns/a", "u", 1, 1, 1), PolicyReport("ns/b", "u", 1, 1, 1)
    assert reports.put("n1", report(first, second)) == ({"ns/a", "ns/b"}, True)
    assert reports.put("n1", report(first, second)) == (set(), False)
    assert reports.put("n1", report(first)) == ({"ns/b"}, False)
    assert reports.put("n1", report(first, in_force=False)) == (set(), True)
    assert reports.put("n1", None) == ({"ns/a"}, True)
    assert reports.put("n1", None) == (set(), False)
    assert reports.about("ns/a") == {}


def test_what_many_say_is_kept_once() -> None:
    reports = NodeReports()
    for node in range(50):
        reports.put(f"n{node}", report(PolicyReport("ns/a", "u", 1, 1, 1)))
    assert len({id(entry) for entry in reports.about("ns/a").values()}) == 1
    for node in range(50):
        reports.put(f"n{node}", None)
    reports.forget_unused()
    assert reports._shared == {}


nodes = st.sampled_from(["n1", "n2"])
entries = st.builds(PolicyReport, st.sampled_from(["ns/a", "ns/b"]), generation=st.integers(1, 2))
written = st.none() | st.lists(entries, max_size=3).map(lambda found: report(*found))


@given(st.lists(st.tuples(nodes, written, st.booleans())))
def test_the_last_report_counts(happened: list[tuple[str, NodeReport | None, bool]]) -> None:
    reports, last = NodeReports(), dict[str, NodeReport | None]()
    for node, said, tidy in happened:
        reports.put(node, said)
        last[node] = said
        if tidy:
            reports.forget_unused()
    for policy in ("ns/a", "ns/b"):
        assert reports.about(policy) == {
            node: {entry.policy: entry for entry in said.policies}[policy]
            for node, said in last.items()
            if said and policy in {entry.policy for entry in said.policies}
        }
