"""A proxy in front of the API server that fails as networks and API servers do, where a test tells it to.

    with FaultyProxy(cluster) as proxy:
        client = connect(cluster.kubeconfig(token=cluster.token, server=proxy.url))
        proxy.add(Cut(after_events=2, and_bytes=10), "WATCH", "/pods", times=1)
        ...
        assert proxy.count("WATCH", "/pods") == 2

It runs in a thread of its own, so clients may be in the test's event loop, in threads, or other processes. What no rule
matches passes unchanged. A request meets the first rule that matches it, once, when it comes in; for what befalls all
connections at one moment there are `away`, `frozen` and `break_connections`.

It speaks HTTP/1.1, towards clients with a certificate of the cluster's authority, or in the clear (kubectl sends no
token then). Users are told by tokens: a client certificate ends at the proxy.
"""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, Self

import aiohttp
import yarl
from aiohttp import web

from tests.cluster.apiserver import LOCALHOST, Cluster, free_ports, server_tls

Lines = AsyncIterator[bytes]
# What is said about one connection and not about the answer.
HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade"}


# ----------------------------------------------------------------------------------------------------------- faults


class BrokenOff(Exception):  # noqa: N818 (it is no error of this code)
    """Raised by a fault: the connection breaks here."""


class Fault(Protocol):
    """What becomes of an answer, line by line: in a watch, a line is an event; a list is one line."""

    def play(self, lines: Lines) -> Lines:
        """What the client gets of what the API server sends."""


@dataclass(frozen=True)
class Refuse:
    """The API server is not asked; this is the answer."""

    status: int
    reason: str = ""
    retry_after: int | None = None


@dataclass(frozen=True)
class Hang:
    """The API server is not asked, and no answer comes."""


@dataclass(frozen=True)
class Cut:
    """The connection breaks after some lines and some bytes of the next."""

    after_events: int = 0
    and_bytes: int = 0

    async def play(self, lines: Lines) -> Lines:
        """See Fault."""
        left = self.after_events
        while left or self.and_bytes:
            line = await anext(lines, None)
            if line is None:
                return
            yield line if left else line[: self.and_bytes]
            if not left:
                break
            left -= 1
        raise BrokenOff


@dataclass(frozen=True)
class HalfOpen:
    """After some lines nothing comes any more, but the connection stays."""

    after_events: int = 0

    async def play(self, lines: Lines) -> Lines:
        """See Fault."""
        for _ in range(self.after_events):
            if (line := await anext(lines, None)) is None:
                return
            yield line
        await _forever()


@dataclass(frozen=True)
class ErrorEvent:
    """A watch gets an ERROR event after some events, and ends."""

    code: int = 410
    reason: str = "Expired"
    after_events: int = 0

    async def play(self, lines: Lines) -> Lines:
        """See Fault."""
        for _ in range(self.after_events):
            if (line := await anext(lines, None)) is None:
                return
            yield line
        yield json.dumps({"type": "ERROR", "object": status_object(self.code, self.reason)}).encode() + b"\n"


@dataclass(frozen=True)
class Slow:
    """The answer comes in drops: so many bytes, a pause in seconds, and so on."""

    drop: int = 16
    pause: float = 0.002

    async def play(self, lines: Lines) -> Lines:
        """See Fault."""
        async for line in lines:
            for start in range(0, len(line), self.drop):
                yield line[start : start + self.drop]
                await asyncio.sleep(self.pause)


@dataclass(frozen=True)
class Duplicate:
    """Every event comes twice."""

    async def play(self, lines: Lines) -> Lines:
        """See Fault."""
        async for line in lines:
            yield line
            yield line


@dataclass(frozen=True)
class Reorder:
    """Every two events change places: the first waits until there is a second."""

    async def play(self, lines: Lines) -> Lines:
        """See Fault."""
        async for first in lines:
            second = await anext(lines, b"")
            yield second
            yield first


@dataclass
class Rule:
    """A fault, and the requests it is for. times: how many more; None is all of them."""

    fault: Fault | Refuse | Hang
    verb: str
    path: re.Pattern[str]
    times: int | None

    def takes(self, request: "Seen") -> bool:
        """Whether it is for this request; counts it if so."""
        if self.times == 0 or self.verb not in ("", request.verb) or not self.path.search(request.path):
            return False
        if self.times is not None:
            self.times -= 1
        return True


# -------------------------------------------------------------------------------------------------------- the proxy


@dataclass(frozen=True)
class Seen:
    """A request that came in. verb: the method, or WATCH. path: with its query."""

    verb: str
    path: str


