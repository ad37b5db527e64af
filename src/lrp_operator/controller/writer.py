"""Writes what policies should show, and tells people: only by the leader, only what differs, and so fast and no faster.

Policies wait in two lines: those whose verdict differs go before those where only numbers do; in each, namespaces take
turns. What is written is worked
out when it is written, so a policy that changes a hundred times while it waits is written once. A write that fails is
tried again later; nobody else waits for it, unless the server itself can't be reached or asks for patience.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

import msgspec

from lrp_operator.agent.logs import OnChange
from lrp_operator.controller.crds import Surface
from lrp_operator.controller.herald import Herald
from lrp_operator.controller.line import Line
from lrp_operator.controller.policies import SeenPolicy
from lrp_operator.controller.world import Job, World
from lrp_operator.sources.kube.backoff import Backoff, Pauses
from lrp_operator.sources.kube.client import KubeClient
from lrp_operator.sources.kube.errors import ApiError, ApiFailure
from lrp_operator.sources.kube.resources import POLICIES

log = logging.getLogger(__name__)

FIELD_MANAGER = "lrp-controller"
PACE_SECONDS = 0.25
"""Between two writes: with the Lease's renewals, fewer than 5 a second in all."""
RETRY_SECONDS = 10.0
"""A status that the server will not take is tried again after so long."""


class Writer:
    """The waiting lines, and the one who serves them."""

    def __init__(
        self, client: KubeClient, world: World, surface: Surface, herald: Herald, remaining: Callable[[], float]
    ) -> None:
        """remaining: for how many seconds we may write; 0 if we don't lead."""
        self._client = client
        self._world = world
        self._surface = surface
        self._herald = herald
        self._remaining = remaining
        self._urgent = Line()
        self._later = Line()
        self._not_before: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._backoff = Backoff(Pauses(first=0.5, most=30.0))
        self._told = OnChange(log)
        self.reread: Callable[[str], None] = lambda _: None
        self.counts: Counter[tuple[str, str]] = Counter()
        self._idle = asyncio.Event()  # no request is under way
        self._idle.set()
        self._finishing = False

    @property
    def waiting(self) -> int:
        """How many policies wait to be written."""
        return len(self._urgent) + len(self._later)

    def note(self, key: str, *, urgent: bool) -> None:
        """Have a policy written in its turn."""
        if urgent:
            self._later.discard(key)
            self._urgent.put(key)
        elif key not in self._urgent:
            self._later.put(key)
        self._wake.set()

    def wake(self) -> None:
        """Have a look: we may have begun to lead."""
        self._wake.set()

    async def finish(self) -> None:
        """Begin no further write, and wait for the one under way."""
        self._finishing = True
        await self._idle.wait()

    async def run(self) -> None:
        """Serve for ever."""
        while True:
            self._wake.clear()
            if self._finishing or not self._remaining():
                await self._wake.wait()
            elif not await self._step():
                await self._until_due()

    async def _step(self) -> bool:
        """Do one thing, if there is one to do; whether there was."""
        key = self._next()
        try:
            if key is not None and (job := self._world.job(key)) is not None:
                await self._show(key, job)
            elif key is None and (event := self._herald.next()) is not None:
                await self._write("events", "POST", *event)
            else:
                self._not_before.pop(key or "", None)
                return key is not None
            self._backoff.succeeded()
            self._told.tell("write", "", cured="everything can be written again")
        except (ApiFailure, TimeoutError, msgspec.DecodeError) as error:
            await self._failed(key, error)
        await asyncio.sleep(PACE_SECONDS)
        return True

    def _next(self) -> str | None:
        now = time.monotonic()

        def may(key: str) -> bool:
            return self._not_before.get(key, 0.0) <= now

        return self._urgent.take(may) or self._later.take(may)

    async def _until_due(self) -> None:
        """Wait until something comes, or something that waits may be done."""
        dues = [self._not_before[key] for key in (*self._urgent, *self._later) if key in self._not_before]
        if self._herald.due is not None:
            dues.append(self._herald.due)
        try:
            async with asyncio.timeout(max(0.05, min(dues) - time.monotonic()) if dues else None):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _show(self, key: str, job: Job) -> None:
        """Write a policy's status, if its kind has one here, and note what there is to tell. Raises ApiFailure."""
        meta = job.meta
        if self._surface.has_status:
            status = {
                "apiVersion": "cilium.io/v2",
                "kind": POLICIES.kind,
                "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
                "status": job.status,
            }
            path = f"{POLICIES.path(meta.namespace)}/{meta.name}/status?fieldManager={FIELD_MANAGER}&force=true"
            body = await self._write("status", "PATCH", path, msgspec.json.encode(status))
            self._world.shows(key, SeenPolicy.read(body))
        self._not_before.pop(key, None)
        self._herald.note(meta, job.shown, job.status)

    async def _write(self, what: str, method: str, path: str, body: bytes) -> bytes:
        """Ask for a write that ends while we lead. Raises ApiFailure, TimeoutError."""
        kind = "application/apply-patch+yaml" if method == "PATCH" else "application/json"
        self._idle.clear()
        try:
            async with asyncio.timeout(self._remaining()):
                answer = await self._client.request(method, path, None, body, kind)
        except (ApiFailure, TimeoutError):
            self.counts[what, "failed"] += 1
            raise
        finally:
            self._idle.set()
        self.counts[what, "written"] += 1
        return answer

    async def _failed(self, key: str | None, error: Exception) -> None:
        """Decide what a failure means, and for whom."""
        status = error.status if isinstance(error, ApiError) else 0
        if key is not None and status in (404, 409):  # gone, or another by that name; or the kind has no status
            await self._surface.look()
            self.reread(key)
            return
        what = f"the status of {key}" if key is not None else "an Event"
        self._told.tell("write", f"{what} can't be written: {str(error) or 'no answer in time'}")
        refused = 400 <= status < 500 and status != 429
        if key is not None:
            self._not_before[key] = time.monotonic() + RETRY_SECONDS * refused
            self.note(key, urgent=not refused)
        if refused:  # this one, by a server that is well; an Event is then left out
            return
        await asyncio.sleep(self._backoff.failed(error.retry_after if isinstance(error, ApiError) else 0.0))
