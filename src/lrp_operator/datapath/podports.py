"""Which links are pods': from the addresses of this node's pods to the interfaces that our programs belong on.

What the Kubernetes API says of a pod comes late: its address is known only after its network has been set up, and by
then its containers may run. So while a pod of this node has no address yet, a link that newly leads into a namespace is
taken for its, and let go again when no pod has claimed it within a while (`_CLAIM_SECONDS`). At all other times a link
is a pod's only if a pod's address leads to it (kernel.podlink tells how, and what is never taken).

A pod's links are looked up when it comes or changes, when its link is gone, and now and then (`forget`); what was found
is remembered meanwhile, for every new pod stirs a dozen events.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from lrp_operator.datapath.model import PodPlace
from lrp_operator.kernel.podlink import NoPodLinkError, PodFinder, PodInterface
from lrp_operator.kernel.rtnl import Link

_CLAIM_SECONDS = 60.0
UNCLAIMED = ""
"""Whose a link is that no pod has claimed yet."""


@dataclass(frozen=True, slots=True)
class Found:
    """links: interface -> its pod. missing: pod -> why no link of it is found; a sentence."""

    links: dict[PodInterface, str]
    missing: dict[str, str]


class PodPorts:
    """Keeps track of pods' interfaces. For one thread, that of the node's namespace at the first `find`."""

    def __init__(self) -> None:
        self._pods: dict[str, PodPlace] = {}
        self._found: dict[str, tuple[PodInterface, ...]] = {}
        self._missing: dict[str, str] = {}
        self._seen: set[int] | None = None  # links that were there when no pod was awaited; None: not looked yet
        self._unclaimed: dict[int, float] = {}  # link -> when it came, by time.monotonic()
        self._finder: PodFinder | None = None

    def want(self, pods: Mapping[str, PodPlace]) -> None:
        """These are the node's pods that have a network of their own, running or about to."""
        for pod, place in self._pods.items():
            if pods.get(pod) != place:
                self._found.pop(pod, None)
        self._pods = dict(pods)

    def forget(self) -> None:
        """Look all pods up anew at the next `find`."""
        self._found.clear()

    def find(self) -> Found:
        """Tell whose link is whose now. Raises OSError."""
        if self._finder is None:
            self._finder = PodFinder()
        links = {link.index: link for link in self._finder.all_links()}
        self._missing.clear()
        for pod, place in self._pods.items():
            if place.ips and not self._is_known(pod, links):
                self._look_up(self._finder, pod, place, links)
        found = {interface: pod for pod in self._pods for interface in self._found.get(pod, ())}
        for interface in self._awaited(self._finder, links, {interface.ifindex for interface in found}):
            found[interface] = UNCLAIMED
        return Found(found, dict(self._missing))

    def _is_known(self, pod: str, links: Mapping[int, Link]) -> bool:
        known = self._found.get(pod, ())
        return bool(known) and all(
            interface.ifindex in links and links[interface.ifindex].name == interface.ifname for interface in known
        )

    def _look_up(self, finder: PodFinder, pod: str, place: PodPlace, links: Mapping[int, Link]) -> None:
        try:
            self._found[pod] = finder.interfaces(place.ips, links.values())
        except NoPodLinkError as error:
            self._found.pop(pod, None)
            self._missing[pod] = str(error)

    def _awaited(self, finder: PodFinder, links: Mapping[int, Link], known: set[int]) -> list[PodInterface]:
        """Links that came while a pod has no address, and may be its."""
        now = time.monotonic()
        if self._seen is None or all(place.ips for place in self._pods.values()):
            self._seen = set(links)
            self._unclaimed.clear()
            return []
        for index in links.keys() - self._seen - known:
            self._unclaimed.setdefault(index, now)
        self._unclaimed = {
            index: came for index, came in self._unclaimed.items() if index in links and index not in known
        }
        fresh = [links[index] for index, came in self._unclaimed.items() if now - came < _CLAIM_SECONDS]
        return [finder.interface(link) for link in fresh if finder.may_be_a_pods(link)]

    def close(self) -> None:
        """Let go of netlink."""
        if self._finder is not None:
            self._finder.close()
            self._finder = None
