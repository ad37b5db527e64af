"""A family's maps: no packet ever sees half a change, and faults heal."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import structs

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath.layout import FRONTEND_ID, RUN_START, SLOT, frontend_key
from lrp_operator.datapath.tables import Changes, Content, FamilyMaps, FamilyTable, IdPool, content_of
from lrp_operator.resolve.model import FrontendEntry, FrontendType

SIZE = 16
IDS = 8


class FakeMap:
    """A map that looks at the whole after every single element written, and can be told to fail."""

    def __init__(self, watch: Callable[[], None] = lambda: None) -> None:
        self.held: dict[bytes, bytes] = {}
        self.watch = watch
        self.faults: Iterator[bool] = iter(())
        self.operations = 0

    def fault(self) -> None:
        self.operations += 1
        if next(self.faults, False):
            raise OSError(12, "no memory")

    def lookup(self, key: bytes) -> bytes | None:
        self.fault()
        return self.held.get(key)

    def update(self, key: bytes, value: bytes) -> None:
        self.fault()
        self.held[key] = value
        self.watch()

    def update_many(self, items: list[tuple[bytes, bytes]]) -> None:
        for key, value in items:  # a fault in the middle leaves the first part written
            self.update(key, value)

    def delete(self, key: bytes) -> bool:
        self.fault()
        found = self.held.pop(key, None) is not None
        self.watch()
        return found

    def items(self) -> list[tuple[bytes, bytes]]:
        self.fault()
        return list(self.held.items())


class Array(FakeMap):
    """A runs or backends map: every index is there."""

    def __init__(self, size: int, value_size: int, watch: Callable[[], None]) -> None:
        super().__init__(watch)
        self.held = {struct.pack("=I", i): bytes(value_size) for i in range(size)}

    def update(self, key: bytes, value: bytes) -> None:
        assert key in self.held
        super().update(key, value)


class Kernel:
    """The maps and a reader that looks at them after each operation, as a packet might."""

    def __init__(self, ip_bytes: int, size: int = SIZE, ids: int = IDS) -> None:
        self.slot = SLOT[ip_bytes]
        self.ip_bytes = ip_bytes
        self.cleared: list[int] = []
        self.frontends = FakeMap(self.look)
        self.runs = Array(ids, RUN_START.size, self.look)
        self.backends = Array(size, self.slot.size, self.look)
        self.size = size
        self.ids = IdPool(ids, self.clear)
        self.table = self.new_table()
        # What each frontend was ever asked to be, plus: what a reader that has just looked it up still relies on.
        self.allowed: dict[L4Addr, set[Content]] = {}
        self.pinned: dict[int, bytes] = {}

    @property
    def operations(self) -> int:
        return self.frontends.operations + self.runs.operations + self.backends.operations

    def new_table(self) -> FamilyTable:
        maps = FamilyMaps(self.frontends, self.runs, self.backends)
        return FamilyTable(self.ip_bytes, maps, self.size, self.ids)

    def clear(self, number: int) -> None:
        """Zero an id's counters, in a map that can fail as well."""
        self.frontends.fault()
        self.cleared.append(number)

    def first_slot(self, value: bytes) -> int:
        (number,) = FRONTEND_ID.unpack(value)
        return RUN_START.unpack(self.runs.held[struct.pack("=I", number)])[0]

    def slot_at(self, index: int) -> tuple:
        return self.slot.unpack(self.backends.held[struct.pack("=I", index)])

    def look(self) -> None:
        """Every frontend's run is its own and is whole; slots that a reader may hold are untouched."""
        taken: set[int] = set()
        ids: set[int] = set()
        for key, value in self.frontends.held.items():
            (number,) = FRONTEND_ID.unpack(value)
            first = self.first_slot(value)
            run = self.run_at(key, first)
            after = first + run.run_length
            if run.flags & 32:
                run = replace(run, original=self.run_at(key, after))
                after += self.slot_at(after)[5]
                assert self.slot_at(after - 1)[8] == self.slot_at(first)[8], "of two generations"
            address = L4Addr(key[: self.ip_bytes], int.from_bytes(key[self.ip_bytes : -2], "big"), Protocol(key[-2]))
            assert run in self.allowed[address], "never asked for"
            indexes = set(range(first, after))
            assert not indexes & taken, "two frontends share slots"
            assert number not in ids, "two frontends share a counter"
            assert 0 < number < IDS
            taken |= indexes
            ids.add(number)
            for index in indexes:
                self.pinned.setdefault(index, self.backends.held[struct.pack("=I", index)])
        for index, raw in self.pinned.items():
            assert self.backends.held[struct.pack("=I", index)] == raw, "a reader's slot was written over"

    def run_at(self, key: bytes, first: int) -> Content:
        """One run, as a program finds it."""
        count, flags, _index, _generation, affinity = self.slot_at(first)[5:]
        assert count > 0
        run = [self.slot_at(first + i) for i in range(count)]
        assert {slot[0] + slot[1] + bytes((slot[2], 0)) for slot in run} == {key}, "another frontend's slot"
        assert len({slot[5:7] + slot[8:] for slot in run}) == 1, "half of a run"
        assert [slot[7] for slot in run] == list(range(count))
        protocol = Protocol(key[-2])
        backends = tuple(L4Addr(s[3], int.from_bytes(s[4], "big"), protocol) for s in run)
        if flags & 4:
            assert backends == (L4Addr(bytes(self.ip_bytes), 0, protocol),)
            backends = ()
        return Content(backends, flags, affinity)

    def settle(self) -> None:
        """All readers have left, and all that is not in use is free again."""
        self.pinned.clear()
        self.table.settle()
        self.ids.release()

    def reload(self) -> int:
        drifted = self.table.load()
        self.ids.rebuild(p.id for p in self.table.programmed.values())
        self.pinned.clear()
        return drifted

    def want(self, address: L4Addr, content: Content | None) -> None:
        if content is not None:
            self.allowed.setdefault(address, set()).add(content)
        self.table.want(address, content)

    def shown(self) -> dict[L4Addr, Content]:
        return {address: p.content for address, p in self.table.programmed.items()}

    def fail(self, faults: list[bool]) -> None:
        both = iter(faults)
        self.frontends.faults = self.runs.faults = self.backends.faults = both


