"""BTF, the kernel's type information: how a map's key and value are laid out, as C wrote them.

Struct layouts are written once, in bpf/structs.h. This room flattens what the loaded map says of itself into
(name, offset, size) triples, so that the Python side can be checked against it. Format: the kernel's
Documentation/bpf/btf.rst.
"""

import struct
from dataclasses import dataclass

_MAGIC = 0xEB9F
_INT, _POINTER, _ARRAY, _STRUCT, _ENUM, _TYPEDEF, _VOLATILE, _CONST, _FUNCTION = 1, 2, 3, 4, 6, 8, 9, 10, 12
_EXTRA = {1: 4, 3: 12, 14: 4, 17: 4}  # bytes after the common header: INT, ARRAY, VAR, DECL_TAG
_PER_ITEM = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}  # STRUCT, UNION, ENUM, FUNC_PROTO, DATASEC, ENUM64


@dataclass(frozen=True, slots=True)
class Field:
    """A leaf of a struct: nested names joined by dots ("frontend.ip"), offset and size in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Type:
    name: str
    kind: int
    items: int
    size_or_type: int
    rest: bytes


def function_id(raw: bytes, name: str) -> int:
    """Find a function in raw BTF; return its type's number. Raises LookupError, or ValueError on what is no BTF.

    The kernel's own BTF has a hundred thousand types: they are stepped over, not parsed.
    """
    types, strings = _sections(raw)
    wanted = strings.find(b"\0" + name.encode() + b"\0") + 1
    at, number = 0, 1
    while wanted and at < len(types):
        found, info = struct.unpack_from("=II", types, at)
        kind, items = (info >> 24) & 0x1F, info & 0xFFFF
        if found == wanted and kind == _FUNCTION:
            return number
        at += 12 + _EXTRA.get(kind, 0) + _PER_ITEM.get(kind, 0) * items
        number += 1
    raise LookupError(f"there is no function {name}")


def _sections(raw: bytes) -> tuple[bytes, bytes]:
    """Split BTF into its types and its strings. Raises ValueError."""
    magic, _version, _flags, header, type_offset, type_size, string_offset, string_size = struct.unpack_from(
        "=HBBIIIII", raw
    )
    if magic != _MAGIC:
        raise ValueError(f"no BTF: it starts with {magic:#x}")
    types = raw[header + type_offset : header + type_offset + type_size]
    return types, raw[header + string_offset : header + string_offset + string_size]


class Btf:
    """Parsed BTF. Raises ValueError on what is no BTF."""

    def __init__(self, raw: bytes) -> None:
        types, self._strings = _sections(raw)
        self._types: list[_Type] = [_Type("void", 0, 0, 0, b"")]
        self._parse(types)

    def _parse(self, raw: bytes) -> None:
        at = 0
        while at < len(raw):
            name, info, size = struct.unpack_from("=III", raw, at)
            kind, items = (info >> 24) & 0x1F, info & 0xFFFF
            extra = _EXTRA.get(kind, 0) + _PER_ITEM.get(kind, 0) * items
            self._types.append(_Type(self._string(name), kind, items, size, raw[at + 12 : at + 12 + extra]))
            at += 12 + extra

    def _string(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def _resolve(self, number: int) -> _Type:
        found = self._types[number]
        while found.kind in (_TYPEDEF, _VOLATILE, _CONST):
            found = self._types[found.size_or_type]
        return found

    def size(self, number: int) -> int:
        """Bytes of a type."""
        found = self._resolve(number)
        if found.kind == _ARRAY:
            element, _index, count = struct.unpack("=III", found.rest)
            return self.size(element) * int(count)
        return 8 if found.kind == _POINTER else found.size_or_type

    def struct_named(self, name: str) -> int:
        """Find a struct; return its type's number. Raises LookupError."""
        for number, found in enumerate(self._types):
            if found.kind == _STRUCT and found.name == name:
                return number
        raise LookupError(f"there is no struct {name}")

    def fields(self, number: int, prefix: str = "", offset: int = 0) -> tuple[Field, ...]:
        """Flatten a type: structs to their leaves; arrays and numbers are one leaf."""
        found = self._resolve(number)
        if found.kind != _STRUCT:
            return (Field(prefix, offset, self.size(number)),)
        leaves: list[Field] = []
        for i in range(found.items):
            name, member, bits = struct.unpack_from("=III", found.rest, 12 * i)
            path = f"{prefix}.{self._string(name)}" if prefix else self._string(name)
            leaves += self.fields(member, path, offset + (bits & 0xFFFFFF) // 8)
        return tuple(leaves)
