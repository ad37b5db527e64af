"""The skip maps: which pods reach the original destination of which frontends.

An exemption names a pod; the kernel knows a pod by its network namespace's cookie at socket level, and by its links at
TC level. Which those are, is looked up each time the pods' links may have changed (`relocate`); a pod that is not found
has no exemption in force, and that is said.
"""

from collections.abc import Callable

from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath.layout import CLIENT_BY_LINK, client_key, parse_client
from lrp_operator.datapath.model import KernelSkip
from lrp_operator.datapath.tables import MapLike
from lrp_operator.resolve.model import SkipEntry

Locate = Callable[[SkipEntry], tuple[int, ...] | None]
"""What the kernel knows a pod by (struct client's `who`), None while it is not known.

Raises OSError where that can't be found out just now.
"""

_PRESENT = b"\1"


class SkipTable:
    """Both families' skip maps. by_ip_bytes: the maps by the bytes of an address (4, 16)."""

    def __init__(self, by_ip_bytes: dict[int, MapLike], locate: Locate) -> None:
        self._maps = by_ip_bytes
        self._locate = locate
        self._entries: dict[str, SkipEntry] = {}
        self._known: dict[str, tuple[int, ...]] = {}
        self._stale: set[str] = set()  # pods that are to be looked up anew
        self._present: set[tuple[int, L4Addr]] = set()

    def load(self) -> None:
        """Read what the maps hold. Raises OSError."""
        self._present = {entry for found in self._maps.values() for entry in self._parse(found)}

    @staticmethod
    def _parse(found: MapLike) -> set[tuple[int, L4Addr]]:
        entries: set[tuple[int, L4Addr]] = set()
        for key, _value in found.items():  # noqa: PERF102 - a map has no keys()
            try:
                entries.add(parse_client(key))
            except ValueError:  # a protocol that we never write: nothing looks it up
                continue
        return entries

    def want(self, pod: str, entry: SkipEntry | None) -> None:
        """Record a pod's exemptions; None: it has none."""
        before = self._entries.get(pod)
        if entry is None or before is None or (before.uid, before.ips) != (entry.uid, entry.ips):
            self._known.pop(pod, None)
        if entry is None:
            self._entries.pop(pod, None)
        else:
            self._entries[pod] = entry

    def frontends(self) -> set[L4Addr]:
        """Every frontend that someone is exempt from."""
        return {frontend for entry in self._entries.values() for frontend in entry.frontends}

    def relocate(self) -> None:
        """Pods' links changed: look all pods up anew at the next flush."""
        self._stale |= self._known.keys()

    def add_missing(self) -> list[str]:
        """Write exemptions that are wanted and absent; return what could not be done. Do this before redirecting."""
        problems: list[str] = []
        for pod, entry in self._entries.items():
            if pod not in self._known or pod in self._stale:
                problems += self._find(pod, entry)
        for who, frontend in sorted(self._wanted() - self._present, key=lambda e: (e[0], e[1].sort_key)):
            found = self._maps.get(len(frontend.ip))
            if found is None:
                continue
            try:
                found.update(client_key(who, frontend), _PRESENT)
            except OSError as error:
                problems.append(f"exemption from {frontend}: not written: {error}")
            else:
                self._present.add((who, frontend))
        return problems

    def _find(self, pod: str, entry: SkipEntry) -> list[str]:
        """Look a pod up. What was known of it stays while the kernel can't be asked."""
        try:
            known = self._locate(entry)
        except OSError as error:
            return [f"pod {pod}: its network namespace can't be looked up: {error}"]
        self._stale.discard(pod)
        if known is None:
            self._known.pop(pod, None)
            return [f"pod {pod}: its network namespace is not known yet, so skipRedirectFromBackend is not in force"]
        self._known[pod] = known
        return []

    def remove_surplus(self) -> list[str]:
        """Remove exemptions that nobody wants; return what could not be done. Do this after redirecting."""
        problems: list[str] = []
        for who, frontend in self._present - self._wanted():
            try:
                self._maps[len(frontend.ip)].delete(client_key(who, frontend))
            except OSError as error:
                problems.append(f"exemption from {frontend}: not removed: {error}")
            else:
                self._present.discard((who, frontend))
        return problems

    def kernel_view(self) -> list[KernelSkip]:
        """What the maps hold now, with the pods that we know. Raises OSError."""
        pods = {who: pod for pod, known in self._known.items() for who in known}
        entries = sorted(
            (entry for found in self._maps.values() for entry in self._parse(found)),
            key=lambda e: (e[0], e[1].sort_key),
        )
        return [
            KernelSkip(0, who ^ CLIENT_BY_LINK, frontend, pods.get(who))
            if who & CLIENT_BY_LINK
            else KernelSkip(who, 0, frontend, pods.get(who))
            for who, frontend in entries
        ]

    def _wanted(self) -> set[tuple[int, L4Addr]]:
        return {
            (who, frontend)
            for pod, known in self._known.items()
            if pod in self._entries
            for who in known
            for frontend in self._entries[pod].frontends
        }
