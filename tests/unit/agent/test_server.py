"""The agent's doors: the API over a real unix socket, health, metrics, and the events stream."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from lrp_operator.agent import worker as worker_module
from lrp_operator.agent.apimodel import BpfLb, BpfSkip, Failure, Policies, Services, Status, StreamLine
from lrp_operator.agent.config import load
from lrp_operator.agent.desired import Desired
from lrp_operator.agent.doors import Doors, SocketInUseError, private_socket, split_address
from lrp_operator.agent.events import EventHub
from lrp_operator.agent.loop import Circle, Timing
from lrp_operator.agent.pods import PodNames
from lrp_operator.agent.server import Server
from lrp_operator.agent.view import Identity, View
from lrp_operator.agent.worker import Worker
from lrp_operator.datapath.model import Hits
from tests.unit.agent.fakes import (
    FakeDatapath,
    FakeLinks,
    GivenSource,
    address_policy,
    endpoints,
    event,
    eventually,
    frontend,
    pod,
    policy,
    service,
)

DNS = frontend("10.96.0.10:53/UDP")


@dataclass
class Agent:
    """The parts of an agent that a test may want to touch."""

    datapath: FakeDatapath
    source: GivenSource
    circle: Circle
    hub: EventHub
    server: Server
    web: aiohttp.ClientSession

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.web.get(f"http://agent{path}") as response:
            body = await response.text()
            return response.status, json.loads(body) if response.content_type == "application/json" else body


@asynccontextmanager
async def serving(root: Path, *, metrics: str = "", healthz: str = "") -> AsyncIterator[Agent]:
    """An agent behind its doors, with the worked example's objects in force."""
    datapath, source, worker, pods = FakeDatapath(), GivenSource(), Worker(), PodNames("n1", FakeLinks)
    source.give(service(), endpoints("10.244.1.51"), policy(skipRedirectFromBackend=True), pod())
    loaded = load(None, {}, {})
    desired = Desired("n1", loaded, pods)
    circle = Circle(desired, datapath, worker, [source], hold_pins=lambda: None, timing=Timing(hits=3600))
    hub = EventHub(datapath, worker, pods)
    identity = Identity("n1", loaded, loaded.datapath(root / "bpf", root / "cgroup"), datetime.now(UTC))
    server = Server(
        Doors.checked(root / "agent.sock", metrics, healthz), View(identity, circle, pods, hub), circle, hub
    )
    await server.open()
    going = asyncio.create_task(circle.run())
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(root / "agent.sock"))) as web:
        await eventually(lambda: circle.last_sync and circle.outcome.complete)
        yield Agent(datapath, source, circle, hub, server, web)
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)
    await server.close()
    worker.stop(10)


async def test_answers_are_what_the_model_says(tmp_path: Path) -> None:
    async with serving(tmp_path) as agent:
        paths = {"status": Status, "services": Services, "policies": Policies, "bpf/lb": BpfLb, "bpf/skip": BpfSkip}
        for path, kind in paths.items():
            status, data = await agent.get(f"/v1/{path}")
            assert status == 200
            assert msgspec.to_builtins(msgspec.convert(data, kind, strict=False)).keys() == data.keys()


async def test_services_show_what_is_in_the_kernel_and_its_use(tmp_path: Path) -> None:
    async with serving(tmp_path) as agent:
        agent.datapath.counters[DNS] = Hits(redirected=3)
        first = {f["frontend"]: f for f in (await agent.get("/v1/services"))[1]["frontends"]}
        assert first[str(DNS)]["hits"]["redirected"] == 3
        agent.datapath.counters[DNS] = Hits(redirected=4)
        del agent.datapath.kernel[frontend("10.96.0.10:53/TCP")]
        frontends = {f["frontend"]: f for f in (await agent.get("/v1/services"))[1]["frontends"]}
        assert frontends[str(DNS)]["lastHit"] is not None
        assert frontends[str(DNS)]["backends"] == [
            {"backend": "10.244.0.225:53/UDP", "pod": "kube-system/cache", "state": "active"}
        ]
        assert frontends["10.96.0.10:53/TCP"]["id"] is None
        assert frontends["10.96.0.10:53/TCP"]["backends"][0]["state"] == "pending"
        assert frontends["10.96.0.10:9153/TCP"]["backends"][0]["state"] == "kube-proxy"


async def test_ready_only_when_all_is_in_force(tmp_path: Path) -> None:
    async with serving(tmp_path) as agent:
        assert await agent.get("/healthz") == (200, "ok\n")
        assert await agent.get("/readyz") == (200, "ok\n")
        agent.datapath.in_force, agent.datapath.message = False, "the cgroup does not cover the pods"
        agent.circle.links_changed()
        await eventually(lambda: not agent.circle.outcome.status or not agent.circle.outcome.status.in_force)
        assert await agent.get("/readyz") == (503, "the cgroup does not cover the pods\n")
        _, status = await agent.get("/v1/status")
        assert (status["ready"], status["healthy"], status["inForce"]) == (False, False, False)


async def test_a_sources_problems_are_told_and_the_rest_works(tmp_path: Path) -> None:
    async with serving(tmp_path) as agent:
        problem = "a.yaml, document 1, line 3: is no YAML"
        agent.source.give(address_policy("p", "169.254.0.1"), pod("x", "10.0.0.9", "proxy"), problems=(problem,))
        await eventually(lambda: frontend("169.254.0.1:8080/TCP") in agent.datapath.kernel)
        _, status = await agent.get("/v1/status")
        assert (status["ready"], status["healthy"]) == (True, False)
        assert status["sources"][0]["problems"] == [problem]


