"""Keys and values of the maps as bytes, and the proof that the kernel means the same by them.

The layouts are C's (bpf/structs.h). `Layout` names the fields that Python reads or writes; `check` compares them with
the BTF of the loaded map, and a difference is an error, never a guess. Addresses and ports are in network byte order.
"""

import re
import struct
from typing import Any

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath.model import DatapathError
from lrp_operator.kernel import bpf, btf

FLAG_LOCAL_REDIRECT, FLAG_SKIP, FLAG_REFUSE, FLAG_AFFINITY, FLAG_DIRECT = 1, 2, 4, 8, 16  # enum run_flags
FLAG_HAS_ORIGINAL, FLAG_ORIGINAL = 32, 64
CONTROL_WATCHING, CONTROL_SETTLED = 0, 1  # enum control_key
FLAG_NAMES = {
    FLAG_LOCAL_REDIRECT: "local-redirect",
    FLAG_SKIP: "skip",
    FLAG_REFUSE: "refuse",
    FLAG_AFFINITY: "affinity",
    FLAG_DIRECT: "direct",
    FLAG_HAS_ORIGINAL: "original",
}
CLIENT_BY_LINK = 1 << 63  # in a client's `who`: the rest is a link's index


class Layout:
    """A C struct: field names and struct-module codes in order; a name of "" is padding."""

    def __init__(self, *fields: tuple[str, str]) -> None:
        self._struct = struct.Struct("=" + "".join(code for _, code in fields))
        self.pack = self._struct.pack
        self.unpack = self._struct.unpack
        self.size = self._struct.size
        self._fields = fields

    def check(self, what: str, found: tuple[btf.Field, ...]) -> None:
        """Raise DatapathError unless every named field lies where BTF says it does."""
        known = {field.name: (field.offset, field.size) for field in found}
        offset = 0
        for name, code in self._fields:
            size = struct.calcsize("=" + code)
            if name and known.get(name) != (offset, size):
                raise DatapathError(
                    f"map {what}: field {name} is at {known.get(name)} in the kernel, not {(offset, size)}"
                )
            offset += size
        end = max(field.offset + field.size for field in found)
        if offset < end:
            raise DatapathError(f"map {what}: the kernel's struct has {end} bytes, not {offset}")


def _frontend(ip_bytes: int, prefix: str = "") -> tuple[tuple[str, str], ...]:
    return (
        (f"{prefix}ip", f"{ip_bytes}s"),
        (f"{prefix}port", "2s"),
        (f"{prefix}protocol", "B"),
        ("", "x"),
    )


def _slot(ip_bytes: int) -> Layout:
    own = (
        ("ip", f"{ip_bytes}s"),
        ("port", "2s"),
        ("count", "H"),
        ("flags", "H"),
        ("index", "H"),
        ("generation", "I"),
        ("affinity_seconds", "I"),
    )
    return Layout(*_frontend(ip_bytes, "frontend."), *own)


FRONTEND_ID = Layout(("id", "I"))
RUN_START = Layout(("first", "I"))
SLOT = {4: _slot(4), 16: _slot(16)}  # by bytes of an address
CLIENT = {
    4: Layout(("who", "Q"), *_frontend(4, "frontend.")),
    16: Layout(("who", "Q"), *_frontend(16, "frontend."), ("", "4x")),
}
COUNTERS = Layout(("redirected", "Q"), ("refused", "Q"), ("skipped", "Q"), ("failed", "Q"))
EVENT = Layout(
    ("netns_cookie", "Q"),
    ("pid", "I"),
    ("hook", "B"),
    ("action", "B"),
    ("family", "B"),
    ("protocol", "B"),
    ("frontend_ip", "16s"),
    ("backend_ip", "16s"),
    ("frontend_port", "2s"),
    ("backend_port", "2s"),
    ("command", "16s"),
    ("ifindex", "I"),
)


def _tuple(ip_bytes: int, prefix: str) -> tuple[tuple[str, str], ...]:
    addresses = ((f"{prefix}saddr", f"{ip_bytes}s"), (f"{prefix}daddr", f"{ip_bytes}s"))
    return (*addresses, (f"{prefix}sport", "2s"), (f"{prefix}dport", "2s"))


