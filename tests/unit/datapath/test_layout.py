"""Keys and values as bytes, and the comparison with what the kernel says of its maps."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath.layout import (
    CLIENT,
    EVENT,
    SLOT,
    Layout,
    client_key,
    frontend_key,
    parse_client,
    parse_frontend,
)
from lrp_operator.datapath.model import DatapathError
from lrp_operator.kernel.btf import Btf, Field

addresses = st.builds(
    L4Addr,
    st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16),
    st.integers(0, 65535),
    st.sampled_from([Protocol.TCP, Protocol.UDP]),
)


@given(addresses, st.integers(0, 2**64 - 1))
def test_keys_come_back_as_they_were(address: L4Addr, cookie: int) -> None:
    assert parse_frontend(frontend_key(address)) == address
    assert parse_client(client_key(cookie, address)) == (cookie, address)
    assert len(client_key(cookie, address)) == CLIENT[len(address.ip)].size


def test_bytes_are_in_network_order_and_padding_is_zero() -> None:
    web = L4Addr.make("10.1.2.3", 0x1234, Protocol.TCP)
    assert frontend_key(web) == bytes((10, 1, 2, 3, 0x12, 0x34, 6, 0))
    assert client_key(1, web) == struct.pack("=Q", 1) + frontend_key(web)
    six = L4Addr.make("fd00::1", 53, Protocol.UDP)
    assert client_key(1, six)[-4:] == bytes(4)


def test_sizes_are_those_of_the_c() -> None:
    assert (SLOT[4].size, SLOT[16].size, CLIENT[4].size, CLIENT[16].size, EVENT.size) == (28, 52, 16, 32, 72)


@pytest.mark.parametrize("key", [bytes(6) + b"\x2f\0", bytes(18) + b"\xff\0"])
def test_a_protocol_that_is_never_written(key: bytes) -> None:
    with pytest.raises(ValueError, match="is not a valid Protocol"):
        parse_frontend(key)
    with pytest.raises(ValueError, match="is not a valid Protocol"):
        parse_client(bytes(8) + key + bytes(4 if len(key) == 20 else 0))


PAIR = Layout(("a", "I"), ("", "2x"), ("b", "H"))


def test_a_layout_that_agrees() -> None:
    PAIR.check("m", (Field("a", 0, 4), Field("pad", 4, 2), Field("b", 6, 2)))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ((Field("a", 0, 4), Field("b", 4, 2)), r"map m: field b is at \(4, 2\) in the kernel, not \(6, 2\)"),
        ((Field("a", 0, 8), Field("b", 6, 2)), r"map m: field a is at \(0, 8\) in the kernel, not \(0, 4\)"),
        ((Field("a", 0, 4), Field("c", 6, 2)), r"map m: field b is at None in the kernel, not \(6, 2\)"),
        ((Field("a", 0, 4), Field("b", 6, 2), Field("c", 8, 4)), "map m: the kernel's struct has 12 bytes, not 8"),
    ],
)
def test_a_layout_that_differs_is_an_error(found: tuple[Field, ...], said: str) -> None:
    with pytest.raises(DatapathError, match=said):
        PAIR.check("m", found)


class TypeWriter:
    """Writes BTF as compilers do."""

    def __init__(self) -> None:
        self.strings, self.types, self.number = b"\0", b"", 0

    def name(self, text: str) -> int:
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at if text else 0

    def add(self, name: str, kind: int, size: int, rest: bytes = b"", items: int = 0) -> int:
        self.types += struct.pack("=III", self.name(name), kind << 24 | items, size) + rest
        self.number += 1
        return self.number

    def struct(self, name: str, size: int, *members: tuple[str, int, int]) -> int:
        rest = b"".join(struct.pack("=III", self.name(n), kind, at * 8) for n, kind, at in members)
        return self.add(name, 4, size, rest, len(members))

    def raw(self) -> bytes:
        head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings))
        return head + self.types + self.strings


def test_btf_is_flattened_to_leaves() -> None:
    writer = TypeWriter()
    number = writer.add("unsigned int", 1, 4, struct.pack("=I", 32))
    word = writer.add("__be32", 8, number)  # typedef
    three = writer.add("", 3, 0, struct.pack("=III", word, number, 3))  # array
    writer.add("e", 6, 4, bytes(8), 1)  # an enum in between
    pointer = writer.add("", 2, number)
    inner = writer.struct("inner", 16, ("ip", three, 0), ("port", number, 12))
    frozen = writer.add("", 10, inner)  # const
    outer = writer.struct("outer", 28, ("frontend", frozen, 0), ("next", pointer, 16), ("id", word, 24))
    btf = Btf(writer.raw())
    assert btf.fields(outer) == (
        Field("frontend.ip", 0, 12),
        Field("frontend.port", 12, 4),
        Field("next", 16, 8),
        Field("id", 24, 4),
    )
    assert btf.fields(word) == (Field("", 0, 4),)
    assert btf.size(outer) == 28


def test_what_is_no_btf() -> None:
    with pytest.raises(ValueError, match="no BTF: it starts with 0x0"):
        Btf(bytes(64))
