"""A Python function in a child of its own, and what it sends back.

multiprocessing would do, were its list of children safe to use from several threads. Here a child is a fork, a pipe and
a pidfd: the pidfd tells of its end even while some other child, forked at the same moment, holds the pipe open too.
"""

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any


class CallFailedError(Exception):
    """What ran inside a namespace failed, died, or raised what can't be carried over; the text tells."""


class Child:
    """A running child. name: what errors call it."""

    def __init__(self, name: str, function: Callable[[Callable[[Any], None]], None]) -> None:
        """Fork. The function is given one that sends a result; what it raises is sent instead."""
        self.name = name
        self._exit_code: int | None = None
        self._here, there = Pipe(duplex=False)
        with there:
            sys.stdout.flush()  # else both would write what is waiting
            sys.stderr.flush()
            self._pid = os.fork()
            if self._pid == 0:
                _live(function, there)
        self._pidfd = os.pidfd_open(self._pid)

    def result(self, timeout: float) -> Any:
        """Wait for what it sends: return a result, raise an error. Raises TimeoutError."""
        ready = wait([self._here, self._pidfd], timeout)
        if not ready:
            raise TimeoutError(f"{self.name} gave no answer within {timeout} s")
        try:
            # When it is the pidfd that is ready, a last word may still be in the pipe.
            if not self._here.poll():
                raise EOFError  # noqa: TRY301 (nothing there, or nothing any more: it is the same)
            result, error = self._here.recv()
        except EOFError:
            raise CallFailedError(f"{self.name} died without an answer, with exit code {self.end()}") from None
        if error is not None:
            raise error
        return result

    def end(self) -> int:
        """Kill it if it lives, and reap it. Returns its exit code, negative if a signal ended it."""
        if self._exit_code is None:
            if not wait([self._pidfd], 0):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._exit_code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            os.close(self._pidfd)
            self._here.close()
        return self._exit_code


def _live(function: Callable[[Callable[[Any], None]], None], there: Connection) -> None:
    """The child's whole life. It never returns to the parent's code, nor runs what the parent meant to run at exit."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)  # the parent's clean-up is not the child's business
        try:
            function(lambda result: there.send((result, None)))
        except BaseException as error:  # noqa: BLE001 (raised again in the parent)
            there.send((None, _portable(error)))
        sys.stdout.flush()
        sys.stderr.flush()
        code = 0
    finally:
        os._exit(code)


def _portable(error: BaseException) -> BaseException:
    """An error as it can cross to another process, with the traceback that stays behind as a note."""
    story = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (our own; not every exception survives both ways)
    except Exception:  # noqa: BLE001 (whatever its class makes of it)
        return CallFailedError(story)
    error.add_note("inside, that was:\n" + story)
    return error
