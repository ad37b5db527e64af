"""An agent with a fake datapath to ask, and a way to run lrpctl."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from lrp_operator.cli.node import add_to
from tests.unit.agent.processes import agent, wait_until_up

Lrpctl = Callable[..., Result]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory below which an agent answers on agent.sock."""
    path = tmp_path_factory.mktemp("agent")
    with agent(path):
        wait_until_up(path)
        yield path


def runner(api_socket: Path) -> Lrpctl:
    """Run lrpctl's commands against a socket."""
    app = typer.Typer()
    add_to(app)
    environment = {"LRP_API_SOCKET": str(api_socket), "COLUMNS": "200"}
    return lambda *words: CliRunner().invoke(app, words, env=environment)


@pytest.fixture
def lrpctl(root: Path) -> Lrpctl:
    return runner(root / "agent.sock")
