"""The maps of one address family: what they hold, what they should hold, and the way there.

    frontends   address, port, protocol -> id      written once, while the frontend stands
    runs        id -> first slot of its run        the one word that a change flips (shared by both families)
    backends    slots                              a run for each frontend

Right behind a run there may be a second one: the original destination of those who are exempt, where that is for us to
find (`Content.original`). Both are one piece for all that follows.

A change never shows half of itself to a packet: the new run of slots is written where nobody looks, then the start of
the frontend's run is flipped to it in one store, then the old run is freed; it rests in quarantine until every program
that may have read the old start has ended (`slots`). Ids rest likewise, and their counters start from zero when they
are used again. A frontend's entry in the hash is not touched by a change: a reader of the same bucket could miss it.

`FamilyTable` mirrors the maps, so a flush costs what changed. `load` fills the mirror from the kernel: at start (the
maps outlive the agent), and whenever someone else may have written there; what differs from the wish is then dirty.
"""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol as Interface

from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath.layout import (
    FLAG_AFFINITY,
    FLAG_HAS_ORIGINAL,
    FLAG_LOCAL_REDIRECT,
    FLAG_ORIGINAL,
    FLAG_REFUSE,
    FLAG_SKIP,
    FRONTEND_ID,
    RUN_START,
    SLOT,
    frontend_key,
    parse_frontend,
)
from lrp_operator.datapath.slots import SlotAllocator, SlotsExhausted
from lrp_operator.resolve.model import FrontendEntry, FrontendType

_MAX_BACKENDS_PER_FRONTEND = 65535  # a slot's count is 16 bits wide
_GENERATIONS = 1 << 32
_LOOKUP_COST = 8  # of one entry, in entries of an array that is read as a whole
_USUAL_BACKENDS = 2
_UNKNOWN = (-1, -1)  # an id and a start that nothing has


class MapLike(Interface):
    """What a table needs of a map: the real one, or a faulty one in tests. All may raise OSError."""

    def lookup(self, key: bytes) -> bytes | None:
        """Return a value or None."""

    def update(self, key: bytes, value: bytes) -> None:
        """Set a value."""

    def update_many(self, items: list[tuple[bytes, bytes]]) -> None:
        """Set many values; on an error an unknown number are set."""

    def delete(self, key: bytes) -> bool:
        """Delete a key, if it is there."""

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        """Return all entries."""


@dataclass(frozen=True, slots=True)
class FamilyMaps:
    """A family's maps; `runs` is the one of both families."""

    frontends: MapLike
    runs: MapLike
    backends: MapLike


@dataclass(frozen=True, slots=True)
class Content:
    """What a frontend's slots say, apart from where they stand. original: the second run, if there is one."""

    backends: tuple[L4Addr, ...]
    flags: int
    affinity_seconds: int
    original: "Content | None" = None

    @property
    def run_length(self) -> int:
        """Slots of its own run; a refused frontend has one, which carries its key."""
        return max(1, len(self.backends))

    @property
    def runs(self) -> tuple["Content", ...]:
        """What stands there, in order."""
        return (self, self.original) if self.original else (self,)

    @property
    def slot_count(self) -> int:
        """Slots of all its runs."""
        return sum(run.run_length for run in self.runs)

    @property
    def destinations(self) -> set[L4Addr]:
        """Everybody that somebody is sent to."""
        return {backend for run in self.runs for backend in run.backends}


@dataclass(frozen=True, slots=True)
class Programmed:
    """A frontend as it stands in the maps."""

    content: Content
    first: int
    id: int
    generation: int


class IdPool:
    """Frontends' ids, shared by both families, each with counters. Id 0 is nobody's."""

    def __init__(self, size: int, clear: Callable[[int], None]) -> None:
        self._clear = clear
        self.size = size
        self._free: list[int] = []
        self._quarantine: list[int] = []
        self.rebuild(())

    def rebuild(self, used: Iterable[int]) -> None:
        """Start anew from the ids in use."""
        taken = set(used)
        self._free = [number for number in range(self.size - 1, 0, -1) if number not in taken]
        self._quarantine = []

    def take(self) -> int:
        """Return a fresh id, its counters at zero. Raises SlotsExhausted; OSError if they can't be cleared."""
        if not self._free:
            raise SlotsExhausted("all frontend ids are in use: raise the maximum of frontends")
        self._clear(self._free[-1])
        return self._free.pop()

    @property
    def resting(self) -> int:
        """Ids waiting for readers to leave."""
        return len(self._quarantine)

    def free(self, number: int) -> None:
        """Give an id back; it stays in quarantine until `release`."""
        self._quarantine.append(number)

    def release(self) -> None:
        """All readers have left."""
        self._free += self._quarantine
        self._quarantine = []


