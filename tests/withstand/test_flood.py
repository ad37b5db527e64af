"""A flood of updates beside clients on every CPU: no connect is ever refused, left untranslated, or led astray.

The kernel reuses a hash value's memory for other keys at once, so a reader may hold a value that has become another
frontend's. A design that trusts what it reads sends some of its picks to backends of other frontends.
"""

import functools
import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from lab import Node
from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath.layout import COUNTERS
from lrp_operator.kernel.netns import in_netns
from lrp_operator.resolve.model import Delta, FrontendEntry, FrontendType
from tests.datapath.world import TCP, UDP
from tests.withstand.storm import PODS, VIP4, VIP6, Ground, size

pytestmark = pytest.mark.privileged

VIPS = VIP4, VIP6
# Frontends that nobody dials: their keys take over the memory of those that clients read.
COMERS, MORE = ("10.98.0.0", "fd00:98::"), ("10.99.0.0", "fd00:99::")


@dataclass
class Flood:
    """What was written."""

    flushes: int = 0
    updates: int = 0


def flood(ground: Ground, batches: Iterable[dict[L4Addr, FrontendEntry | None]], seconds: float) -> Flood:
    """Write without pause."""
    done, datapath = Flood(), ground.datapath.inner
    end = time.monotonic() + seconds
    for batch in batches:
        datapath.update(Delta(batch, {}, {}))
        report = datapath.flush(complete=True)
        assert report.problems == ()
        done.flushes += 1
        done.updates += report.written + report.removed
        if time.monotonic() > end:
            break
    return done


def other_backends(ground: Ground) -> Iterator[dict[L4Addr, FrontendEntry | None]]:
    """Other backends for some frontends; some that nobody dials come, and go."""
    dice = random.Random(7)  # noqa: S311 - no secret
    comers = ground.all_entries(base=COMERS)
    variants = [
        ground.entry(number, protocol, six=six, pods=pods)
        for number in range(ground.frontends)
        for protocol in (TCP, UDP)
        for six in (False, True)
        for pods in ((0,), (1,), (0, 2), (1, 2), (0, 1, 2))
    ]
    while True:
        some = [*dice.sample(comers, 16), *dice.sample(variants, 64)]
        yield {e.frontend: e for e in some}
        yield {e.frontend: None for e in some[:16]}


def other_flags(entries: Sequence[FrontendEntry]) -> Iterator[dict[L4Addr, FrontendEntry | None]]:
    """The same backends, written anew: no backend leaves, so no sockets are searched for, and the flood is faster."""
    for kind in itertools.cycle((FrontendType.CLUSTER_IP, FrontendType.LOCAL_REDIRECT)):
        yield {e.frontend: replace(e, type=kind) for e in entries}


def withstand(ground: Ground, entries: list[FrontendEntry], kinds: str, ways: str, write: Callable[[], Flood]) -> str:
    """Have clients dial under a flood, and see that they notice nothing; return figures."""
    ground.program(entries)
    before = nobodys_failures(ground)
    with ground.ask(kinds, ways) as clients:
        done = in_netns(ground.node.netns, write)
    clients.seen.check()
    assert nobodys_failures(ground) == before, "a lookup that never met a settled run"
    assert sum(found.failed for found in ground.datapath.hits().values()) == 0
    return f"{done.updates:,} updates in {done.flushes:,} flushes; {clients.seen}"


def test_a_flood_of_updates(ground: Ground, figures: Callable[[str], None]) -> None:
    batches = other_backends(ground)
    figures(withstand(ground, ground.all_entries(), "tukp", "46m", lambda: flood(ground, batches, size(3, 300))))


@contextmanager
def crowded(storm: Path, **settings: int) -> Iterator[Ground]:
    """A ground whose frontends fill their map, so that hash buckets are shared."""
    with Node() as node:
        ground = Ground(node, storm, frontends=4, max_frontends=32, **settings)
        ground.datapath.open()
        yield ground
        ground.close()


def crowd(ground: Ground, *, six: bool) -> list[FrontendEntry]:
    """All entries of a crowded ground: what clients dial, and twice as many more."""
    return [
        ground.entry(number, protocol, six=six, pods=range(PODS), base=base)
        for base in (VIPS, COMERS, MORE)
        for number in range(ground.frontends)
        for protocol in (UDP, TCP)
    ]


@pytest.mark.usefixtures("_root")
@pytest.mark.parametrize("ways", ["4m", "6"])
def test_a_flood_of_updates_of_few_frontends(storm: Path, ways: str, figures: Callable[[str], None]) -> None:
    """Nothing but picks, from frontends that change all the time, in full maps.

    Here a design is caught that trusts what it reads, and one that replaces values in a hash map: a lookup that stands
    on a neighbour in the bucket misses a key whose new value was put before it and whose old one is taken from behind.
    """
    with crowded(storm) as ground:
        entries = crowd(ground, six=ways == "6")
        write = functools.partial(flood, ground, other_flags(entries), size(3, 300))
        figures(withstand(ground, entries, "p", ways, write))


@pytest.mark.usefixtures("_root")
def test_a_flood_that_uses_slots_again_at_once(storm: Path, figures: Callable[[str], None]) -> None:
    """With hardly more slots than are in use, each update writes where readers of the one before may still look."""
    with crowded(storm, max_backends=160) as ground:
        entries = crowd(ground, six=False)
        write = functools.partial(flood, ground, other_flags(entries), size(2, 300))
        figures(withstand(ground, entries, "up", "4m", write))


def nobodys_failures(ground: Ground) -> int:
    counters = ground.datapath.inner._need()._maps["counters"]
    value = counters.lookup(bytes(4)) or b""
    return sum(COUNTERS.unpack(cpu)[3] for cpu in counters.per_cpu(value))
