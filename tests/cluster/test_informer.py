"""The informer on a real API server, through a proxy that fails: it converges, and asks no more often than it must.

Requests are counted at the proxy: a listing is a WATCH with sendInitialEvents, or a GET; anything else resumes.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from msgspec import Struct

from lrp_operator.api.objects import ObjectMeta, Service
from lrp_operator.sources.kube import informer as module
from lrp_operator.sources.kube.backoff import Pauses
from lrp_operator.sources.kube.client import KubeClient
from lrp_operator.sources.kube.credentials import Access
from lrp_operator.sources.kube.informer import Informer
from lrp_operator.sources.kube.resources import POLICIES, SERVICES, Resource
from tests.cluster.apiserver import Cluster
from tests.cluster.conftest import CRDS
from tests.cluster.faulty import Cut, Duplicate, ErrorEvent, Fault, FaultyProxy, HalfOpen, Lines, Refuse, Reorder
from tests.cluster.following import QUICK, account, connect, following, policy, service, to_address

LISTING = "sendInitialEvents"
RESUMING = "resourceVersion="
NO_WATCH_LIST = Refuse(422, "Invalid")
SOON_DEAD = replace(QUICK, inactivity=1.0)
"""For a watch that falls silent."""
IN_A_SECOND = replace(QUICK, pauses=Pauses(first=0.03, most=0.3))
"""So short pauses that a second shows whether they grow."""


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[FaultyProxy]:
    with FaultyProxy(cluster) as proxy:
        yield proxy


@pytest.fixture
async def client(cluster: Cluster, proxy: FaultyProxy, tmp_path: Path) -> AsyncIterator[KubeClient]:
    async with connect(cluster, tmp_path, proxy.url) as client:
        yield client


@pytest.fixture(params=["watch list", "pages"])
def way(request: pytest.FixtureRequest, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a listing is made; with pages of two."""
    if request.param == "pages":
        proxy.add(NO_WATCH_LIST, "WATCH", LISTING)
        monkeypatch.setattr(module, "PAGE_SIZE", "2")
    return str(request.param)


@dataclass(frozen=True)
class Stage:
    """A namespace of the cluster, and a client that sees it through the proxy."""

    cluster: Cluster
    proxy: FaultyProxy
    client: KubeClient
    namespace: str

    def services(self, **options: Any) -> Informer[Service]:
        return services(self.client, self.namespace, **options)

    def make(self, names: str, **spec: Any) -> None:
        make(self.cluster, self.namespace, names, **spec)

    def remove(self, names: str) -> None:
        remove(self.cluster, self.namespace, names)

    def key(self, name: str) -> str:
        return f"{self.namespace}/{name}"


@pytest.fixture
def stage(cluster: Cluster, proxy: FaultyProxy, client: KubeClient, namespace: str) -> Stage:
    return Stage(cluster, proxy, client, namespace)


def services(client: KubeClient, namespace: str, **options: Any) -> Informer[Service]:
    return Informer(client, SERVICES, namespace=namespace, **({"timing": QUICK} | options))


def make(cluster: Cluster, namespace: str, names: str, **spec: Any) -> None:
    for name in names.split():
        cluster.apply(service(name, namespace, **spec))


def remove(cluster: Cluster, namespace: str, names: str) -> None:
    for name in names.split():
        cluster.delete(service(name, namespace))


async def test_everything_and_then_every_change(stage: Stage, way: str) -> None:
    stage.make("a b c d e")
    async with following(stage.services()) as told:
        await told.shows("a b c d e")
        stage.make("f")
        stage.remove("a")
        await told.shows("b c d e f")
        stage.make("b", sessionAffinity="ClientIP")
        await told.until(lambda: told.objects[stage.key("b")].spec.session_affinity == "ClientIP")
    assert stage.proxy.count("GET") == (3 if way == "pages" else 0)
    assert stage.proxy.count("WATCH") == (2 if way == "pages" else 1)
    assert [change.problem for change in told.changes if change.problem] == []


async def test_selectors(stage: Stage) -> None:
    stage.make("a b")
    async with following(stage.services(field_selector="metadata.name=b")) as told:
        await told.shows("b")
        stage.make("c")
        stage.remove("b")
        await told.shows("")
    assert all(name.endswith("/b") for change in told.changes for name in change.deletes)


