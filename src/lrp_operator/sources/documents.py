"""From a file's bytes to its documents: YAML 1.2 or JSON text to plain values, or what is wrong with it and where.

A text is split at its document markers before anything is parsed, so that a bad document costs only itself. Each part
is parsed by libyaml, event by event, and the values are built here: with YAML 1.2's types (no base-60 numbers, no
dates, `yes` is a text), and with limits that make hostile input an error: on depth (PyYAML's composer recurses until
the C stack overflows), on what aliases multiply, and on keys that come twice. JSON takes a faster way to the same.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_DEPTH = 100
"""No Kubernetes object is nested a quarter as deep, and what reads values recurses."""

MAX_ALIASED = 100_000
"""How many values the aliases of one document may stand for."""

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a document can't be read. line: counted from 1 in the whole text."""

    line: int
    message: str


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a text: its value, or its fault.

    number: counted from 1, empty documents included; line: the first line of its part of the text.
    """

    number: int
    line: int
    text: str
    value: Any = None
    fault: Fault | None = None

    def line_of(self, path: Path) -> int:
        """Find the line that a value is on, or the nearest one around it. It parses anew: errors are rare."""
        try:
            places = _places(self.text)
        except _FaultError:
            return self.line
        while path and path not in places:
            path = path[:-1]
        return self.line + places.get(path, 0)


def documents(content: bytes) -> Iterator[Document]:
    """Yield the documents of a text that are not empty."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield Document(1, 1, "", fault=Fault(line, f"byte 0x{content[error.start]:02x} is not UTF-8"))
        return
    for number, line, part in _split(text):
        try:
            value = _parse(part)
        except _FaultError as error:
            # An unfinished document's fault is seen at its end, which may be past its last line.
            last = part.rstrip().count("\n")
            yield Document(number, line, part, fault=Fault(line + min(error.line, last), error.message))
            continue
        if value is not None:
            yield Document(number, line, part, value)


class _FaultError(Exception):
    """A fault within one part of a text; line counts from 0."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


# --- Splitting --------------------------------------------------------------------------------------------------------

# Nowhere in YAML, not in a quoted text either, may a line start like this and not be a marker.
_MARKER = re.compile(r"^(?:---|\.\.\.)(?=[ \t\r\n]|\Z)", re.MULTILINE)


def _split(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the parts of a text: number of the document, line, text."""
    starts = [0, *(match.start() for match in _MARKER.finditer(text) if match.start()), len(text)]
    number, line = 0, 1
    for start, end in itertools.pairwise(starts):
        part = text[start:end]
        if part.startswith("..."):
            part = "   " + part[3:]
        if part.startswith("---") or not _is_blank(part):
            number += 1
            yield number, line, part
        line += part.count("\n")


def _is_blank(part: str) -> bool:
    """Whether there is nothing but comments, and directives for what follows."""
    return all(not line.strip() or line.lstrip().startswith("#") or line.startswith("%") for line in part.splitlines())


# --- Parsing ----------------------------------------------------------------------------------------------------------

_JSON = re.compile(r"""\s*\{\s*["}]""")  # {a: b} is YAML
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _parse(text: str) -> Any:
    """Return the value of a part of a text, None if it is empty. Raises _FaultError."""
    if match := _UNPRINTABLE.search(text):
        raise _FaultError(text.count("\n", 0, match.start()), f"the character U+{ord(match[0]):04X} is not allowed")
    if _JSON.match(text) is None:
        return _parse_yaml(text)
    try:
        return _parse_json(text)
    except (
        ValueError
    ) as error:  # a key twice, a number of 5000 digits, half a surrogate pair: only YAML has their lines
        _parse_yaml(text)
        raise _FaultError(0, str(error)) from None


