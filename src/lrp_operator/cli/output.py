"""How commands show what they found: tables for people, JSON or YAML for programs.

Rich and yaml are imported where they are used: `lrpctl --help` needs neither.
"""

import json
import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import typer

ENDLESS = 1_000_000
"""The width of what is no terminal: whoever reads a pipe wants whole lines."""


class Output(StrEnum):
    """How an answer is shown."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How the answer is shown.")]


class Cell(NamedTuple):
    """A text in a table; style: as rich names it, shown on terminals."""

    text: str
    style: str = ""


class Table(NamedTuple):
    """Rows below a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]


def as_data(value: Any, output: Output) -> str:
    """Write plain values as JSON or YAML, the keys in their order."""
    if output is Output.JSON:
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    import yaml  # noqa: PLC0415 -- see above

    class Dumper(yaml.SafeDumper):
        """Puts quotes also around texts that only YAML 1.2 takes for numbers: 1e3, 0o17."""

    number = re.compile(r"0o[0-7]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
    Dumper.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(f"^(?:{number.pattern})$"), list("-+.0123456789")
    )
    return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=ENDLESS))


def print_tables(*tables: Table) -> None:
    """Print tables: with colours only on a terminal and without NO_COLOR, with whole lines where it is no terminal."""
    from rich.console import Console  # noqa: PLC0415 -- see above

    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = ENDLESS
    with console.capture() as capture:
        for number, table in enumerate(tables):
            console.print(*["\n"] * bool(number), _rendered(table), sep="", end="")
    sys.stdout.write("".join(line.rstrip() + "\n" for line in capture.get().splitlines()))


def _rendered(table: Table) -> Any:
    from rich.table import Table as RichTable  # noqa: PLC0415 -- see above
    from rich.text import Text  # noqa: PLC0415 -- see above

    rich_table = RichTable(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for title in table.head:
        rich_table.add_column(title, overflow="fold")
    for row in table.rows:
        cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
        rich_table.add_row(*(Text(printable(cell.text), cell.style) for cell in cells))
    return rich_table


def printable(text: str) -> str:
    """Replace what would move the cursor or change the colours: names may come from anyone's file."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


def complain(message: str) -> None:
    """Tell on standard error what is wrong."""
    sys.stderr.write(f"lrpctl: {printable(message)}\n")
