"""Redirects as they happen, from the kernel's ring to everybody who watches.

The ring costs something at every redirect, so it is on only while somebody watches. A reader that is too slow loses
events, which are counted, and holds nobody up.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from lrp_operator.agent.parts import Datapath
from lrp_operator.agent.pods import PodNames
from lrp_operator.agent.worker import Worker, WorkerBusyError
from lrp_operator.datapath.model import DatapathError, RedirectEvent

log = logging.getLogger(__name__)

QUEUE_LENGTH = 1024


class NotObservableError(Exception):
    """Nobody can watch at the moment; the text says why."""


class Seen(NamedTuple):
    """An event, and when the agent read it."""

    time: datetime
    event: RedirectEvent


class Subscription:
    """One reader's queue. dropped: events that found it full."""

    def __init__(self, wanted: Callable[[RedirectEvent], bool]) -> None:
        self.wanted = wanted
        self.queue: asyncio.Queue[Seen] = asyncio.Queue(QUEUE_LENGTH)
        self.dropped = 0

    def offer(self, seen: Seen) -> bool:
        """Queue an event if it is wanted; False if there was no room."""
        if not self.wanted(seen.event):
            return True
        try:
            self.queue.put_nowait(seen)
        except asyncio.QueueFull:
            self.dropped += 1
            return False
        return True


class EventHub:
    """The readers, and the ring that is read for them."""

    def __init__(self, datapath: Datapath, worker: Worker, pods: PodNames) -> None:
        self._datapath = datapath
        self._worker = worker
        self._pods = pods
        self.readers: set[Subscription] = set()
        self._switching = asyncio.Lock()
        self._fd: int | None = None
        self._reading: asyncio.Task[None] | None = None
        self.dropped = 0

    async def subscribe(self, wanted: Callable[[RedirectEvent], bool]) -> Subscription:
        """Add a reader; the ring is on from the first one. Raises NotObservableError."""
        reader = Subscription(wanted)
        async with self._switching:
            if self._fd is None:
                await self._turn_on()
            self.readers.add(reader)
        return reader

    async def unsubscribe(self, reader: Subscription) -> None:
        """Remove a reader; the ring is off after the last one."""
        async with self._switching:
            self.readers.discard(reader)
            if not self.readers:
                await self._turn_off()

    async def _turn_on(self) -> None:
        def turn_on() -> int:
            self._pods.look_up_cookies()
            self._datapath.watch_events(on=True)
            return self._datapath.events_fd()

        try:
            self._fd = await self._worker.ask(turn_on)
        except (DatapathError, OSError, WorkerBusyError) as error:
            raise NotObservableError(f"redirects can't be observed: {error}") from error
        asyncio.get_running_loop().add_reader(self._fd, self._ready, self._fd)

    async def _turn_off(self) -> None:
        if self._fd is None:
            return
        asyncio.get_running_loop().remove_reader(self._fd)
        self._fd = None
        with suppress(DatapathError, OSError):
            await self._worker.run(lambda: self._datapath.watch_events(on=False))

    def _read(self) -> list[RedirectEvent]:
        """Take the events that wait, and learn who sends if that is not known. In the worker thread."""
        events = self._datapath.read_events()
        if any(not event.ifindex and self._pods.with_cookie(event.netns_cookie) is None for event in events):
            self._pods.look_up_cookies()
        return events

    def _ready(self, fd: int) -> None:
        """Events wait: let the worker fetch them, and don't ask again before it has."""
        asyncio.get_running_loop().remove_reader(fd)
        self._reading = asyncio.create_task(self._fetch(fd))

    async def _fetch(self, fd: int) -> None:
        try:
            events = await self._worker.run(self._read)
            now = datetime.now(UTC)
            for event in events:
                for reader in self.readers:
                    self.dropped += not reader.offer(Seen(now, event))
        except (DatapathError, OSError) as error:
            log.warning("the kernel's events can't be read: %s", error)
            await asyncio.sleep(1)
        if fd == self._fd:
            asyncio.get_running_loop().add_reader(fd, self._ready, fd)
