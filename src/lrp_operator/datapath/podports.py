"""Which links are pods': from the addresses of this node's pods to the interfaces that our programs belong on.

What the Kubernetes API says of a pod comes late: its address is known only after its network has been set up, and by
then its containers may run. So while a pod of this node has no address yet, a link that newly leads into a namespace is
taken for its, and let go again when no pod has claimed it within a while (`_CLAIM_SECONDS`). At all other times a link
is a pod's only if a pod's address leads to it (kernel.podlink tells how, and what is never taken).

A pod's links are looked up by its address when it comes or changes, and when its link is gone or leads elsewhere. A
link that was found stays the pod's as long as it is there and leads into the same namespace: on a bridge, who has an
address is what pods themselves say (ARP), and another one must not get this one's exemptions by saying so later.
Further links into the namespace are looked for now and then (`forget`).

On a bridge, an address that nobody answers for costs 50 ms, and after a node's start there may be hundreds. So looking
ends after a while, and goes on at the next `find` where it ended; pods that were never looked for come first.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from lrp_operator.datapath.model import PodPlace
from lrp_operator.kernel.podlink import NoPodLinkError, PodFinder, PodInterface
from lrp_operator.kernel.rtnl import Link

_CLAIM_SECONDS = 60.0
_LOOK_UP_SECONDS = 1.0  # so long pods are looked for at most, each time
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
        self._spaces: dict[str, dict[int, int | None]] = {}  # pod -> link -> the namespace's id, as it was found
        self._stale: set[str] = set()  # pods that may have got further links
        self._missing: dict[str, str] = {}
        self._tried: dict[str, float] = {}  # pod -> when it was looked for in vain, by time.monotonic()
        self.unfinished = False  # pods are left that were never looked for
        self._seen: set[int] | None = None  # links that were there when no pod was awaited; None: not looked yet
        self._unclaimed: dict[int, float] = {}  # link -> when it came, by time.monotonic()
        self._finder: PodFinder | None = None

    def want(self, pods: Mapping[str, PodPlace]) -> None:
        """These are the node's pods that have a network of their own, running or about to."""
        for pod, place in self._pods.items():
            if pods.get(pod) != place:
                for known in (self._found, self._spaces, self._missing, self._tried):
                    known.pop(pod, None)
        self._pods = dict(pods)

    def forget(self) -> None:
        """Look for further links of all pods at the next `find`."""
        self._stale = set(self._found)

    def find(self) -> Found:
        """Tell whose link is whose now. Raises OSError."""
        if self._finder is None:
            self._finder = PodFinder()
        links = {link.index: link for link in self._finder.all_links()}
        due = [pod for pod, place in self._pods.items() if place.ips and not self._is_known(self._finder, pod, links)]
        due.sort(key=lambda pod: self._tried.get(pod, 0.0))
        until = time.monotonic() + _LOOK_UP_SECONDS
        self.unfinished = False
        for pod in due:
            if time.monotonic() > until:
                self.unfinished = self.unfinished or pod not in self._tried
            else:
                self._look_up(self._finder, pod, self._pods[pod], links)
        found = {interface: pod for pod in self._pods for interface in self._found.get(pod, ())}
        for interface in self._awaited(self._finder, links, {interface.ifindex for interface in found}):
            found[interface] = UNCLAIMED
        return Found(found, dict(self._missing))

    def _is_known(self, finder: PodFinder, pod: str, links: Mapping[int, Link]) -> bool:
        """Whether the links that a pod's addresses led to are still there, and lead into the same namespace."""
        spaces = self._spaces.get(pod, {})
        if not spaces or any(index not in links or links[index].peer_nsid != nsid for index, nsid in spaces.items()):
            return False
        known = self._found[pod]
        if pod in self._stale or any(
            one.ifindex not in links or links[one.ifindex].name != one.ifname for one in known
        ):
            self._found[pod] = finder.with_siblings(spaces.keys(), links.values())
            self._stale.discard(pod)
        return True

    def _look_up(self, finder: PodFinder, pod: str, place: PodPlace, links: Mapping[int, Link]) -> None:
        try:
            self._found[pod] = found = finder.interfaces(place.ips, links.values())
        except NoPodLinkError as error:
            self._found.pop(pod, None)
            self._spaces.pop(pod, None)
            self._missing[pod] = str(error)
            self._tried[pod] = time.monotonic()
            return
        self._missing.pop(pod, None)
        self._tried.pop(pod, None)
        self._spaces[pod] = {one.ifindex: links[one.ifindex].peer_nsid for one in found[:1] if one.ifindex in links}

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