@dataclass(slots=True)
class Changes:
    """What one flush did. removed_backends: (frontend, backend) pairs that no longer stand in the maps."""

    written: int = 0
    removed: int = 0
    problems: list[str] = field(default_factory=list)
    removed_backends: set[tuple[L4Addr, L4Addr]] = field(default_factory=set)


def content_of(entry: FrontendEntry, *, skipped: bool) -> Content:
    """Translate a resolved entry. skipped: some namespace is exempt from it."""
    flags = FLAG_LOCAL_REDIRECT if entry.type is FrontendType.LOCAL_REDIRECT else 0
    flags |= FLAG_REFUSE if not entry.backends else 0
    flags |= FLAG_AFFINITY if entry.affinity_seconds else 0
    if not skipped:
        return Content(entry.backends, flags, entry.affinity_seconds)
    flags |= FLAG_SKIP
    if entry.original is None:
        return Content(entry.backends, flags, entry.affinity_seconds)
    original = content_of(entry.original, skipped=False)
    original = replace(original, flags=original.flags | FLAG_ORIGINAL)
    return Content(entry.backends, flags | FLAG_HAS_ORIGINAL, entry.affinity_seconds, original)


class FamilyTable:
    """One family's frontends, with their runs and slots. Not thread-safe; only `load` and `read` raise OSError."""

    def __init__(self, ip_bytes: int, maps: FamilyMaps, size: int, ids: IdPool) -> None:
        self._slot = SLOT[ip_bytes]
        self._frontends, self._runs, self._backends = maps.frontends, maps.runs, maps.backends
        self._size = size
        self._ids = ids
        self._wanted: dict[L4Addr, Content] = {}
        self._foreign: set[bytes] = set()  # keys of entries that make no sense: removed when pruning
        self._dirty: set[L4Addr] = set()
        self._unknown: set[L4Addr] = set()  # a write failed and could not be checked: until the next one, or `load`
        self._generation = 0
        self._pruned = False  # what stands is wanted or dirty
        self.programmed: dict[L4Addr, Programmed] = {}
        self.slots = SlotAllocator(size)

    # --- What should be

    def want(self, address: L4Addr, content: Content | None) -> None:
        """Record what a frontend should be; None: it should not be."""
        if content is None:
            self._wanted.pop(address, None)
        else:
            self._wanted[address] = content
        self._dirty.add(address)

    # --- What is

    def load(self) -> int:
        """Read the maps into the mirror; return how many frontends were not as remembered. Raises OSError.

        The caller must let readers leave (kernel.grace) before the next flush: slots that look free may just have been.
        """
        found, foreign = self.read()
        drifted = {
            address
            for address in found.keys() | self.programmed.keys()
            if found.get(address) != self.programmed.get(address)
        }
        # What stands as remembered is the same object as before: 100,000 backends are not to be held twice.
        found |= {address: was for address, was in self.programmed.items() if address not in drifted}
        self.programmed, self._foreign = found, foreign
        self._unknown.clear()
        self.slots = SlotAllocator(self._size, [(p.first, p.content.slot_count) for p in found.values()])
        self._generation = max([self._generation, *(p.generation for p in found.values())])
        self._dirty |= self._wanted.keys()
        self._pruned = False
        return len(drifted)

    def read(self) -> tuple[dict[L4Addr, Programmed], set[bytes]]:
        """Return what the maps hold, and the keys of entries that make no sense. Raises OSError."""
        found: dict[L4Addr, Programmed] = {}
        foreign: set[bytes] = set()
        ids = {key: FRONTEND_ID.unpack(value)[0] for key, value in self._frontends.items()}
        start_of = _reader(self._runs, len(ids), self._ids.size)
        slot_at = _reader(self._backends, self._expected_slots(len(ids)), self._size)
        for key, number in ids.items():
            start = start_of(number)
            parsed = self._parse(key, number, RUN_START.unpack(start)[0], slot_at) if start else None
            if parsed is None:
                foreign.add(key)
            else:
                found[parsed[0]] = parsed[1]
        return found, foreign

    def _expected_slots(self, frontends: int) -> int:
        """Guess how many slots will be read: as many as are taken; before the first `load`, a few each."""
        return self.slots.used or frontends * _USUAL_BACKENDS

    def _parse(
        self, key: bytes, number: int, first: int, slot_at: "Callable[[int], bytes | None]"
    ) -> tuple[L4Addr, Programmed] | None:
        """Make sense of an entry; None for one that we would never write."""
        try:
            address = parse_frontend(key)
        except ValueError:  # a protocol that we never write
            return None
        run = self._parse_run(address, first, slot_at) if number else None
        if run is None:
            return None
        content, generation = run
        if content.flags & FLAG_HAS_ORIGINAL:
            behind = self._parse_run(address, first + content.run_length, slot_at)
            if behind is None or behind[1] != generation or not behind[0].flags & FLAG_ORIGINAL:
                return None
            content = replace(content, original=behind[0])
        return address, Programmed(content, first, number, generation)

    def _parse_run(
        self, address: L4Addr, first: int, slot_at: "Callable[[int], bytes | None]"
    ) -> tuple[Content, int] | None:
        """Make sense of a frontend's run, and tell its generation; None: these are other slots."""
        raw = slot_at(first)
        if raw is None:
            return None
        head = self._slot.unpack(raw)
        count, flags, _index, generation, affinity_seconds = head[5:]
        slots = [head]
        for index in range(first + 1, min(first + count, self._size)):
            raw = slot_at(index)
            if raw is not None:
                slots.append(self._slot.unpack(raw))
        own = (address.ip, address.port.to_bytes(2, "big"), address.protocol)
        if len(slots) != count or any(
            (slot[:3], slot[5:]) != (own, (count, flags, i, generation, affinity_seconds))
            for i, slot in enumerate(slots)
        ):
            return None
        backends = tuple(L4Addr(slot[3], int.from_bytes(slot[4], "big"), address.protocol) for slot in slots)
        return Content(() if flags & FLAG_REFUSE else backends, flags, affinity_seconds), generation

    # --- The way there

    def flush(self, *, prune: bool) -> Changes:
        """Write what differs. What fails stays dirty and is named in `problems`. prune: remove what nobody wants."""
        changes = Changes()
        if prune and not self._pruned:
            self._dirty |= self.programmed.keys() - self._wanted.keys()
            self._pruned = True
        if prune:
            self._prune_foreign(changes)
        writes: list[tuple[L4Addr, Programmed]] = []
        for address in sorted(self._dirty, key=lambda a: a.sort_key):
            content = self._wanted.get(address)
            now = self.programmed.get(address)
            if content is None:
                self._remove(address, now, changes)
            elif now is not None and now.content == content and address not in self._unknown:
                self._dirty.discard(address)
            else:
                self._prepare(address, content, now, writes, changes)
        self._write(writes, changes)
        return changes

    def settle(self) -> None:
        """All readers have left: freed slots may be written again."""
        self.slots.release()

    def _remove(self, address: L4Addr, now: Programmed | None, changes: Changes) -> None:
        if now is not None or address in self._unknown:
            try:
                self._frontends.delete(frontend_key(address))
            except OSError as error:
                changes.problems.append(f"{address}: not removed: {error}")
                return
            self._unknown.discard(address)
        if now is not None:
            del self.programmed[address]
            self._retire(now)
            changes.removed += 1
            changes.removed_backends |= {(address, backend) for backend in now.content.destinations}
        self._dirty.discard(address)

    def _prepare(
        self,
        address: L4Addr,
        content: Content,
        now: Programmed | None,
        writes: list[tuple[L4Addr, Programmed]],
        changes: Changes,
    ) -> None:
        longest = max(run.run_length for run in content.runs)
        if longest > _MAX_BACKENDS_PER_FRONTEND:
            changes.problems.append(f"{address}: {longest} backends, at most {_MAX_BACKENDS_PER_FRONTEND}")
            return
        try:
            first = self.slots.allocate(content.slot_count)
        except SlotsExhausted as error:
            changes.problems.append(f"{address}: {error}; raise the maximum of backends")
            return
        try:
            number = now.id if now is not None else self._ids.take()
        except (SlotsExhausted, OSError) as error:
            self.slots.free(first, content.slot_count)
            changes.problems.append(f"{address}: {error}")
            return
        self._generation = self._generation % (_GENERATIONS - 1) + 1
        writes.append((address, Programmed(content, first, number, self._generation)))

    def _write(self, writes: list[tuple[L4Addr, Programmed]], changes: Changes) -> None:
        try:
            self._backends.update_many([item for address, new in writes for item in self._slot_items(address, new)])
            self._runs.update_many([_start_item(new) for _, new in writes])
            self._frontends.update_many(
                [_id_item(address, new) for address, new in writes if not self._stands(address, new)]
            )
        except OSError:
            self._write_one_by_one(writes, changes)
            return
        for address, new in writes:
            self._written(address, new, changes)

    def _write_one_by_one(self, writes: list[tuple[L4Addr, Programmed]], changes: Changes) -> None:
        """Find out which entries are refused. Writing one twice does no harm."""
        for address, new in writes:
            try:
                for key, value in self._slot_items(address, new):
                    self._backends.update(key, value)
                self._runs.update(*_start_item(new))
                if not self._stands(address, new):
                    self._frontends.update(*_id_item(address, new))
            except OSError as error:
                self._undo(address, new, error, changes)
            else:
                self._written(address, new, changes)

    def _stands(self, address: L4Addr, new: Programmed) -> bool:
        """Whether the frontend is in the hash with this id already, so that it must not be written again."""
        now = self.programmed.get(address)
        return now is not None and now.id == new.id and address not in self._unknown

    def _undo(self, address: L4Addr, new: Programmed, error: OSError, changes: Changes) -> None:
        """Free what a failed write took, unless the frontend may have been flipped to it after all."""
        old = self.programmed.get(address)
        try:
            found = self._look(address)
        except OSError:
            found = _UNKNOWN
        if found == (new.id, new.first):
            self._written(address, new, changes)
            return
        changes.problems.append(f"{address}: not written: {error}")
        if found == ((old.id, old.first) if old is not None else None):
            self._retire(new, keep_id=old is not None)
        else:
            # Nobody knows what stands there: the slots stay taken until the next `load` finds out.
            self._unknown.add(address)

    def _look(self, address: L4Addr) -> tuple[int, int] | None:
        """Read a frontend's id and the start of its run; None: it is not there. Raises OSError."""
        value = self._frontends.lookup(frontend_key(address))
        if value is None:
            return None
        number = FRONTEND_ID.unpack(value)[0]
        start = self._runs.lookup(struct.pack("=I", number))
        return _UNKNOWN if start is None else (number, RUN_START.unpack(start)[0])

    def _written(self, address: L4Addr, new: Programmed, changes: Changes) -> None:
        old = self.programmed.get(address)
        self.programmed[address] = new
        self._foreign.discard(frontend_key(address))
        self._unknown.discard(address)
        self._dirty.discard(address)
        changes.written += 1
        if old is not None:
            self._retire(old, keep_id=True)
            gone = old.content.destinations - new.content.destinations
            changes.removed_backends |= {(address, backend) for backend in gone}

    def _retire(self, old: Programmed, *, keep_id: bool = False) -> None:
        self.slots.free(old.first, old.content.slot_count)
        if not keep_id:
            self._ids.free(old.id)

    def _prune_foreign(self, changes: Changes) -> None:
        for key in list(self._foreign):
            try:
                self._frontends.delete(key)
            except OSError as error:
                changes.problems.append(f"unreadable entry {key.hex()}: not removed: {error}")
            else:
                self._foreign.discard(key)

    def _slot_items(self, address: L4Addr, new: Programmed) -> list[tuple[bytes, bytes]]:
        nobody = (L4Addr(bytes(len(address.ip)), 0, address.protocol),)
        own = (address.ip, address.port.to_bytes(2, "big"), address.protocol)
        slots = [
            self._slot.pack(
                *own,
                backend.ip,
                backend.port.to_bytes(2, "big"),
                run.run_length,
                run.flags,
                i,
                new.generation,
                run.affinity_seconds,
            )
            for run in new.content.runs
            for i, backend in enumerate(run.backends or nobody)
        ]
        return [(struct.pack("=I", new.first + i), slot) for i, slot in enumerate(slots)]


def _start_item(new: Programmed) -> tuple[bytes, bytes]:
    return struct.pack("=I", new.id), RUN_START.pack(new.first)


def _id_item(address: L4Addr, new: Programmed) -> tuple[bytes, bytes]:
    return frontend_key(address), FRONTEND_ID.pack(new.id)


def _reader(array: MapLike, expected: int, size: int) -> Callable[[int], bytes | None]:
    """Return what reads an array: one by one while little is to be read, else from a copy of it all."""
    if expected * _LOOKUP_COST < size:
        return lambda index: array.lookup(struct.pack("=I", index)) if index < size else None
    held = dict(array.items())
    return lambda index: held.get(struct.pack("=I", index))
