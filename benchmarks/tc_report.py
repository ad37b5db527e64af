"""What the TC part tells: tables, targets, and the same as data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.packets import FOREIGN_KINDS, FULL_KINDS, FULL_SHARE, TABLE_KINDS, TCP, UDP, Case, Kind
from benchmarks.ratios import Estimate, added, ratio, ratio_of_added
from benchmarks.report import compared, data, interval, legend, nanoseconds, table
from benchmarks.rows import BASE, COUNTS, USUAL
from benchmarks.sockets import Effort
from benchmarks.targets import PACKET_TARGETS, Verdict, judged, verdict
from benchmarks.tc import EMPTY_NAME, FULL, Ends, Packets

_FEW, _MANY = "10", "10k"
_COLUMNS = [(version, protocol) for version in (4, 6) for protocol in (TCP, UDP)]
_FULL_LIMIT = 1.2


@dataclass(frozen=True, slots=True)
class _Limit:
    """Nanoseconds that a packet takes at most, and what the field's leader takes for it (TCP over IPv4)."""

    kind: Kind
    nanoseconds: int
    leader: int


_LIMITS = (
    _Limit(Kind.KNOWN, 200, 575),
    _Limit(Kind.REPLY, 150, 390),
    _Limit(Kind.FIRST, 450, 950),
    _Limit(Kind.MISS, 60, 275),
)


# --- Packets by themselves


def packet_lines(packets: Packets, effort: Effort) -> Iterator[str]:
    """The tables of packets by themselves."""
    clock = median(packets.once[EMPTY_NAME]) / 1000, median(packets.row[EMPTY_NAME]) / 1000
    yield "Packets by themselves, in nanoseconds more than an empty program"
    yield f"Medians over {effort.cycles} cycles in {effort.rounds} rounds; ± is half of the 95 % interval."
    yield f"{COUNTS[USUAL]:,} frontends of each family."
    yield ""
    yield f"One at a time (an empty program: {clock[0]:.0f} ns, most of it for reading the clock)"
    yield from _packet_table(packets, USUAL, in_row=False)
    yield f"Many in a row (an empty program: {clock[1]:.0f} ns)"
    yield from _packet_table(packets, USUAL, in_row=True)
    for scene in dict.fromkeys(case.scene for case in packets.cases if case.scene.startswith("also")):
        yield f"{scene} against {USUAL}, within each cycle: one at a time, in a row"
        yield from _against(packets, scene)
    yield from _flat(packets)


def _packet_table(packets: Packets, scene: str, *, in_row: bool) -> Iterator[str]:
    known = set(packets.cases)
    yield ""
    yield f"  {'':44}" + "".join(f"{_column(*column):>14}" for column in _COLUMNS)
    for kind in (*TABLE_KINDS, *FOREIGN_KINDS):
        cases = [Case(scene, kind, *column) for column in _COLUMNS]
        if in_row and not cases[0].in_row:
            continue
        figure = packets.in_row if in_row else packets.alone
        cells = [_plain(figure(case)) if case in known else "" for case in cases]
        yield f"  {kind:44}{''.join(f'{cell:>14}' for cell in cells)}".rstrip()
        if kind is Kind.FIRST:
            cells = [f"{median(packets.roomy[case.name]) / 1000:.0f}" for case in cases]
            yield f"  {'  while there is room (no interval)':44}{''.join(f'{cell:>14}' for cell in cells)}"
            cells = [_plain(packets.with_all(case)) for case in cases]
            yield f"  {'  and with what makes room for it':44}{''.join(f'{cell:>14}' for cell in cells)}"
    yield ""


def _column(version: int, protocol: object) -> str:
    return f"{'TCP' if protocol is TCP else 'UDP'}, IPv{version}"


def _plain(figure: Estimate) -> str:
    return f"{figure.value:.0f} ±{(figure.high - figure.low) / 2:.0f}"


def _against(packets: Packets, scene: str) -> Iterator[str]:
    for case in (case for case in packets.cases if case.scene == scene):
        usual = Case(USUAL, case.kind, case.version, case.protocol)
        samples = [packets.once, *([packets.row] if case.in_row else [])]
        cells = [added(taken[case.name], taken[usual.name]) for taken in samples]
        told = "".join(f"{nanoseconds(Estimate(*(value / 1000 for value in cell))):>14}" for cell in cells)
        yield f"  {case.kind:44}{_column(case.version, case.protocol):12}{told}"
    yield ""


def _flat(packets: Packets) -> Iterator[str]:
    yield f"{COUNTS[_MANY]:,} frontends against {COUNTS[_FEW]} (1 is flat)"
    for kind in TABLE_KINDS:
        cells = []
        for column in _COLUMNS:
            few, many = (Case(scene, kind, *column).name for scene in (_FEW, _MANY))
            found = ratio_of_added(packets.once[many], packets.once[few], packets.once[EMPTY_NAME])
            cells.append(f"{found.value:.2f} ±{(found.high - found.low) / 2:.2f}")
        yield f"  {kind:44}{''.join(f'{cell:>14}' for cell in cells)}"
    yield ""


@dataclass(frozen=True, slots=True)
class _Judged:
    """A target of packets by themselves. beside: what is told besides."""

    what: str
    limit: str
    found: Estimate
    shown: str
    verdict: Verdict
    beside: tuple[str, ...] = ()


