"""One pass, in the worker thread: changed objects -> what this node should do -> the kernel, and how it went.

Errors of the node (DatapathError, OSError) are part of how it went. Any other exception is a bug and goes up.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lrp_operator.agent.desired import Changes, Desired
from lrp_operator.agent.parts import Datapath
from lrp_operator.datapath.model import DatapathError, DatapathStatus, FlushReport
from lrp_operator.resolve.model import Delta, PolicyVerdict

NOTHING_WRITTEN = FlushReport()


@dataclass(frozen=True, slots=True)
class Request:
    """What a pass is to do.

    complete: every source has told all that it has. prune: and nothing was unreadable, so leftovers of an earlier
    agent may go. may_open: trying to open is due.
    """

    changes: Changes = field(default_factory=dict)
    complete: bool = False
    prune: bool = False
    may_open: bool = True
    relocate: bool = False
    reconcile: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a pass went. error: what hindered all of it; report: of the entries; verdicts: those that changed."""

    opened: bool
    error: str = ""
    status: DatapathStatus | None = None
    report: FlushReport = NOTHING_WRITTEN
    verdicts: dict[str, PolicyVerdict | None] = field(default_factory=dict)
    complete: bool = False
    seconds: float = 0.0

    @property
    def problems(self) -> tuple[str, ...]:
        """All that is to be tried again, each once."""
        kept = self.status.problems if self.status else ()
        return tuple(dict.fromkeys([*([self.error] if self.error else []), *self.report.problems, *kept]))


class Syncer:
    """Brings the kernel to what is desired, pass by pass."""

    def __init__(self, desired: Desired, datapath: Datapath, hold_pins: Callable[[], None]) -> None:
        """hold_pins: takes the lock on the pins if it is not held. Raises OSError where there is no place to lock."""
        self._desired = desired
        self._datapath = datapath
        self._hold_pins = hold_pins
        self._opened = False
        self._open_error = ""

    def sync(self, request: Request) -> Outcome:
        """Make one pass."""
        started = time.monotonic()
        delta = self._desired.apply(request.changes)
        status, report, error = None, NOTHING_WRITTEN, ""
        try:
            if not self._opened and request.may_open:
                delta = self._open(delta)
            if self._opened:
                self._datapath.want_pods(self._desired.pods if self._desired.at_links else {})
                self._datapath.update(delta)
                report = self._write(request)
                status = self._datapath.status()
            else:
                error = self._open_error
        except (DatapathError, OSError) as problem:
            error = str(problem)
        if not self._opened:
            self._open_error = error
        return Outcome(
            opened=self._opened,
            error=error,
            status=status,
            report=report,
            verdicts=delta.verdicts,
            complete=request.complete,
            seconds=time.monotonic() - started,
        )

    def _open(self, delta: Delta) -> Delta:
        """Open the datapath; what it is to be told first: everything, with the verdicts that changed just now."""
        self._hold_pins()
        self._datapath.open()
        self._opened = True
        everything = self._desired.everything()
        return Delta(everything.frontends, delta.verdicts, everything.skips)

    def _write(self, request: Request) -> FlushReport:
        """Write what differs, and see that the kernel has kept the rest."""
        if request.relocate:
            self._datapath.relocate()
        report = self._datapath.flush(complete=request.prune)
        if not request.reconcile:
            return report
        repaired = self._datapath.reconcile()
        return FlushReport(
            written=report.written + repaired.written,
            removed=report.removed + repaired.removed,
            sockets_ended=report.sockets_ended + repaired.sockets_ended,
            problems=tuple(dict.fromkeys([*report.problems, *repaired.problems])),
            repaired=repaired.repaired,
            again_in=repaired.again_in,
            links_attached=report.links_attached + repaired.links_attached,
            links_left=report.links_left + repaired.links_left,
        )
