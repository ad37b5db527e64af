"""What each call may cost, and whether it does: the promises of this project, and the figures of the field's leader.

The leader's ratios were measured on another machine, where the calls themselves took longer. Its scheme, rebuilt, is
the row `lru`, and that one is measured here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.ratios import Estimate, ratio, ratio_of_added
from benchmarks.rows import BASE, USUAL
from benchmarks.sockets import Samples

HIT, MISS, RIVAL = f"ours-{USUAL}", f"miss-{USUAL}", "lru"


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio to direct that a row keeps to in a test; of_rival: it is the share of the rival's added cost instead."""

    test: str
    row: str
    limit: float
    leader: float | None = None
    of_rival: bool = False


TARGETS = (
    Target("tcp-connect", HIT, 1.045, leader=1.045),
    Target("udp-connect", HIT, 1.45, leader=1.32),
    Target("udp-again", HIT, 1.15, leader=1.21),
    Target("getpeername-tcp", HIT, 1.10, leader=1.23),
    Target("getpeername-udp", HIT, 1.10, leader=1.23),
    Target("sendto", HIT, 1.03, leader=1.04),
    Target("recvfrom", HIT, 1.10, leader=1.18),
    Target("dns-calls", HIT, 0.85, of_rival=True),
    Target("dns-unconnected-calls", HIT, 0.85, of_rival=True),
    Target("tcp-connect", MISS, 1.005, leader=1.010),
    Target("tcp-cycle", MISS, 1.005, leader=1.019),
    Target("recvfrom", MISS, 1.06, leader=1.117),
)


PACKET_TARGETS = tuple(Target(test, f"tc-{USUAL}", 1.05) for test in ("tcp-rr", "sendto", "send"))
"""The TC part's, end to end."""


class Verdict(StrEnum):
    """Whether a target is met, as far as the interval tells."""

    MET = "met"
    NOT_MET = "NOT MET"
    UNCLEAR = "unclear"  # the limit lies within the interval: measure longer


def verdict(limit: float, found: Estimate) -> Verdict:
    """Met or not only where the whole interval says so."""
    if found.high <= limit:
        return Verdict.MET
    return Verdict.NOT_MET if found.low > limit else Verdict.UNCLEAR


def judged(samples: Samples, targets: Sequence[Target] = TARGETS) -> list[tuple[Target, Estimate, Verdict]]:
    """The targets that this run can tell something about."""
    answers = []
    for target in targets:
        rows = samples.get(target.test, {})
        if target.row not in rows or (target.of_rival and RIVAL not in rows):
            continue
        if target.of_rival:
            found = ratio_of_added(rows[target.row], rows[RIVAL], rows[BASE])
        else:
            found = ratio(rows[target.row], rows[BASE])
        answers.append((target, found, verdict(target.limit, found)))
    return answers


def rival_ratio(samples: Samples, target: Target) -> Estimate | None:
    """The rival's own ratio in a target's test, if it was measured."""
    rows = samples[target.test]
    rival = RIVAL if target.row == HIT else f"{RIVAL}-miss"
    return ratio(rows[rival], rows[BASE]) if rival in rows else None
