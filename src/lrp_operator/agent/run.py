"""An agent's life: put the parts together, go round until a signal, take them apart. What is in the kernel stays.

    lock ─▶ doors ─▶ circle (opens the datapath by itself, and again until it can) ─▶ SIGTERM ─▶ doors, datapath, lock
                       └─▶ the order to withdraw, where one can come ─▶ withdrawal ─▶ SIGTERM, or it is revoked

Only two things end it early: another agent on the same pins or socket, and a bug. Everything else (no bpffs, no rights,
no manifests) is told, at the doors and in the log, and tried again. Where an order can come, nothing is touched before
it is known: else an agent that is started anew would put back what it has taken off the node. Only what cuts a pod off,
which an agent that died may have left, is lifted at once.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from lrp_operator import __version__
from lrp_operator.agent import EXIT_FAILED, EXIT_HELD
from lrp_operator.agent.config import Loaded
from lrp_operator.agent.desired import Desired
from lrp_operator.agent.doors import Doors, SocketInUseError
from lrp_operator.agent.events import EventHub
from lrp_operator.agent.kube_source import KubernetesSource
from lrp_operator.agent.links import watch_links
from lrp_operator.agent.lock import LockHeldError, PinsLock
from lrp_operator.agent.loop import Circle, Timing
from lrp_operator.agent.memory import use_one_arena
from lrp_operator.agent.parts import Datapath, Source
from lrp_operator.agent.pods import Links, PodNames
from lrp_operator.agent.removal import leave_nothing
from lrp_operator.agent.report import Reporter
from lrp_operator.agent.server import Server
from lrp_operator.agent.sync import Outcome
from lrp_operator.agent.view import Identity, View
from lrp_operator.agent.withdraw import Order, Withdrawal
from lrp_operator.agent.worker import Worker
from lrp_operator.datapath.engine import lift_barriers
from lrp_operator.datapath.model import DatapathError, DatapathSettings

log = logging.getLogger(__name__)

LEAVE_SECONDS = 3.0
"""So long a job that runs in the worker may keep an agent that leaves."""
TELL_AGAIN_SECONDS = 30.0
"""After so long an agent that has withdrawn says so again."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What an agent is made of; tests put others in place.

    report_to: the source whose cluster is told of this node. order: to withdraw, if one is to be heeded; lift_barriers
    is what is done before it is known, remove_all what a withdrawal ends with.
    """

    node: str
    loaded: Loaded
    bpf_root: Path
    cgroup_root: Path
    doors: Doors
    sources: Sequence[Source]
    make_datapath: Callable[[DatapathSettings], Datapath]
    open_links: Callable[[], Links | None] = lambda: None
    timing: Timing = field(default_factory=Timing)
    report_to: KubernetesSource | None = None
    order: Order | None = None
    lift_barriers: Callable[[], None] = lift_barriers
    remove_all: Callable[[Path, Path], list[str]] = leave_nothing


class _Pins:
    """The lock on the pins, taken as soon as there is a directory to lock."""

    def __init__(self, bpf_root: Path, api_socket: Path) -> None:
        self._bpf_root = bpf_root
        self._api_socket = api_socket
        self._lock: PinsLock | None = None

    def hold_if_any(self) -> None:
        """Take the lock unless there is nothing to lock. Raises LockHeldError, DatapathError."""
        if self._bpf_root.is_dir():
            self.hold()

    def hold(self) -> None:
        """Take the lock if it is not held. Raises LockHeldError, DatapathError."""
        if self._lock is not None:
            return
        try:
            self._bpf_root.mkdir(exist_ok=True)
            self._lock = PinsLock.take(self._bpf_root, self._api_socket)
        except OSError as error:
            raise DatapathError(
                f"the pins' directory {self._bpf_root} can't be used ({error.strerror}); it is to be on a BPF file "
                "system (mount -t bpf bpf /sys/fs/bpf), and the agent needs root's rights"
            ) from error

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def run(parts: Parts) -> int:
    """Live until SIGTERM or SIGINT; the exit code."""
    use_one_arena()
    agent = Agent(parts)
    code = asyncio.run(agent.live())
    if not agent.worker.stop(patience=1.0):
        log.warning("the kernel keeps the agent's thread; leaving without it, redirects go on")
        logging.shutdown()
        os._exit(code)
    return code


class Agent:
    """The parts, put together."""

    def __init__(self, parts: Parts) -> None:
        settings = parts.loaded.datapath(parts.bpf_root, parts.cgroup_root)
        identity = Identity(parts.node, parts.loaded, settings, started=datetime.now(UTC))
        pods = PodNames(parts.node, parts.open_links)
        self._parts = parts
        self._pins = _Pins(parts.bpf_root, parts.doors.api_socket)
        self.worker = Worker()
        self._datapath = parts.make_datapath(settings)
        self._circle = Circle(
            Desired(parts.node, parts.loaded, pods),
            self._datapath,
            self.worker,
            parts.sources,
            hold_pins=self._pins.hold,
            timing=parts.timing,
        )
        hub = EventHub(self._datapath, self.worker, pods)
        view = View(identity, self._circle, pods, hub)
        self._server = Server(parts.doors, view, self._circle, hub)
        place = parts.order.place if parts.order else ""
        self._reporter = Reporter(parts.report_to, view, self._circle, order=place) if parts.report_to else None
        remove = partial(parts.remove_all, parts.bpf_root, parts.cgroup_root)
        self._withdrawal = Withdrawal(self._circle, self._pins.hold_if_any, remove)

    async def live(self) -> int:
        """Begin, go round until a signal, leave; the exit code."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            if self._parts.order is None:
                with contextlib.suppress(DatapathError):  # told, and tried again, when the datapath is opened
                    self._pins.hold()
            self._introduce()
            await self._server.open()
            return await self._go_round_until(stop)
        except (LockHeldError, SocketInUseError) as error:
            log.error("%s", error)  # noqa: TRY400 - the text says it all
            return EXIT_HELD
        finally:
            await self._leave()

    def _introduce(self) -> None:
        parts = self._parts
        mode = parts.loaded.mode
        log.info("lrp-agent %s (pid %d) on node %s: %s", __version__, os.getpid(), parts.node, mode.name)
        log.info("pins in %s, cgroups in %s", parts.bpf_root, parts.cgroup_root)
        for source in parts.sources:
            log.info("reading %s", source.name)
        for sentence in (*parts.loaded.warnings, *mode.notes):
            log.warning("%s", sentence)

    async def _go_round_until(self, stop: asyncio.Event) -> int:
        """Have everything run until a signal, or until something that must not end does. Raises LockHeldError."""
        stopping = asyncio.create_task(stop.wait())
        order = self._parts.order
        tasks = [
            asyncio.create_task(self._work() if order is None else self._work_until(order)),
            asyncio.create_task(self._server.keep_open()),
            *([asyncio.create_task(order.run())] if order else []),
        ]
        try:
            await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            return _exit_code(tasks)
        finally:
            for task in (stopping, *tasks):
                task.cancel()
            await asyncio.gather(stopping, *tasks, return_exceptions=True)

    async def _work(self) -> None:
        """Follow the sources, and redirect, for ever."""
        await _side_by_side(
            self._circle.run(),
            watch_links(self._circle.links_changed),
            *([self._reporter.run()] if self._reporter else []),
        )

    async def _work_until(self, order: Order) -> None:
        """Work until the cluster orders to withdraw; withdraw, and stay away until it orders the contrary."""
        beginning = self._circle.outcome
        self._circle.outcome = Outcome(opened=False, error=f"waiting to know whether to withdraw ({order.place})")
        await self._lift_barriers()
        await order.until(lambda: order.known or bool(order.problem))
        if not order.known:
            log.warning("nothing is touched before the ConfigMap %s was read: %s", order.place, order.problem)
            self._circle.outcome = Outcome(opened=False, error=f"{order.problem} (ConfigMap {order.place})")
            await order.until(lambda: order.known)
        if not order.given:
            self._circle.outcome = beginning
            await _side_by_side(self._work(), order.until(lambda: order.given))
        await self._server.close()  # whoever watches events watches no more
        await self._server.open()
        await _side_by_side(self._withdraw(order), order.until(lambda: order.revoked))
        log.info("the order to withdraw is revoked: ending, to be started anew")

    async def _lift_barriers(self) -> None:
        """A pod that an agent which died has left cut off does not wait for the API server. Raises LockHeldError."""
        if not self._parts.bpf_root.is_dir():
            return  # no agent has been here

        def lift() -> None:
            self._pins.hold()
            try:
                self._parts.lift_barriers()
            finally:
                self._pins.release()

        try:
            await self.worker.run(lift)
        except DatapathError as error:
            log.warning("%s", error)

    async def _withdraw(self, order: Order) -> None:
        """Take everything off the node, and tell it for ever: an uninstall that is repeated asks again."""
        await self._withdrawal.run()
        self._pins.release()
        while True:
            heeded = order.version
            if self._reporter:
                await self._reporter.tell_withdrawn(heeded)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TELL_AGAIN_SECONDS):
                    await order.until(lambda heeded=heeded: order.version != heeded)  # type: ignore[misc]

    async def _leave(self) -> None:
        """Close the doors and let go of the kernel, which goes on redirecting."""
        await self._server.close()
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self.worker.run(self._datapath.close)
        except (DatapathError, OSError) as error:  # a TimeoutError is an OSError
            log.warning("the datapath could not be closed properly: %s", str(error) or "it is busy")
        if self._parts.report_to:
            await self._parts.report_to.client.close()
        self._pins.release()


async def _side_by_side(*lives: Coroutine[Any, Any, None]) -> None:
    """Run until the first of them ends, and end the others. Raises what it raised."""
    tasks = [asyncio.create_task(life) for life in lives]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _exit_code(tasks: Sequence[asyncio.Task[None]]) -> int:
    """0 after a signal or a revoked order; else tell what ended that must not. Raises LockHeldError if that was why."""
    ended = next((task for task in tasks if task.done()), None)
    error = ended.exception() if ended else None
    if error is None:
        log.info("leaving; what is in the kernel stays (lrp-agent cleanup removes it)")
        return 0
    if isinstance(error, LockHeldError):
        raise error
    if isinstance(error, BaseExceptionGroup) and (held := error.subgroup(LockHeldError)):
        raise next(iter(held.exceptions))
    log.error("the agent has a bug and ends; redirects go on", exc_info=error)
    return EXIT_FAILED
