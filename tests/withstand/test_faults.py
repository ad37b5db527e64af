"""Maps that fail at random, under a whole datapath with clients: nothing wrong is ever shown, and it converges."""

import errno
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lrp_operator.datapath.model import DatapathError
from lrp_operator.kernel import bpf
from lrp_operator.resolve.model import Delta, FrontendEntry
from tests.datapath.world import TCP, UDP
from tests.withstand.storm import PODS, Ground, size

pytestmark = pytest.mark.privileged

COMERS = "10.98.0.0", "fd00:98::"


class Faults:
    """Has a share of all calls on maps fail: before they did their work, after it, or halfway."""

    def __init__(self, dice: random.Random, share: float) -> None:
        self._dice, self._share = dice, share
        self.struck = 0

    @contextmanager
    def on(self) -> Iterator[None]:
        """Let them happen until the block ends."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("lookup", "update", "delete"):
                patch.setattr(bpf.Map, name, self._one(getattr(bpf.Map, name)))
            patch.setattr(bpf.Map, "update_many", self._many(bpf.Map.update_many))
            patch.setattr(bpf.Map, "items", self._listing(bpf.Map.items))
            yield

    def _strikes(self) -> bool:
        struck = self._dice.random() < self._share
        self.struck += struck
        return struck

    def _error(self) -> OSError:
        return OSError(self._dice.choice((errno.ENOMEM, errno.EBUSY, errno.EIO)), "a fault of the test")

    def _one(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(own: bpf.Map, *arguments: Any) -> Any:
            if not self._strikes():
                return real(own, *arguments)
            if self._dice.random() < 0.5:
                real(own, *arguments)
            raise self._error()

        return call

    def _many(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(own: bpf.Map, items: list[tuple[bytes, bytes]]) -> None:
            if not self._strikes():
                return real(own, items)
            real(own, items[: self._dice.randrange(len(items) + 1)])
            raise self._error()

        return call

    def _listing(self, real: Callable[..., Iterator[tuple[bytes, bytes]]]) -> Callable[..., Any]:
        def call(own: bpf.Map, *arguments: Any) -> Iterator[tuple[bytes, bytes]]:
            if self._strikes():
                yield from itertools.islice(real(own, *arguments), self._dice.randrange(10))
                raise self._error()
            yield from real(own, *arguments)

        return call


def wishes(ground: Ground, dice: random.Random) -> dict[Any, FrontendEntry | None]:
    """Other backends for what clients dial; some that nobody dials come or go."""
    found: dict[Any, FrontendEntry | None] = {}
    for number in dice.sample(range(ground.frontends), 6):
        pods = sorted(dice.sample(range(PODS), dice.randint(1, PODS)))
        protocol, six = dice.choice((TCP, UDP)), dice.random() < 0.5
        dialled = ground.entry(number, protocol, six=six, pods=pods)
        comer = ground.entry(number, protocol, six=six, pods=pods, base=COMERS)
        found |= {dialled.frontend: dialled, comer.frontend: comer if dice.random() < 0.6 else None}
    return found


@pytest.mark.parametrize("share", [0.002, 0.3])
def test_maps_that_fail_at_random(ground: Ground, share: float, figures: Callable[[str], None]) -> None:
    dice = random.Random(8)  # noqa: S311 - no secret
    faults, rounds, told = Faults(dice, share), size(60, 3000), 0
    ground.datapath.reconcile()
    wanted: dict[Any, FrontendEntry] = {e.frontend: e for e in ground.all_entries()}
    ground.program(wanted.values())
    with ground.ask("tuk", pause=200) as clients:
        with faults.on():
            for number in range(rounds):
                delta = wishes(ground, dice)
                wanted = {a: e for a, e in (wanted | delta).items() if e is not None}
                ground.datapath.update(Delta(delta, {}, {}))
                try:
                    ground.datapath.flush(complete=True)
                    if number % 10 == 9:
                        ground.datapath.reconcile()
                except DatapathError:
                    told += 1
        ground.datapath.reconcile()
        report = ground.datapath.reconcile()
        assert (report.written, report.removed, report.problems, report.repaired) == (0, 0, (), ())
    clients.seen.check()
    assert {r.frontend: tuple(b.backend for b in r.backends) for r in ground.datapath.frontends()} == {
        address: entry.backends for address, entry in wanted.items()
    }
    opened = ground.datapath.inner._need()
    opened._rest()
    for ip_bytes, table in opened._tables.items():
        assert table.slots.used == sum(len(e.backends) for a, e in wanted.items() if len(a.ip) == ip_bytes)
    assert len(opened._ids._free) == ground.settings.max_frontends - 1 - len(wanted)
    assert faults.struck
    figures(f"{rounds} passes, {faults.struck} calls failed, {told} passes gave up; {clients.seen}")
