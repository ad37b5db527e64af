"""Where the controller answers: /healthz and /readyz for Kubernetes, /metrics for Prometheus.

Healthy means that the loop goes round, whatever the API server does. Ready means that all that is followed has been
read; a controller that does not lead is ready too, to take over.
"""

import logging
from collections.abc import Callable

from aiohttp import web

from lrp_operator.agent.doors import split_address

log = logging.getLogger(__name__)


class Doors:
    """The addresses that are listened at; empty ones are none."""

    def __init__(
        self, metrics: str, healthz: str, *, unready: Callable[[], list[str]], render: Callable[[], tuple[bytes, str]]
    ) -> None:
        """unready: what is not ready, a sentence each. Raises ValueError for what is no address."""
        self._unready = unready
        self._render = render
        self._wanted = [
            (split_address(address), routes)
            for address, routes in (
                (metrics, [web.get("/metrics", self._metrics)]),
                (healthz, [web.get("/healthz", self._healthz), web.get("/readyz", self._readyz)]),
            )
            if address
        ]
        self._runners: list[web.AppRunner] = []

    async def open(self) -> None:
        """Listen. Raises OSError."""
        for (host, port), routes in self._wanted:
            app = web.Application()
            app.add_routes(routes)
            runner = web.AppRunner(app, access_log=None)
            self._runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, host, port).start()

    async def close(self) -> None:
        """Listen no more."""
        for runner in self._runners:
            await runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        problems = self._unready()
        return web.Response(text="".join(f"{line}\n" for line in problems or ["ok"]), status=503 if problems else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        body, kind = self._render()
        return web.Response(body=body, headers={"Content-Type": kind})