def _parse_json(text: str) -> Any:
    """Return the value of a JSON text. Raises _FaultError, and ValueError for what has no line."""
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite, parse_int=_decimal
        )
    except json.JSONDecodeError as error:
        raise _FaultError(error.lineno - 1, f"{error.msg} (column {error.colno})") from None
    except RecursionError:
        raise _FaultError(0, _TOO_DEEP) from None
    _check_depth(value)
    if "\\u" in text and not _is_encodable(value):
        raise ValueError("a \\u escape is half of a surrogate pair")
    return value


_TOO_DEEP = f"nested more than {MAX_DEPTH} deep"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key comes twice in one mapping")
    return value


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number that Kubernetes knows")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _is_encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [item for node in level if isinstance(node, dict | list) for item in _items(node)]
        if not level:
            return
    raise _FaultError(0, _TOO_DEEP)


def _items(node: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


def _parse_yaml(text: str) -> Any:
    try:
        return _Builder().build(yaml.parse(text, Loader=yaml.CSafeLoader))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        raise _FaultError(line, f"{error.context}, {error.problem}" if error.context else str(error.problem)) from None
    except yaml.YAMLError as error:
        raise _FaultError(0, str(error)) from None


def _places(text: str) -> dict[Path, int]:
    """Return the line, from 0, of every value in a part of a text. Raises _FaultError."""
    builder = _Builder(places={})
    try:
        builder.build(yaml.parse(text, Loader=yaml.CSafeLoader))
    except yaml.YAMLError as error:
        raise _FaultError(0, str(error)) from None
    return builder.places or {}


@dataclass(slots=True)
class _Frame:
    """A mapping or list that is not complete yet."""

    value: dict[str, Any] | list[Any]
    anchor: str | None
    path: Path
    key: str | None = None
    merges: list[dict[str, Any]] = field(default_factory=list)
    merging: bool = False
    size: int = 1
    height: int = 1


@dataclass(frozen=True, slots=True)
class _Anchored:
    """What an alias stands for, and how much that is."""

    value: Any
    size: int
    height: int


class _Builder:
    """Builds the value of one YAML document from the parser's events. Raises _FaultError."""

    def __init__(self, places: dict[Path, int] | None = None) -> None:
        self.places = places
        self._frames: list[_Frame] = []
        self._anchors: dict[str, _Anchored | None] = {}  # None: what it stands for is not complete
        self._aliased = 0
        self._result: Any = None

    def build(self, events: Iterable[yaml.Event]) -> Any:
        for event in events:
            line = event.start_mark.line if event.start_mark else 0
            try:
                self._take(event, line)
            except ValueError as error:
                raise _FaultError(line, str(error)) from None
        return self._result

    def _take(self, event: yaml.Event, line: int) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event, line)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._open(event, line)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._close()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event, line)

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        frame = self._frames[-1] if self._frames else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            self._key(frame, event)
            self._mark(self._path(), line)
            return
        value = _typed(event)
        if event.anchor:
            self._anchors[event.anchor] = _Anchored(value, 1, 0)
        self._mark(self._path(), line)
        self._put(value)

    def _key(self, frame: _Frame, event: yaml.ScalarEvent) -> None:
        """Take a mapping's key: a text, whatever it looks like, as in JSON."""
        if event.value == "<<" and event.implicit[0]:
            frame.merging = True
        elif event.value in frame.value:
            raise ValueError(f"the key {event.value[:60]!r} comes twice in one mapping")
        frame.key = event.value

    def _open(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent, line: int) -> None:
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in (None, "!", f"tag:yaml.org,2002:{'map' if is_mapping else 'seq'}"):
            raise ValueError(f"the tag {event.tag} has no meaning here")
        if self._frames and isinstance(self._frames[-1].value, dict) and self._frames[-1].key is None:
            raise ValueError("a mapping's key must be a text")
        if len(self._frames) == MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        if event.anchor:
            self._anchors[event.anchor] = None
        path = self._path()
        self._mark(path, line)
        self._frames.append(_Frame({} if is_mapping else [], event.anchor, path))

    def _close(self) -> None:
        frame = self._frames.pop()
        if isinstance(frame.value, dict):
            for merged in frame.merges:
                frame.value = merged | frame.value
        if frame.anchor:
            self._anchors[frame.anchor] = _Anchored(frame.value, frame.size, frame.height)
        self._put(frame.value, frame.size, frame.height)

    def _alias(self, event: yaml.AliasEvent, line: int) -> None:
        anchored = self._anchors.get(event.anchor or "")
        if anchored is None:
            known = event.anchor in self._anchors
            raise ValueError(f"the alias *{event.anchor} {'is part of itself' if known else 'stands for nothing'}")
        self._aliased += anchored.size
        if self._aliased > MAX_ALIASED:
            raise ValueError(f"its aliases stand for more than {MAX_ALIASED} values")
        if len(self._frames) + anchored.height > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        frame = self._frames[-1]
        if isinstance(frame.value, dict) and frame.key is None:
            raise ValueError("a mapping's key must be a text")
        self._mark(self._path(), line)
        self._put(anchored.value, anchored.size, anchored.height)

    def _put(self, value: Any, size: int = 1, height: int = 0) -> None:
        """Put a complete value where it belongs."""
        if not self._frames:
            self._result = value
            return
        frame = self._frames[-1]
        frame.size += size
        frame.height = max(frame.height, height + 1)
        if isinstance(frame.value, list):
            frame.value.append(value)
            return
        assert frame.key is not None  # a key comes first
        if frame.merging:
            frame.merges += _mergeable(value)
        else:
            frame.value[frame.key] = value
        frame.key, frame.merging = None, False

    def _path(self) -> Path:
        """Where the next value belongs; kept only when someone asks for places."""
        if self.places is None or not self._frames:
            return ()
        frame = self._frames[-1]
        if isinstance(frame.value, list):
            return (*frame.path, len(frame.value))
        return (*frame.path, frame.key or "")

    def _mark(self, path: Path, line: int) -> None:
        if self.places is not None:
            self.places.setdefault(path, line)


