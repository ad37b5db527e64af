"""The suite's cluster: the one that KUBECONFIG names. The suite changes it, so only who names this folder runs it.

The files are the walk's parts, in their order; each leaves the cluster as the next expects it. A part that is asked for
alone gets what it stands on from its fixtures.
"""

import os
import shutil
from pathlib import Path

import pytest

from tests.e2e.asker import Asker
from tests.e2e.client import redirect_addresses, set_stage
from tests.e2e.hands import Hands
from tests.e2e.release import Release
from tests.e2e.terminal import MEASURED, Terminal

HERE = Path(__file__).parent


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Leave it out of `make test`: it is for who names a path in here, or runs pytest here."""
    paths = [(config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args]
    return None if any(path.is_relative_to(HERE) for path in paths) else True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell all that was measured."""
    if MEASURED:
        terminalreporter.section("measured")
        for words in MEASURED:
            terminalreporter.write_line(words)


@pytest.fixture(scope="session")
def terminal() -> Terminal:
    """A shell with kubectl and helm."""
    if "KUBECONFIG" not in os.environ:
        pytest.exit("KUBECONFIG names no cluster: run `make e2e`, or set it", 2)
    for program in ("kubectl", "helm"):
        if not shutil.which(program):
            pytest.exit(f"{program} is not on the PATH", 2)
    return Terminal()


@pytest.fixture(scope="session")
def release(terminal: Terminal) -> Release:
    """The chart's release, whether or not it is installed."""
    return Release(terminal)


@pytest.fixture(scope="session")
def asker(terminal: Terminal) -> Asker:
    """The client that never stops, whether or not it is started."""
    return Asker(terminal)


@pytest.fixture(scope="session")
def hands() -> Hands:
    """Hands on the node itself."""
    if "LRP_E2E_NODE" not in os.environ:
        pytest.skip("the node itself is touched here, and KUBECONFIG's is not ours (make e2e has one)")
    return Hands(Path(os.environ["LRP_E2E_NODE"]))


@pytest.fixture(scope="module")
def installed(terminal: Terminal, release: Release) -> Release:
    """The release, installed, with the walk's pods and its policies for an address."""
    set_stage(terminal)
    if not release.installed():
        release.install("sockets")
    redirect_addresses(terminal)
    return release
