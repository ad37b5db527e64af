"""A controller's life: see that it may work here, put the parts together, go on until a signal.

    Cilium? ─▶ kinds installed ─▶ Lease, kopf, informers ─▶ settle ─▶ write ─▶ SIGTERM ─▶ the Lease is released

What comes is gathered for a moment, then settled: the resolver and the reports say which policies may have to show
something else, and the writer is told. An API server that is away is waited for; kopf, which does not survive
everything, is started again. Only two things end a controller early: Cilium in the cluster, and kopf dying at every
start; then Kubernetes starts another.
"""

import asyncio
import json
import logging
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from lrp_operator import __version__
from lrp_operator.agent.logs import OnChange
from lrp_operator.controller import EXIT_FAILED, EXIT_REFUSED, metrics
from lrp_operator.controller.cilium import sign_of_cilium
from lrp_operator.controller.crds import Surface, install
from lrp_operator.controller.doors import Doors
from lrp_operator.controller.feeds import Feeds
from lrp_operator.controller.herald import Herald, Regarding, Told, event_on
from lrp_operator.controller.lease import Elector
from lrp_operator.controller.policies import ChangedNames, KopfEndedError, PolicyReader
from lrp_operator.controller.world import Handover, World
from lrp_operator.controller.writer import Writer
from lrp_operator.resolve.options import ResolveOptions
from lrp_operator.sources.kube.backoff import Backoff, Pauses
from lrp_operator.sources.kube.client import KubeClient
from lrp_operator.sources.kube.credentials import Credentials
from lrp_operator.sources.kube.errors import ApiError, ApiFailure

log = logging.getLogger(__name__)
audit = logging.getLogger("lrp_operator.audit")

T = TypeVar("T")

