"""Packets for the fuzzer: right ones first, built from a description, and then what can be wrong with them."""

import random
from dataclasses import dataclass, field, replace

from tests.fuzz.model import ACK, FIN, ICMP, ICMPV6, RST, SYN, TCP, UDP, Address, total

EDGES16 = (0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)
EDGES32 = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
FLAGS = (SYN, SYN, SYN | ACK, ACK, ACK | 8, FIN | ACK, RST, RST | ACK, FIN, 0, 0xFF, SYN | FIN, SYN | RST, SYN | 0xC0)
LONGEST = 3500  # a test run takes no more than about a page

# IPv4 options as they are (no-op, record route, timestamp, router alert, source routes), and as they should not be.
OPTIONS4 = (
    "01010101",
    "070b04000000000000000000",
    "44080500000000000000",
    "94040000",
    "8307040a000001",
    "8907080a000001",
)
BAD_OPTIONS4 = ("0700", "0701", "0728", "83", "8302", "00830704", "ff000000", "01018307040a0000")

RIGHT, ZERO, OFF = "right", "zero", "off"


@dataclass(slots=True)
class Draft:
    """A packet before it is bytes. check: whether its layer 4 checksum is right, left out, or something else.

    extensions: IPv6 headers on the way: (protocol number, the header but for its first byte).
    """

    source: Address
    target: Address
    protocol: int
    macs: bytes = b"\x02\0\0\0\0\1\x02\0\0\0\0\2"
    payload: bytes = b""
    flags: int = 0
    seq: int = 0
    acknowledged: int = 0
    tcp_options: bytes = b""
    options: bytes = b""
    extensions: list[tuple[int, bytes]] = field(default_factory=list)
    ident: int = 0
    tos: int = 0
    ttl: int = 64
    check: str = RIGHT
    ip_check: str = RIGHT


def upper(draft: Draft) -> bytes:
    """The layer 4 header and payload."""
    (source, sport), (target, dport) = draft.source, draft.target
    ports = sport.to_bytes(2, "big") + dport.to_bytes(2, "big")
    if draft.protocol == TCP:
        offset = 5 + len(draft.tcp_options) // 4
        numbers = draft.seq.to_bytes(4, "big") + draft.acknowledged.to_bytes(4, "big")
        head, at = ports + numbers + bytes((offset << 4, draft.flags, 0xFA, 0xF0, 0, 0, 0, 0)) + draft.tcp_options, 16
    else:
        head, at = ports + (8 + len(draft.payload)).to_bytes(2, "big") + b"\0\0", 6
    return fill(head + draft.payload, at, draft, source + target)


def fill(whole: bytes, at: int, draft: Draft, addresses: bytes) -> bytes:
    """Put a checksum in."""
    if draft.check == ZERO:
        return whole
    pseudo = addresses + len(whole).to_bytes(4, "big") + bytes((0, draft.protocol)) if addresses else b""
    check = -total(pseudo, whole) % 65535
    if draft.check == OFF:
        check = (check + draft.seq + 12345) % 65536
    if not check and draft.protocol == UDP:
        check = 0xFFFF
    return whole[:at] + check.to_bytes(2, "big") + whole[at + 2 :]


