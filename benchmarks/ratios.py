"""From turns to figures: ratios of medians, with confidence intervals by bootstrap.

A cycle gives one median for each row, measured within some milliseconds of each other; what slows the machine for
longer than that slows all rows of the cycle. So rows are compared within each cycle, and the figure is the median over
cycles.
Resampling whole cycles tells how far it could have come out otherwise.
"""

import random
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple, TypeVar

T = TypeVar("T")

_RESAMPLES = 400
_TAIL = 0.025  # on either side of a 95 % interval


class Estimate(NamedTuple):
    """A figure and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def estimate(cycles: Sequence[T], figure: Callable[[Sequence[T]], float]) -> Estimate:
    """A figure of some cycles, and how it varies over resampled ones. A cycle: whatever was found in it."""
    chance = random.Random(1)  # noqa: S311 (no secret; the same samples give the same figures)
    others = sorted(figure(chance.choices(cycles, k=len(cycles))) for _ in range(_RESAMPLES))
    edge = int(_TAIL * _RESAMPLES)
    return Estimate(figure(cycles), others[edge], others[-1 - edge])


def ratio(row: Sequence[int], base: Sequence[int]) -> Estimate:
    """How many times as long as the base."""
    return estimate([mine / theirs for mine, theirs in zip(row, base, strict=True)], median)


def added(row: Sequence[int], base: Sequence[int]) -> Estimate:
    """Nanoseconds more than the base."""
    return estimate([mine - theirs for mine, theirs in zip(row, base, strict=True)], median)


def ratio_of_added(row: Sequence[int], other: Sequence[int], base: Sequence[int]) -> Estimate:
    """What a row adds to the base, as a share of what another one adds."""

    def figure(cycles: Sequence[tuple[int, int]]) -> float:
        theirs = median(added for _, added in cycles)
        return median(added for added, _ in cycles) / theirs if theirs else float("nan")

    pairs = [(mine - none, theirs - none) for mine, theirs, none in zip(row, other, base, strict=True)]
    return estimate(pairs, figure)
