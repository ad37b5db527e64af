import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrp_operator.sources.documents import MAX_ALIASED, MAX_DEPTH, Fault, documents


def values(text: str | bytes) -> list[Any]:
    found = list(documents(text.encode() if isinstance(text, str) else text))
    assert [document.fault for document in found if document.fault] == []
    return [document.value for document in found]


def value(text: str) -> Any:
    (only,) = values(text)
    return only


def fault(text: str | bytes) -> Fault:
    (document,) = documents(text.encode() if isinstance(text, str) else text)
    assert document.fault is not None
    return document.fault


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12:30:45", "12:30:45"),  # base 60 in YAML 1.1
        ("190:20", "190:20"),
        ("2001-12-14", "2001-12-14"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("OFF", "OFF"),
        ("y", "y"),
        ("0o17", 15),
        ("017", 17),
        ("08", 8),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("+12", 12),
        ("-0", 0),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-1.5E-1", -0.15),
        ("1.2.3.4", "1.2.3.4"),
        ("::1", "::1"),
        ("1:2", "1:2"),
        ("true", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("~", None),
        ("null", None),
        ("", None),
        ("nULL", "nULL"),
        ("'80'", "80"),
        ('"true"', "true"),
        ("!!str 80", "80"),
        ("! 80", "80"),
        ("!!int '80'", 80),
        ("!!float 1", 1.0),
        ("=", "="),
        ("<", "<"),
        ("None", "None"),
    ],
)
def test_scalars_have_the_types_of_yaml_1_2(text: str, expected: Any) -> None:
    assert value(f"a: {text}") == {"a": expected}
    assert type(value(f"a: {text}")["a"]) is type(expected)


def test_keys_are_texts_as_in_json() -> None:
    assert value("{80: a, true: b, ~: c, 0o7: d}") == {"80": "a", "true": "b", "~": "c", "0o7": "d"}


def test_documents_are_numbered_and_have_their_line() -> None:
    text = "# first\na: 1\n---\n# nothing\n---\nb: 2\n...\n---\n\nc: 3\n"
    found = [(document.number, document.line, document.value) for document in documents(text.encode())]
    assert found == [(1, 1, {"a": 1}), (3, 5, {"b": 2}), (4, 8, {"c": 3})]


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# only a comment\n", "---\n", "---\n---\n# x\n", "%YAML 1.2\n---\n", "...\n"]
)
def test_nothing_is_no_document(text: str) -> None:
    assert values(text) == []


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_markers(newline: str) -> None:
    text = newline.join(["%YAML 1.2", "--- # one", "a: |", "  ---", "  x", "--- {a: b}", "...", "c: ---d", ""])
    assert values(text) == [{"a": "---\nx\n"}, {"a": "b"}, {"c": "---d"}]


def test_a_byte_order_mark_is_no_content() -> None:
    assert value("\N{BYTE ORDER MARK}a: 1") == {"a": 1}
    assert value('\N{BYTE ORDER MARK}{"a": 1}') == {"a": 1}


def test_a_bad_document_costs_only_itself() -> None:
    found = list(documents(b"a: 1\n---\nb: [1\n---\nc: 3\n---\nd: 'x\n"))
    assert [document.value for document in found] == [{"a": 1}, None, {"c": 3}, None]
    assert [document.fault and document.fault.line for document in found] == [None, 3, None, 7]


def test_anchors_and_merges() -> None:
    text = """
base: &base {a: 1, b: &b [x]}
one: {<<: *base, b: 2}
two: {c: *b, <<: [{c: 3, d: 4}, *base]}
"""
    assert value(text) == {
        "base": {"a": 1, "b": ["x"]},
        "one": {"a": 1, "b": 2},
        "two": {"c": ["x"], "d": 4, "a": 1, "b": ["x"]},
    }


