"""Extensions of a policy: annotations under lrp-operator.io/, as upstream's spec has no place for them.

    on-no-backend   fallback (the default) or drop: what happens to a frontend that nothing on the node can serve
    node-selector   a label selector on nodes, as kubectl writes them: the policy applies only on nodes that match

They are validated with the policy. One under our prefix that nobody knows rejects it: a slip in
`lrp-operator.io/on-no-backend: drop` must not open what was to be closed.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lrp_operator.api import rules
from lrp_operator.api.policy import LabelExpression, LabelSelector, OnNoBackend, Operator
from lrp_operator.api.problems import FieldError, quoted

PREFIX = "lrp-operator.io/"
ON_NO_BACKEND = f"{PREFIX}on-no-backend"
NODE_SELECTOR = f"{PREFIX}node-selector"
KNOWN = (NODE_SELECTOR, ON_NO_BACKEND)

MAX_SELECTOR_LENGTH = 4096


@dataclass(frozen=True, slots=True)
class Extensions:
    """What a policy's annotations ask for. node_selector: None means every node."""

    on_no_backend: OnNoBackend = OnNoBackend.FALL_BACK
    node_selector: LabelSelector | None = None


def read_annotations(annotations: Mapping[str, str]) -> tuple[Extensions, list[FieldError]]:
    """Read the annotations that are ours, and say what is wrong with them."""
    errors = [FieldError(_path(name), _unknown(name)) for name in sorted(annotations) if _is_unknown(name)]
    on_no_backend, node_selector = OnNoBackend.FALL_BACK, None
    if (written := annotations.get(ON_NO_BACKEND)) is not None:
        try:
            on_no_backend = OnNoBackend(written)
        except ValueError:
            # Neither guess would do: "fallback" could open what was to be closed, "drop" close what was to be open.
            message = f'must be "{OnNoBackend.DROP}" or "{OnNoBackend.FALL_BACK}", not {quoted(written)}'
            errors.append(FieldError(_path(ON_NO_BACKEND), message))
    if (written := annotations.get(NODE_SELECTOR)) is not None:
        try:
            node_selector = parse_selector(written)
        except ValueError as error:
            errors.append(FieldError(_path(NODE_SELECTOR), str(error)))
    return Extensions(on_no_backend, node_selector), errors


def _is_unknown(name: str) -> bool:
    return name.startswith(PREFIX) and name not in KNOWN


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), KNOWN, n=1, cutoff=0.75)
    if near:
        return f"there is no such annotation; do you mean {near[0]}?"
    return f"there is no such annotation; there are {' and '.join(KNOWN)}"


def _path(name: str) -> str:
    return f"metadata.annotations[{quoted(name)}]"


# --- Label selectors as texts -----------------------------------------------------------------------------------------

_PART = re.compile(r"(?P<not>!?)\s*(?P<key>[^\s=!<>(),]+)\s*(?P<rest>.*)", re.DOTALL)
_EQUALS = re.compile(r"(?P<operator>==?|!=)\s*(?P<value>[^\s=!<>(),]*)")
_SET = re.compile(r"(?P<operator>in|notin)\s*\((?P<values>[^()]*)\)")
_FORMS = 'requirements are key, !key, key=value, key!=value, "key in (a, b)" and "key notin (a, b)", joined by commas'


def parse_selector(text: str) -> LabelSelector:
    """Read a label selector as kubectl's --selector takes it. Raises ValueError with how to mend it."""
    if len(text) > MAX_SELECTOR_LENGTH:
        raise ValueError(f"is too long: a selector has at most {MAX_SELECTOR_LENGTH} characters")
    if not text.strip():
        raise ValueError("is empty: leave the annotation out if the policy is for every node")
    return LabelSelector(tuple(_requirement(part.strip()) for part in _split(text)))


def _split(text: str) -> Iterator[str]:
    """Split at the commas that are not in parentheses."""
    start = depth = 0
    for place, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth <= 0:
            yield text[start:place]
            start = place + 1
    yield text[start:]


def _requirement(part: str) -> LabelExpression:
    shape = _PART.fullmatch(part)
    if shape is None:
        raise ValueError(f"{quoted(part)} is no requirement: {_FORMS}")
    key, rest = shape["key"], shape["rest"]
    if not rules.is_label_key(key):
        raise ValueError(f"{quoted(key)} {rules.LABEL_KEY_MESSAGE}")
    if not rest:
        return LabelExpression(key, Operator.DOES_NOT_EXIST if shape["not"] else Operator.EXISTS)
    equals, among = _EQUALS.fullmatch(rest), _SET.fullmatch(rest)
    if shape["not"] or not (equals or among):
        raise ValueError(f"{quoted(part)} is no requirement: {_FORMS}")
    if equals:
        return _comparison(key, equals["operator"] != "!=", [equals["value"]])
    assert among is not None
    return _comparison(key, among["operator"] == "in", [value.strip() for value in among["values"].split(",")])


def _comparison(key: str, wanted: bool, values: list[str]) -> LabelExpression:
    for value in values:
        if not rules.is_label_value(value):
            raise ValueError(f"{quoted(value)} {rules.LABEL_VALUE_MESSAGE}")
    return LabelExpression(key, Operator.IN if wanted else Operator.NOT_IN, frozenset(values))
