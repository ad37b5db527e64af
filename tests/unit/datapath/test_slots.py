"""Runs of slots: they never overlap, and all that is freed comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lrp_operator.datapath.slots import SlotAllocator, SlotsExhausted

SIZE = 24


class Allocation(RuleBasedStateMachine):
    """What the allocator says, against a plain set of slots."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = SlotAllocator(SIZE)
        self.taken: list[tuple[int, int]] = []
        self.resting: list[tuple[int, int]] = []

    def busy(self) -> set[int]:
        return {slot for first, count in self.taken + self.resting for slot in range(first, first + count)}

    @rule(count=st.integers(1, 9))
    def allocate(self, count: int) -> None:
        busy = self.busy()
        fits = any(not busy & set(range(at, at + count)) for at in range(SIZE - count + 1))
        try:
            first = self.slots.allocate(count)
        except SlotsExhausted:
            assert not fits
            return
        run = set(range(first, first + count))
        assert not run & busy
        assert run <= set(range(SIZE))
        self.taken.append((first, count))

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        run = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        self.slots.free(*run)
        self.resting.append(run)

    @rule()
    def release(self) -> None:
        self.slots.release()
        self.resting.clear()

    @rule()
    def start_again(self) -> None:
        """As an agent does that reads the maps back: what rested is free."""
        self.slots = SlotAllocator(SIZE, self.taken)
        self.resting.clear()

    @invariant()
    def numbers_agree(self) -> None:
        assert self.slots.used == len(self.busy())
        assert self.slots.quarantined == sum(count for _, count in self.resting)

    def teardown(self) -> None:
        for run in self.taken:
            self.slots.free(*run)
        self.slots.release()
        assert self.slots.allocate(SIZE) == 0


TestAllocation = Allocation.TestCase


def test_what_rests_is_not_handed_out() -> None:
    slots = SlotAllocator(4)
    slots.free(slots.allocate(4), 4)
    with pytest.raises(SlotsExhausted, match=r"no 1 neighbouring slots are free \(0 of 4 are free\)"):
        slots.allocate(1)
    slots.release()
    assert slots.allocate(4) == 0


def test_the_tightest_piece_is_used() -> None:
    slots = SlotAllocator(10, [(3, 2)])  # free: 3 before, 5 after
    assert slots.allocate(3) == 0
    assert slots.allocate(5) == 5


@given(st.sets(st.integers(0, SIZE - 1)))
def test_a_start_with_runs_taken(taken: set[int]) -> None:
    slots = SlotAllocator(SIZE, [(slot, 1) for slot in taken])
    rest = {slots.allocate(1) for _ in range(SIZE - len(taken))}
    assert rest == set(range(SIZE)) - taken
    with pytest.raises(SlotsExhausted):
        slots.allocate(1)
