"""What `make image` built: the archives in build/images, and their root file systems to run things in.

Only who names this folder runs it, for the images have to be built first: `make test-image` does both.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.image.archive import Archive
from lab import Node
from tests.image.root import Root, unpacked

BUILT = Path(__file__).parents[2] / "build" / "images"


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Leave it out of `make test`."""
    named = any("image" in argument for argument in config.invocation_params.args)
    return None if named else True


def archive(role: str) -> Archive:
    """A role's image."""
    path = BUILT / f"lrp-{role}.tar"
    if not path.exists():
        pytest.exit(f"{path} is not there: run `make image`", 2)
    return Archive(path)


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """The agent's image, unpacked."""
    return unpacked(archive("agent"), tmp_path_factory.mktemp("agent") / "root")


@pytest.fixture(scope="session")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """The controller's image, unpacked."""
    return unpacked(archive("controller"), tmp_path_factory.mktemp("controller") / "root")


@pytest.fixture(params=["agent", "controller"])
def root(request: pytest.FixtureRequest) -> Root:
    """Each image, unpacked."""
    found: Root = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as made:
        yield made
