"""What people and programs are given: tables on standard output, and the same figures as data for a JSON file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from benchmarks.ratios import Estimate, added, ratio
from benchmarks.rows import BASE, USUAL, Row
from benchmarks.sockets import TESTS, Effort, Samples, Taken
from benchmarks.targets import RIVAL, TARGETS, Target, judged, rival_ratio

_COLUMNS = 7
Figures = dict[str, dict[str, Estimate]]
"""Test -> row -> figure."""


def compared(samples: Samples, how: Callable[[Sequence[int], Sequence[int]], Estimate]) -> Figures:
    """Each row against the base, in each test."""
    return {test: {row: how(medians, rows[BASE]) for row, medians in rows.items()} for test, rows in samples.items()}


def lines(taken: Taken, ratios: Figures, rows: Sequence[Row], effort: Effort) -> Iterator[str]:
    """The whole report."""
    samples = taken.samples
    turns = f"turns of {effort.times} repetitions ({effort.round_trips} of round trips)"
    yield f"Medians over {effort.cycles} cycles in {effort.rounds} rounds of {turns}; ± is half of the 95 % interval."
    yield f"Reading the clock is {taken.clock_floor} ns of each sample."
    yield ""
    yield from legend(rows, list(samples))
    yield ""
    yield f"Times as long as {BASE} (below its name: {BASE}'s median in nanoseconds)"
    yield from table(samples, ratios, rows, lambda e: f"{e.value:.3f} ±{(e.high - e.low) / 2:.3f}")
    yield f"Nanoseconds more than {BASE}"
    yield from table(samples, compared(samples, added), rows, nanoseconds)
    for name in (row.name for row in rows if row.name.startswith("also")):
        usual = f"miss-{USUAL}" if name.endswith("-miss") else f"ours-{USUAL}"
        yield from _against(samples, name, usual)
    yield from _flat(samples)
    yield from _targets(samples)


def nanoseconds(figure: Estimate) -> str:
    """A difference and half of its interval."""
    return f"{figure.value:+.0f} ±{(figure.high - figure.low) / 2:.0f}"


def legend(rows: Sequence[Row], tests: Sequence[str]) -> Iterator[str]:
    """What rows and tests are."""
    width = max(len(name) for name in [*(row.name for row in rows), *tests])
    for row in rows:
        yield f"  {row.name:{width}}  {row.what}"
    yield ""
    for test in TESTS:
        if test.name in tests:
            yield f"  {test.name:{width}}  {test.what}"


def table(samples: Samples, figures: Figures, rows: Sequence[Row], show: Callable[[Estimate], str]) -> Iterator[str]:
    """Rows by tests, with the base's median at the head."""
    tests = list(samples)
    width = max(len(row.name) for row in rows)
    for start in range(0, len(tests), _COLUMNS):
        part = tests[start : start + _COLUMNS]
        # A long name takes two lines.
        heads = [(test[:15], test[15:].lstrip("-")) for test in part]
        yield ""
        yield " " * width + "".join(f"{head[0]:>16}" for head in heads)
        if any(head[1] for head in heads):
            yield " " * width + "".join(f"{head[1]:>16}" for head in heads)
        yield " " * width + "".join(f"{median(samples[test][BASE]):>16,.0f}" for test in part)
        for row in rows:
            if row.name != BASE:
                cells = [show(figures[test][row.name]) if row.name in figures[test] else "n/a" for test in part]
                yield f"{row.name:{width}}" + "".join(f"{cell:>16}" for cell in cells)
    yield ""


def _against(samples: Samples, name: str, usual: str) -> Iterator[str]:
    pairs = {test: rows for test, rows in samples.items() if name in rows and usual in rows}
    if not pairs:
        return
    yield f"{name} against {usual}, within each cycle"
    for test, rows in pairs.items():
        share, more = ratio(rows[name], rows[usual]), added(rows[name], rows[usual])
        yield f"  {test:24}{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]   {nanoseconds(more)} ns"
    yield ""


def _flat(samples: Samples) -> Iterator[str]:
    pairs = [(kind, f"{kind}-10", f"{kind}-10k") for kind in ("ours", "miss")]
    found = [
        f"  {test:24}{kind:6}{interval(ratio(rows[many], rows[few]))}"
        for test, rows in samples.items()
        for kind, few, many in pairs
        if few in rows and many in rows
    ]
    if found:
        yield from ["10,000 frontends against 10 (1 is flat)", *found, ""]


def interval(figure: Estimate) -> str:
    """A ratio and its interval."""
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _targets(samples: Samples) -> Iterator[str]:
    answers = judged(samples)
    if not answers:
        return
    yield "Targets"
    yield f"  {'test':24}{'row':10}{'at most':>10}  {'found':24}{'':10}{'leader':>7}{RIVAL:>7}"
    for target, found, verdict in answers:
        leader = f"{target.leader:.3f}" if target.leader else ""
        limit = f"{target.limit:.3f}{'*' if target.of_rival else ' '}"
        rival = rival_ratio(samples, target)
        here = f"{rival.value:.3f}" if rival else ""
        yield f"  {target.test:24}{target.row:10}{limit:>10}  {interval(found):24}{verdict:10}{leader:>7}{here:>7}"
    yield f"  * as a share of what {RIVAL} adds"
    yield "  leader: its own ratio, on a slower machine, with calls that wake a server up in it"
    yield f"  {RIVAL}: its scheme's ratio, here and now"
    yield ""


def data(
    taken: Taken, ratios: Figures, rows: Sequence[Row], effort: Effort, targets: Sequence[Target] = TARGETS
) -> Mapping[str, Any]:
    """The figures for programs."""
    samples = taken.samples
    more = compared(samples, added)
    return {
        "effort": asdict(effort),
        "clock_floor_ns": taken.clock_floor,
        "rows": {row.name: row.what for row in rows},
        "tests": {
            test: {
                row: {
                    "median_ns": median(medians),
                    "ratio": ratios[test][row]._asdict(),
                    "added_ns": more[test][row]._asdict(),
                }
                for row, medians in by_row.items()
            }
            for test, by_row in samples.items()
        },
        "targets": [
            {**asdict(target), "found": found._asdict(), "verdict": verdict}
            for target, found, verdict in judged(samples, targets)
        ],
    }