FLOW_KEY = {
    size: Layout(*_tuple(size, "tuple."), ("ifindex", "I"), ("protocol", "B"), ("way", "B"), ("", "2x"))
    for size in (4, 16)
}
FLOW = {
    size: Layout(
        *_tuple(size, "becomes."),
        ("seen", "I"),
        ("isn", "I"),
        ("index", "H"),
        ("flags", "B"),
        ("", "x"),
        ("mac", "6s"),
        ("", "2x"),
    )
    for size in (4, 16)
}
FLOW_REPLY, FLOW_BOUNCE, FLOW_ON_LINK, FLOW_FIN_SENT, FLOW_FIN_BACK, FLOW_RESET = 1, 2, 4, 8, 16, 32  # enum flow_flags
FROM_POD, TO_POD = 0, 1  # enum way


def frontend_key(address: L4Addr) -> bytes:
    """Encode a frontend as its map key."""
    return address.ip + address.port.to_bytes(2, "big") + bytes((address.protocol, 0))


def parse_frontend(key: bytes) -> L4Addr:
    """Decode a frontends map's key. Raises ValueError for a protocol that we never write."""
    size = len(key) - 4
    return L4Addr(key[:size], int.from_bytes(key[size : size + 2], "big"), Protocol(key[size + 2]))


def client_key(who: int, address: L4Addr) -> bytes:
    """Encode a skip map's key. who: a namespace's cookie, or CLIENT_BY_LINK and a link's index."""
    return CLIENT[len(address.ip)].pack(who, address.ip, address.port.to_bytes(2, "big"), address.protocol)


def parse_client(key: bytes) -> tuple[int, L4Addr]:
    """Decode a skip map's key. Raises ValueError for a protocol that we never write."""
    layout = CLIENT[4 if len(key) == CLIENT[4].size else 16]
    who, ip, port, protocol = layout.unpack(key)
    return who, L4Addr(ip, int.from_bytes(port, "big"), Protocol(protocol))


def check_map(name: str, opened: bpf.Map, max_frontends: int, max_backends: int) -> None:
    """Compare a loaded map with what Python believes of it: type, size, flags, fields. Raises DatapathError."""
    shapes = {
        "frontends": (bpf.MapType.HASH, max_frontends, 1),  # 1: BPF_F_NO_PREALLOC
        "runs": (bpf.MapType.ARRAY, max_frontends, 0),
        "backends": (bpf.MapType.ARRAY, max_backends, 0),
        "counters": (bpf.MapType.PERCPU_ARRAY, max_frontends, 0),
    }
    wanted = shapes.get(name.rstrip("46"))
    shape = (opened.info.type, opened.info.max_entries, opened.info.flags)
    if wanted is not None and shape != wanted:
        raise DatapathError(f"map {name} has type, size and flags {shape}, not {wanted}: someone else has put it there")
    if not opened.info.btf_id:
        raise DatapathError(f"map {name} has no BTF: it was not made by this version")
    parsed = btf.Btf(bpf.read_btf(opened.info.btf_id))
    keys, values = parsed.fields(opened.info.btf_key_type), parsed.fields(opened.info.btf_value_type)
    match = re.fullmatch(r"(frontends|runs|backends|skip|counters|flows|recent)([46]?)", name)
    if match is None:
        return
    ip_bytes = 16 if match[2] == "6" else 4
    layouts: dict[str, tuple[Layout | None, Layout | None]] = {
        "frontends": (Layout(*_frontend(ip_bytes)), FRONTEND_ID),
        "runs": (None, RUN_START),
        "backends": (None, SLOT[ip_bytes]),
        "skip": (CLIENT[ip_bytes], None),
        "counters": (None, COUNTERS),
        "flows": (FLOW_KEY[ip_bytes], FLOW[ip_bytes]),
        "recent": (FLOW_KEY[ip_bytes], FLOW[ip_bytes]),
    }
    for layout, found in zip(layouts[match[1]], (keys, values), strict=True):
        if layout is not None:
            layout.check(name, found)


def unpack_event(raw: bytes) -> tuple[Any, ...]:
    """Split one ring entry into EVENT's fields."""
    return EVENT.unpack(raw)
