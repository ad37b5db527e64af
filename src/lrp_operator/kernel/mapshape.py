"""A map's shape: all that decides how it is made. Read off one map, another can be made like it, empty."""

import ctypes
import struct
from dataclasses import dataclass

from lrp_operator.kernel import bpf


@dataclass(frozen=True, slots=True)
class MapShape:
    """Sizes in bytes. name: at most 15 letters. btf: what its key's and value's types are numbers in; may be empty."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    btf: bytes = b""
    btf_key_type: int = 0
    btf_value_type: int = 0


def shape_of(fd: bpf.Fd) -> MapShape:
    """Read a map's shape. Raises OSError."""
    info = bpf.map_info(fd)
    sizes = (info.type, info.key_size, info.value_size, info.max_entries, info.flags)
    if not info.btf_id:
        return MapShape(info.name, *sizes)
    return MapShape(info.name, *sizes, bpf.read_btf(info.btf_id), info.btf_key_type, info.btf_value_type)


def make(shape: MapShape) -> bpf.Fd:
    """Make an empty map. Raises OSError."""
    if not shape.btf:
        return _make(shape, 0)
    with _load_btf(shape.btf) as btf:
        return _make(shape, btf.number)


def _make(shape: MapShape, btf: int) -> bpf.Fd:
    sizes = struct.pack("=5I8x", shape.type, shape.key_size, shape.value_size, shape.max_entries, shape.flags)
    types = struct.pack("=4x3I", btf, shape.btf_key_type, shape.btf_value_type)
    return bpf.Fd(bpf.call(bpf.Command.MAP_CREATE, sizes + struct.pack("=16s", shape.name.encode()) + types))


def _load_btf(raw: bytes) -> bpf.Fd:
    buffer = ctypes.create_string_buffer(raw, len(raw))
    attributes = struct.pack("=QQII", ctypes.addressof(buffer), 0, len(raw), 0)
    return bpf.Fd(bpf.call(bpf.Command.BTF_LOAD, attributes))