def address(number: int, ip_bytes: int = 4, port: int = 53) -> L4Addr:
    return L4Addr(number.to_bytes(ip_bytes, "big"), port, Protocol.UDP)


def content(
    *numbers: int, ip_bytes: int = 4, affinity: int = 0, skip: bool = False, original: Content | None = None
) -> Content:
    flags = (
        1 | (0 if numbers else 4) | (8 if affinity else 0) | (2 if skip or original else 0) | (32 if original else 0)
    )
    return Content(tuple(address(n, ip_bytes, 8053) for n in numbers), flags, affinity, original)


def behind(*numbers: int, affinity: int = 0) -> Content:
    """The run for those who are exempt."""
    return Content(
        tuple(address(n, 4, 8053) for n in numbers), 64 | (0 if numbers else 4) | (8 if affinity else 0), affinity
    )


FRONTENDS = [address(n) for n in range(1, 5)]
contents = st.builds(
    lambda numbers, affinity, skip, original: content(
        *sorted(numbers), affinity=affinity, skip=skip, original=original
    ),
    st.sets(st.integers(100, 103), max_size=3),
    st.sampled_from([0, 60]),
    st.booleans(),
    st.sampled_from([None, None, behind(), behind(101), behind(104, 105, affinity=60)]),
)


class Faulty(RuleBasedStateMachine):
    """Wishes, flushes, faults, restarts, in any order. `Kernel.look` checks after each element that is written."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = Kernel(4)
        self.wanted: dict[L4Addr, Content] = {}

    @rule(frontend=st.sampled_from(FRONTENDS), wanted=st.none() | contents)
    def want(self, frontend: L4Addr, wanted: Content | None) -> None:
        self.kernel.want(frontend, wanted)
        if wanted is None:
            self.wanted.pop(frontend, None)
        else:
            self.wanted[frontend] = wanted

    @rule(prune=st.booleans(), faults=st.lists(st.booleans(), max_size=30))
    def flush(self, prune: bool, faults: list[bool]) -> None:
        self.kernel.fail(faults)
        self.kernel.table.flush(prune=prune)
        self.kernel.fail([])

    @rule()
    def settle(self) -> None:
        self.kernel.settle()

    @rule(again=st.booleans())
    def start_again(self, again: bool) -> None:
        """Another agent, or the same one that reads back. No reader is left, as `load` demands."""
        if again:
            kernel = self.kernel
            kernel.ids = IdPool(IDS, kernel.clear)
            kernel.table = kernel.new_table()
            for frontend, wanted in self.wanted.items():
                kernel.want(frontend, wanted)
        self.kernel.reload()

    @invariant()
    def the_agents_picture_fits(self) -> None:
        slots = self.kernel.table.slots
        kernel = self.kernel
        firsts = [kernel.first_slot(value) for value in kernel.frontends.held.values()]
        standing = sum(kernel.slot_at(first)[5] for first in firsts)  # at least: behind them may be others
        assert slots.used >= standing, "a slot that is in use counts as free"

    def teardown(self) -> None:
        self.converges()

    def converges(self) -> None:
        """Without faults, and with readers gone between, a few flushes do it, and nothing leaks."""
        for _ in range(3):
            self.kernel.settle()
            changes = self.kernel.table.flush(prune=True)
        assert changes == Changes()
        self.kernel.settle()
        assert self.kernel.shown() == self.wanted
        assert len(self.kernel.ids._free) == IDS - 1 - len(self.wanted), "an id is lost, or free twice"
        assert self.kernel.reload() == 0, "the mirror is what the maps hold"
        assert self.kernel.shown() == self.wanted
        assert self.kernel.table.slots.used == sum(c.slot_count for c in self.wanted.values())


class FaultyThenReadBack(Faulty):
    """The same where the maps can't even be read; what is unknown then is known after `load`."""

    def converges(self) -> None:
        self.kernel.settle()
        self.kernel.reload()
        super().converges()


