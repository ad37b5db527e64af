"""The TC part: what a packet costs that is rewritten on its way, by itself and end to end.

Packets by themselves (packets.py) are run through the programs by the kernel, with the kernel's own timing, on tables
of several sizes. End to end, clients talk as in the socket part, beside kube-proxy's rules, which rewrite packets too.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.packets import FOREIGN_KINDS, FULL_KINDS, TABLE_KINDS, TCP, UDP, Case, Kind, Scene
from benchmarks.ratios import Estimate, added
from benchmarks.rows import BRIDGED, COUNTS, USUAL, Row, choose, packet_rows
from benchmarks.runner import EMPTY, Runner
from benchmarks.sockets import TESTS, Effort, Samples, Taken, Test, at_once, measure, tell
from benchmarks.stage import Stage
from lrp_operator.kernel.netns import in_netns

FULL = "full"
"""The scene whose tables of established connections are nearly full; of the usual number of frontends."""

TC_TESTS = [test for test in TESTS if test.name in {"tcp-connect", "tcp-cycle", "sendto", "send", "tcp-rr"}]
EMPTY_NAME = "empty"
_TIMES, _IN_ROW = 50, 2001
_OF_ALL = 512  # the LRU makes room for 128 entries at once
_MOST = 10_000  # of each kind of first packets, before anything else: twice that of both protocols fill an LRU


@dataclass(frozen=True, slots=True)
class Packets:
    """What packets took, in picoseconds, by case's name, one sample for each cycle.

    once: one at a time; row: many in a row. whole: the mean of first packets, with what some of them pay for others.
    roomy: of first packets too, more than an empty program and while the LRU is not full; one sample for each round.
    """

    cases: list[Case]
    once: dict[str, list[int]]
    row: dict[str, list[int]]
    whole: dict[str, list[int]]
    roomy: dict[str, list[int]]

    def alone(self, case: Case) -> Estimate:
        """Nanoseconds more than an empty program, run once at a time."""
        return _nanoseconds(added(self.once[case.name], self.once[EMPTY_NAME]))

    def with_all(self, case: Case) -> Estimate:
        """The same, the mean of all."""
        return _nanoseconds(added(self.whole[case.name], self.once[EMPTY_NAME]))

    def in_row(self, case: Case) -> Estimate:
        """The same, run many times in a row."""
        return _nanoseconds(added(self.row[case.name], self.row[EMPTY_NAME]))


def _nanoseconds(picoseconds: Estimate) -> Estimate:
    return Estimate(*(value / 1000 for value in picoseconds))


@dataclass(frozen=True, slots=True)
class Ends:
    """What was measured end to end, with pods of one shape."""

    shape: str
    rows: Sequence[Row]
    taken: Taken

    @property
    def samples(self) -> Samples:
        """Of all tests."""
        return self.taken.samples


# --- Packets by themselves


def also_names(also: Sequence[Path]) -> list[str]:
    """What other builds are called."""
    return ["also"] if len(also) == 1 else [f"also{number}" for number in range(1, len(also) + 1)]


def _cases(also: Sequence[Path]) -> Iterator[Case]:
    for scene in (*COUNTS, *also_names(also)):
        kinds = (*TABLE_KINDS, *FOREIGN_KINDS) if scene not in COUNTS or scene == USUAL else TABLE_KINDS
        for kind in kinds:
            for version in (4, 6):
                for protocol in (TCP, UDP):
                    # A datagram to no frontend is that, whichever number it has.
                    if protocol is TCP or kind is not Kind.FOREIGN:
                        yield Case(scene, kind, version, protocol)
    for scene in (USUAL, FULL):
        for kind in FULL_KINDS:
            for version in (4, 6):
                if scene == FULL or kind not in TABLE_KINDS:
                    yield Case(scene, kind, version, TCP)


def measure_packets(effort: Effort, also: Sequence[Path]) -> Packets:
    """All rounds. Each has a stage of its own."""
    taken = Packets(list(_cases(also)), {}, {}, {}, {})
    for number in range(effort.rounds):
        with Stage() as stage:
            runner = _set_up(stage, taken, also, f"round {number + 1} of {effort.rounds}")
            with at_once():
                for cycle in range(effort.cycles_each):
                    if cycle % 10 == 0:
                        tell(f"packets: cycle {cycle} of {effort.cycles_each}")
                    _cycle(runner, taken)
    return taken


def _set_up(stage: Stage, taken: Packets, also: Sequence[Path], when: str) -> Runner:
    scenes = {}
    wanted: list[tuple[str, int, Path | None]] = [(suffix, count, None) for suffix, count in COUNTS.items()]
    wanted.append((FULL, COUNTS[USUAL], None))
    wanted += [(name, COUNTS[USUAL], sources) for name, sources in zip(also_names(also), also, strict=True)]
    for name, count, sources in wanted:
        tell(f"{when}: preparing packets, {name}")
        scenes[name] = stage.packets(name, count, sources)
    runner = stage.runner()
    for number, case in enumerate(taken.cases, EMPTY + 1):
        scene = scenes[case.scene]
        runner.add(number, case, scene.pin(case.program), scene.ifindex)
    first = [(number, case) for number, case in enumerate(taken.cases, EMPTY + 1) if case.kind is Kind.FIRST]
    empty = runner.once(EMPTY, _MOST)
    for number, case in first:
        taken.roomy.setdefault(case.name, []).append(runner.once(number, _MOST) - empty)
    for number, _ in first:
        runner.once(number, _MOST)
    # After the flows that fill the LRU, or they would be displaced.
    for scene in scenes.values():
        in_netns(stage.stand.node.netns, lambda scene=scene: _fill(scene))  # type: ignore[misc]
    return runner


def _fill(scene: Scene) -> None:
    scene.begin_flows(many=scene.name in {USUAL, FULL})
    if scene.name == FULL:
        scene.fill()


def _cycle(runner: Runner, taken: Packets) -> None:
    turns: list[tuple[int, Case | None]] = [(EMPTY, None), *enumerate(taken.cases, EMPTY + 1)]
    random.shuffle(turns)
    for number, case in turns:
        name = case.name if case else EMPTY_NAME
        taken.once.setdefault(name, []).append(runner.once(number, _TIMES))
        if case is None or case.in_row:
            taken.row.setdefault(name, []).append(runner.row(number, _IN_ROW))
        elif case.kind is Kind.FIRST:
            taken.whole.setdefault(name, []).append(runner.all_of(number, _OF_ALL))


# --- End to end


def measure_ends(
    effort: Effort, tests: list[Test], patterns: list[str], also: list[Path], *, everything: bool
) -> Iterator[Ends]:
    """Both shapes of pods, one after the other."""
    routed = choose(list(packet_rows(also)), patterns, everything=everything)
    bridged = [row for row in routed if any(fnmatchcase(row.name, pattern) for pattern in BRIDGED)]
    yield Ends("routed", routed, measure(routed, tests, effort))
    yield Ends("on a bridge", bridged, measure(bridged, tests, effort, bridge=True))