def frame(draft: Draft, body: bytes | None = None, fragment: int = 0) -> bytes:
    """The whole packet; body: in the place of its own. fragment: the IPv4 header's field."""
    body = upper(draft) if body is None else body
    source, target = draft.source[0], draft.target[0]
    if len(source) == 4:
        options = draft.options[:40] + b"\0" * (-len(draft.options[:40]) % 4)
        head = bytes((0x45 + len(options) // 4, draft.tos)) + (20 + len(options) + len(body)).to_bytes(2, "big")
        head += (draft.ident & 0xFFFF).to_bytes(2, "big") + fragment.to_bytes(2, "big")
        head += bytes((draft.ttl, draft.protocol, 0, 0)) + source + target + options
        check = -total(head) % 65535 ^ (0x1234 if draft.ip_check == OFF else 0)
        return draft.macs + b"\x08\0" + head[:10] + check.to_bytes(2, "big") + head[12:] + body
    chain, following = b"", draft.protocol
    for number, rest in reversed(draft.extensions):
        chain = bytes((following,)) + rest + chain
        following = number
    length = (len(chain) + len(body)).to_bytes(2, "big")
    head = bytes((0x60 | draft.tos >> 4, draft.tos << 4 & 0xFF, 0, 7)) + length + bytes((following, draft.ttl))
    return draft.macs + b"\x86\xdd" + head + source + target + chain + body


def fragments(draft: Draft, sizes: list[int]) -> list[bytes]:
    """A packet in pieces of so many times 8 bytes; the last one has the rest."""
    body, found, at = upper(draft), [], 0
    for size in [*sizes, 0]:
        piece = body[at : at + 8 * size] if size else body[at:]
        more = bool(size) and at + 8 * size < len(body)
        if len(draft.source[0]) == 4:
            found.append(frame(draft, piece, at >> 3 | (0x2000 if more else 0)))
        else:
            header = b"\0" + (at | more).to_bytes(2, "big") + draft.ident.to_bytes(4, "big")
            found.append(frame(replace(draft, extensions=[*draft.extensions, (44, header)]), piece))
        at += len(piece)
        if at >= len(body):
            break
    return found


def error(draft: Draft, kind: int, code: int, quote: bytes) -> bytes:
    """An ICMP error, or whatever else `kind` says, that quotes a packet."""
    draft = replace(draft, protocol=ICMP if len(draft.source[0]) == 4 else ICMPV6)
    addresses = b"" if len(draft.source[0]) == 4 else draft.source[0] + draft.target[0]
    body = bytes((kind, code, 0, 0, 0, 0, 5, 0xDC)) + quote
    return frame(draft, fill(body, 2, draft, addresses))


# --- What may be on the way


def extension(pick: random.Random) -> tuple[int, bytes]:
    """An IPv6 extension header."""
    kind = pick.choices((0, 60, 43, 44, 51, 50, 135), (4, 5, 4, 2, 1, 1, 1))[0]
    if kind == 44:
        return kind, b"\0" + pick.choice((0, 1, 8, 9, 0xFFF8, 6)).to_bytes(2, "big") + pick.randbytes(4)
    if kind == 51:
        return kind, b"\4" + pick.randbytes(22)
    length = pick.choice((0, 0, 0, 1, 2, 31))
    rest = bytearray(pick.randbytes(6 + 8 * length))
    if kind == 43:
        rest[:2] = pick.choice(((4, 0), (4, 0), (4, 0), (0, 1), (4, 255)))
    return kind, bytes((length,)) + bytes(rest)


def options4(pick: random.Random) -> bytes:
    """IPv4 options."""
    known = [bytes.fromhex(option) for option in (*OPTIONS4, *OPTIONS4, *BAD_OPTIONS4)]
    return b"".join(pick.choices(known, k=pick.randint(1, 3))) if pick.random() < 0.9 else pick.randbytes(40)


# --- What can be wrong


def spoil(pick: random.Random, whole: bytes) -> bytes:
    """Change a packet so that it may be right no more."""
    data = bytearray(whole)
    pick.choice(_WRONGS)(pick, data)
    return bytes(data[:LONGEST])


def _somewhere(pick: random.Random, data: bytearray) -> int:
    return pick.randrange(len(data)) if pick.random() < 0.4 else pick.randrange(min(len(data), 90))


def _flip(pick: random.Random, data: bytearray) -> None:
    data[_somewhere(pick, data)] ^= 1 << pick.randrange(8)


def _set(pick: random.Random, data: bytearray) -> None:
    data[_somewhere(pick, data)] = pick.choice((0, 1, 0x7F, 0x80, 0xFF, pick.randrange(256)))


def _scatter(pick: random.Random, data: bytearray) -> None:
    for _ in range(pick.randint(2, 12)):
        data[pick.randrange(len(data))] = pick.randrange(256)


def _insert(pick: random.Random, data: bytearray) -> None:
    at = _somewhere(pick, data)
    data[at:at] = pick.randbytes(pick.choice((1, 2, 4, 8)))


def _leave_out(pick: random.Random, data: bytearray) -> None:
    at = _somewhere(pick, data)
    del data[at : at + pick.choice((1, 2, 4, 8))]


def _cut(pick: random.Random, data: bytearray) -> None:
    del data[_somewhere(pick, data) :]


def _append(pick: random.Random, data: bytearray) -> None:
    data += pick.randbytes(pick.choice((1, 2, 3, 6, 18, 46)))


def _tag(pick: random.Random, data: bytearray) -> None:
    data[12:12] = pick.choice((b"\x81\0", b"\x88\xa8")) + pick.randbytes(2)


def _rename(pick: random.Random, data: bytearray) -> None:
    data[12:14] = pick.choice((b"\x08\x06", b"\x08\0", b"\x86\xdd", b"\x88\x64", b"\0\x46", b"\x08\x01"))


def _lie(pick: random.Random, data: bytearray) -> None:
    """Of the IP packet's length."""
    at = 16 if data[12] == 8 else 18
    value = int.from_bytes(data[at : at + 2], "big") + pick.choice((-20, -8, -1, 1, 2, 8, 40))
    data[at : at + 2] = (pick.choice((value, value, value, *EDGES16)) & 0xFFFF).to_bytes(2, "big")


def _lie_above(pick: random.Random, data: bytearray) -> None:
    """Of the lengths of headers, or of a datagram."""
    l4 = 14 + (data[14] & 15) * 4 if data[12] == 8 and len(data) > 14 else 54
    at = pick.choice((l4 + 4, l4 + 12, 14))
    if at + 1 >= len(data):
        return
    if at == l4 + 4:
        data[at : at + 2] = pick.choice((0, 7, 8, 9, len(data), 0xFFFF)).to_bytes(2, "big")
    else:
        data[at] = pick.choice((data[at] ^ 0x10, 0x40, 0x50, 0xF0, 0, 0x45, 0x44, 0x4F, 0x65, 0xFF))


_WRONGS = (_flip, _set, _scatter, _insert, _leave_out, _cut, _append, _tag, _rename, _lie, _lie_above)
