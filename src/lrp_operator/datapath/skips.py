"""The skip maps: which network namespaces reach the original destination of which frontends.

An exemption names a pod; the kernel knows namespaces by their cookie. Whose cookie it is, is looked up each time the
pods' links may have changed (`relocate`); a pod that is not found has no exemption in force, and that is said.
"""

from collections.abc import Callable

from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath.layout import client_key, parse_client
from lrp_operator.datapath.model import KernelSkip
from lrp_operator.datapath.tables import MapLike
from lrp_operator.resolve.model import SkipEntry

Locate = Callable[[SkipEntry], int | None]
"""A pod's namespace cookie, None while it is not known. Raises OSError where that can't be found out just now."""

_PRESENT = b"\1"


class SkipTable:
    """Both families' skip maps. by_ip_bytes: the maps by the bytes of an address (4, 16)."""

    def __init__(self, by_ip_bytes: dict[int, MapLike], locate: Locate) -> None:
        self._maps = by_ip_bytes
        self._locate = locate
        self._entries: dict[str, SkipEntry] = {}
        self._cookies: dict[str, int] = {}
        self._stale: set[str] = set()  # pods whose cookie is to be looked up anew
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
            self._cookies.pop(pod, None)
        if entry is None:
            self._entries.pop(pod, None)
        else:
            self._entries[pod] = entry

    def frontends(self) -> set[L4Addr]:
        """Every frontend that someone is exempt from."""
        return {frontend for entry in self._entries.values() for frontend in entry.frontends}

    def relocate(self) -> None:
        """Pods' links changed: look all namespaces up anew at the next flush."""
        self._stale |= self._cookies.keys()

    def add_missing(self) -> list[str]:
        """Write exemptions that are wanted and absent; return what could not be done. Do this before redirecting."""
        problems: list[str] = []
        for pod, entry in self._entries.items():
            if pod not in self._cookies or pod in self._stale:
                problems += self._find(pod, entry)
        for cookie, frontend in sorted(self._wanted() - self._present, key=lambda e: (e[0], e[1].sort_key)):
            found = self._maps.get(len(frontend.ip))
            if found is None:
                continue
            try:
                found.update(client_key(cookie, frontend), _PRESENT)
            except OSError as error:
                problems.append(f"exemption from {frontend}: not written: {error}")
            else:
                self._present.add((cookie, frontend))
        return problems

    def _find(self, pod: str, entry: SkipEntry) -> list[str]:
        """Look a pod's cookie up. One that was known stays while the kernel can't be asked."""
        try:
            cookie = self._locate(entry)
        except OSError as error:
            return [f"pod {pod}: its network namespace can't be looked up: {error}"]
        self._stale.discard(pod)
        if cookie is None:
            self._cookies.pop(pod, None)
            return [f"pod {pod}: its network namespace is not known yet, so skipRedirectFromBackend is not in force"]
        self._cookies[pod] = cookie
        return []

    def remove_surplus(self) -> list[str]:
        """Remove exemptions that nobody wants; return what could not be done. Do this after redirecting."""
        problems: list[str] = []
        for cookie, frontend in self._present - self._wanted():
            try:
                self._maps[len(frontend.ip)].delete(client_key(cookie, frontend))
            except OSError as error:
                problems.append(f"exemption from {frontend}: not removed: {error}")
            else:
                self._present.discard((cookie, frontend))
        return problems

    def kernel_view(self) -> list[KernelSkip]:
        """What the maps hold now, with the pods that we know. Raises OSError."""
        pods = {cookie: pod for pod, cookie in self._cookies.items()}
        entries = sorted(
            (entry for found in self._maps.values() for entry in self._parse(found)),
            key=lambda e: (e[0], e[1].sort_key),
        )
        return [KernelSkip(cookie, frontend, pods.get(cookie)) for cookie, frontend in entries]

    def _wanted(self) -> set[tuple[int, L4Addr]]:
        return {
            (cookie, frontend)
            for pod, cookie in self._cookies.items()
            if pod in self._entries
            for frontend in self._entries[pod].frontends
        }
