"""Sets by key, for finding what a change concerns without looking at everything."""

from collections.abc import Hashable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Hashable)


class MultiIndex(dict[K, set[V]]):
    """Sets by key, without empty ones."""

    def add(self, key: K, value: V) -> None:
        """Put a value in."""
        self.setdefault(key, set()).add(value)

    def discard(self, key: K, value: V) -> None:
        """Take a value out, if it is there."""
        values = self.get(key)
        if values is not None:
            values.discard(value)
            if not values:
                del self[key]
