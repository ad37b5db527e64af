"""bpf(2), as far as this project needs it: maps, programs, links, pins.

Raw system calls cost no more than libbpf through ctypes and need no library on the node. Every call raises OSError with
the kernel's errno. File descriptors are wrapped in `Fd`, which closes them.
The attribute layouts are those of `union bpf_attr` in the kernel's include/uapi/linux/bpf.h (a stable ABI).
"""

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

_SYSCALL_NUMBER = {"x86_64": 321, "aarch64": 280}
_ATTR_SIZE = 144
_libc = ctypes.CDLL(None, use_errno=True)


class Command(IntEnum):
    """bpf(2) commands."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_ATTACH = 8
    PROG_DETACH = 9
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    BTF_LOAD = 18
    BTF_GET_FD_BY_ID = 19
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    LINK_CREATE = 28
    LINK_UPDATE = 29
    ITER_CREATE = 33
    LINK_DETACH = 34


class MapType(IntEnum):
    """Map types in use."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    ARRAY_OF_MAPS = 12
    SK_STORAGE = 24
    RINGBUF = 27


class ProgType(IntEnum):
    """Program types in use."""

    SCHED_CLS = 3
    CGROUP_SOCK = 9
    CGROUP_SOCK_ADDR = 18
    TRACING = 26


class AttachType(IntEnum):
    """The socket hooks of a cgroup."""

    CONNECT4 = 10
    CONNECT6 = 11
    SENDMSG4 = 14
    SENDMSG6 = 15
    RECVMSG4 = 19
    RECVMSG6 = 20
    GETPEERNAME4 = 29
    GETPEERNAME6 = 30
    INET_SOCK_RELEASE = 34

    @property
    def program_type(self) -> ProgType:
        """The type of program that it takes."""
        return ProgType.CGROUP_SOCK if self is AttachType.INET_SOCK_RELEASE else ProgType.CGROUP_SOCK_ADDR


class TcxHook(IntEnum):
    """The hooks of a link (tcx, Linux 6.6): attach types too, but of links rather than cgroups."""

    INGRESS = 46
    EGRESS = 47


class Place(IntEnum):
    """Where in a tcx hook's list of programs one is to stand."""

    FIRST = 1 << 3  # BPF_F_BEFORE, relative to nothing
    LAST = 1 << 4  # BPF_F_AFTER


_REPLACE = 1 << 2  # BPF_F_REPLACE
_TRACE_ITER = 28  # the attach type of iterators
_ALLOW_MULTI = 1 << 1  # BPF_F_ALLOW_MULTI
QUERY_EFFECTIVE = 1  # BPF_F_QUERY_EFFECTIVE: with what ancestors attached


class Fd:
    """An owned file descriptor; use as a context manager, or close it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def fileno(self) -> int:
        """Return the number, for select and friends."""
        return self.number

    def close(self) -> None:
        """Close it, once."""
        if self.number >= 0:
            os.close(self.number)
            self.number = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@cache
def _lift_memory_limit() -> None:
    """Before Linux 5.11 maps and programs count as locked memory, of which a user gets little; no matter since."""
    with suppress(OSError, ValueError):  # without CAP_SYS_RESOURCE; then bpf(2) itself says what it has to
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def call(command: Command, attributes: bytes | bytearray) -> int:
    """Do one bpf(2) call; output fields are written back into a bytearray. Raises OSError."""
    if command in {Command.MAP_CREATE, Command.PROG_LOAD}:
        _lift_memory_limit()
    buffer = ctypes.create_string_buffer(bytes(attributes), _ATTR_SIZE)
    number = _SYSCALL_NUMBER[platform.machine()]
    result: int = _libc.syscall(number, int(command), buffer, _ATTR_SIZE)
    if isinstance(attributes, bytearray):
        attributes[:] = buffer.raw[: len(attributes)]
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf {command.name}: {os.strerror(code)}")
    return result


def _pointer(buffer: "ctypes.Array[ctypes.c_char]") -> int:
    return ctypes.addressof(buffer)


# --- Pins and objects


def pin(fd: Fd, path: Path) -> None:
    """Pin an object on a bpffs. Raises OSError (EEXIST where something is pinned, EPERM off a bpffs)."""
    name = ctypes.create_string_buffer(str(path).encode())
    call(Command.OBJ_PIN, struct.pack("=QI", _pointer(name), fd.number))


def open_pin(path: Path) -> Fd:
    """Open a pinned map, program or link. Raises OSError (ENOENT where nothing is pinned)."""
    name = ctypes.create_string_buffer(str(path).encode())
    return Fd(call(Command.OBJ_GET, struct.pack("=QI", _pointer(name), 0)))


def _info(fd: Fd, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    call(Command.OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd.number, size, _pointer(buffer)))
    return buffer.raw


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says of a map. Sizes in bytes; the btf_* numbers are 0 where the map has no BTF."""

    name: str
    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    btf_id: int
    btf_key_type: int
    btf_value_type: int


