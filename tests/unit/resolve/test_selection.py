"""The selection index: equal to asking every policy about every pod, and without doing that."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrp_operator.api.policy import LabelExpression, LabelSelector, Operator
from lrp_operator.resolve.selection import Selection, anchors, tokens

IN, NOT_IN, EXISTS, ABSENT = Operator.IN, Operator.NOT_IN, Operator.EXISTS, Operator.DOES_NOT_EXIST


def expression(key: str, operator: Operator, *values: str) -> LabelExpression:
    return LabelExpression(key, operator, frozenset(values))


@pytest.mark.parametrize(
    ("expressions", "expected"),
    [
        ([], {("ns",)}),
        ([expression("a", IN, "1")], {("ns", "a", "1")}),
        ([expression("a", IN, "1", "2"), expression("b", IN, "3")], {("ns", "b", "3")}),
        ([expression("a", EXISTS), expression("b", IN, "3", "4")], {("ns", "b", "3"), ("ns", "b", "4")}),
        ([expression("a", NOT_IN, "1"), expression("b", EXISTS)], {("ns", "b")}),
        ([expression("a", NOT_IN, "1"), expression("b", ABSENT)], {("ns",)}),
        ([expression("a", IN)], set()),
    ],
)
def test_anchors(expressions: list[LabelExpression], expected: set[tuple[str, ...]]) -> None:
    assert anchors("ns", LabelSelector(tuple(expressions))) == expected


def test_tokens() -> None:
    assert tokens("ns", {"a": "1"}) == {("ns",), ("ns", "a"), ("ns", "a", "1")}


expressions = st.builds(
    LabelExpression, st.sampled_from("ab"), st.sampled_from(Operator), st.frozensets(st.sampled_from("12"))
)
selectors = st.lists(expressions, max_size=3).map(lambda found: LabelSelector(tuple(found)))
labels = st.dictionaries(st.sampled_from("abc"), st.sampled_from("123"))
namespaces = st.sampled_from(["n", "m"])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(namespaces, selectors)),
    st.lists(st.tuples(namespaces, labels)),
    st.randoms(use_true_random=False),
)
def test_it_equals_asking_everyone(
    policies: list[tuple[str, LabelSelector]], pods: list[tuple[str, dict[str, str]]], random: Random
) -> None:
    """Names are taken twice (modulo 3), so that objects change, and some go again; the order is any."""
    index = Selection()
    steps = [("policy", number) for number in range(len(policies))] + [("pod", number) for number in range(len(pods))]
    random.shuffle(steps)
    now: dict[tuple[str, str], tuple[str, LabelSelector | dict[str, str]]] = {}
    for kind, number in steps:
        name = str(number % 3)
        if kind == "policy":
            now[kind, name] = policies[number]
            index.set_policy(name, *policies[number])
        else:
            now[kind, name] = pods[number]
            index.set_pod(name, *pods[number])
        if random.random() < 0.2:
            now.pop((kind, name))
            (index.remove_policy if kind == "policy" else index.remove_pod)(name)
    for policy in "012":
        namespace, selector = now.get(("policy", policy), ("", None))
        expected = {
            name
            for (kind, name), (where, found) in now.items()
            if kind == "pod" and where == namespace and isinstance(selector, LabelSelector) and selector.matches(found)  # type: ignore[arg-type]
        }
        assert index.pods_of(policy) == expected
        assert {pod for pod in "012" if policy in index.policies_of(pod)} == expected


def test_a_changed_pod_is_shown_only_to_policies_that_could_select_it(monkeypatch: pytest.MonkeyPatch) -> None:
    index, asked = Selection(), 0

    def counting(_selector: LabelSelector, _labels: dict[str, str] | None) -> bool:
        nonlocal asked
        asked += 1
        return True

    for number in range(1000):
        index.set_policy(str(number), "ns", LabelSelector((expression("app", IN, str(number)),)))
    monkeypatch.setattr(LabelSelector, "matches", counting)
    index.set_pod("pod", "ns", {"app": "7", "tier": "x"})
    assert asked == 1
    assert index.policies_of("pod") == {"7"}
