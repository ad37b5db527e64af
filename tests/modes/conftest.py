"""Grounds for the modes, and the matrix of what each mode did, printed at the end of the run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.datapath.conftest import _root
from tests.modes.ground import Ground
from tests.modes.matrix import Matrix

__all__ = ["_root"]  # pytest takes fixtures from here


@pytest.fixture
def ground(_root: None, tmp_path: Path) -> Iterator[Ground]:
    """Two nodes; the agent is not started yet."""
    with Ground(tmp_path) as ground:
        yield ground
        ground.cleanup()


_FIGURES = pytest.StashKey[list[str]]()
_MATRIX = pytest.StashKey[Matrix]()


@pytest.fixture(scope="session")
def matrix(request: pytest.FixtureRequest) -> Matrix:
    """Takes what each mode did; it is printed at the end of the run."""
    return request.config.stash.setdefault(_MATRIX, Matrix())


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> list[str]:
    """Takes lines that are printed at the end of the run."""
    return request.config.stash.setdefault(_FIGURES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    matrix = terminalreporter.config.stash.get(_MATRIX, Matrix())
    if matrix.cells:
        terminalreporter.section("what each mode does")
        terminalreporter.write_line(matrix.table())
    found = terminalreporter.config.stash.get(_FIGURES, [])
    if found:
        terminalreporter.section("changes of mode, and what else agents went through")
        terminalreporter.write_line("\n".join(found))
