"""The proxy's faults, seen by an ordinary client: each is what its name says, and what no rule names passes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import pytest
import yarl

from tests.cluster.apiserver import Cluster, Manifest
from tests.cluster.faulty import Cut, Duplicate, ErrorEvent, Fault, FaultyProxy, HalfOpen, Hang, Refuse, Reorder, Slow


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[FaultyProxy]:
    with FaultyProxy(cluster) as proxy:
        yield proxy


@pytest.fixture
async def client(cluster: Cluster, proxy: FaultyProxy) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=cluster.tls())
    headers = {"Authorization": f"Bearer {cluster.token}"}
    async with aiohttp.ClientSession(proxy.url, connector=connector, headers=headers) as client:
        yield client


@pytest.fixture
def maps(cluster: Cluster, namespace: str) -> str:
    """The path of ConfigMaps in a namespace that has three, a, b and c."""
    for name in "abc":
        cluster.apply(config_map(name, namespace))
    return f"/api/v1/namespaces/{namespace}/configmaps"


def config_map(name: str, namespace: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}}


async def watched(client: aiohttp.ClientSession, path: str, more: str = "", *, seconds: int = 1) -> list[str]:
    """The names that a watch tells, until it ends; a broken end is told as "broken", half a line as "torn"."""
    found, rest = [], b""
    try:
        async with client.get(f"{path}?watch=1&timeoutSeconds={seconds}{more}") as answer:
            async for piece in answer.content.iter_any():
                *lines, rest = (rest + piece).split(b"\n")
                found += [name_of(json.loads(line)) for line in lines]
    except aiohttp.ClientPayloadError:
        found += ["torn"] if rest else []
        found.append("broken")
    return found


def name_of(event: dict[str, Any]) -> str:
    thing = event["object"]
    return str(thing["metadata"].get("name", thing.get("code")))


async def test_what_no_rule_names_passes(
    client: aiohttp.ClientSession, cluster: Cluster, proxy: FaultyProxy, maps: str
) -> None:
    proxy.add(Refuse(500), "WATCH", "/pods")
    assert await watched(client, maps) == ["a", "b", "c"]
    async with client.post(maps, json=config_map("d e", "")) as answer:
        assert answer.status == 422  # the API server's own words come through
        assert "d e" in (await answer.json())["message"]
    selector = yarl.URL(f"{maps}?labelSelector=%61%3Db%2Ca+in+(c)", encoded=True)
    async with client.get(selector) as answer:
        assert (answer.status, (await answer.json())["items"]) == (200, [])
    await until(lambda: [request for request in cluster.requests() if request.path == str(selector)])


STREAMS: list[tuple[Fault, list[str]]] = [
    (Cut(after_events=2), ["a", "b", "broken"]),
    (Cut(after_events=1, and_bytes=10), ["a", "torn", "broken"]),
    (ErrorEvent(after_events=1), ["a", "410"]),
    (ErrorEvent(), ["410"]),
    (Duplicate(), ["a", "a", "b", "b", "c", "c"]),
    (Reorder(), ["b", "a", "c"]),
    (Slow(drop=50, pause=0.001), ["a", "b", "c"]),
]


async def test_faults_of_a_stream(client: aiohttp.ClientSession, proxy: FaultyProxy, maps: str) -> None:
    """All at once: each watch lasts as long as a watch lasts at least, a second."""
    for number, (fault, _) in enumerate(STREAMS):
        proxy.add(fault, "WATCH", f"{maps}.*&number={number}$")
    told = await asyncio.gather(*(watched(client, maps, f"&number={number}") for number in range(len(STREAMS))))
    assert list(zip([fault for fault, _ in STREAMS], told, strict=True)) == STREAMS


async def test_a_rule_for_two_requests(client: aiohttp.ClientSession, proxy: FaultyProxy, maps: str) -> None:
    proxy.add(Cut(), "WATCH", maps, times=2)
    assert [await watched(client, maps) for _ in range(3)] == [["broken"], ["broken"], ["a", "b", "c"]]


async def test_a_slow_answer_comes_in_drops(client: aiohttp.ClientSession, proxy: FaultyProxy, maps: str) -> None:
    proxy.add(Slow(drop=100), "GET")
    async with client.get(maps) as answer:
        pieces = [piece async for piece, _ in answer.content.iter_chunks()]
    assert max(map(len, pieces)) == 100
    assert len(json.loads(b"".join(pieces))["items"]) == 3


async def test_a_list_breaks_in_the_middle(client: aiohttp.ClientSession, proxy: FaultyProxy, maps: str) -> None:
    proxy.add(Cut(and_bytes=100), "GET", maps)
    with pytest.raises(aiohttp.ClientPayloadError):
        async with client.get(maps) as answer:
            await answer.read()


async def test_refusals_reach_nobody(
    client: aiohttp.ClientSession, cluster: Cluster, proxy: FaultyProxy, maps: str
) -> None:
    proxy.add(Refuse(429, "TooManyRequests", retry_after=7), "GET", maps, times=1)
    proxy.add(Refuse(410, "Expired"), "GET", maps)
    before = len(cluster.requests())
    async with client.get(maps) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
    async with client.get(maps) as answer:
        assert (answer.status, (await answer.json())["reason"]) == (410, "Expired")
    assert not [request for request in cluster.requests()[before:] if request.path == maps]


async def test_half_open_and_hanging(client: aiohttp.ClientSession, proxy: FaultyProxy, maps: str) -> None:
    half_open = proxy.add(HalfOpen(after_events=2), "WATCH", maps)
    async with client.get(f"{maps}?watch=1&timeoutSeconds=1") as answer:
        for name in "ab":
            assert name_of(json.loads(await answer.content.readline())) == name
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answer.content.readline(), 2)  # the API server ended it after one
        assert proxy.open("WATCH", maps)
    proxy.remove(half_open)
    proxy.add(Hang(), "GET", maps)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.get(maps), 0.5)


async def test_away_and_back(client: aiohttp.ClientSession, proxy: FaultyProxy, maps: str) -> None:
    watch = asyncio.create_task(watched(client, maps, seconds=60))
    await until(lambda: proxy.open("WATCH", maps))
    with proxy.away():
        assert (await watch)[-1] == "broken"
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get(maps)
    assert await watched(client, maps) == ["a", "b", "c"]


async def test_broken_at_once(client: aiohttp.ClientSession, proxy: FaultyProxy, maps: str) -> None:
    watch = asyncio.create_task(watched(client, maps, seconds=60))
    await until(lambda: proxy.open("WATCH", maps))
    proxy.break_connections()
    assert (await watch)[-1] == "broken"
    await until(lambda: not proxy.open())


async def test_frozen_loses_nothing(
    client: aiohttp.ClientSession, cluster: Cluster, proxy: FaultyProxy, maps: str, namespace: str
) -> None:
    async with client.get(f"{maps}?watch=1&timeoutSeconds=60") as answer:
        for _ in range(3):
            await answer.content.readline()
        with proxy.frozen():
            await asyncio.to_thread(cluster.apply, config_map("d", namespace))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.get(maps), 0.3)
            assert not answer.content._buffer  # nothing of d came
        assert name_of(json.loads(await answer.content.readline())) == "d"


async def test_requests_are_counted(client: aiohttp.ClientSession, proxy: FaultyProxy, maps: str) -> None:
    proxy.add(Refuse(503), "GET", maps)
    for _ in range(3):
        async with client.get(maps):
            pass
    await watched(client, maps)
    assert (proxy.count("GET", maps), proxy.count("WATCH", maps), proxy.count(path="/pods")) == (3, 1, 0)


async def test_a_client_that_leaves_ends_the_watch(
    client: aiohttp.ClientSession, proxy: FaultyProxy, maps: str
) -> None:
    async with client.get(f"{maps}?watch=1&timeoutSeconds=60"):
        assert len(proxy.open("WATCH", maps)) == 1
    await until(lambda: not proxy.open())


async def test_in_the_clear(cluster: Cluster, maps: str) -> None:
    with FaultyProxy(cluster, tls=False) as proxy:
        headers = {"Authorization": f"Bearer {cluster.token}"}
        async with aiohttp.ClientSession(proxy.url, headers=headers) as client:
            assert await watched(client, maps) == ["a", "b", "c"]


def test_kubectl_goes_through(
    cluster: Cluster, proxy: FaultyProxy, maps: str, namespace: str, kubectl: Callable[..., str]
) -> None:
    config = cluster.kubeconfig(token=cluster.token, server=proxy.url)
    assert "configmap/b" in kubectl("get", "configmaps", "-n", namespace, "-o", "name", kubeconfig=config)
    assert proxy.count("GET", maps) == 1


async def until(true: Callable[[], object]) -> None:
    """Wait for something that must come."""
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 (what is waited for is in another thread)
            await asyncio.sleep(0.01)
