"""When was a frontend last used? Derived from its counters growing, so that the kernel need not read a clock.

A counter that was there already when the agent first looked says that there were hits, not when: that is told as
"before the agent's start". A frontend that appears later, or whose counters began anew, was used since the last look.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath.model import Hits


class Use(NamedTuple):
    """How a frontend is used. last: None if not since the agent started; before: then, whether it was before."""

    hits: Hits
    last: datetime | None
    before: bool


class HitBook:
    """The counters of the last look, and when each frontend's grew. One thread looks; any may read."""

    def __init__(self) -> None:
        self._uses: dict[L4Addr, Use] | None = None

    @property
    def uses(self) -> Mapping[L4Addr, Use]:
        """Every frontend's use, as of the last look."""
        return self._uses or {}

    def look(self, counters: Mapping[L4Addr, Hits], now: datetime) -> None:
        """Take in the counters as they are now."""
        first = self._uses is None
        known = self._uses or {}
        self._uses = {
            frontend: Use(hits, None, uses(hits) > 0) if first else _grown(known.get(frontend), hits, now)
            for frontend, hits in counters.items()
        }


def uses(hits: Hits) -> int:
    """How often a frontend was used: somebody connected or sent, and got a backend or was refused."""
    return hits.redirected + hits.refused


def _grown(earlier: Use | None, hits: Hits, now: datetime) -> Use:
    if earlier is None or uses(hits) < uses(earlier.hits):  # new, or counting anew
        return Use(hits, now if uses(hits) else None, before=False)
    if uses(hits) > uses(earlier.hits):
        return Use(hits, now, before=False)
    return Use(hits, earlier.last, earlier.before)