def test_json_is_read_as_json() -> None:
    assert value('{"a": "\\ud83d\\ude00\\/", "b": [1, 1.5, true, null]}') == {"a": "😀/", "b": [1, 1.5, True, None]}
    assert value("{a: b}") == {"a": "b"}


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED_LAUGHS = "a: &a {k: v}\n" + "".join(
    f"{new}: &{new} {{<<: [{','.join(['*' + old] * 10)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
LADDER = "x0: &x0 [a]\n" + "".join(f"x{n + 1}: &x{n + 1} [*x{n}]\n" for n in range(2000))


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: [1, 2", 1, "expected ',' or ']'"),
        ("a: 1\nb: 'x", 2, "unexpected end of stream"),
        ("a: b: c", 1, "mapping values are not allowed"),
        ("a: 1\n\tb: 2", 2, "found a tab character"),
        ("a: 1\nb: 2\na: 3", 3, "the key 'a' comes twice"),
        ('{"a": 1,\n "a": 2}', 2, "the key 'a' comes twice"),
        ("? [a]\n: b", 1, "key must be a text"),
        ("? {a: b}\n: b", 1, "key must be a text"),
        ("a: &x b\n*x : c", 2, "key must be a text"),
        ("a: &a [*a]", 1, "is part of itself"),
        ("a: *b", 1, "stands for nothing"),
        ("<<: [a]", 1, "<< takes a mapping"),
        (LAUGHS, 5, f"more than {MAX_ALIASED}"),
        (MERGED_LAUGHS, None, f"more than {MAX_ALIASED}"),
        (LADDER, MAX_DEPTH, f"more than {MAX_DEPTH} deep"),
        ("[" * 1_000_000, 1, f"more than {MAX_DEPTH} deep"),
        ('{"a":' * 1_000_000, 1, f"more than {MAX_DEPTH} deep"),
        ('{"a":' + "[" * 300 + "]" * 300 + "}", 1, f"more than {MAX_DEPTH} deep"),
        ("{a: " * 1_000_000, 1, f"more than {MAX_DEPTH} deep"),
        ("- " * 500_000, 1, f"more than {MAX_DEPTH} deep"),
        ("a: 1\nb: \0", 2, "U+0000"),
        (b"a: 1\nb: \xff", 2, "byte 0xff is not UTF-8"),
        ("a: 1".encode("utf-16"), 1, "is not UTF-8"),
        ("a: \x1b[2J", 1, "U+001B"),
        ("a: .nan", 1, ".nan is no number"),
        ("a: -.Inf", 1, "is no number"),
        ("a: 1e999", 1, "is no number"),
        ("a: " + "9" * 5000, 1, "5000 digits"),
        ("a: 0x" + "f" * 5000, 1, "5000 digits"),
        ('{"a": NaN}', 1, "NaN is no number"),
        ('{"a": -Infinity}', 1, "is no number"),
        ('{"a": 1e999}', 1, "is no number"),
        ('{"a": ' + "9" * 5000 + "}", 1, "5000 digits"),
        ('{"a": "\\ud800"}', 1, "escape"),
        ('{"a": 1\n"b": 2}', 2, "Expecting ',' delimiter"),
        ('{"a": 1,', 1, "Expecting property name"),
        ('{"a": 1} {"b": 2}', 1, "Extra data"),
        ("a: !!python/object/apply:os.system [id]", 1, "has no meaning here"),
        ("a: !!binary aGk=", 1, "has no meaning here"),
        ("a: !!timestamp 2001-01-01", 1, "has no meaning here"),
        ("a: !foo b", 1, "has no meaning here"),
        ("a: !!int x", 1, "is not of the type !!int"),
    ],
)
def test_what_can_not_be_read_is_told_with_its_line(text: str | bytes, line: int | None, words: str) -> None:
    start = time.monotonic()
    found = fault(text)
    assert words in found.message
    assert len(found.message) < 200
    if line is not None:
        assert found.line == line
    assert time.monotonic() - start < 10


def test_ten_megabytes() -> None:
    pod = "kind: Pod\nmetadata: {name: p, labels: {app: proxy}}\nspec: {containers: [{ports: [{containerPort: 80}]}]}\n"
    text = f"{pod}---\n" * (10_000_000 // len(pod))
    start = time.monotonic()
    assert len(values(text)) == 10_000_000 // len(pod)
    assert fault("x: " + "a" * 10_000_000 + "\ny: [").line == 2
    assert time.monotonic() - start < 60


def test_places() -> None:
    (document,) = documents(b"---\n# hello\na:\n  - b: 1\n    c:\n      - 5\n")
    assert document.line_of(()) == 3
    assert document.line_of(("a", 0)) == 4
    assert document.line_of(("a", 0, "c", 0)) == 6
    assert document.line_of(("a", 0, "c", 7)) == 5
    (document,) = documents(b'\n{\n "a": [\n {"b":\n 1}]}')
    assert document.line_of(("a", 0, "b")) == 4


# --- Invariants -------------------------------------------------------------------------------------------------------

SCRAPS = st.sampled_from(
    [
        *re.findall(r"\S+", "--- ... - a: ? : [ ] { } , &a *a <<: ' \" | > !!str !x # %YAML \\ud800 é 1 0x .inf"),
        " ",
        "\n",
        "  ",
        "- ",
        "a: ",
        "\t",
        "\r",
        "\0",
        "\x85",
        "---\n",
    ]
)


@given(st.one_of(st.binary(), st.text().map(str.encode), st.lists(SCRAPS).map("".join).map(str.encode)))
def test_any_bytes_are_documents_or_faults(content: bytes) -> None:
    for document in documents(content):
        assert (document.value is None) != (document.fault is None)
        lines = document.fault.line if document.fault else document.line_of(("a", 0))
        assert 1 <= lines <= content.count(b"\n") + content.count(b"\r") + content.count(b"\xc2\x85") + 2


TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), TREES, min_size=1))
def test_json_round_trips(tree: Any) -> None:
    assert value(json.dumps(tree)) == tree
    assert value(json.dumps(tree, indent=1, ensure_ascii=True)) == tree
