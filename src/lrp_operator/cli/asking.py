"""What the commands that ask the agent have in common: their options, how answers are shown, how times are written."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer

from lrp_operator.agent.apimodel import DEFAULT_SOCKET, Answer
from lrp_operator.cli.client import AgentError, Client
from lrp_operator.cli.output import Output, as_data, complain

A = TypeVar("A", bound=Answer)


ApiSocket = Annotated[Path, typer.Option("--api-socket", envvar="LRP_API_SOCKET", help="The agent's unix socket.")]
SOCKET = Path(DEFAULT_SOCKET)


@contextmanager
def sentences() -> Iterator[None]:
    """Let what goes wrong with the agent end the program with a sentence and its exit code."""
    try:
        yield
    except AgentError as error:
        complain(str(error))
        raise typer.Exit(error.exit_code) from error


def ask(api_socket: Path, path: str, kind: type[A]) -> A:
    """Ask the agent; ends the program where there is no answer."""
    with sentences():
        return Client(api_socket).get(path, kind)


def show(answer: A, output: Output, print_for_people: Callable[[A], None]) -> None:
    """Print an answer for people, or whole as data."""
    if output is Output.TABLE:
        print_for_people(answer)
    else:
        sys.stdout.write(as_data(msgspec.to_builtins(answer), output))


def age(moment: datetime) -> str:
    """How long ago something was, in one unit: 3s, 5m, 2h, 4d."""
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