def map_info(fd: Fd) -> MapInfo:
    """Describe a map."""
    raw = _info(fd, 80)
    kind, number, key, value, entries, flags = struct.unpack_from("=6I", raw)
    btf_id, btf_key, btf_value = struct.unpack_from("=3I", raw, 64)
    name = raw[24:40].split(b"\0", 1)[0].decode()
    return MapInfo(name, kind, number, key, value, entries, flags, btf_id, btf_key, btf_value)


@dataclass(frozen=True, slots=True)
class ProgInfo:
    """What the kernel says of a program. tag: the hash of its instructions, as hex."""

    type: int
    id: int
    tag: str
    name: str


def prog_info(fd: Fd) -> ProgInfo:
    """Describe a program."""
    raw = _info(fd, 88)
    kind, number = struct.unpack_from("=2I", raw)
    return ProgInfo(kind, number, raw[8:16].hex(), raw[64:80].split(b"\0", 1)[0].decode())


def open_program(number: int) -> Fd:
    """Open a loaded program by its id. Raises OSError (ENOENT when it has gone)."""
    return Fd(call(Command.PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0)))


def maps_of(program: Fd) -> set[int]:
    """Ids of the maps that a program uses. Raises OSError."""
    ids = (ctypes.c_uint32 * 64)()
    raw = struct.pack("=52xIQ24x", len(ids), ctypes.addressof(ids))
    buffer = ctypes.create_string_buffer(raw, len(raw))
    call(Command.OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", program.number, len(raw), _pointer(buffer)))
    return set(ids[: struct.unpack_from("=I", buffer.raw, 52)[0]])


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What the kernel says of a cgroup link. cgroup_id is 0 when the link has been detached (its cgroup died)."""

    id: int
    prog_id: int
    cgroup_id: int
    attach_type: int


def link_info(fd: Fd) -> LinkInfo:
    """Describe a cgroup link."""
    raw = _info(fd, 32)
    _kind, number, prog_id, _pad, cgroup_id, attach_type = struct.unpack_from("=IIIIQI", raw)
    return LinkInfo(number, prog_id, cgroup_id, attach_type)


# --- Maps


class Map:
    """An open map. Keys and values are bytes of the map's own sizes; per-CPU values are 8-byte aligned, one per CPU.

    value_bytes: length of a value as it is passed here.
    """

    def __init__(self, fd: Fd) -> None:
        self.fd = fd
        self.info = map_info(fd)
        self._percpu = self.info.type == MapType.PERCPU_ARRAY
        aligned = (self.info.value_size + 7) & ~7
        self.value_bytes = aligned * possible_cpus() if self._percpu else self.info.value_size
        self._key = ctypes.create_string_buffer(max(self.info.key_size, 4))
        self._value = ctypes.create_string_buffer(max(self.value_bytes, 1))

    @classmethod
    def open(cls, path: Path) -> "Map":
        """Open a pinned map. Raises OSError."""
        return cls(open_pin(path))

    @classmethod
    def create(
        cls, kind: MapType, key_size: int, value_size: int, max_entries: int, *, inner: Fd | None = None
    ) -> "Map":
        """Make an unnamed map; inner: for a map of maps, one like those in it. Raises OSError."""
        attributes = struct.pack("=6I", kind, key_size, value_size, max_entries, 0, inner.number if inner else 0)
        return cls(Fd(call(Command.MAP_CREATE, attributes)))

    def close(self) -> None:
        """Close the descriptor; a pinned map lives on."""
        self.fd.close()

    def lookup(self, key: bytes) -> bytes | None:
        """Return the value, or None where there is none."""
        self._key.raw = key
        try:
            self._element(Command.MAP_LOOKUP_ELEM, 0)
        except FileNotFoundError:
            return None
        return self._value.raw[: self.value_bytes]

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        """Set a value. Raises OSError (E2BIG in a full hash)."""
        self._key.raw = key
        self._value.raw = value
        self._element(Command.MAP_UPDATE_ELEM, flags)

    def delete(self, key: bytes) -> bool:
        """Delete a key; False where there was none."""
        self._key.raw = key
        try:
            call(Command.MAP_DELETE_ELEM, struct.pack("=I4xQ", self.fd.number, _pointer(self._key)))
        except FileNotFoundError:
            return False
        return True

    def _element(self, command: Command, flags: int) -> None:
        call(command, struct.pack("=I4xQQQ", self.fd.number, _pointer(self._key), _pointer(self._value), flags))

    def update_many(self, items: list[tuple[bytes, bytes]]) -> None:
        """Set many values in one call. Raises OSError; then an unknown number of them are set."""
        if items:
            self._batch(
                Command.MAP_UPDATE_BATCH, b"".join(k for k, _ in items), b"".join(v for _, v in items), len(items)
            )

    def _batch(self, command: Command, keys: bytes, values: bytes, number: int) -> None:
        key_buffer = ctypes.create_string_buffer(keys, len(keys))
        value_buffer = ctypes.create_string_buffer(values, len(values))
        attributes = struct.pack(
            "=QQQQIIQQ", 0, 0, _pointer(key_buffer), _pointer(value_buffer), number, self.fd.number, 0, 0
        )
        call(command, attributes)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every entry, read in batches; entries written meanwhile may or may not be seen."""
        key_size, value_size = self.info.key_size, self.value_bytes
        for keys, values in self.batches():
            for i in range(len(keys) // key_size):
                yield keys[i * key_size : (i + 1) * key_size], values[i * value_size : (i + 1) * value_size]

    def batches(self, chunk: int = 4096) -> Iterator[tuple[bytes, bytes]]:
        """Yield all keys and all values, many at once, each as they lie side by side."""
        key_size, value_size = self.info.key_size, self.value_bytes
        chunk = min(chunk, max(self.info.max_entries, 1))
        keys = ctypes.create_string_buffer(key_size * chunk)
        values = ctypes.create_string_buffer(value_size * chunk)
        cursor = ctypes.create_string_buffer(max(key_size, 8))
        start, more = 0, True
        while more:
            attributes = bytearray(
                struct.pack(
                    "=QQQQIIQQ", start, _pointer(cursor), _pointer(keys), _pointer(values), chunk, self.fd.number, 0, 0
                )
            )
            try:
                call(Command.MAP_LOOKUP_BATCH, attributes)
            except FileNotFoundError:
                more = False
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                # A hash bucket holds more than the chunk.
                chunk *= 2
                keys = ctypes.create_string_buffer(key_size * chunk)
                values = ctypes.create_string_buffer(value_size * chunk)
                continue
            number = struct.unpack_from("=I", attributes, 32)[0]
            yield keys.raw[: number * key_size], values.raw[: number * value_size]
            start = _pointer(cursor)

    def per_cpu(self, value: bytes) -> list[bytes]:
        """Split a per-CPU value into one for each CPU."""
        aligned = (self.info.value_size + 7) & ~7
        return [value[i : i + self.info.value_size] for i in range(0, len(value), aligned)]


def possible_cpus() -> int:
    """How many CPUs a per-CPU value has room for (/sys/devices/system/cpu/possible, like "0-3,8")."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return 1 + max(int(part.split("-")[-1]) for part in text.split(","))


# --- Programs and links


def load_program(kind: ProgType, instructions: bytes, attach_type: int = 0, name: str = "") -> Fd:
    """Load raw instructions under the GPL. name: at most 15 letters, digits and underscores.

    Raises OSError (EINVAL, EACCES where the verifier refuses).
    """
    license_ = ctypes.create_string_buffer(b"GPL")
    code = ctypes.create_string_buffer(instructions, len(instructions))
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        kind,
        len(instructions) // 8,
        _pointer(code),
        _pointer(license_),
        0,
        0,
        0,
        0,
        0,
        name.encode(),
        0,
        attach_type,
    )
    return Fd(call(Command.PROG_LOAD, attributes))


def load_iterator(instructions: bytes, target: int) -> Fd:
    """Load raw instructions as an iterator's program. target: the kernel's BTF id of what it iterates over.

    Raises OSError.
    """
    license_ = ctypes.create_string_buffer(b"GPL")
    code = ctypes.create_string_buffer(instructions, len(instructions))
    head = struct.pack("=IIQQ", ProgType.TRACING, len(instructions) // 8, _pointer(code), _pointer(license_))
    return Fd(call(Command.PROG_LOAD, struct.pack("=24s44xI36xI", head, _TRACE_ITER, target)))


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a test run gave. data: the packet as the program left it; nanoseconds: the mean of one repetition."""

    value: int
    data: bytes
    nanoseconds: int


def run_packet(program: Fd, data: bytes, *, repeat: int = 1, context: bytes = b"") -> RunResult:
    """Run a program on packet data; the packet is not set back between repetitions.

    context: a __sk_buff of which the kernel takes a few fields (mark, ifindex, gso_size ...), where they may be set.
    Raises OSError.
    """
    given = ctypes.create_string_buffer(data, len(data))
    left = ctypes.create_string_buffer(len(data) + 256)
    ctx = ctypes.create_string_buffer(context, max(len(context), 1))
    head = (program.number, 0, len(data), len(left), _pointer(given), _pointer(left), repeat, 0)
    attributes = bytearray(struct.pack("=IIIIQQIIIIQQ", *head, len(context), 0, _pointer(ctx) if context else 0, 0))
    call(Command.PROG_TEST_RUN, attributes)
    value, _, size = struct.unpack_from("=III", attributes, 4)
    duration = struct.unpack_from("=I", attributes, 36)[0]
    return RunResult(value, left.raw[:size], duration)


def link_to_cgroup(program: Fd, cgroup: int, attach_type: AttachType) -> Fd:
    """Attach a program to a cgroup (an open directory) by a link. Raises OSError."""
    return Fd(call(Command.LINK_CREATE, struct.pack("=4I", program.number, cgroup, attach_type, 0)))


def link_to_map(program: Fd, found: Fd) -> Fd:
    """Join an iterator's program and a map. Raises OSError (EINVAL where the kernel can't iterate over such a map)."""
    target = ctypes.create_string_buffer(struct.pack("=I", found.number), 4)
    return Fd(call(Command.LINK_CREATE, struct.pack("=4IQI", program.number, 0, _TRACE_ITER, 0, _pointer(target), 4)))


def iterate(link: Fd) -> int:
    """Start an iteration; return a descriptor to read, which the caller closes. Raises OSError."""
    return call(Command.ITER_CREATE, struct.pack("=II", link.number, 0))


def update_link(link: Fd, program: Fd) -> None:
    """Put another program into a link, atomically. Raises OSError (ENOLINK where the cgroup is gone)."""
    call(Command.LINK_UPDATE, struct.pack("=4I", link.number, program.number, 0, 0))


def detach_link(link: Fd) -> None:
    """Detach a link for good, whoever else holds it open. Raises OSError."""
    call(Command.LINK_DETACH, struct.pack("=I", link.number))


def attached_programs(target: int, attach_type: AttachType | TcxHook, *, effective: bool = False) -> list[int]:
    """Ids of the programs on a hook, in the order in which they run. target: an open cgroup, or a link's index.

    effective: with those of the cgroup's ancestors. Raises OSError (EINVAL where the kernel has no such hook).
    """
    ids = (ctypes.c_uint32 * 64)()
    attributes = bytearray(
        struct.pack(
            "=IIIIQI4xQQQQ",
            target,
            attach_type,
            QUERY_EFFECTIVE if effective else 0,
            0,
            ctypes.addressof(ids),
            64,
            0,
            0,
            0,
            0,
        )
    )
    call(Command.PROG_QUERY, attributes)
    number = struct.unpack_from("=I", attributes, 24)[0]
    return list(ids[:number])


def admits_more(cgroup: int, attach_type: AttachType) -> bool:
    """Whether another program can be attached to an open cgroup's hook: not beside one that came alone.

    Raises OSError.
    """
    attributes = bytearray(struct.pack("=4IQI4x4Q", cgroup, attach_type, 0, 0, 0, 0, 0, 0, 0, 0))
    call(Command.PROG_QUERY, attributes)  # no room is given for ids: it tells their number alone
    flags, number = struct.unpack_from("=I", attributes, 12)[0], struct.unpack_from("=I", attributes, 24)[0]
    return not number or bool(flags & _ALLOW_MULTI)


# --- Programs on links (tcx), without a bpf link of their own: they go with their network link and leave no pin.


def attach_to_link(program: Fd, ifindex: int, hook: TcxHook, place: Place) -> None:
    """Attach a program to a link of the caller's network namespace. Raises OSError (EEXIST where it is already)."""
    call(Command.PROG_ATTACH, struct.pack("=6IQ", ifindex, program.number, hook, place, 0, 0, 0))


def replace_on_link(program: Fd, old: Fd, ifindex: int, hook: TcxHook) -> None:
    """Put a program into another one's place, atomically. Raises OSError (ENOENT where the old one is not there)."""
    call(Command.PROG_ATTACH, struct.pack("=6IQ", ifindex, program.number, hook, _REPLACE, old.number, 0, 0))


def detach_from_link(program: Fd, ifindex: int, hook: TcxHook) -> None:
    """Take a program off a link. Raises OSError (ENOENT where it is not there)."""
    call(Command.PROG_DETACH, struct.pack("=6IQ", ifindex, program.number, hook, 0, 0, 0, 0))


# --- BTF


def read_btf(btf_id: int) -> bytes:
    """Return the raw BTF that a map was made with. Raises OSError."""
    with Fd(call(Command.BTF_GET_FD_BY_ID, struct.pack("=I", btf_id))) as fd:
        size = struct.unpack_from("=QII", _info_btf(fd, 0))[1]
        buffer = ctypes.create_string_buffer(size)
        raw = bytearray(struct.pack("=QIIQII", _pointer(buffer), size, 0, 0, 0, 0))
        info = ctypes.create_string_buffer(bytes(raw), len(raw))
        call(Command.OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd.number, len(raw), _pointer(info)))
        return buffer.raw


def _info_btf(fd: Fd, size: int) -> bytes:
    info = ctypes.create_string_buffer(struct.pack("=QIIQII", 0, size, 0, 0, 0, 0), 32)
    call(Command.OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd.number, 32, _pointer(info)))
    return info.raw