class WritesFail(Faulty):
    """Reading works, as it does for real maps that have no memory: then no `load` is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel.frontends.lookup = self.kernel.frontends.held.get  # type: ignore[method-assign]
        self.kernel.runs.lookup = self.kernel.runs.held.get  # type: ignore[method-assign]


TestWritesFail = WritesFail.TestCase
TestWritesFail.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestFaultyThenReadBack = FaultyThenReadBack.TestCase
TestFaultyThenReadBack.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def failing_reads(kernel: Kernel) -> Callable[[], None]:
    """Make the frontends and runs maps unreadable, and their writes fail after the fact; return what undoes it."""
    maps = (kernel.frontends, kernel.runs)
    real = [(held.update, held.lookup) for held in maps]

    def broken(write: Callable[[bytes, bytes], None]) -> Callable[[bytes, bytes], None]:
        def update(key: bytes, value: bytes) -> None:
            write(key, value)
            raise OSError(5, "written, but nobody knows")

        return update

    def lookup(_key: bytes) -> bytes | None:
        raise OSError(5, "not readable")

    for held, (write, _) in zip(maps, real, strict=True):
        held.update, held.lookup = broken(write), lookup  # type: ignore[method-assign]

    def undo() -> None:
        for held, (write, read) in zip(maps, real, strict=True):
            held.update, held.lookup = write, read  # type: ignore[method-assign]

    return undo


@pytest.mark.parametrize("wanted", [content(100), None])
def test_a_write_of_unknown_fate_is_not_taken_for_the_old_state(wanted: Content | None) -> None:
    """The value was flipped though the call failed and could not be checked; then the wish is what it was before."""
    kernel = Kernel(4)
    if wanted is not None:
        kernel.want(FRONTENDS[0], wanted)
        kernel.table.flush(prune=True)
    undo = failing_reads(kernel)
    kernel.want(FRONTENDS[0], content(101, 102))
    assert kernel.table.flush(prune=True).problems
    undo()
    kernel.want(FRONTENDS[0], wanted)
    kernel.table.flush(prune=True)
    kernel.reload()
    assert kernel.shown() == ({} if wanted is None else {FRONTENDS[0]: wanted})


def test_only_what_differs_is_written() -> None:
    kernel = Kernel(4)
    for frontend in FRONTENDS:
        kernel.want(frontend, content(100, 101))
    assert kernel.table.flush(prune=True).written == 4
    before = kernel.operations
    for frontend in FRONTENDS:
        kernel.want(frontend, content(100, 101))
    assert kernel.table.flush(prune=True) == Changes()
    assert kernel.operations == before
    kernel.want(FRONTENDS[0], content(100))
    assert kernel.table.flush(prune=True) == Changes(
        written=1, removed_backends={(FRONTENDS[0], address(101, port=8053))}
    )
    assert kernel.operations == before + 2, "a slot, and the start of the run"


def test_a_change_leaves_the_hash_alone() -> None:
    """A reader of the same bucket could miss an entry whose value is being replaced, even by the same one."""
    kernel = Kernel(4)
    kernel.want(FRONTENDS[0], content(100))
    kernel.table.flush(prune=True)
    before = kernel.frontends.operations
    for wanted in (content(101), content(101, 102, skip=True), content()):
        kernel.want(FRONTENDS[0], wanted)
        kernel.table.flush(prune=True)
        assert kernel.shown() == {FRONTENDS[0]: wanted}
    assert kernel.frontends.operations == before


def test_both_runs_are_one_piece() -> None:
    """What leaves the one and stands in the other has not left; and neither is found without the other."""
    kernel = Kernel(4)
    kernel.want(FRONTENDS[0], content(100, 101, original=behind(102)))
    assert kernel.table.flush(prune=True) == Changes(written=1)
    kernel.want(FRONTENDS[0], content(100, original=behind(101, 103, affinity=9)))
    assert kernel.table.flush(prune=True).removed_backends == {(FRONTENDS[0], address(102, port=8053))}
    kernel.reload()
    assert kernel.shown() == {FRONTENDS[0]: content(100, original=behind(101, 103, affinity=9))}
    first = kernel.table.programmed[FRONTENDS[0]].first
    kernel.backends.held[struct.pack("=I", first + 1)] = bytes(kernel.slot.size)
    kernel.reload()
    assert kernel.shown() == {}
    assert kernel.table.flush(prune=True).written == 1, "it is repaired"


@pytest.mark.parametrize("skipped", [True, False])
def test_an_entry_with_an_original_has_its_run_where_somebody_is_exempt(skipped: bool) -> None:
    frontend, own, theirs = address(1), address(100), address(101)
    original = FrontendEntry(frontend, FrontendType.CLUSTER_IP, None, "a/s", (theirs,), affinity_seconds=60)
    entry = FrontendEntry(frontend, FrontendType.LOCAL_REDIRECT, "a/p", "a/s", (own,), original=original)
    second = Content((theirs,), 64 | 8, 60) if skipped else None
    assert content_of(entry, skipped=skipped) == Content((own,), 1 | 2 | 32 if skipped else 1, 0, second)
    nobody = FrontendEntry(frontend, FrontendType.CLUSTER_IP, None, "a/s", (), refuse=True)
    refused = content_of(structs.replace(entry, original=nobody), skipped=skipped).original
    assert refused == (Content((), 64 | 4, 0) if skipped else None)


def test_nothing_is_pruned_before_all_is_seen() -> None:
    kernel = Kernel(4)
    kernel.want(FRONTENDS[0], content(100))
    kernel.want(FRONTENDS[1], content(100))
    kernel.table.flush(prune=True)
    kernel.ids = IdPool(IDS, kernel.clear)
    kernel.table = kernel.new_table()
    kernel.reload()
    kernel.want(FRONTENDS[1], content(100, 101))
    assert kernel.table.flush(prune=False).removed == 0
    assert kernel.shown() == {FRONTENDS[0]: content(100), FRONTENDS[1]: content(100, 101)}
    assert kernel.table.flush(prune=True).removed == 1
    assert kernel.shown() == {FRONTENDS[1]: content(100, 101)}


def test_generations_go_on_after_a_restart() -> None:
    kernel = Kernel(4)
    seen = []
    for number in range(100, 104):
        kernel.table = kernel.new_table()
        kernel.reload()
        kernel.want(FRONTENDS[0], content(number))
        kernel.table.flush(prune=True)
        seen.append(kernel.table.programmed[FRONTENDS[0]].generation)
    assert seen == sorted(set(seen))


def test_a_full_array_is_said_the_rest_works_and_room_heals_it() -> None:
    kernel = Kernel(4, size=4)
    kernel.want(FRONTENDS[0], content(100, 101, 102))
    kernel.want(FRONTENDS[1], content(100, 101))
    kernel.want(FRONTENDS[2], content(100))
    (problem,) = kernel.table.flush(prune=True).problems
    assert problem.startswith("0.0.0.2:53/UDP: no 2 neighbouring slots are free (1 of 4 are free)")
    assert kernel.shown().keys() == {FRONTENDS[0], FRONTENDS[2]}
    kernel.want(FRONTENDS[0], None)
    assert kernel.table.flush(prune=True).problems, "the freed run rests"
    kernel.settle()
    assert kernel.table.flush(prune=True).problems == []
    assert kernel.shown() == {FRONTENDS[1]: content(100, 101), FRONTENDS[2]: content(100)}


def test_ids_rest_and_their_counters_start_at_zero() -> None:
    kernel = Kernel(4, ids=3)
    for frontend in FRONTENDS[:3]:
        kernel.want(frontend, content(100))
    (problem,) = kernel.table.flush(prune=True).problems
    assert "all frontend ids are in use" in problem
    assert sorted(kernel.cleared) == [1, 2], "0 is nobody's"
    gone = kernel.table.programmed[FRONTENDS[0]].id
    kernel.want(FRONTENDS[0], None)
    assert kernel.table.flush(prune=True).problems, "the id rests"
    kernel.settle()
    assert kernel.table.flush(prune=True).problems == []
    assert kernel.table.programmed[FRONTENDS[2]].id == gone
    assert kernel.cleared[-1] == gone


def test_an_id_whose_counters_cannot_be_cleared_is_not_used() -> None:
    kernel = Kernel(4)

    def clear(_number: int) -> None:
        raise OSError(1, "no")

    kernel.ids._clear = clear
    kernel.want(FRONTENDS[0], content(100))
    assert len(kernel.table.flush(prune=True).problems) == 1
    kernel.settle()
    assert kernel.table.slots.used == 0
    assert kernel.shown() == {}


def test_too_many_backends_for_one_frontend() -> None:
    kernel = Kernel(4)
    kernel.want(FRONTENDS[0], Content((address(1),) * 65536, 1, 0))
    (problem,) = kernel.table.flush(prune=True).problems
    assert problem == "0.0.0.1:53/UDP: 65536 backends, at most 65535"


@pytest.mark.parametrize(
    ("number", "first"),
    [(IDS - 1, 9), (1, None), (IDS, None), (0xFFFFFFFF, None), (0, 9), (IDS - 1, SIZE), (IDS - 1, 0xFFFFFFFF)],
    ids=["no one's slot", "another's id", "no such id", "no id at all", "nobody's id", "beyond the end", "beyond all"],
)
@pytest.mark.parametrize("known", [True, False])
def test_an_entry_that_makes_no_sense_is_replaced_or_removed(number: int, first: int | None, *, known: bool) -> None:
    kernel = Kernel(4)
    kernel.want(FRONTENDS[1], content(100))
    kernel.table.flush(prune=True)
    kernel.frontends.held[frontend_key(FRONTENDS[0])] = FRONTEND_ID.pack(number)
    if first is not None:
        kernel.runs.held[struct.pack("=I", number)] = RUN_START.pack(first)
    if known:
        kernel.want(FRONTENDS[0], content(101))
    kernel.frontends.watch = kernel.runs.watch = kernel.backends.watch = lambda: None
    kernel.reload()
    kernel.table.flush(prune=False)
    assert (frontend_key(FRONTENDS[0]) in kernel.frontends.held) is True
    kernel.table.flush(prune=True)
    kernel.look()
    assert kernel.reload() == 0
    assert kernel.shown() == {**({FRONTENDS[0]: content(101)} if known else {}), FRONTENDS[1]: content(100)}


def test_a_protocol_that_is_never_written_is_removed() -> None:
    kernel = Kernel(4)
    foreign = bytes(6) + bytes((47, 0))
    kernel.frontends.held[foreign] = FRONTEND_ID.pack(1)
    kernel.frontends.watch = lambda: None
    kernel.reload()
    kernel.table.flush(prune=False)
    assert foreign in kernel.frontends.held
    kernel.table.flush(prune=True)
    assert kernel.frontends.held == {}


@given(st.binary(min_size=8, max_size=8), st.binary(min_size=4, max_size=4) | st.integers(0, IDS).map(FRONTEND_ID.pack))
def test_whatever_someone_wrote_there_it_is_mended(key: bytes, value: bytes) -> None:
    kernel = Kernel(4)
    kernel.want(FRONTENDS[0], content(100, 101))
    kernel.table.flush(prune=True)
    kernel.frontends.watch = kernel.runs.watch = kernel.backends.watch = lambda: None
    kernel.frontends.held[key] = value
    kernel.reload()
    kernel.settle()
    kernel.table.flush(prune=True)
    kernel.look()
    assert kernel.shown() == {FRONTENDS[0]: content(100, 101)}
    assert len(kernel.frontends.held) == 1


def test_ipv6() -> None:
    kernel = Kernel(16)
    frontend = address(1, 16)
    kernel.want(frontend, content(100, 101, ip_bytes=16, affinity=9))
    kernel.table.flush(prune=True)
    assert kernel.reload() == 0
    assert kernel.shown() == {frontend: content(100, 101, ip_bytes=16, affinity=9)}


def test_removed_backends_are_told_even_where_the_write_reported_an_error() -> None:
    kernel = Kernel(4)
    kernel.want(FRONTENDS[0], content(100))
    kernel.table.flush(prune=True)
    real = kernel.runs.update

    def update(key: bytes, value: bytes) -> None:
        real(key, value)
        raise OSError(5, "written all the same")

    kernel.runs.update = update  # type: ignore[method-assign]
    kernel.want(FRONTENDS[0], content(101))
    changes = kernel.table.flush(prune=True)
    assert kernel.shown() == {FRONTENDS[0]: content(101)}
    assert changes.removed_backends == {(FRONTENDS[0], address(100, port=8053))}


def test_content_of_a_resolved_entry() -> None:
    backends = (address(100),)
    shown = FrontendEntry(FRONTENDS[0], FrontendType.CLUSTER_IP, None, "d/s", backends)
    assert content_of(shown, skipped=False) == Content(backends, 0, 0)
    policy = FrontendEntry(FRONTENDS[0], FrontendType.LOCAL_REDIRECT, "d/p", None, backends, affinity_seconds=5)
    assert content_of(policy, skipped=True) == Content(backends, 1 | 2 | 8, 5)
    refused = FrontendEntry(FRONTENDS[0], FrontendType.LOCAL_REDIRECT, "d/p", None, (), refuse=True)
    assert content_of(refused, skipped=False) == Content((), 1 | 4, 0)
    assert content_of(refused, skipped=False).slot_count == 1