DESPITE = "stop it, or give --despite-cilium if its local redirect policies are off"
ALONE_SECONDS = 60.0
"""Without a Lease a controller may always write; so long a write may take."""
GATHER_SECONDS = 0.1
"""So long what comes is gathered before it is settled."""
READ_SECONDS = 0.25
"""Between two readings of changed policies."""
MANY = 20
"""So many names at once, and a quarter of all, and everything is listed."""
LIST_SECONDS = 300.0
KOPF_LIVES_SECONDS = 60.0
KOPF_DEATHS = 5
"""Having died so often without having lived so long, kopf is given up, and the controller with it."""
LOOK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What a controller is made of.

    lease: "namespace/name" of the Lease, empty for none (a single controller). own_pod: None outside of one.
    """

    make_credentials: Callable[[], Credentials]
    options: ResolveOptions
    identity: str
    lease: str
    install_crds: bool
    despite_cilium: bool
    metrics_address: str
    healthz_address: str
    own_pod: Regarding | None = None


def run(parts: Parts, warnings: Iterable[str]) -> int:
    """Live until SIGTERM or SIGINT; the exit code. warnings: what is to be told about the settings."""
    _route_logs()
    for sentence in warnings:
        log.warning("%s", sentence)
    return asyncio.run(Controller(parts).live())


class Controller:
    """The parts, put together."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._client = KubeClient(parts.make_credentials(), user_agent=f"lrp-controller/{__version__}")
        self._world = World(parts.options)
        self._wake = asyncio.Event()
        self._names = ChangedNames(parts.make_credentials)
        self._feeds = Feeds(self._client, self._world, self._wake.set)
        self._surface = Surface(self._client)
        self._herald = Herald(parts.identity)
        self._elector = Elector(self._client, parts.lease, parts.identity, self._begin_to_lead)
        self._writer = Writer(self._client, self._world, self._surface, self._herald, self._remaining)
        self._writer.reread = lambda key: self._names.put(key, "")
        self._doors = Doors(parts.metrics_address, parts.healthz_address, unready=self._unready, render=self._render)
        self._listed = False
        self._list_due = 0.0
        self._settled = False
        self._told = OnChange(log)
        self._starting = "the controller is starting"

    async def live(self) -> int:
        """Begin, go on until a signal, leave; the exit code."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        log.info("lrp-controller %s (%s), API server %s", __version__, self._parts.identity, self._client.server)
        try:
            await self._doors.open()
            return await self._work_until(stop)
        except OSError as error:
            log.error("can't listen: %s", error)  # noqa: TRY400 - the text says it all
            return EXIT_FAILED
        finally:
            if self._parts.lease:
                await self._elector.release()
            await self._client.close()
            await self._doors.close()

    async def _work_until(self, stop: asyncio.Event) -> int:
        stopping, work = asyncio.create_task(stop.wait()), asyncio.create_task(self._work())
        try:
            await asyncio.wait({stopping, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                log.info("leaving; redirects go on without a controller")
                await self._writer.finish()
                return 0
            if error := work.exception():
                log.error("the controller can't go on and ends, to be started anew", exc_info=error)
            return EXIT_FAILED if error else work.result()
        finally:
            for task in (stopping, work):
                task.cancel()
            await asyncio.gather(stopping, work, return_exceptions=True)

    async def _work(self) -> int:
        """Settle what is to be settled before, and then do everything at once, for ever."""
        if not self._parts.despite_cilium and (sign := await _patiently(lambda: sign_of_cilium(self._client))):
            sentence = f"Cilium redirects in this cluster by itself ({sign}): not working beside it; {DESPITE}"
            log.error("%s", sentence)
            await self._tell_on_own_pod("CiliumIsHere", sentence)
            return EXIT_REFUSED
        if self._parts.install_crds:
            await _patiently(lambda: install(self._client))
        await self._surface.look()
        self._starting = ""
        async with asyncio.TaskGroup() as tasks:
            if self._parts.lease:
                tasks.create_task(self._elector.run())
            for life in (self._feeds.run, self._hear, self._read, self._settle, self._look, self._writer.run):
                tasks.create_task(life())
        return EXIT_FAILED

    # --- The lives that go on side by side ---

    async def _hear(self) -> None:
        """Have kopf tell names, while there is a kind to watch. Raises KopfEndedError if it does not stay alive."""
        backoff, deaths = Backoff(Pauses()), 0
        while True:
            while not await self._surface.look():  # noqa: ASYNC110 - the API server has nothing to wait on
                await asyncio.sleep(1.0)
            self._names.named_anew = True
            self._names.wake()
            began = time.monotonic()
            try:
                await self._names.run()
            except KopfEndedError as error:
                lived = time.monotonic() - began
                deaths = deaths + 1 if lived < KOPF_LIVES_SECONDS else 1
                if deaths >= KOPF_DEATHS and self._surface.is_served:
                    raise
                log.warning("%s; it is started again", error)
            if deaths == 1:
                backoff.succeeded()
            await asyncio.sleep(backoff.failed())

    async def _read(self) -> None:
        """Read the policies that have changed; all of them at first, and now and then."""
        reader, backoff = PolicyReader(self._client), Backoff(Pauses())
        names: dict[str, str] = {}
        while True:
            try:
                async with asyncio.timeout(0 if names else max(0.0, self._list_due - time.monotonic())):
                    names |= await self._names.take()
            except TimeoutError:
                pass
            try:
                await self._read_once(reader, names)
                backoff.succeeded()
                self._told.tell("read", "", cured="policies can be read again")
            except (ApiFailure, msgspec.DecodeError) as error:
                self._told.tell("read", f"policies can't be read: {error}")
                await asyncio.sleep(backoff.failed(error.retry_after if isinstance(error, ApiError) else 0.0))
            self._feeds.follow_namespaces()
            self._wake.set()
            await asyncio.sleep(READ_SECONDS)

    async def _read_once(self, reader: PolicyReader, names: dict[str, str]) -> None:
        """Read what names stand for, and take off those that are done. Raises ApiFailure, msgspec.DecodeError."""
        many = len(names) > max(MANY, len(self._world.policies) // 4)
        if many or time.monotonic() >= self._list_due or self._names.named_anew:
            self._names.named_anew = False
            self._list_due = 0.0  # until it has succeeded
            self._world.put_all_policies(await reader.list())
            self._listed = True
            self._list_due = time.monotonic() + LIST_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
            names.clear()
        for key, version in list(names.items()):
            if not version or version != self._world.version(key):
                self._world.put_policy(key, await reader.get(key))
            del names[key]

    async def _settle(self) -> None:
        """Whenever something came: see what it means, and have the writer see to it."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._wake.clear()
            if not (self._listed and self._feeds.complete):
                continue
            touched, handovers = self._world.settle()
            if self._settled and self._remaining():
                for handover in handovers:
                    _audit(handover)
            self._settled = True
            for index, key in enumerate(touched):
                if (job := self._world.job(key)) is not None:
                    self._writer.note(key, urgent=job.urgent)
                if index % 10 == 9:
                    await asyncio.sleep(0)  # the Lease is to be renewed meanwhile
            self._herald.forget(self._world.uids)

    async def _look(self) -> None:
        """Look now and then what the policies' kind can do here."""
        while True:
            before = self._surface.has_status
            await asyncio.sleep(LOOK_SECONDS)
            await self._surface.look()
            if self._surface.has_status != before:
                self._world.touch_all()
                self._wake.set()

    async def _tell_on_own_pod(self, reason: str, sentence: str) -> None:
        """Write an Event on the pod that we are, if we know which."""
        if (own := self._parts.own_pod) is None:
            return
        path, body = event_on(Told(own, self._parts.identity, reason, sentence, warning=True))
        try:
            await self._client.request("POST", path, body=body)
        except ApiFailure as error:
            log.warning("no Event could be written: %s", error)

    # --- How things stand ---

    def _remaining(self) -> float:
        """For how many seconds this controller may write."""
        return self._elector.remaining() if self._parts.lease else ALONE_SECONDS

    def _begin_to_lead(self) -> None:
        self._world.touch_all()
        self._wake.set()
        self._writer.wake()

    def _unready(self) -> list[str]:
        if self._starting:
            return [self._starting]
        problems = [*self._feeds.problems, self._elector.problem]
        if not self._surface.is_served:
            problems.append(self._surface.problem)
        if not self._settled:
            problems.append("not everything has been read yet")
        return list(filter(None, problems))

    def _render(self) -> tuple[bytes, str]:
        statuses = {key: status for key in self._world.policies if (status := self._world.status(key))}
        return metrics.render(
            metrics.Facts(
                leads=self._remaining() > 0,
                ready=not self._unready(),
                statuses=statuses,
                writes=self._writer.counts,
                waiting=self._writer.waiting,
            )
        )


def _route_logs() -> None:
    """Send kopf's warnings where our lines go, and audit lines as they are, whatever other lines look like.

    kopf logs every failure with all its inside, several times; what ends it comes to us, and is told once.
    """
    kopfs = logging.getLogger("kopf")
    kopfs.handlers[:] = logging.getLogger("lrp_operator").handlers
    kopfs.setLevel(logging.CRITICAL)
    kopfs.propagate = False
    audit.handlers[:] = [logging.StreamHandler(sys.stderr)]
    audit.propagate = False


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask the API server until it answers; what it refuses is tried again as well, and told."""
    backoff, told = Backoff(Pauses()), OnChange(log)
    while True:
        try:
            return await ask()
        except (ApiFailure, msgspec.DecodeError) as error:
            told.tell("start", str(error))
            await asyncio.sleep(backoff.failed(error.retry_after if isinstance(error, ApiError) else 0.0))


def _audit(handover: Handover) -> None:
    """Write who owned a frontend and who does now, as one line of JSON whatever other lines look like."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": "frontend-changed-hands",
        "frontend": str(handover.frontend),
        "before": list(handover.before),
        "after": list(handover.after),
    }
    audit.info("%s", json.dumps(line))