def _mergeable(value: Any) -> list[dict[str, Any]]:
    """Return what `<<` takes its keys from; of several mappings the first that has a key gives it."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, dict) for item in values):
        raise ValueError("<< takes a mapping, or a list of mappings")
    return values


# --- Types: the core schema of YAML 1.2 -------------------------------------------------------------------------------

_INT = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NO_FLOAT = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_TYPES = {"null": type(None), "bool": bool, "int": int, "float": float}
_PREFIX = "tag:yaml.org,2002:"


def _typed(event: yaml.ScalarEvent) -> Any:
    """Return a scalar with the type that its form or its tag gives it. Raises ValueError."""
    if event.tag is None:
        return _plain(event.value) if event.implicit[0] else event.value
    name = event.tag.removeprefix(_PREFIX)
    if name == "str" or event.tag == "!":
        return event.value
    if event.tag == name or name not in _TYPES:
        raise ValueError(f"the tag {event.tag} has no meaning here")
    value = _plain(event.value)
    if name == "float" and type(value) is int:
        return float(value)
    if type(value) is not _TYPES[name]:
        raise ValueError(f"{event.value[:60]!r} is not of the type !!{name}")
    return value


def _plain(text: str) -> Any:
    """Return the value of a text without quotes. Raises ValueError for a number that no one can hold."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "-+.0123456789":
        return text
    if _INT.fullmatch(text):
        return _integer(text, 10)
    if _BASED.fullmatch(text):
        return _integer(text[2:], 8 if text[1] == "o" else 16)
    if _FLOAT.fullmatch(text):
        return _finite(text)
    if _NO_FLOAT.fullmatch(text):
        return _no_number(text)
    return text


def _integer(digits: str, base: int) -> int:
    if len(digits) > 400:
        raise ValueError(f"a number of {len(digits)} digits is more than Kubernetes knows")
    return int(digits, base)


def _decimal(text: str) -> int:
    return _integer(text, 10)
