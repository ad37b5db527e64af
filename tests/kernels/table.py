"""What the guests told, as the README shows it: a row for each kernel, a column for each check."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.kernels.rows import ITS_END, Row, Verdict

_TITLES = {"features": "missing", "load": "modes that load", "socket": "socket level", "tc": "TC level"}
_NOTHING = "-"


@dataclass(slots=True)
class Outcome:
    """What became of one kernel.

    lost: why it did not come to its end; empty if it did. had: there is such a kernel.
    """

    name: str
    rows: list[Row] = field(default_factory=list)
    lost: str = ""
    had: bool = True

    def of(self, check: str) -> list[Row]:
        """What one check found."""
        return [row for row in self.rows if row.check == check]

    @property
    def failed(self) -> bool:
        """Whether anything failed that should not have."""
        return self.had and (bool(self.lost) or any(row.verdict is Verdict.FAILS for row in self.rows))


def render(outcomes: Sequence[Outcome], checks: Iterable[str]) -> str:
    """The table in Markdown, and below it what is behind it: what was tried, what is missing, what failed."""
    checks = list(checks)
    titles = ["Linux", *(_TITLES.get(check, check) for check in checks)]
    cells = [[outcome.name, *(_cell(outcome, check) for check in checks)] for outcome in outcomes]
    lines = ["|" + "---|" * len(titles), *(f"| {' | '.join(line)} |" for line in cells)]
    below = (*_tried(outcomes, checks), *_missing(outcomes), *_failed(outcomes))
    return "\n".join([f"| {' | '.join(titles)} |", *lines, "", *below])


def _cell(outcome: Outcome, check: str) -> str:
    rows = outcome.of(check)
    if not rows:
        return _NOTHING if outcome.had else "not in the archive"
    lacking = [row.subject for row in rows if row.verdict is Verdict.LACKS]
    failing = [row.subject for row in rows if row.verdict is Verdict.FAILS]
    fails = f"**fails: {', '.join(failing)}**" if failing else ""
    if check == "features":
        return "; ".join(filter(None, (", ".join(lacking), fails))) or _NOTHING
    works = len(rows) - len(lacking) - len(failing)
    parts = [f"all {works}" if works == len(rows) else f"{works} of {len(rows)}", fails]
    if lacking:
        parts.append(f"limited: {', '.join(lacking)}")
    return "; ".join(filter(None, (*parts, _most(rows))))


def _most(rows: Iterable[Row]) -> str:
    """The program that the verifier had most work with; it gives up at a million."""
    counts = [(count, name) for row in rows for name, count in row.instructions.items() if count]
    if not counts:
        return ""
    count, name = max(counts)
    steps = f"{round(count, -3):,}".replace(",", " ")
    return f"at most {steps} verifier steps ({name.removeprefix('lrp_')})"


def _tried(outcomes: Iterable[Outcome], checks: Iterable[str]) -> Iterable[str]:
    for check in checks:
        rows = (row for outcome in outcomes for row in outcome.of(check))
        subjects = dict.fromkeys(row.subject for row in rows if row.subject != ITS_END)
        if check != "features" and subjects:
            yield f"{_TITLES.get(check, check)}: {'; '.join(subjects)}."


def _missing(outcomes: Iterable[Outcome]) -> Iterable[str]:
    rows = [row for outcome in outcomes for row in outcome.rows if row.verdict is Verdict.LACKS]
    for line in dict.fromkeys(f"- without {row.subject}: {row.told}" for row in rows if row.check == "features"):
        yield line
    for line in dict.fromkeys(f"- limited: {row.subject}: {row.told}" for row in rows if row.check != "features"):
        yield line


def _failed(outcomes: Iterable[Outcome]) -> Iterable[str]:
    for outcome in outcomes:
        for row in outcome.rows:
            if row.verdict is Verdict.FAILS:
                yield f"FAILED on {outcome.name}: {row.check}: {row.subject}: {row.told}"
        if outcome.lost:
            yield f"{'FAILED on ' if outcome.had else ''}{outcome.name}: {outcome.lost}"
