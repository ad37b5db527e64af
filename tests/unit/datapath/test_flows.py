"""Flows as the agent reads them: both directions know each other, and what is over is told from what goes on."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath import flows
from lrp_operator.datapath.flows import FlowTable, stale
from lrp_operator.datapath.layout import (
    FLOW,
    FLOW_BOUNCE,
    FLOW_FIN_BACK,
    FLOW_FIN_SENT,
    FLOW_KEY,
    FLOW_REPLY,
    FLOW_RESET,
    FROM_POD,
    TO_POD,
)

LINK = 7
NOW = 1_000_000
CLIENT, FRONTEND, BACKEND = ((b"\x0a\0\0\x02", 40000), (b"\x0a\x60\0\x0a", 80), (b"\x0a\0\0\x03", 8080))
LOOPBACK = (b"\xa9\xfe\x2a\x01", 40000)
End = tuple[bytes, int]


def key(source: End, destination: End, way: int, link: int = LINK) -> bytes:
    ports = (source[1].to_bytes(2, "big"), destination[1].to_bytes(2, "big"))
    return FLOW_KEY[4].pack(source[0], destination[0], *ports, link, 6, way)


def value(source: End, destination: End, flags: int = 0, seen: int = NOW) -> bytes:
    ports = (source[1].to_bytes(2, "big"), destination[1].to_bytes(2, "big"))
    return FLOW[4].pack(source[0], destination[0], *ports, seen, 0, 0, flags, bytes(6))


class DictMap:
    """A map that works."""

    def __init__(self, entries: dict[bytes, bytes]) -> None:
        self.entries = entries
        self.info = type("Info", (), {"max_entries": 16})

    def lookup(self, wanted: bytes) -> bytes | None:
        return self.entries.get(wanted)

    def delete(self, wanted: bytes) -> bool:
        return self.entries.pop(wanted, None) is not None

    def batches(self) -> Iterator[tuple[bytes, bytes]]:
        entries = dict(self.entries)
        yield b"".join(entries), b"".join(entries.values())


def table(*entries: dict[bytes, bytes]) -> tuple[FlowTable, dict[bytes, bytes]]:
    held = {key: value for given in entries for key, value in given.items()}
    return FlowTable(4, DictMap(held), DictMap({})), held  # type: ignore[arg-type]


def connection(flags: int = 0, seen: int = NOW, back: int = NOW, link: int = LINK) -> dict[bytes, bytes]:
    """Both entries of a connection."""
    return {
        key(CLIENT, FRONTEND, FROM_POD, link): value(CLIENT, BACKEND, flags, seen),
        key(BACKEND, CLIENT, TO_POD, link): value(FRONTEND, CLIENT, flags | FLOW_REPLY, back),
    }


def bounced() -> dict[bytes, bytes]:
    """Both entries of a connection of a pod to itself: what it answers leaves it, too."""
    return {
        key(CLIENT, FRONTEND, FROM_POD): value(LOOPBACK, (CLIENT[0], 8080), FLOW_BOUNCE),
        key((CLIENT[0], 8080), LOOPBACK, FROM_POD): value(FRONTEND, CLIENT, FLOW_BOUNCE | FLOW_REPLY),
    }


@pytest.mark.parametrize("entries", [connection(), bounced()], ids=["", "bounced"])
def test_both_directions_know_each_other(entries: dict[bytes, bytes]) -> None:
    made, _ = table(entries)
    ahead, back = sorted(made.established(), key=lambda flow: flow.is_reply)
    assert (ahead.other_key(), back.other_key()) == (back.key, ahead.key)
    assert made.remove(ahead) == 2


SECONDS = 1_000_000_000 / (1 << 30)


@pytest.mark.parametrize(
    ("flags", "seconds", "goes"),
    [
        (0, 23 * 3600, False),
        (0, 25 * 3600, True),
        (FLOW_FIN_SENT, 3000, False),
        (FLOW_FIN_BACK, 4000, True),
        (FLOW_FIN_SENT | FLOW_FIN_BACK, 50, False),
        (FLOW_FIN_SENT | FLOW_FIN_BACK, 70, True),
        (FLOW_RESET, 50, False),
        (FLOW_RESET, 70, True),
    ],
)
def test_what_is_over(flags: int, seconds: int, *, goes: bool) -> None:
    seen = NOW - int(seconds * SECONDS)
    made, held = table(connection(flags, seen, seen))
    swept = made.sweep({LINK}, NOW)
    assert (swept.removed, swept.standing, len(held)) == ((1, 0, 0) if goes else (0, 1, 2))


def test_one_direction_keeps_the_other_alive() -> None:
    made, held = table(connection(seen=NOW - 200_000))
    assert made.sweep({LINK}, NOW).removed == 0
    assert len(held) == 2


def test_a_link_that_is_gone_takes_its_connections_with_it() -> None:
    made, held = table(connection(), connection(link=8))
    assert made.sweep({8}, NOW).standing == 1
    assert len(held) == 2


@given(st.integers(0, 2**32 - 1), st.integers(-1000, 1000))
def test_ages_are_right_when_the_count_wraps(now: int, ticks: int) -> None:
    assert flows._age((now - ticks) & 0xFFFFFFFF, now) == ticks


def test_a_packet_that_came_after_the_sweep_began_is_no_old_one() -> None:
    made, held = table(connection(seen=NOW + 1, back=NOW + 1))
    assert made.sweep({LINK}, NOW).removed == 0
    assert held


def test_whose_backend_has_left() -> None:
    frontend, backend = (L4Addr(ip, port, Protocol.TCP) for ip, port in (FRONTEND, BACKEND))
    direct = {key(CLIENT, BACKEND, FROM_POD): value((CLIENT[0], 61000), BACKEND)}
    made, _ = table(connection(), direct)
    assert list(stale(made.established(), lambda f, b: (f, b) == (frontend, backend))) == []
    (gone,) = stale(made.established(), lambda _f, _b: False)
    assert (gone.destination, gone.becomes_destination) == (frontend, backend)
    made, _ = table(connection(FLOW_RESET))
    assert list(stale(made.established(), lambda _f, _b: False)) == []
