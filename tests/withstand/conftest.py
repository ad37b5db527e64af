"""What these tests stand on, and where their figures go.

They show that a redirect has no gaps: floods of updates, kills, upgrades, foreign hands, full maps, churn. By default
they are sized for every run of the suite; LRP_LONG=1 in the environment gives them the sizes that the promise names.
Their figures are printed at the end of the run (and at once with -s).
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import Node
from tests.datapath.conftest import _root, node, shared_world, world
from tests.withstand.storm import LONG, Ground, build

__all__ = ["_root", "node", "shared_world", "world"]  # pytest takes fixtures from here

_FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line of figures of the test that runs."""

    def note(line: str) -> None:
        text = f"{request.node.name}: {line}"
        print(text)
        request.config.stash.setdefault(_FIGURES, []).append(text)

    return note


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests the time that their full sizes take."""
    for item in items:
        if LONG and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(3600))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = terminalreporter.config.stash.get(_FIGURES, [])
    if found:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(found))


@pytest.fixture(scope="session")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clients and servers of storm.c, compiled."""
    return build(tmp_path_factory.mktemp("storm"))


@pytest.fixture(scope="session")
def shared_ground(storm: Path) -> Iterator[Ground]:
    with Node() as node:
        ground = Ground(node, storm, frontends=48)
        ground.datapath.open()
        yield ground
        ground.close()


@pytest.fixture
def ground(_root: None, shared_ground: Ground) -> Iterator[Ground]:
    """A node with a storm's clients and servers, and an open datapath without entries; tests need not tidy up."""
    yield shared_ground
    shared_ground.clear()
