"""Who answers at the agent's doors: the API for `lrpctl`, health checks, and metrics for Prometheus.

What is said on the socket is in `apimodel`, how it is found out in `view`. A door that can't be opened does not keep
the agent from redirecting: it is told as a problem and tried again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
from aiohttp import web

from lrp_operator.agent.apimodel import API_VERSION, Answer, Failure, StreamLine
from lrp_operator.agent.doors import Doors, SocketInUseError, private_socket, refuse_socket_in_use, split_address
from lrp_operator.agent.events import EventHub, NotObservableError, Subscription
from lrp_operator.agent.loop import Circle
from lrp_operator.agent.view import View
from lrp_operator.agent.worker import WorkerBusyError
from lrp_operator.api.addresses import Protocol
from lrp_operator.datapath.model import DatapathError, RedirectEvent

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
"""A silent stream says that it lives this often; a reader that has gone away is noticed by it."""
REOPEN_SECONDS = 10.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Listens, and answers."""

    def __init__(self, doors: Doors, view: View, circle: Circle, hub: EventHub) -> None:
        self._doors = doors
        self._view = view
        self._circle = circle
        self._hub = hub
        self._runners: dict[str, web.AppRunner] = {}

    async def open(self) -> None:
        """Open every door that can be opened. Raises SocketInUseError if somebody else answers on the API socket."""
        refuse_socket_in_use(self._doors.api_socket)
        await self._open_all(self._wanted())

    async def keep_open(self) -> None:
        """Try the doors that could not be opened again, for ever."""
        while True:
            await asyncio.sleep(REOPEN_SECONDS)
            closed = self._view.closed_doors
            await self._open_all({name: routes for name, routes in self._wanted().items() if name in closed})

    async def close(self) -> None:
        """Close every door; streams end."""
        for name, runner in self._runners.items():
            await runner.cleanup()
            if name == str(self._doors.api_socket):
                self._doors.api_socket.unlink(missing_ok=True)
        self._runners.clear()

    def _wanted(self) -> dict[str, list[web.RouteDef]]:
        """What to serve where; one address may be given for several purposes."""
        health = [web.get("/healthz", self._healthz), web.get("/readyz", self._readyz)]
        scrape = [web.get("/metrics", self._serve_metrics)]
        wanted = {str(self._doors.api_socket): [*self._api(), *health, *scrape]}
        for address, routes in ((self._doors.healthz, health), (self._doors.metrics, scrape)):
            if address:
                wanted.setdefault(address, []).extend(routes)
        return wanted

    async def _open_all(self, wanted: dict[str, list[web.RouteDef]]) -> None:
        for name, routes in wanted.items():
            try:
                await self._listen(name, routes)
            except (OSError, SocketInUseError) as error:
                if name not in self._view.closed_doors:
                    log.error("can't listen on %s: %s", name, error)  # noqa: TRY400 - the text says it all
                self._view.closed_doors[name] = f"can't listen on {name}: {error}"
            else:
                self._view.closed_doors.pop(name, None)
                log.info("listening on %s", name)

    async def _listen(self, name: str, routes: list[web.RouteDef]) -> None:
        app = web.Application(middlewares=[_say_why])
        app.add_routes(routes)
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=0.5
        )
        await runner.setup()
        try:
            if name == str(self._doors.api_socket):
                await web.SockSite(runner, private_socket(self._doors.api_socket)).start()
            else:
                await web.TCPSite(runner, *split_address(name)).start()
        except (OSError, SocketInUseError):
            await runner.cleanup()
            raise
        self._runners[name] = runner

    def _api(self) -> list[web.RouteDef]:
        answers: dict[str, Callable[[], Answer]] = {
            "status": self._view.status,
            "services": self._view.services,
            "policies": self._view.policies,
            "bpf/lb": self._view.bpf_lb,
            "bpf/skip": self._view.bpf_skip,
        }
        routes = [web.get(f"/{API_VERSION}/{path}", self._answering(make)) for path, make in answers.items()]
        return [*routes, web.get(f"/{API_VERSION}/events", self._events)]

    def _answering(self, make: Callable[[], Answer]) -> Handler:
        async def handler(_: web.Request) -> web.StreamResponse:
            return say(await self._circle.worker.ask(make))

        return handler

    async def _healthz(self, _: web.Request) -> web.StreamResponse:
        """Alive: the event loop answers, and the worker gets on."""
        if self._circle.worker.stuck:
            return web.Response(status=500, text="the thread that talks to the kernel hangs\n")
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.StreamResponse:
        """Ready: everything was read and written, and is in force."""
        message = self._view.standing()
        return web.Response(status=503, text=f"{message}\n") if message else web.Response(text="ok\n")

    async def _serve_metrics(self, _: web.Request) -> web.StreamResponse:
        from lrp_operator.agent import metrics  # noqa: PLC0415 - it says why

        def render() -> tuple[bytes, str]:
            desired = self._circle.desired
            return metrics.render(
                metrics.Facts(
                    self._view.status(),
                    desired.resolution(),
                    desired.in_kernel,
                    self._circle.hits.uses,
                    self._circle.sync_times,
                )
            )

        body, content_type = await self._circle.worker.ask(render)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Stream redirects as they happen, one JSON object a line, until the reader leaves."""
        reader = await self._hub.subscribe(event_filter(request.query.get("protocol"), request.query.get("port")))
        try:
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await response.prepare(request)
            with suppress(ConnectionError):  # the reader has left
                await self._stream(response, reader)
        finally:
            await self._hub.unsubscribe(reader)
        return response

    async def _stream(self, response: web.StreamResponse, reader: Subscription) -> None:
        line = StreamLine()  # at once: the reader knows that it is watching
        while True:
            await response.write(msgspec.json.encode(line) + b"\n")
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    seen = await reader.queue.get()
            except TimeoutError:
                line = StreamLine(dropped=reader.dropped)
            else:
                line = StreamLine(redirect=self._view.redirect(seen), dropped=reader.dropped)


def say(answer: Answer, status: int = 200) -> web.Response:
    """Put an answer on the wire."""
    return web.Response(status=status, body=msgspec.json.encode(answer), content_type="application/json")


@web.middleware
async def _say_why(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what hinders an answer into one."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return say(Failure(error=f"{request.path}: {error.reason}"), error.status)
    except ValueError as error:
        return say(Failure(error=str(error)), 400)
    except (DatapathError, OSError, WorkerBusyError, NotObservableError) as error:
        return say(Failure(error=str(error)), 503)


def event_filter(protocol: str | None, port: str | None) -> Callable[[RedirectEvent], bool]:
    """Build a filter from a query. Raises ValueError with a sentence."""
    if protocol is not None and protocol.upper() not in ("TCP", "UDP"):
        raise ValueError(f"protocol must be tcp or udp, not {protocol!r}")
    if port is not None and not (port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"port must be a number from 1 to 65535, not {port!r}")
    wanted_protocol = Protocol[protocol.upper()] if protocol else None
    wanted_port = int(port) if port else None

    def wanted(event: RedirectEvent) -> bool:
        ports = (event.frontend.port, event.backend.port if event.backend else None)
        return wanted_protocol in (None, event.frontend.protocol) and (wanted_port is None or wanted_port in ports)

    return wanted
