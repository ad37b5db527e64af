"""From documents to cluster objects: which kinds count, what a List holds, and what makes a manifest unreadable.

A document of another kind is none of our business, whatever it says. One of ours is decoded into its projection; what
is wrong with it becomes a `Problem` with file, document and line, except for the spec of a policy, which stays as it
was written (wrong types in it reject that policy, see `lrp_operator.api.crd`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from lrp_operator.api.objects import ClusterObject, EndpointSlice, Node, Pod, Policy, Service
from lrp_operator.sources.documents import Path, documents

ObjectKey = tuple[type[ClusterObject], str]
"""What an object is known by: its kind and its "namespace/name" ("/name" for a Node)."""

DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something that could not be read. document, line: counted from 1; 0 where it is not about one."""

    file: str
    document: int
    line: int
    message: str

    def __str__(self) -> str:
        place = [self.file]
        place += [f"document {self.document}"] if self.document else []
        place += [f"line {self.line}"] if self.line else []
        return f"{', '.join(place)}: {self.message}"


class _Kind(NamedTuple):
    version: str
    type: type[ClusterObject]


KINDS = {
    ("", "Pod"): _Kind("v1", Pod),
    ("", "Service"): _Kind("v1", Service),
    ("", "Node"): _Kind("v1", Node),
    ("discovery.k8s.io", "EndpointSlice"): _Kind("v1", EndpointSlice),
    ("cilium.io", "CiliumLocalRedirectPolicy"): _Kind("v2", Policy),
}
_GROUPS = {kind: group for group, kind in KINDS}


def key_of(obj: ClusterObject) -> ObjectKey:
    """Return what an object is known by."""
    return type(obj), obj.metadata.key


def read_manifests(
    file: str, content: bytes, namespace: str = DEFAULT_NAMESPACE
) -> tuple[dict[ObjectKey, ClusterObject], list[Problem]]:
    """Return the objects in a file's content, the last one of each kind and name, and what could not be read.

    namespace: of objects that do not name theirs.
    """
    objects: dict[ObjectKey, ClusterObject] = {}
    problems: list[Problem] = []
    for document in documents(content):
        if document.fault is not None:
            problems.append(Problem(file, document.number, document.fault.line, document.fault.message))
            continue
        for found in _objects(document.value, namespace):
            if isinstance(found, _Trouble):
                problems.append(Problem(file, document.number, document.line_of(found.path), found.message))
            else:
                objects[key_of(found)] = found
    return objects, problems


class _Trouble(NamedTuple):
    """What is wrong with a document, and the value in it that is meant."""

    path: Path
    message: str


def _objects(
    value: Any, namespace: str, path: Path = (), default: tuple[str, str] | None = None
) -> Iterator[ClusterObject | _Trouble]:
    """Yield the objects of a document, or of an item of a List. default: apiVersion and kind where there are none."""
    if not isinstance(value, dict):
        yield _Trouble(path, f"{'an item' if path else 'a document'} must be a mapping, not {_kind_of(value)}")
        return
    api_version, kind = value.get("apiVersion"), value.get("kind")
    if default is not None and kind is None:
        api_version, kind = default
    if not isinstance(kind, str) or not kind:
        yield _Trouble(path, "has no kind" if kind in (None, "") else "its kind must be a text")
    elif not isinstance(api_version, str | None):
        yield _Trouble((*path, "apiVersion"), f"apiVersion must be a text, not {_kind_of(api_version)}")
    elif _is_ours(api_version, kind):
        yield _object(value, namespace, path, api_version, kind)
    elif kind == "List":
        yield from _items(value, namespace, path, None)
    elif kind.endswith("List") and _is_ours(api_version, kind.removesuffix("List")):
        yield from _items(value, namespace, path, (api_version or "", kind.removesuffix("List")))


def _is_ours(api_version: str | None, kind: str) -> bool:
    """Whether a kind is one that counts. Without an apiVersion the kind alone says so."""
    if not api_version:
        return kind in _GROUPS
    return (_group(api_version), kind) in KINDS


def _group(api_version: str) -> str:
    return api_version.rpartition("/")[0]


def _items(
    value: dict[str, Any], namespace: str, path: Path, default: tuple[str, str] | None
) -> Iterator[ClusterObject | _Trouble]:
    items = value.get("items")
    if not isinstance(items, list | None):
        yield _Trouble((*path, "items"), f"items must be a list, not {_kind_of(items)}")
        return
    for index, item in enumerate(items or ()):
        yield from _objects(item, namespace, (*path, "items", index), default)


def _object(
    value: dict[str, Any], namespace: str, path: Path, api_version: str | None, kind: str
) -> ClusterObject | _Trouble:
    known = KINDS[_GROUPS[kind], kind]
    if api_version and api_version.rpartition("/")[2] != known.version:
        wanted = "/".join(filter(None, (_GROUPS[kind], known.version)))
        return _Trouble((*path, "apiVersion"), f"{kind} is understood as {wanted} only, not {api_version}")
    metadata = value.get("metadata")
    if not isinstance(metadata, dict | None):
        return _Trouble((*path, "metadata"), f"metadata must be a mapping, not {_kind_of(metadata)}")
    if (metadata or {}).get("name") in (None, ""):
        return _Trouble(path, f"a {kind} without a name (metadata.name)")
    wanted_fields = _completed(value, known.type, namespace)
    try:
        return msgspec.convert(wanted_fields, type=known.type)
    except msgspec.ValidationError as error:
        return _wrong_type(str(error), path, kind, wanted_fields["metadata"]["name"])


def _completed(value: dict[str, Any], kind: type[ClusterObject], namespace: str) -> dict[str, Any]:
    """Return what is decoded: nulls count as absent, and a namespace is filled in where objects have one."""
    metadata = _without_nulls(value["metadata"])
    if kind is Node:
        metadata["namespace"] = ""
    elif metadata.get("namespace", "") == "":
        metadata["namespace"] = namespace
    if kind is Policy:
        return {"metadata": metadata, "spec": value.get("spec")}
    return {**_without_nulls(value), "metadata": metadata}


def _without_nulls(value: Any) -> Any:
    """Leave out what is null, as Kubernetes does, but never a label or annotation."""
    if isinstance(value, dict):
        return {
            key: item if key in ("labels", "annotations") else _without_nulls(item)
            for key, item in value.items()
            if item is not None
        }
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


# --- What is wrong, in words ------------------------------------------------------------------------------------------

_NAMES = {"str": "a text", "int": "a number", "float": "a number", "bool": "true or false", "array": "a list"}
_NAMES |= {"object": "a mapping", "null": "nothing"}
_TYPES = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a mapping"}


def _kind_of(value: Any) -> str:
    return _TYPES.get(type(value), "nothing")


def _wrong_type(error: str, path: Path, kind: str, name: Any) -> _Trouble:
    """Put msgspec's words for a wrong type, and its path, into ours."""
    message, _, place = error.partition(" - at `")
    steps = re.findall(r"\.([^.\[\]`]+)|\[(\d+|\.\.\.)\]", place)
    inner: Path = tuple(word or int(index) for word, index in steps if index != "...")
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in inner).lstrip(".")
    message = re.sub(r" \| null", "", message)
    message = re.sub(r"`(\w+)`", lambda match: _NAMES.get(match[1], match[1]), message)
    message = message.replace("Expected ", "must be ").replace(", got ", ", not ")
    message = message.replace("Object missing required field", "lacks the field")
    return _Trouble((*path, *inner), f"{kind} {name}: {where or 'it'} {message}")