def _packet_targets(packets: Packets) -> Iterator[_Judged]:
    for limit in _LIMITS:
        for column in _COLUMNS:
            case = Case(USUAL, limit.kind, *column)
            found = packets.alone(case)
            shown = f"{found.value:.0f} [{found.low:.0f}, {found.high:.0f}]"
            row = f"{packets.in_row(case).value:.0f}" if case.in_row else ""
            leader = str(limit.leader) if column == (4, TCP) else ""
            what = f"{limit.kind}: {_column(*column)}"
            beside = (row, leader)
            yield _Judged(what, str(limit.nanoseconds), found, shown, verdict(limit.nanoseconds, found), beside)


def _full_targets(packets: Packets) -> Iterator[_Judged]:
    for kind in FULL_KINDS:
        for version in (4, 6):
            full, usual = (Case(scene, kind, version, TCP).name for scene in (FULL, USUAL))
            found = ratio_of_added(packets.once[full], packets.once[usual], packets.once[EMPTY_NAME])
            what = f"{kind}: {_column(version, TCP)}"
            yield _Judged(what, f"{_FULL_LIMIT:.3f}", found, interval(found), verdict(_FULL_LIMIT, found))


def packet_targets(packets: Packets) -> Iterator[str]:
    """The targets of packets by themselves."""
    yield "Targets: nanoseconds of a packet, one at a time"
    yield f"  {'':58}{'at most':>8}  {'found':24}{'':10}{'in a row':>9}{'leader':>8}"
    yield from _told(_packet_targets(packets))
    yield ""
    yield f"Targets: with {FULL_SHARE:.0%} of the table of connections taken, against few of it"
    yield from _told(_full_targets(packets))
    yield ""


def _told(judgements: Iterator[_Judged]) -> Iterator[str]:
    for one in judgements:
        beside = "".join(f"{cell:>{width}}" for cell, width in zip(one.beside, (9, 8), strict=False))
        yield f"  {one.what:58}{one.limit:>8}  {one.shown:24}{one.verdict:10}{beside}".rstrip()


def _of_first(packets: Packets, case: Case) -> dict[str, Any]:
    room = median(packets.roomy[case.name]) / 1000
    return {"added_with_all_ns": packets.with_all(case)._asdict(), "added_with_room_ns": room}


def packet_data(packets: Packets, effort: Effort) -> dict[str, Any]:
    """The same for programs."""
    return {
        "rounds": effort.rounds,
        "cycles_each": effort.cycles_each,
        "empty_ns": {
            "once": median(packets.once[EMPTY_NAME]) / 1000,
            "in_a_row": median(packets.row[EMPTY_NAME]) / 1000,
        },
        "cases": {
            case.name: {
                "added_ns": packets.alone(case)._asdict(),
                **({"added_in_a_row_ns": packets.in_row(case)._asdict()} if case.in_row else {}),
                **(_of_first(packets, case) if case.kind is Kind.FIRST else {}),
            }
            for case in packets.cases
        },
        "targets": [
            {"what": one.what, "limit": float(one.limit), "found": one.found._asdict(), "verdict": one.verdict}
            for one in (*_packet_targets(packets), *_full_targets(packets))
        ],
    }


# --- End to end


def ends_lines(ends: Ends, effort: Effort) -> Iterator[str]:
    """The tables of one shape of pods."""
    samples, rows = ends.samples, ends.rows
    yield f"End to end, pods {ends.shape}; medians over {effort.cycles} cycles in {effort.rounds} rounds"
    yield ""
    yield from legend(rows, list(samples))
    yield ""
    yield f"Times as long as {BASE} (below its name: {BASE}'s median in nanoseconds)"
    yield from table(samples, compared(samples, ratio), rows, lambda e: f"{e.value:.3f} ±{(e.high - e.low) / 2:.3f}")
    yield f"Nanoseconds more than {BASE}"
    yield from table(samples, compared(samples, added), rows, nanoseconds)


def ends_targets(all_ends: Sequence[Ends]) -> Iterator[str]:
    """The targets of all shapes."""
    yield "Targets: end to end, times as long as direct"
    rivals = (f"iptables-{USUAL}", f"nft-{USUAL}")
    yield f"  {'test':24}{'pods':14}{'row':10}{'at most':>8}  {'found':24}{'':10}" + "".join(f"{r:>14}" for r in rivals)
    for ends in all_ends:
        for target, found, judgement in judged(ends.samples, PACKET_TARGETS):
            taken = ends.samples[target.test]
            beside = "".join(
                f"{ratio(taken[rival], taken[BASE]).value:>14.3f}" if rival in taken else f"{'':>14}"
                for rival in rivals
            )
            where = f"  {target.test:24}{ends.shape:14}{target.row:10}"
            yield f"{where}{target.limit:>8.3f}  {interval(found):24}{judgement:10}{beside}".rstrip()
    yield ""


def ends_data(all_ends: Sequence[Ends], effort: Effort) -> dict[str, Any]:
    """The same for programs."""
    return {
        ends.shape: data(ends.taken, compared(ends.samples, ratio), ends.rows, effort, PACKET_TARGETS)
        for ends in all_ends
    }
