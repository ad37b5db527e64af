"""A waiting line in which namespaces take turns: one with thousands of policies does not keep others waiting."""

from collections.abc import Callable, Iterator


class Line:
    """Names ("namespace/name"), each once; within a namespace, first come, first served."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[str, None]] = {}  # by namespace, in the order of their turns

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[str]:
        for names in self._waiting.values():
            yield from names

    def __contains__(self, name: str) -> bool:
        return name in self._waiting.get(name.partition("/")[0], ())

    def put(self, name: str) -> None:
        """Have a name wait; one that waits already keeps its place."""
        self._waiting.setdefault(name.partition("/")[0], {}).setdefault(name)

    def discard(self, name: str) -> None:
        """Take a name out, if it is there."""
        namespace = name.partition("/")[0]
        names = self._waiting.get(namespace, {})
        names.pop(name, None)
        if not names:
            self._waiting.pop(namespace, None)

    def take(self, may: Callable[[str], bool]) -> str | None:
        """Take out the next name that may be served, and send its namespace to the end; None if there is none."""
        for namespace, names in self._waiting.items():
            name = next(filter(may, names), None)
            if name is not None:
                rest = self._waiting.pop(namespace)
                del rest[name]
                if rest:
                    self._waiting[namespace] = rest
                return name
        return None
