import errno
import socket
import struct

import pytest

from lrp_operator.kernel.netlink import (
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    DumpInterruptedError,
    NetlinkError,
    NetlinkSocket,
    attribute,
    attributes,
)

pytestmark = pytest.mark.privileged

GETLINK = 18


class Scripted:
    """Plays the kernel: for each request one datagram, made by a function of the request's sequence number."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.sequence = 0

    def send(self, request: bytes) -> None:
        self.sequence = struct.unpack_from("=I", request, 8)[0]

    def recv(self, _size: int) -> bytes:
        return self.answers.pop(0).replace(b"SEQ#", struct.pack("=I", self.sequence))


def message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHH", 16 + len(body), kind, flags) + b"SEQ#" + bytes(4) + body


DONE = message(NLMSG_DONE, 2, bytes(4))


def scripted(*answers: bytes) -> NetlinkSocket:
    netlink = NetlinkSocket(socket.NETLINK_ROUTE)
    netlink.close()
    netlink._socket = Scripted(*answers)  # type: ignore[assignment]
    return netlink


def test_an_interrupted_dump_is_begun_anew() -> None:
    torn = message(99, NLM_F_DUMP_INTR, b"torn") + DONE
    netlink = scripted(torn, torn, message(99, 2, b"full") + DONE)
    assert netlink.dump(1, b"") == [(99, b"full")]


def test_a_dump_that_never_succeeds_is_an_error() -> None:
    netlink = scripted(*[message(99, NLM_F_DUMP_INTR, b"torn") + DONE] * 8)
    with pytest.raises(DumpInterruptedError):
        netlink.dump(1, b"")


def test_what_remains_of_an_earlier_dump_is_passed_over() -> None:
    old = message(99, 2, b"old!").replace(b"SEQ#", struct.pack("=I", 12345))
    assert scripted(old + message(99, 2, b"new!") + DONE).dump(1, b"") == [(99, b"new!")]


def test_an_error_at_the_end_of_a_dump_is_raised() -> None:
    with pytest.raises(NetlinkError) as caught:
        scripted(message(NLMSG_DONE, 2, struct.pack("=i", -errno.EMSGSIZE))).dump(1, b"")
    assert caught.value.errno == errno.EMSGSIZE


def test_the_kernels_own_words_are_in_the_error() -> None:
    netlink = NetlinkSocket(socket.NETLINK_ROUTE)
    try:
        with pytest.raises(NetlinkError) as caught:
            # Strict checking refuses a header field that means nothing in this request, and says so.
            netlink.request(GETLINK, struct.pack("=BxHiII", 0, 7, 1, 0, 0))
        assert caught.value.errno == errno.EINVAL
        assert "Invalid" in str(caught.value).replace("Invalid argument", "")
    finally:
        netlink.close()


def test_many_requests_get_an_answer_each() -> None:
    netlink = NetlinkSocket(socket.NETLINK_ROUTE)
    try:
        loopback, nothing = (struct.pack("=BxHiII", 0, 0, index, 0, 0) for index in (1, 999999))
        assert netlink.requests(GETLINK, [loopback, nothing, loopback]) == [0, errno.ENODEV, 0]
    finally:
        netlink.close()


def test_attributes_survive_padding_and_truncation() -> None:
    encoded = attribute(1, b"x") + attribute(2 | 0x8000, b"four") + attribute(3, b"")
    assert attributes(encoded) == {1: b"x", 2: b"four", 3: b""}
    assert attributes(encoded[:-2]) == {1: b"x", 2: b"four"}
    assert attributes(b"\0\0\0\0") == {}
