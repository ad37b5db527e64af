import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lrp_operator.api.annotations import MAX_SELECTOR_LENGTH, NODE_SELECTOR, parse_selector, read_annotations
from lrp_operator.api.crd import PolicyInvalid, parse_policy
from lrp_operator.api.objects import ObjectMeta, Policy
from tests.unit.api.cases import ADDRESS

EDGE = {"pool": "edge", "zone": "a"}
GPU = {"pool": "gpu", "gpu": ""}


@pytest.mark.parametrize(
    ("text", "edge", "gpu"),
    [
        ("pool=edge", True, False),
        ("pool==edge,!gpu", True, False),
        (" pool != edge ", False, True),
        ("missing!=x", True, True),  # as in Kubernetes
        ("gpu", False, True),
        ("! gpu", True, False),
        ("gpu=", False, True),
        ("pool in (edge, gpu),zone", True, False),
        ("pool notin (edge,cold)", False, True),
        ("zone notin (b)", True, True),
        ("pool in(edge)", True, False),
    ],
)
def test_selectors_as_kubectl_takes_them(text: str, edge: bool, gpu: bool) -> None:
    selector = parse_selector(text)
    assert (selector.matches(EDGE), selector.matches(GPU)) == (edge, gpu)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty: leave the annotation out"),
        ("  ", "is empty"),
        ("pool=edge,", '"" is no requirement'),
        ("pool=a b", "is no requirement: requirements are key"),
        ("pool>3", "is no requirement"),
        ("!pool=edge", "is no requirement"),
        ("pool in edge", "is no requirement"),
        ("pool in (edge", "is no requirement"),
        ("pool)(,x", "is no requirement"),
        ("-pool=edge", "is no label key"),
        ("pool=-edge", "is no label value"),
        ("pool in (a,-b)", "is no label value"),
        ("a" * (MAX_SELECTOR_LENGTH + 1), "is too long"),
    ],
)
def test_what_is_no_selector_is_told(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_selector(text)


def problems(annotations: dict[str, str]) -> dict[str, str]:
    return {error.path: error.message for error in read_annotations(annotations)[1]}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lrp-operator.io/node-selectors", "do you mean lrp-operator.io/node-selector?"),
        ("lrp-operator.io/on_no_backend", "do you mean lrp-operator.io/on-no-backend?"),
        ("lrp-operator.io/ON-NO-BACKEND", "do you mean lrp-operator.io/on-no-backend?"),
        ("lrp-operator.io/zzz", "there are lrp-operator.io/node-selector and lrp-operator.io/on-no-backend"),
    ],
)
def test_an_unknown_annotation_of_ours_names_the_nearest(name: str, words: str) -> None:
    assert words in problems({name: "drop"})[f'metadata.annotations["{name}"]']


def test_other_peoples_annotations_are_theirs() -> None:
    assert problems({"example.com/on-no-backend": "?", "lrp-operator.io.example.com/x": "", "kubectl": ""}) == {}


def test_every_wrong_annotation_is_told_with_what_is_wrong_in_the_spec() -> None:
    wrong = {NODE_SELECTOR: "a b", "lrp-operator.io/on-no-backend": "?", "lrp-operator.io/x": ""}
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(Policy(ObjectMeta("p", "default", annotations=wrong), {}))
    paths = [error.path for error in caught.value.errors]
    assert paths == [
        'metadata.annotations["lrp-operator.io/x"]',
        'metadata.annotations["lrp-operator.io/on-no-backend"]',
        'metadata.annotations["lrp-operator.io/node-selector"]',
        "spec.redirectFrontend",
        "spec.redirectBackend",
    ]


def test_the_selector_is_a_rule_of_the_policy() -> None:
    rules = parse_policy(Policy(ObjectMeta("p", "default", annotations={NODE_SELECTOR: "pool=edge"}), ADDRESS))
    assert rules.node_selector == parse_selector("pool=edge")
    assert parse_policy(Policy(ObjectMeta("p", "default"), ADDRESS)).node_selector is None


@given(st.dictionaries(st.one_of(st.text(), st.text().map("lrp-operator.io/".__add__)), st.text()))
@example({NODE_SELECTOR: "(" * 4000 + ","})
@example({NODE_SELECTOR: "a/" * 2000})
@example({"lrp-operator.io/" + "x" * 100_000: "\x00\n"})
def test_nonsense_is_told_on_lines_of_bounded_length(annotations: dict[str, str]) -> None:
    for error in read_annotations(annotations)[1]:
        assert len(str(error)) < 500
        assert "\n" not in str(error)
