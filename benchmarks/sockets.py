"""The socket part: every row's client does every test, in turns.

All clients are on one CPU. In each cycle each takes one turn, in random order, and sleeps otherwise: whatever else the
machine does meets all rows alike, as long as it lasts longer than a cycle.
"""

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.rows import Row
from benchmarks.stage import Stage
from benchmarks.topology import Client


@dataclass(frozen=True, slots=True)
class Test:
    """A column. name: as measure.c knows it. packets: whether any are sent, so that netfilter has a part in it.

    round_trip: most of its time is waiting for another process to wake up, so it gets fewer repetitions.
    """

    name: str
    what: str
    packets: bool = True
    round_trip: bool = False


TESTS = (
    Test("tcp-connect", "TCP connect()"),
    Test("tcp-cycle", "TCP socket(), connect(), close()"),
    Test("udp-connect", "UDP connect() of a new socket", packets=False),
    Test("udp-again", "UDP connect() again, same frontend", packets=False),
    Test("getpeername-tcp", "getpeername(), TCP", packets=False),
    Test("getpeername-udp", "getpeername(), UDP", packets=False),
    Test("sendto", "sendto(), unconnected UDP"),
    Test("recvfrom", "recvfrom(), a reply waits"),
    Test("send", "send(), connected UDP"),
    Test("tcp-rr", "TCP, one byte there and back", round_trip=True),
    Test("dns", "a query: socket, connect, send, recv, close", round_trip=True),
    Test("dns-unconnected", "a query: socket, sendto, recvfrom, close", round_trip=True),
    Test("dns-calls", "a connected query's calls alone, no waiting"),
    Test("dns-unconnected-calls", "an unconnected query's calls alone"),
)

Samples = dict[str, dict[str, list[int]]]
"""Test -> row -> one median of nanoseconds for each cycle."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    rounds: how often all is set up anew: where in memory programs and maps come to lie also has its effect, of some
    nanoseconds, which no number of cycles would even out. cycles_each: of a round.
    times: repetitions in a turn; round_trips: in a turn of a test that waits.
    """

    rounds: int
    cycles_each: int
    times: int = 100
    round_trips: int = 25

    @property
    def cycles(self) -> int:
        """Of all rounds together."""
        return self.rounds * self.cycles_each


@dataclass(frozen=True, slots=True)
class Taken:
    """What was measured. clock_floor: nanoseconds that reading the clock twice takes, a part of every sample."""

    samples: Samples
    clock_floor: int


def measure(rows: list[Row], tests: list[Test], effort: Effort, *, bridge: bool = False) -> Taken:
    """All rounds. Each has a stage of its own, removed when it ends, whatever happens. bridge: see Stage."""
    together: Samples = {}
    floors = []
    for number in range(effort.rounds):
        with Stage(bridge=bridge) as stage:
            clients = _seat_all(stage, rows, f"round {number + 1} of {effort.rounds}")
            for test, taken in _round(clients, rows, tests, effort).items():
                for row, medians in taken.items():
                    together.setdefault(test, {}).setdefault(row, []).extend(medians)
        floors += [client.clock_floor for client in clients.values()]
    return Taken(together, max(floors))


def _seat_all(stage: Stage, rows: list[Row], when: str) -> dict[str, Client]:
    clients: dict[str, Client] = {}
    for row in rows:
        tell(f"{when}: preparing {row.name}")
        clients[row.name] = stage.client(row.name, *row.prepare(stage))
    return clients


def _round(clients: dict[str, Client], rows: list[Row], tests: list[Test], effort: Effort) -> Samples:
    with at_once():
        return {test.name: _cycles(clients, rows, test, effort) for test in tests}


@contextmanager
def at_once() -> Iterator[None]:
    """Give turns without delay: on another CPU than those who take them, before whatever else works here, as they do.

    Else they wait for their turns until everything else that works here lets us give them one.
    """
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, mine - {0} or mine)  # CPU 0 is the clients'
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, mine)
        tell("")


def _cycles(clients: dict[str, Client], rows: list[Row], test: Test, effort: Effort) -> dict[str, list[int]]:
    order = [row.name for row in rows if test.packets or not row.netfilter]
    samples: dict[str, list[int]] = {name: [] for name in order}
    times = effort.round_trips if test.round_trip else effort.times
    for cycle in range(effort.cycles_each):
        if cycle % 10 == 0:
            tell(f"{test.name}: cycle {cycle} of {effort.cycles_each}")
        random.shuffle(order)
        for name in order:
            samples[name].append(clients[name].take_turn(test.name, times))
    return samples


def tell(text: str) -> None:
    """Say on a terminal what is going on, on one line."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()
