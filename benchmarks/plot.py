"""The picture, as SVG: a panel for each test, a line for each row, a dot at its ratio and a bar over its interval."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from benchmarks.ratios import Estimate
from benchmarks.rows import BASE, Row
from benchmarks.sockets import TESTS

_LINE, _NAMES, _PLOT, _VALUES = 16, 100, 200, 48  # pixels: a row's height; widths of a panel's three parts
_TITLE, _AXIS, _GAP, _MARGIN = 24, 22, 24, 16
_COLUMNS = 4
_WIDTH = _NAMES + _PLOT + _VALUES
_WIDEST = 1.6  # netfilter's ratios beyond it are drawn at the edge, as arrows; the number tells
_COLOURS = {"ours": "#0b6e4f", "miss": "#5aa469", "also": "#1d4ed8", "lru": "#b45309", "empty": "#64748b"}
_OTHERS = "#9f1239"

_STYLE = """\
text { font: 11px 'DejaVu Sans', sans-serif; fill: #1f2937 } .title { font-weight: bold } .end { text-anchor: end }
.middle { text-anchor: middle; fill: #6b7280 } .grid { stroke: #e5e7eb } .one { stroke: #6b7280 }
"""


def svg(figures: Mapping[str, Mapping[str, Estimate]], rows: Sequence[Row]) -> str:
    """Draw ratios to the base. figures: test -> row -> ratio."""
    tests = [test for test in TESTS if test.name in figures]
    height = _TITLE + (len(rows) - 1) * _LINE + _AXIS
    columns = min(_COLUMNS, len(tests))
    down = -(-len(tests) // _COLUMNS)
    total = (columns * (_WIDTH + _GAP) + 2 * _MARGIN, down * (height + _GAP) + 2 * _MARGIN)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total[0]}" height="{total[1]}">',
        f"<title>Socket calls, as multiples of {BASE}</title>",
        f"<style>{_STYLE}</style>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, test in enumerate(tests):
        x = _MARGIN + number % _COLUMNS * (_WIDTH + _GAP)
        y = _MARGIN + number // _COLUMNS * (height + _GAP)
        parts.append(f'<g transform="translate({x},{y})">')
        parts += _panel(test.what, figures[test.name], rows)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _panel(title: str, figures: Mapping[str, Estimate], rows: Sequence[Row]) -> Iterator[str]:
    names = [row.name for row in rows if row.name != BASE]
    highs = [
        min(figures[row.name].high, _WIDEST) if row.netfilter else figures[row.name].high
        for row in rows
        if row.name in figures
    ]
    scale = _Scale(min(0.98, *(figure.low for figure in figures.values())), max(1.05, *highs))
    bottom = _TITLE + len(names) * _LINE
    yield f'<text class="title" x="0" y="12">{escape(title)}</text>'
    for tick in scale.ticks():
        x, style = scale.x(tick), "one" if tick == 1 else "grid"
        yield f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TITLE - 4}" y2="{bottom}"/>'
        yield f'<text class="middle" x="{x:.1f}" y="{bottom + 14}">{tick:g}</text>'
    for number, name in enumerate(names):
        if name in figures:
            yield from _row(name, figures[name], scale, _TITLE + number * _LINE + _LINE // 2)


def _row(name: str, figure: Estimate, scale: "_Scale", y: int) -> Iterator[str]:
    colour = _COLOURS.get(name.split("-", 1)[0].rstrip("0123456789"), _OTHERS)
    yield f'<text class="end" x="{_NAMES - 8}" y="{y + 4}">{escape(name)}</text>'
    x = scale.x(figure.value)
    if figure.value > scale.high:
        yield f'<path d="M{x - 7:.1f} {y - 4} l7 4 l-7 4 z" fill="{colour}"/>'
    else:
        left, right = scale.x(figure.low), scale.x(figure.high)
        yield f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
        yield f'<circle cx="{x:.1f}" cy="{y}" r="3.5" fill="{colour}"/>'
    yield f'<text class="end" x="{_WIDTH}" y="{y + 4}">{figure.value:.3f}</text>'


class _Scale:
    """From a ratio to a place on the panel's axis."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self.high = low, high

    def x(self, ratio: float) -> float:
        within = min(max(ratio, self._low), self.high)
        return _NAMES + (within - self._low) / (self.high - self._low) * _PLOT

    def ticks(self) -> list[float]:
        """Round numbers, four or so, among them 1."""
        width = self.high - self._low
        step = next((step for step in (0.02, 0.05, 0.1, 0.2, 0.5) if width / step <= 5), 1.0)
        first, last = -int((1 - self._low) / step), int((self.high - 1) / step)
        return [round(1 + step * number, 2) for number in range(first, last + 1)]
