"""Nodes as a table: what becomes of a policy's frontends on each. Nodes that have the same to say share a row."""

from typing import TYPE_CHECKING

from lrp_operator.cli.output import Cell, Table

if TYPE_CHECKING:
    from lrp_operator.cli.survey import FrontendFate, NodeFate

MOST_ROWS = 30
MOST_NAMED = 3

Story = tuple[tuple[str, str, str], ...]
"""A row's frontends, each with what becomes of it, and how that looks."""

_STYLES = {"redirected": "green", "refused": "red", "usual": "yellow"}


def nodes_table(nodes: "list[NodeFate]") -> Table:
    """Make the table: nodes that redirect first, each for itself; then those that do not, by why."""
    alike: dict[Story, list[str]] = {}
    for node in sorted(nodes, key=lambda node: -node.redirects):
        alike.setdefault(_story(node), []).append(node.node)
    rows = [row for story, names in alike.items() for row in _rows(_named(names), story)]
    left = len(rows) - MOST_ROWS
    if left > 1:
        rows = [*rows[:MOST_ROWS], (f"and {left} more rows (see -o json)", "", "")]
    return Table(("Node", "Frontend", "On this node"), rows)


def _rows(names: str, story: Story) -> list[tuple[Cell | str, ...]]:
    return [(names if n == 0 else "", line[0], Cell(line[1], line[2])) for n, line in enumerate(story)]


def _named(nodes: list[str]) -> str:
    more = len(nodes) - MOST_NAMED
    return ", ".join(nodes[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _story(node: "NodeFate") -> Story:
    lines = [(fate.frontend or "-", what_happens(fate, node.node), _STYLES[fate.fate]) for fate in node.frontends]
    if len({line[1:] for line in lines}) == 1 < len(lines):
        lines = [(f"all {len(lines)}", *lines[0][1:])]
    said = ": ".join(filter(None, (node.agent, node.problem)))
    if said:
        style = ("red" if node.redirects else "yellow") if node.problem else "green"
        lines.append(("", f"agent: {said}", style))
    return tuple(lines)


def what_happens(fate: "FrontendFate", node: str) -> str:
    """Say what becomes of a frontend on a node, in words that fit other nodes too where that is possible."""
    if fate.backends:
        return "\n".join(f"-> {backend}" for backend in fate.backends)
    message = fate.message.replace(f"Node {node} ", "The node ").replace(f" on node {node} ", " on the node ")
    return f"{fate.fate.words}: {fate.reason}: {message}"
