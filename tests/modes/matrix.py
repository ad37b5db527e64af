"""What each mode did, as a table for people: who asked in which mode, and how each behaviour turned out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

OK, BY_DESIGN, FAILED, LEFT_OUT = "ok", "by design not", "FAILED", "-"


@dataclass(slots=True)
class Matrix:
    """Cells by (row, behaviour). A row is a mode with its proxy, who asks, and the shape of the pods."""

    cells: dict[tuple[tuple[str, str, str], str], str] = field(default_factory=dict)

    def note(self, row: tuple[str, str, str], behaviour: str, outcome: str) -> None:
        """Keep how one came out; a failure is not made up for by another check."""
        if self.cells.get((row, behaviour)) != FAILED:
            self.cells[row, behaviour] = outcome

    def table(self) -> str:
        """The whole, behaviours as columns."""
        behaviours = list(dict.fromkeys(behaviour for _, behaviour in self.cells))
        lines = [["mode", "asked from", "pods", *behaviours]]
        lines += [
            [*row, *(self.cells.get((row, behaviour), LEFT_OUT) for behaviour in behaviours)]
            for row in dict.fromkeys(row for row, _ in self.cells)
        ]
        return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) for line in lines)
