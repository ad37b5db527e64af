"""Pauses between tries: growing, and with full jitter, so that a thousand agents don't return in step."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long, in seconds: at most `first` after the first failure, twice as much after each further one."""

    first: float = 0.5
    most: float = 30.0


class Backoff:
    """How long to pause before the next try."""

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses
        self._limit = 0.0

    @property
    def calm(self) -> float:
        """What has gone well for longer than this has gone well: the failure that ends it is a first one."""
        return max(self._limit, self._pauses.first)

    def succeeded(self) -> None:
        """Begin anew with short pauses."""
        self._limit = 0.0

    def failed(self, asked: float = 0.0) -> float:
        """Return the pause after a failure. asked: seconds that the server asks to wait at least."""
        self._limit = min(self._limit * 2 or self._pauses.first, self._pauses.most)
        return asked + random.uniform(0, self._limit)  # noqa: S311 - no secret
