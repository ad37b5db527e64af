"""Which chains netfilter has in this network namespace, by name alone: who has written rules here, and with what.

Both of its rule sets are asked. nf_tables has what `nft` and today's `iptables` write; the older one, x_tables, what
`iptables-legacy` writes. No program of theirs is needed, for an image may have none. The older set is asked only for
tables that are there: the kernel would make one that is merely asked for.
"""

import ctypes
import errno
import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from lrp_operator.kernel.netlink import NetlinkSocket, attributes

_NETLINK_NETFILTER = 12
_GETCHAIN, _NEWCHAIN = 10 << 8 | 4, 10 << 8 | 3  # of the subsystem nf_tables
_ANY_FAMILY = struct.pack("=BBH", 0, 0, 0)  # struct nfgenmsg
_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_NO_NF_TABLES = {errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT}

_LEGACY = {socket.AF_INET: "ip_tables_names", socket.AF_INET6: "ip6_tables_names"}
_LEVEL = {socket.AF_INET: socket.IPPROTO_IP, socket.AF_INET6: socket.IPPROTO_IPV6}
_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES
_INFO_BYTES, _INFO_SIZE_AT = 84, 80  # struct ipt_getinfo, and where it tells the size of all entries
_ENTRIES_HEAD = 40  # struct ipt_get_entries: name, size, padding
# A chain of one's own begins with a target ERROR that carries the chain's name: struct xt_error_target.
_ERROR_TARGET = struct.pack("=H29sB", 64, b"ERROR", 0)
_NAME_BYTES = 30

_libc = ctypes.CDLL(None, use_errno=True)


class Chain(NamedTuple):
    """A chain. legacy: of x_tables."""

    table: str
    name: str
    legacy: bool


def chains() -> frozenset[Chain]:
    """Every chain of the calling thread's network namespace. Raises OSError (EPERM without CAP_NET_ADMIN)."""
    return frozenset({*_nf_tables(), *_x_tables(socket.AF_INET), *_x_tables(socket.AF_INET6)})


def _nf_tables() -> list[Chain]:
    try:
        netlink = NetlinkSocket(_NETLINK_NETFILTER)
    except OSError as error:
        if error.errno in _NO_NF_TABLES:
            return []
        raise
    try:
        answers = netlink.dump(_GETCHAIN, _ANY_FAMILY)
    except OSError as error:
        if error.errno in _NO_NF_TABLES:
            return []
        raise
    finally:
        netlink.close()
    found = [attributes(body[len(_ANY_FAMILY) :]) for kind, body in answers if kind == _NEWCHAIN]
    return [Chain(_text(one[_CHAIN_TABLE]), _text(one[_CHAIN_NAME]), legacy=False) for one in found]


def _x_tables(family: socket.AddressFamily) -> list[Chain]:
    try:
        tables = Path("/proc/thread-self/net", _LEGACY[family]).read_text(encoding="ascii").split()
    except FileNotFoundError:
        return []
    if not tables:
        return []
    # Any socket of the family will do; a raw one would ask for CAP_NET_RAW, which an agent has not.
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked:
        return [Chain(table, name, legacy=True) for table in tables for name in _names(asked, family, table)]


def _names(asked: socket.socket, family: socket.AddressFamily, table: str) -> list[str]:
    """Names of a table's chains, but for those that the kernel has of its own."""
    info = _getsockopt(asked, family, _GET_INFO, table.encode().ljust(_INFO_BYTES, b"\0"))
    (size,) = struct.unpack_from("=I", info, _INFO_SIZE_AT)
    wanted = struct.pack("=32sI", table.encode(), size).ljust(_ENTRIES_HEAD + size, b"\0")
    entries = _getsockopt(asked, family, _GET_ENTRIES, wanted)[_ENTRIES_HEAD:]
    names = [part[:_NAME_BYTES].split(b"\0", 1)[0] for part in entries.split(_ERROR_TARGET)[1:]]
    return [name.decode(errors="replace") for name in names if name != b"ERROR"]  # the table's end


def _getsockopt(asked: socket.socket, family: socket.AddressFamily, option: int, given: bytes) -> bytes:
    """Python's own takes no input and at most 1 KiB."""
    buffer = ctypes.create_string_buffer(given, len(given))
    length = ctypes.c_uint32(len(given))
    if _libc.getsockopt(asked.fileno(), _LEVEL[family], option, buffer, ctypes.byref(length)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer.raw


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
