"""Which sockets have something in a socket storage map, and what: the kernel's iterator over such a map.

Socket storage has no keys that user space could walk; the kernel offers a BPF iterator instead
(iter/bpf_sk_storage_map, Linux 5.9, and the socket's cookie in it, 5.12; both need the kernel's own BTF). The program
that it runs for each entry is a dozen instructions: it writes the socket's cookie and the entry's value into a stream
that we read like a file. Every namespace's sockets are seen at once, and none is locked out of its work.

The cookie is the one that SO_COOKIE, bpf_get_socket_cookie() and socket diagnosis (sockdiag) show.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from lrp_operator.kernel import bpf, btf

_KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")
_TARGET = "bpf_iter_bpf_sk_storage_map"
_COOKIE_BYTES = 8

# struct bpf_iter__bpf_sk_storage_map: four pointers of 8 bytes each; struct bpf_iter_meta starts with the stream.
_META, _SOCKET, _VALUE = 0, 16, 24
_GET_SOCKET_COOKIE, _SEQ_WRITE = 46, 127  # helper numbers, include/uapi/linux/bpf.h

_LOAD, _STORE, _COPY, _SET, _ADD, _CALL, _EXIT, _IF_ZERO = 0x79, 0x7B, 0xBF, 0xB7, 0x07, 0x85, 0x95, 0x15


class StorageUnreadableError(Exception):
    """This kernel has no such iterator; the text is one sentence for people."""


class SocketStorage:
    """A reader of one socket storage map. The constructor raises StorageUnreadableError."""

    def __init__(self, storage: bpf.Map) -> None:
        self._record = _COOKIE_BYTES + storage.info.value_size
        try:
            target = btf.function_id(_KERNEL_BTF.read_bytes(), _TARGET)
            with bpf.load_iterator(_program(storage.info.value_size), target) as program:
                self._link = bpf.link_to_map(program, storage.fd)
        except (OSError, LookupError, ValueError) as error:
            raise StorageUnreadableError(f"this kernel can't list what sockets remember: {error}") from error

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Yield (socket cookie, value) of every socket that has an entry. Raises OSError."""
        with os.fdopen(bpf.iterate(self._link), "rb", buffering=1 << 16) as stream:
            while record := stream.read(self._record):
                yield struct.unpack_from("=Q", record)[0], record[_COOKIE_BYTES:]

    def any(self) -> bool:
        """Whether any socket has an entry. Raises OSError."""
        return next(self.items(), None) is not None

    def close(self) -> None:
        """Let go of the iterator; the map stays."""
        self._link.close()


def can_be_listed() -> bool:
    """Whether this kernel has such an iterator, asked without a map. Raises PermissionError: we may not ask."""
    try:
        bpf.load_iterator(_program(_COOKIE_BYTES), btf.function_id(_KERNEL_BTF.read_bytes(), _TARGET)).close()
    except PermissionError:
        raise
    except (OSError, LookupError, ValueError):
        return False
    return True


def _instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | to, offset, value)


def _program(value_size: int) -> bytes:
    """Assemble: if (ctx->value && ctx->sk) { seq_write(cookie of ctx->sk); seq_write(*ctx->value); } return 0."""
    write_value = [
        _instruction(_COPY, 1, 8),
        _instruction(_COPY, 2, 7),
        _instruction(_SET, 3, value=value_size),
        _instruction(_CALL, value=_SEQ_WRITE),
    ]
    write_cookie = [
        _instruction(_CALL, value=_GET_SOCKET_COOKIE),
        _instruction(_STORE, 10, 0, -_COOKIE_BYTES),
        _instruction(_LOAD, 8, 6, _META),
        _instruction(_LOAD, 8, 8, 0),
        _instruction(_COPY, 1, 8),
        _instruction(_COPY, 2, 10),
        _instruction(_ADD, 2, value=-_COOKIE_BYTES),
        _instruction(_SET, 3, value=_COOKIE_BYTES),
        _instruction(_CALL, value=_SEQ_WRITE),
    ]
    body = [*write_cookie, *write_value]
    head = [
        _instruction(_COPY, 6, 1),
        _instruction(_LOAD, 7, 6, _VALUE),
        _instruction(_IF_ZERO, 7, offset=len(body) + 2),
        _instruction(_LOAD, 1, 6, _SOCKET),
        _instruction(_IF_ZERO, 1, offset=len(body)),
    ]
    return b"".join([*head, *body, _instruction(_SET, 0, value=0), _instruction(_EXIT)])