async def test_what_can_not_be_answered_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as agent:
        for path, code in (("/v2/status", 404), ("/v1/events?port=x", 400), ("/v1/events?protocol=icmp", 400)):
            status, data = await agent.get(path)
            assert status == code
            assert msgspec.convert(data, Failure).error
        release = threading.Event()
        stuck = asyncio.create_task(agent.circle.worker.run(release.wait))
        monkeypatch.setattr(worker_module, "ANSWER_SECONDS", 0.01)
        assert (await agent.get("/v1/status"))[0] == 503
        assert (await agent.get("/healthz"))[0] == 200
        monkeypatch.setattr(worker_module, "STUCK_SECONDS", 0.0)
        assert (await agent.get("/healthz"))[0] == 500
        release.set()
        await stuck


async def test_metrics(tmp_path: Path) -> None:
    async with serving(tmp_path) as agent:
        agent.datapath.counters[DNS] = Hits(redirected=3, refused=2)
        await agent.circle.worker.run(agent.circle.look_at_hits)
        status, text = await agent.get("/metrics")
        assert status == 200
        lines = text.splitlines()
        labels = '{frontend="10.96.0.10:53/UDP",policy="kube-system/dns",service="kube-system/kube-dns"}'
        assert f"lrp_redirected_total{labels} 3.0" in lines
        assert f"lrp_refused_total{labels} 2.0" in lines
        for line in (
            'lrp_frontends{state="local_redirect"} 2.0',
            'lrp_frontends{state="not_redirected"} 1.0',
            'lrp_policies{accepted="true",reason="Accepted"} 1.0',
            'lrp_problems{where="kernel"} 0.0',
            'lrp_backend_slots_max{family="ipv4"} 1024.0',
            "lrp_in_force 1.0",
            "lrp_ready 1.0",
            "lrp_events_dropped_total 0.0",
        ):
            assert line in lines
        count = next(line for line in lines if line.startswith("lrp_sync_duration_seconds_count"))
        assert float(count.split()[1]) >= 1


async def stream(agent: Agent, query: str = "") -> aiohttp.ClientResponse:
    response = await agent.web.get(f"http://agent/v1/events{query}")
    assert await next_line(response) == StreamLine()
    return response


async def next_line(response: aiohttp.ClientResponse) -> StreamLine:
    return msgspec.json.decode(await response.content.readline(), type=StreamLine)


async def test_events_reach_those_who_want_them_and_the_ring_is_on_only_for_them(tmp_path: Path) -> None:
    async with serving(tmp_path) as agent:
        everything, tcp = await stream(agent), await stream(agent, "?protocol=tcp&port=53")
        assert agent.datapath.calls.count("events on") == 1
        agent.datapath.happen(
            event(), event("10.96.0.10:53/TCP", "10.244.0.225:53/TCP", netns_cookie=5), event(netns_cookie=1)
        )
        first, second = await next_line(everything), await next_line(everything)
        assert first.redirect is not None
        assert second.redirect is not None
        assert (first.redirect.client, first.redirect.policy) == ("kube-system/cache", "kube-system/dns")
        assert (second.redirect.client, second.redirect.backend_pod) == (None, "kube-system/cache")
        assert await next_line(tcp) == second
        everything.close()
        await eventually(lambda: len(agent.hub.readers) == 1)
        assert "events off" not in agent.datapath.calls
        tcp.close()
        await eventually(lambda: "events off" in agent.datapath.calls)
        again = await stream(agent)
        agent.datapath.happen(event(command="again"))
        line = await next_line(again)
        assert line.redirect is not None
        assert line.redirect.command == "again"
        again.close()


async def test_a_slow_reader_loses_events_and_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as agent:
        reader = await agent.hub.subscribe(lambda _: True)
        agent.datapath.happen(*[event()] * 1500)
        await eventually(lambda: reader.dropped)
        assert (reader.queue.qsize(), reader.dropped, agent.hub.dropped) == (1024, 476, 476)
        await agent.hub.unsubscribe(reader)


async def test_a_ring_that_can_not_be_turned_on_is_a_sentence(tmp_path: Path) -> None:
    async with serving(tmp_path) as agent:

        def broken() -> int:
            raise OSError(12, "no ring")

        agent.datapath.events_fd = broken  # type: ignore[method-assign]
        status, data = await agent.get("/v1/events")
        assert (status, data["error"]) == (503, "redirects can't be observed: [Errno 12] no ring")


async def test_the_socket_is_private_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(tmp_path / "agent.sock"))
    async with serving(tmp_path):
        assert (tmp_path / "agent.sock").stat().st_mode & 0o777 == 0o600
        with pytest.raises(SocketInUseError, match="another program answers"):
            private_socket(tmp_path / "agent.sock")
    assert not (tmp_path / "agent.sock").exists()


async def test_tcp_doors_and_one_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with socket.create_server(("127.0.0.1", 0)) as free_one:
            free = f"127.0.0.1:{free_one.getsockname()[1]}"
        async with serving(tmp_path, metrics=taken, healthz=free) as agent:
            async with aiohttp.ClientSession() as web, web.get(f"http://{free}/healthz") as response:
                assert response.status == 200
            async with aiohttp.ClientSession() as web, web.get(f"http://{free}/v1/status") as response:
                assert response.status == 404
            _, status = await agent.get("/v1/status")
            assert (status["ready"], status["healthy"]) == (True, False)
            assert f"can't listen on {taken}" in status["problems"][0]


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), (":80", (None, 80)), ("[::1]:80", ("::1", 80)), ("host:0", ("host", 0))],
)
def test_addresses(text: str, address: tuple[str | None, int]) -> None:
    assert split_address(text) == address


@pytest.mark.parametrize("text", ["80", "::1:80", "host:http", "host:99999", "host:"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is no address such as"):
        split_address(text)
