"""The one thread that talks to the kernel and resolves: the event loop never waits for either.

One thread means that the resolver and the datapath need no locks, and that what is asked later sees what was asked
before. Whoever asks for a view while a long job runs gives up after a while; the job does not.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Answer = TypeVar("Answer")

STUCK_SECONDS = 120.0
"""A job that runs longer than this is taken for hung (compiling and loading take seconds)."""
ANSWER_SECONDS = 10.0
"""So long somebody who asks waits for the worker to have time."""


class WorkerBusyError(Exception):
    """The worker did not come round to a question in time."""


class Worker:
    """A thread with a queue, which can tell whether it is getting anywhere."""

    def __init__(self) -> None:
        self._name = f"datapath-{id(self):x}"
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        self._busy_since: float | None = None

    async def run(self, job: Callable[[], Answer]) -> Answer:
        """Run a job and wait for its answer, however long it takes."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._timed, job)

    async def ask(self, question: Callable[[], Answer]) -> Answer:
        """Run a short job for somebody who waits. Raises WorkerBusyError when it does not get its turn in time."""
        task = asyncio.ensure_future(self.run(question))
        done, _ = await asyncio.wait({task}, timeout=ANSWER_SECONDS)
        if not done:
            task.cancel()
            raise WorkerBusyError("the agent is busy with the kernel; ask again in a few seconds")
        return task.result()

    def _timed(self, job: Callable[[], Answer]) -> Answer:
        self._busy_since = time.monotonic()
        try:
            return job()
        finally:
            self._busy_since = None

    @property
    def stuck(self) -> bool:
        """Whether the job that runs now has run for suspiciously long."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > STUCK_SECONDS

    def stop(self, patience: float) -> bool:
        """Take no more jobs and drop those that wait; whether the one that ran has ended in time."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + patience
        for thread in threading.enumerate():
            if thread.name.startswith(self._name):
                thread.join(max(0.0, deadline - time.monotonic()))
                return not thread.is_alive()
        return True