async def test_a_page_that_expires_in_the_middle_of_a_list(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.make("a b c d e")
    stage.proxy.add(NO_WATCH_LIST, "WATCH", LISTING)
    stage.proxy.add(Refuse(410, "Expired"), "GET", "continue=", times=2)
    monkeypatch.setattr(module, "PAGE_SIZE", "2")
    async with following(stage.services()) as told:
        await told.shows("a b c d e")
    assert stage.proxy.count("GET") == 2 + 2 + 3
    assert [change.synced for change in told.changes].count(True) == 1, "only the whole of it is all there is"


@pytest.mark.parametrize(
    "fault", [Cut(), Cut(after_events=1), Cut(after_events=1, and_bytes=30), HalfOpen(after_events=1)], ids=repr
)
async def test_a_watch_that_ends_is_resumed(stage: Stage, fault: Fault) -> None:
    stage.make("a")
    timing = SOON_DEAD if isinstance(fault, HalfOpen) else QUICK
    async with following(stage.services(timing=timing)) as told:
        await told.shows("a")
        stage.proxy.add(fault, "WATCH", RESUMING, times=3)
        stage.proxy.break_connections()
        for name in "bcdef":
            stage.make(name)
            await asyncio.sleep(0.2)
        await told.shows("a b c d e f")
    assert stage.proxy.count("WATCH", LISTING) == 1, "nothing was listed anew"
    assert stage.proxy.count("WATCH", RESUMING) <= 4


@pytest.mark.parametrize("fault", [ErrorEvent(410), Refuse(410, "Expired"), HalfOpen()], ids=repr)
async def test_a_lost_history_is_listed_anew(stage: Stage, fault: Fault, way: str) -> None:
    """Gone, or a watch that says nothing from its beginning; what went meanwhile is told."""
    stage.make("a b")
    timing = SOON_DEAD if isinstance(fault, HalfOpen) else QUICK
    async with following(stage.services(timing=timing)) as told:
        await told.shows("a b")
        await told.until(lambda: bool(stage.proxy.open("WATCH")))  # a list in pages is told before that
        lists = stage.proxy.count("GET") if way == "pages" else stage.proxy.count("WATCH", LISTING)
        stage.proxy.add(fault, "WATCH", f"{RESUMING}[0-9]", times=1)
        with stage.proxy.away():
            stage.remove("a")
            stage.make("c")
        await told.shows("b c")
        assert not [key for change in told.changes for key in change.deletes if key != stage.key("a")]
    assert (stage.proxy.count("GET") if way == "pages" else stage.proxy.count("WATCH", LISTING)) == lists + 1


async def test_made_again_in_a_gap(stage: Stage) -> None:
    """Another object of the same name is told as deleted and made, even where only its end was seen."""
    stage.make("a")
    async with following(stage.services()) as told:
        await told.shows("a")
        first = told.objects[stage.key("a")].metadata.uid
        stage.proxy.add(ErrorEvent(410), "WATCH", f"{RESUMING}[0-9]", times=1)
        with stage.proxy.away():
            stage.remove("a")
            stage.make("a")
        await told.until(lambda: told.objects[stage.key("a")].metadata.uid != first)
        change = next(change for change in told.changes if change.deletes)
        assert (change.deletes, len(change.upserts)) == ((stage.key("a"),), 1)


async def test_errors_on_the_watch_are_waited_out_and_then_listed_over(stage: Stage) -> None:
    stage.make("a")
    async with following(stage.services()) as told:
        await told.shows("a")
        stage.proxy.add(ErrorEvent(500, "InternalError"), "WATCH", f"{RESUMING}[0-9]")
        stage.proxy.break_connections()
        stage.make("b")
        await told.shows("a b")
    assert stage.proxy.count("WATCH", f"{RESUMING}[0-9]") == module.RESUMES
    assert stage.proxy.count("WATCH", LISTING) == 2


async def test_a_watch_that_ended_in_time_is_no_problem(stage: Stage) -> None:
    """The server ends each watch after a while, as it was asked to."""
    timing = replace(QUICK, lifetime=1)
    stage.make("a")
    async with following(Informer(stage.client, SERVICES, namespace=stage.namespace, timing=timing)) as told:
        await told.shows("a")
        await told.until(lambda: stage.proxy.count("WATCH", f"{RESUMING}[0-9]") == 3)
        stage.make("b")
        await told.shows("a b")
    assert stage.proxy.count("WATCH", LISTING) == 1
    assert not any(change.problem for change in told.changes)


class WithoutBookmarks:
    """An API server that knows neither bookmarks nor watch lists."""

    async def play(self, lines: Lines) -> Lines:
        async for line in lines:
            if b'"BOOKMARK"' not in line:
                yield line


async def test_a_server_that_does_not_say_where_its_beginning_ends_is_asked_in_pages(stage: Stage) -> None:
    stage.make("a b")
    stage.proxy.add(WithoutBookmarks(), "WATCH")
    async with following(stage.services(timing=replace(QUICK, beginning=1.0))) as told:
        await told.shows("a b")
    assert (stage.proxy.count("WATCH", LISTING), stage.proxy.count("GET")) == (1, 1)


async def test_a_very_long_line(stage: Stage) -> None:
    annotations = {"long": "x" * 250_000}
    async with following(stage.services()) as told:
        await told.shows("")
        large = service("a", stage.namespace)
        large["metadata"]["annotations"] = annotations
        stage.cluster.apply(large)
        await told.shows("a")
    assert told.objects[stage.key("a")].metadata.annotations == annotations


async def test_retry_after_is_respected(stage: Stage) -> None:
    rule = stage.proxy.add(Refuse(429, "TooManyRequests", retry_after=2))
    async with following(stage.services()) as told:
        await told.until(lambda: "429 TooManyRequests" in told.now.problem)
        await asyncio.sleep(1)
        stage.proxy.remove(rule)
        await told.shows("")
    assert stage.proxy.count() == 2


async def test_a_server_that_fails_is_not_asked_in_a_loop(stage: Stage) -> None:
    rule = stage.proxy.add(Refuse(500, "InternalError"))
    async with following(stage.services(timing=IN_A_SECOND)) as told:
        await asyncio.sleep(1)
        count = stage.proxy.count()
        stage.proxy.remove(rule)
        await told.shows("")
    assert 2 <= count <= 15, "with full jitter below 0.03, 0.06, 0.12, 0.24, 0.3, 0.3 ... seconds"
    assert told.changes[0].problem.startswith("services: the API server says 500 InternalError")
    assert not told.changes[0].synced


@pytest.mark.parametrize("fault", [Cut(), ErrorEvent(410), Cut(after_events=1)], ids=repr)
async def test_a_watch_that_falls_at_once_is_not_asked_for_in_a_loop(stage: Stage, fault: Fault) -> None:
    stage.make("a b")
    rule = stage.proxy.add(fault, "WATCH")
    async with following(stage.services(timing=IN_A_SECOND)) as told:
        await asyncio.sleep(1)
        count = stage.proxy.count()
        stage.proxy.remove(rule)
        await told.shows("a b")
    assert 2 <= count <= 15


@pytest.mark.parametrize("fault", [Duplicate(), Reorder()], ids=repr)
async def test_repeated_and_overtaken_events(stage: Stage, fault: Fault) -> None:
    """A repeated event is no news; an overtaken one neither changes an object back nor brings a deleted one back."""
    async with following(stage.services()) as told:
        await told.until(lambda: told.now.synced)
        stage.proxy.add(fault, "WATCH", f"{RESUMING}[0-9]", times=1)
        stage.proxy.break_connections()
        stage.make("a", sessionAffinity="None")
        stage.make("a", sessionAffinity="ClientIP")
        stage.make("b")
        stage.remove("b a")
        stage.make("end")
        await told.shows("end")
        seen = [(obj.metadata.name, obj.spec.session_affinity) for c in told.changes for obj in c.upserts]
    assert len(seen) == len(set(seen))
    assert isinstance(fault, Duplicate) or ("a", "None") not in seen, "the newer one came first"


async def test_an_object_that_cannot_be_decoded_is_named_and_the_others_go_on(stage: Stage) -> None:
    class Spec(Struct):
        sessionAffinity: Literal["None"]  # noqa: N815

    class Picky(Struct):
        metadata: ObjectMeta
        spec: Spec

    stage.make("a b")
    picky = Resource(SERVICES.prefix, SERVICES.plural, "Service", Picky)
    async with following(Informer(stage.client, picky, namespace=stage.namespace, timing=QUICK)) as told:
        await told.shows("a b")
        stage.make("a", sessionAffinity="ClientIP")
        stage.make("c")
        await told.shows("a b c")
        assert len(told.now.unreadable) == 1
        sentence = f"Service {stage.key('a')} can't be read: Invalid enum value 'ClientIP'"
        assert told.now.unreadable[0].startswith(sentence)
        stage.make("a", sessionAffinity="None")
        await told.until(lambda: not told.now.unreadable)
        stage.make("a", sessionAffinity="ClientIP")
        await told.until(lambda: bool(told.now.unreadable))
        stage.remove("a")
        await told.until(lambda: not told.now.unreadable)
        await told.shows("b c")


async def test_a_server_that_is_away_is_told_and_not_asked_in_a_loop(stage: Stage, tmp_path: Path) -> None:
    credentials = Counted(stage.cluster, tmp_path, stage.proxy)
    async with (
        KubeClient(credentials) as client,
        following(services(client, stage.namespace, timing=IN_A_SECOND)) as told,
    ):
        await told.shows("")
        with stage.proxy.away():
            before = credentials.asked
            await told.until(lambda: "the API server can't be reached since" in told.now.problem)
            await asyncio.sleep(1)
            assert client.away
            assert credentials.asked - before <= 15
            stage.make("a")
        await told.shows("a")
        assert client.away is None
    assert stage.proxy.count("WATCH", LISTING) == 1


class Counted:
    """Credentials that count requests: those that nobody answers too."""

    def __init__(self, cluster: Cluster, directory: Path, proxy: FaultyProxy) -> None:
        self.server = proxy.url
        self.asked = 0
        self._account = account(cluster, directory, proxy.url)

    async def access(self) -> Access:
        self.asked += 1
        return await self._account.access()

    async def refused(self, access: Access) -> None:
        raise AssertionError(access)


async def test_refused_credentials_are_read_anew(stage: Stage, tmp_path: Path) -> None:
    """A token that is not valid, and one that comes later."""
    stage.make("a")
    expired = account(stage.cluster, tmp_path, token="expired")  # noqa: S106
    async with KubeClient(expired) as client, following(services(client, stage.namespace)) as told:
        await told.until(lambda: "401 Unauthorized" in told.now.problem)
        (tmp_path / "token").write_text(stage.cluster.token)
        await told.shows("a")


# --- The history itself -----------------------------------------------------------------------------------------------


async def test_away_for_longer_than_the_history(stage: Stage) -> None:
    """Compacted meanwhile; and the API server is restarted, for it keeps some history of its own."""
    stage.make("a b")
    async with following(stage.services()) as told:
        await told.shows("a b")
        with stage.proxy.away():
            stage.remove("a")
            stage.make("c")
            await asyncio.to_thread(stage.cluster.forget)
        await told.shows("b c")
    assert stage.proxy.count("WATCH", LISTING) == 2
    assert [key for change in told.changes for key in change.deletes] == [stage.key("a")]


async def test_restored_from_a_backup(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    """The server counts from an earlier version again, and says nothing about the one that we have."""
    make(cluster, namespace, "a")
    saved = await asyncio.to_thread(cluster.save)
    async with connect(cluster, tmp_path) as client, following(services(client, namespace)) as told:
        await told.shows("a")
        for round_ in range(20):
            make(cluster, namespace, "b", sessionAffinity="ClientIP" if round_ % 2 else "None")
        make(cluster, namespace, "a", sessionAffinity="ClientIP")
        await told.until(lambda: told.objects[f"{namespace}/a"].spec.session_affinity == "ClientIP")
        await asyncio.to_thread(cluster.restore, saved)
        await told.shows("a")
        assert told.objects[f"{namespace}/a"].spec.session_affinity == "None"


async def test_a_definition_that_comes_and_goes(stage: Stage) -> None:
    cluster = stage.cluster
    crd = next(path for path in CRDS if "ciliumlocalredirectpolicies" in path.name)
    try:
        cluster.kubectl("delete", "-f", crd)
        async with following(Informer(stage.client, POLICIES, timing=QUICK)) as told:
            await told.until(lambda: "install their CustomResourceDefinition" in told.now.problem)
            assert not told.now.synced
            await asyncio.to_thread(cluster.install, crd)
            await told.shows("")
            cluster.apply(policy("a", stage.namespace, to_address("169.254.1.1")))
            await told.shows("a")
            await asyncio.to_thread(cluster.kubectl, "delete", "-f", crd)
            await told.until(lambda: not told.objects and bool(told.now.problem))
            await asyncio.to_thread(cluster.install, crd)
            cluster.apply(policy("b", stage.namespace, to_address("169.254.1.1")))
            await told.shows("b")
    finally:
        cluster.install(crd)
