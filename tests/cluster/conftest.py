"""A real API server for every test here: `cluster` is shared by the session, `namespace` is a test's own.

What tests ask for, by the names of their fixtures, is built before the first of them runs: a build takes minutes, and
no test's timeout should end it.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.cluster import binaries
from tests.cluster.apiserver import Cluster
from tests.cluster.charting import Helm

CRDS = sorted((Path(__file__).parents[2] / "deploy" / "crds").glob("*.yaml"))
# The programs that stand behind a fixture; `programs` is behind all.
NEEDED: dict[str, list[binaries.Program]] = {
    "programs": ["etcd", "kube-apiserver"],
    "kubectl": ["kubectl"],
    "controllers": ["kube-controller-manager"],
    "helm": ["helm"],
    "helm_unittest": ["helm-unittest"],
    "helm_docs": ["helm-docs"],
}
NOT_BUILT = pytest.StashKey[binaries.NoProgramError]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what the tests to be run need, outside of any test, and say so on the terminal."""
    if session.config.option.collectonly:
        return
    fixtures = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    capture = session.config.pluginmanager.getplugin("capturemanager")
    try:
        with capture.global_and_fixture_disabled():
            for program in dict.fromkeys(itertools.chain(*(NEEDED[name] for name in NEEDED if name in fixtures))):
                binaries.program(program)
    except binaries.NoProgramError as error:
        session.config.stash[NOT_BUILT] = error  # fails the tests that need it, and no others


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the API server carries the mark `cluster`, for `-m "not cluster"`."""
    for item in items:
        if "programs" in getattr(item, "fixturenames", ()):
            item.add_marker("cluster")


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest) -> None:
    """The programs are there."""
    if error := request.config.stash.get(NOT_BUILT, None):
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def cluster(programs: None) -> Iterator[Cluster]:  # noqa: ARG001 (it is what this stands on)
    """The API server that tests share, with the project's kinds and an audit log. Whoever stops it starts it again."""
    with Cluster(audit=True) as cluster:
        cluster.install(*CRDS)
        yield cluster


@pytest.fixture
def own_cluster(programs: None) -> Iterator[Cluster]:  # noqa: ARG001
    """An API server of the test's own, with the project's kinds: for what others would feel. Takes some seconds."""
    with Cluster(audit=True) as cluster:
        cluster.install(*CRDS)
        yield cluster


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own, removed with what is in it."""
    with cluster.namespace() as name:
        yield name


@pytest.fixture
def kubectl(cluster: Cluster) -> Callable[..., str]:
    """`cluster.kubectl`, built before the tests."""
    return cluster.kubectl


@pytest.fixture
def controllers(cluster: Cluster) -> Callable[..., AbstractContextManager[None]]:
    """`cluster.controllers`, built before the tests."""
    return cluster.controllers


@pytest.fixture
def helm(programs: None) -> Helm:  # noqa: ARG001
    """Helm with the project's chart, built before the tests."""
    return Helm()


@pytest.fixture
def helm_unittest(programs: None) -> Path:  # noqa: ARG001
    """What runs the chart's own tests, built before."""
    return binaries.program("helm-unittest")


@pytest.fixture
def helm_docs(programs: None) -> Path:  # noqa: ARG001
    """What makes the chart's README, built before."""
    return binaries.program("helm-docs")
