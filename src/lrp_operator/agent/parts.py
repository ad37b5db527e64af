"""The seams of the agent: what it asks of a datapath and of a source of objects, so that tests can put others there.

The real datapath is `lrp_operator.datapath.engine.Datapath`; the real sources are in `lrp_operator.sources`.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from lrp_operator.api.addresses import L4Addr
from lrp_operator.api.objects import ClusterObject
from lrp_operator.datapath.model import (
    DatapathStatus,
    FlushReport,
    Hits,
    KernelFrontend,
    KernelSkip,
    PodPlace,
    RedirectEvent,
)
from lrp_operator.resolve.model import Delta

ObjectKey = tuple[type[ClusterObject], str]
"""What an object is known by: its kind and its "namespace/name"."""


class Datapath(Protocol):
    """The kernel, as the agent sees it. Synchronous; called from one thread only. Raises DatapathError or OSError."""

    def open(self) -> None:
        """Load or adopt programs and maps, and attach. Tried again after an error."""

    def update(self, delta: Delta) -> None:
        """Record what is wanted from now on."""

    def flush(self, *, complete: bool) -> FlushReport:
        """Write what differs; complete: prune what earlier agents left. What fails stays wanted."""

    def reconcile(self) -> FlushReport:
        """Read the kernel back and repair what others changed."""

    def frontends(self) -> list[KernelFrontend]:
        """What the kernel's maps hold."""

    def held(self, frontends: Iterable[L4Addr]) -> set[L4Addr]:
        """Those of some frontends that the kernel's maps have; looks at no others."""

    def skips(self) -> list[KernelSkip]:
        """What the kernel's exemptions are."""

    def hits(self) -> dict[L4Addr, Hits]:
        """Every frontend's counters."""

    def status(self) -> DatapathStatus:
        """How things stand."""

    def want_pods(self, pods: Mapping[str, PodPlace]) -> None:
        """Record which pods of this node have a network of their own, for the TC level."""

    def pod_of_link(self, ifindex: int) -> str | None:
        """The pod that a link is of, as far as the TC level knows. From any thread."""

    def relocate(self) -> None:
        """Pods' links changed: look up at the next flush whose is whose."""

    def watch_events(self, on: bool) -> None:
        """Turn the event ring on or off."""

    def read_events(self) -> list[RedirectEvent]:
        """Take the events that wait."""

    def events_fd(self) -> int:
        """A descriptor that is readable while events wait."""

    def end_redirecting(self) -> bool:
        """Redirect nothing new from now on; serve what was redirected on. Whether anything may have been."""

    def close(self) -> None:
        """Let go of everything; the kernel goes on redirecting. May be called again."""


@dataclass(frozen=True, slots=True)
class SourceUpdate:
    """What a source has to tell: objects that came or changed, objects that went, and how the source itself is.

    complete: everything that can be read has been told at least once.
    whole: and nothing was unreadable. Only then may leftovers of an earlier agent be pruned: they may belong to what
        can't be read now.
    problems: sentences about what could not be read; they replace those of the source's previous update.
    """

    upserts: tuple[ClusterObject, ...] = ()
    deletes: tuple[ObjectKey, ...] = ()
    problems: tuple[str, ...] = ()
    complete: bool = True
    whole: bool = True


class Source(Protocol):
    """Where objects come from. `changes` goes on for ever and raises nothing for bad input: that is a problem told."""

    @property
    def name(self) -> str:
        """What people call it: "manifests in /etc/lrp"."""

    def changes(self) -> AsyncIterator[SourceUpdate]:
        """Tell everything there is, then every change."""
        ...
