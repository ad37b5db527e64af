"""Which slots of a backends map are free: runs of neighbours are handed out and come back.

A freed run may still be read by a program that looked its frontend up a moment ago, so it waits in quarantine until
the caller has seen all readers leave (`release`). Free neighbours join, so that the space does not crumble.
"""

from collections import defaultdict
from collections.abc import Iterable


class SlotsExhausted(Exception):  # noqa: N818 - a state, not a fault
    """No run of that length is free; free slots may exist in smaller pieces."""


class SlotAllocator:
    """Runs of slots 0..size-1. Not thread-safe."""

    def __init__(self, size: int, used: Iterable[tuple[int, int]] = ()) -> None:
        """Start with some runs (first, count) taken; those must not overlap."""
        self.size = size
        self._length_at: dict[int, int] = {}  # start of a free piece -> length
        self._start_by_end: dict[int, int] = {}
        self._starts_by_length: defaultdict[int, set[int]] = defaultdict(set)
        self._quarantine: list[tuple[int, int]] = []
        self.free_slots = 0
        self.quarantined = 0  # slots waiting for readers to leave
        at = 0
        for first, count in sorted(used):
            self._add(at, first - at)
            at = first + count
        self._add(at, size - at)

    @property
    def used(self) -> int:
        """Slots taken or in quarantine."""
        return self.size - self.free_slots

    def allocate(self, count: int) -> int:
        """Take a run; return its first slot. The tightest piece that fits. Raises SlotsExhausted."""
        lengths = self._starts_by_length
        length = count if lengths.get(count) else min((n for n in lengths if n > count), default=0)
        if not length:
            raise SlotsExhausted(f"no {count} neighbouring slots are free ({self.free_slots} of {self.size} are free)")
        start = next(iter(lengths[length]))
        self._remove(start)
        self._add(start + count, length - count)
        return start

    def free(self, first: int, count: int) -> None:
        """Give a run back; it stays in quarantine until `release`."""
        self._quarantine.append((first, count))
        self.quarantined += count

    def release(self) -> None:
        """All readers have left: what is in quarantine may be written again."""
        freed, self._quarantine = self._quarantine, []
        self.quarantined = 0
        for first, count in freed:
            start, length = first, count
            if first in self._start_by_end:
                start = self._start_by_end[first]
                length += self._length_at[start]
                self._remove(start)
            after = first + count
            if after in self._length_at:
                length += self._length_at[after]
                self._remove(after)
            self._add(start, length)

    def _add(self, start: int, length: int) -> None:
        if length > 0:
            self._length_at[start] = length
            self._start_by_end[start + length] = start
            self._starts_by_length[length].add(start)
            self.free_slots += length

    def _remove(self, start: int) -> None:
        length = self._length_at.pop(start)
        del self._start_by_end[start + length]
        self._starts_by_length[length].discard(start)
        if not self._starts_by_length[length]:
            del self._starts_by_length[length]
        self.free_slots -= length