@dataclass
class FaultyProxy:
    """A proxy, running between `with` and its end. tls: whether clients speak TLS with it."""

    cluster: Cluster
    tls: bool = True
    _rules: list[Rule] = field(default_factory=list)
    _seen: list[Seen] = field(default_factory=list)
    _open: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Choose where to listen; it stays the same through `away`."""
        (self._port,) = free_ports(1)
        self.url = f"{'https' if self.tls else 'http'}://{LOCALHOST}:{self._port}"

    def __enter__(self) -> Self:
        """Start to listen."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-proxy", daemon=True)
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        """Break what is open, and go."""
        self.clear()
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, fault: Fault | Refuse | Hang, verb: str = "", path: str = "", *, times: int | None = None) -> Rule:
        """From now on, let requests meet a fault.

        verb: a method or WATCH; empty is any. path: a regular expression, found anywhere in the path or query.
        """
        rule = Rule(fault, verb, re.compile(path), times)
        self._rules.append(rule)
        return rule

    def remove(self, rule: Rule) -> None:
        """Take a rule back; requests that met it stay as they are."""
        self._rules.remove(rule)

    def clear(self) -> None:
        """Take all rules back."""
        self._rules.clear()

    def seen(self, verb: str = "", path: str = "") -> list[Seen]:
        """The requests that came in, also those that met a fault."""
        return _selected(self._seen, verb, path)

    def count(self, verb: str = "", path: str = "") -> int:
        """How many requests came in."""
        return len(self.seen(verb, path))

    def open(self, verb: str = "", path: str = "") -> list[Seen]:
        """The requests whose answers have begun and not ended: the watches."""
        return _selected(self._open, verb, path)

    def break_connections(self) -> None:
        """Break every connection, also idle ones."""
        self._run(self._break())

    @contextmanager
    def away(self) -> Iterator[None]:
        """Break every connection, and refuse new ones meanwhile."""
        self._run(self._unlisten())
        yield
        self._run(self._listen())

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let nothing through meanwhile, neither requests nor answers, but keep connections and accept new ones."""
        self._loop.call_soon_threadsafe(self._thawed.clear)
        yield
        self._loop.call_soon_threadsafe(self._thawed.set)

    # -------------------------------------------------------------------------------------- inside the proxy's thread

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._upstream = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            connector=aiohttp.TCPConnector(ssl=self.cluster.tls(), limit=0),
        )
        self._server = web.Server(self._answer, handler_cancellation=True)  # a client that leaves ends its watch
        self._runner = web.ServerRunner(self._server)
        await self._runner.setup()
        await self._listen()

    async def _stop(self) -> None:
        self._thawed.set()
        await self._break()
        await self._runner.cleanup()
        await self._upstream.close()
        await asyncio.sleep(0.05)  # its sockets are closed by callbacks that are still to come

    async def _listen(self) -> None:
        tls = server_tls(self.cluster.dir) if self.tls else None
        self._site = web.TCPSite(self._runner, LOCALHOST, self._port, ssl_context=tls)
        await self._site.start()

    async def _unlisten(self) -> None:
        await self._site.stop()
        await self._break()

    async def _break(self) -> None:
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request: as the API server does, or as a rule says."""
        seen = Seen("WATCH" if request.query.get("watch") in ("1", "true") else request.method, request.raw_path)
        self._seen.append(seen)
        try:
            await self._thawed.wait()
            rule = next((rule for rule in self._rules if rule.takes(seen)), None)
            fault = None if rule is None else rule.fault
            if isinstance(fault, Refuse):
                return _refused(fault)
            if isinstance(fault, Hang):
                await _forever()
            return await self._forward(request, seen, fault)
        except (BrokenOff, aiohttp.ClientError, ConnectionError):
            # Broken on purpose, or the API server is away, or the client: what is left is a broken connection.
            if request.transport is not None:
                request.transport.abort()
            raise web.HTTPBadGateway from None  # nobody gets to see it

    async def _forward(self, request: web.BaseRequest, seen: Seen, fault: Fault | None) -> web.StreamResponse:
        url = yarl.URL(self.cluster.url + request.raw_path, encoded=True)
        body = await request.read()
        async with self._upstream.request(
            request.method, url, headers=_end_to_end(request.headers), data=body or None, allow_redirects=False
        ) as upstream:
            answer = web.StreamResponse(status=upstream.status, headers=_end_to_end(upstream.headers))
            lines = _lines(upstream.content)
            await self._thawed.wait()
            self._open.append(seen)  # before the client can know
            try:
                await answer.prepare(request)
                async for piece in lines if fault is None else fault.play(lines):
                    await self._thawed.wait()
                    await answer.write(piece)
            finally:
                self._open.remove(seen)
            await answer.write_eof()
            return answer


async def _forever() -> NoReturn:
    await asyncio.get_running_loop().create_future()  # until the client leaves, which cancels it
    raise AssertionError


def status_object(code: int, reason: str, message: str = "said by the faulty proxy") -> dict[str, Any]:
    """A Status, as the API server sends it with an error."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def _refused(refusal: Refuse) -> web.Response:
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return web.json_response(status_object(refusal.status, refusal.reason), status=refusal.status, headers=headers)


def _selected(requests: list[Seen], verb: str, path: str) -> list[Seen]:
    return [seen for seen in list(requests) if verb in ("", seen.verb) and re.search(path, seen.path)]


def _end_to_end(headers: Any) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP]


async def _lines(content: aiohttp.StreamReader) -> Lines:
    """What comes, by lines of any length, each as soon as it is whole; and what is left at the end."""
    rest = b""
    async for piece in content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest
