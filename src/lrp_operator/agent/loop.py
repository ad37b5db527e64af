"""The circle: what changed is resolved, and what that changes is written to the kernel, again and again.

    sources ──▶ pending changes ──▶ one pass in the worker thread ──▶ outcome
                                    resolve, update, flush, status        │
                     ▲ a change, a link, a retry or a reconcile is due ◀──┘

Level-triggered: a pass takes all that is pending at once and aims for the state as it is then, so nothing depends on
which event came when. Nothing is resolved before every source has told all that it has: half a picture would take
redirects away that an earlier agent left in place. A datapath that can't be opened, or an entry that can't be written,
is tried again with growing pauses, and told meanwhile; neither ends the agent.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from lrp_operator.agent.desired import Changes, Desired
from lrp_operator.agent.hits import HitBook
from lrp_operator.agent.logs import OnChange
from lrp_operator.agent.memory import give_back
from lrp_operator.agent.parts import Datapath, ObjectKey, Source, SourceUpdate
from lrp_operator.agent.sync import Outcome, Request, Syncer
from lrp_operator.agent.worker import Worker
from lrp_operator.api.objects import ClusterObject
from lrp_operator.datapath.model import DatapathError
from lrp_operator.resolve.model import FrontendVerdict, PolicyVerdict

log = logging.getLogger(__name__)

SYNC_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TOLD_AT_ONCE = 10
"""So much is logged one by one; more at once only as numbers."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How often things are done, in seconds. Retries start after `retry_first` and grow to `retry_most`."""

    retry_first: float = 0.5
    retry_most: float = 30.0
    reconcile: float = 30.0
    hits: float = 2.0


def spread() -> float:
    """A factor around 1, so that the agents of a cluster don't march in step."""
    return random.uniform(0.8, 1.2)  # noqa: S311 - no secret


class Backoff:
    """When to try again: after each failure, twice the pause."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._pause = timing.retry_first
        self.due: float | None = None  # by time.monotonic()

    def failed(self) -> None:
        """Plan the next try."""
        self.due = time.monotonic() + self._pause * spread()
        self._pause = min(self._pause * 2, self._timing.retry_most)

    def succeeded(self) -> None:
        """There is nothing to try again."""
        self.due = None
        self._pause = self._timing.retry_first


@dataclass(slots=True)
class SourceProgress:
    """How far a source is."""

    name: str
    complete: bool = False
    whole: bool = False  # at least once, nothing was unreadable
    problems: tuple[str, ...] = ()
    keys: set[ObjectKey] = field(default_factory=set)


@dataclass(slots=True)
class SyncTimes:
    """How long passes took: counts per bucket (the last is for what is longer), their sum, and failures."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SYNC_BUCKETS) + 1))
    total: float = 0.0
    failures: int = 0

    def add(self, seconds: float, *, failed: bool) -> None:
        """Count a pass."""
        self.counts[sum(seconds > bucket for bucket in SYNC_BUCKETS)] += 1
        self.total += seconds
        self.failures += failed


class Circle:
    """The sources' changes on one side, the datapath on the other, and how things stand between them."""

    def __init__(
        self,
        desired: Desired,
        datapath: Datapath,
        worker: Worker,
        sources: Sequence[Source],
        *,
        hold_pins: Callable[[], None],
        timing: Timing = Timing(),
    ) -> None:
        self.desired = desired
        self.datapath = datapath
        self.worker = worker
        self.sources = [SourceProgress(source.name) for source in sources]
        self.outcome = Outcome(opened=False, error="the datapath is being opened")
        self.hits = HitBook()
        self.sync_times = SyncTimes()
        self.last_sync: datetime | None = None
        self.passed = asyncio.Event()  # set after each pass; cleared by whoever reports passes
        self._feeds = sources
        self._syncer = Syncer(desired, datapath, hold_pins)
        self._timing = timing
        self._pending: dict[ObjectKey, ClusterObject | None] = {}
        self._wake = asyncio.Event()
        self._is_open = asyncio.Event()
        self._relocate = False
        self._backoff = Backoff(timing)
        self._reconcile_due = 0.0
        self._again_due: float | None = None
        self._told = OnChange(log)

    @property
    def complete(self) -> bool:
        """Whether every source has told all that it has."""
        return all(source.complete for source in self.sources)

    async def run(self) -> None:
        """Go round until cancelled. Raises what is neither the input's fault nor the node's: a lost lock, or a bug."""
        self._wake.set()
        async with asyncio.TaskGroup() as tasks:
            for feed, progress in zip(self._feeds, self.sources, strict=True):
                tasks.create_task(self._follow(feed, progress))
            tasks.create_task(self._go_round())
            tasks.create_task(self._poll_hits())

    def links_changed(self) -> None:
        """Pods' links changed: where that matters (exempt pods, the TC level), they are looked for anew."""
        if self.desired.exempt_pods or self.desired.at_links:
            self._relocate = True
            self._wake.set()

    def look_at_hits(self) -> None:
        """Look at the counters as they are now. For the worker thread. Raises DatapathError, OSError."""
        self.hits.look(self.datapath.hits(), datetime.now(UTC))

    async def _follow(self, source: Source, progress: SourceProgress) -> None:
        """Take in what a source tells, for ever."""
        async for update in source.changes():
            self._take_in(update, progress)
            self._wake.set()

    def _take_in(self, update: SourceUpdate, progress: SourceProgress) -> None:
        for key in update.deletes:
            progress.keys.discard(key)
            self._pending[key] = None
        for obj in update.upserts:
            key = (type(obj), obj.metadata.key)
            progress.keys.add(key)
            self._pending[key] = obj
        progress.problems = update.problems
        progress.complete = progress.complete or update.complete
        progress.whole = progress.whole or (update.complete and update.whole)
        self._told.tell(progress.name, some(update.problems), cured=f"{progress.name}: everything can be read")

    async def _go_round(self) -> None:
        while True:
            await self._until_due()
            self._wake.clear()
            request = self._next_request()
            outcome = await self.worker.run(partial(self._syncer.sync, request))
            self._note(request, outcome)

    def _next_request(self) -> Request:
        """Take all that is to be done now."""
        now = time.monotonic()
        changes: Changes = {}
        if self.complete:
            changes, self._pending = self._pending, {}
        relocate, self._relocate = self._relocate, False
        reconcile = self.outcome.opened and (now >= self._reconcile_due or bool(self.outcome.error))
        if reconcile:
            self._plan_reconcile()
        return Request(
            changes=changes,
            complete=self.complete,
            prune=self.complete and all(source.whole for source in self.sources),
            may_open=self._backoff.due is None or now >= self._backoff.due,
            relocate=relocate,
            reconcile=reconcile,
        )

    def _plan_reconcile(self) -> None:
        self._reconcile_due = time.monotonic() + self._timing.reconcile * spread()

    def _note(self, request: Request, outcome: Outcome) -> None:
        """Keep and tell how a pass went, and plan the next try."""
        failed = bool(outcome.error or outcome.report.problems)
        if outcome.opened and not self.outcome.opened:
            log.info("the datapath is open")
            self._is_open.set()
            self._plan_reconcile()
        if failed and (outcome.opened or request.may_open):
            self._backoff.failed()
        elif not failed:
            self._backoff.succeeded()
        self._relocate = self._relocate or (request.relocate and bool(outcome.error))
        if request.reconcile or outcome.complete > self.outcome.complete:
            give_back()
        self.outcome = outcome
        self._again_due = time.monotonic() + outcome.report.again_in if outcome.report.again_in else None
        self.sync_times.add(outcome.seconds, failed=failed)
        if outcome.opened and not failed:
            self.last_sync = datetime.now(UTC)
        self._tell(outcome)
        self.passed.set()

    def _tell(self, outcome: Outcome) -> None:
        """Log what is new."""
        self._told.tell("kernel", some(outcome.problems), cured="the kernel is as wanted again")
        if outcome.status:
            self._told.tell("force", outcome.status.message, cured="redirects are in force again")
        report = outcome.report
        for repair in report.repaired:
            log.warning("repaired in the kernel: %s", repair)
        if report.written or report.removed or report.sockets_ended:
            log.info(
                "frontends written: %d, removed: %d; sockets ended: %d (%.0f ms)",
                report.written,
                report.removed,
                report.sockets_ended,
                outcome.seconds * 1000,
            )
        if report.links_attached or report.links_left:
            log.info("pods' links: %d attached, %d left", report.links_attached, report.links_left)
        tell_verdicts(outcome.verdicts)

    async def _until_due(self) -> None:
        """Wait for a change, or for the moment when something is to be tried again or checked."""
        due = self._reconcile_due if self.outcome.opened else float("inf")
        for other in (self._backoff.due, self._again_due):
            due = min(due, other if other is not None else due)
        pause = max(0.0, due - time.monotonic()) if due != float("inf") else None
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _poll_hits(self) -> None:
        """Look at the counters now and then, to know when each frontend was last used."""
        await self._is_open.wait()  # the first look is to be early: what it finds is from before
        while True:
            try:
                await self.worker.run(self.look_at_hits)
                self._told.tell("hits", "")
            except (DatapathError, OSError) as error:
                self._told.tell("hits", f"the kernel's counters can't be read: {error}")
            await asyncio.sleep(self._timing.hits)


def some(sentences: Sequence[str]) -> str:
    """Join sentences for one log line; of many, the first ones and how many more."""
    told, more = sentences[:TOLD_AT_ONCE], len(sentences) - TOLD_AT_ONCE
    return "; ".join([*told, f"and {more} more"] if more > 0 else told)


def tell_verdicts(verdicts: Mapping[str, PolicyVerdict | None]) -> None:
    """Log what became of policies; a flood of them (at start) as numbers."""
    if len(verdicts) > TOLD_AT_ONCE:
        counts = Counter(verdict.reason.value for verdict in verdicts.values() if verdict)
        log.info("policies: %s", ", ".join(f"{count} {reason}" for reason, count in counts.most_common()))
        return
    for policy, verdict in verdicts.items():
        if verdict is None:
            log.info("policy %s: gone", policy)
        else:
            level = logging.INFO if verdict.accepted else logging.WARNING
            sentences = [verdict.message.rstrip(".") or verdict.reason, *map(_told_frontend, verdict.frontends)]
            log.log(level, "policy %s: %s", policy, some(sentences))


def _told_frontend(verdict: FrontendVerdict) -> str:
    state = "redirected" if verdict.redirected else "refused" if verdict.drop else verdict.reason or "not redirected"
    return f"{verdict.frontend} {state}"
