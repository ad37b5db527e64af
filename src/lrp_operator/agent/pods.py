"""Whose address, and whose network namespace, is it? Names for people, and nothing that a redirect depends on."""

import time
from collections.abc import Callable, Collection
from typing import Protocol

from lrp_operator.api.addresses import parse_ip
from lrp_operator.api.objects import Pod

HOST = "host"
"""The name of the node's own namespace, and of all that runs in it."""
LOOK_UP_SECONDS = 1.0
"""A round of looking for namespaces takes so long at most, and the next one comes so much later at least."""


class Link(Protocol):
    """A pod's link. cookie: of the pod's network namespace; None if it can't be told."""

    @property
    def cookie(self) -> int | None:
        """Tell it."""


class Links(Protocol):
    """Finds pods' links: `lrp_operator.kernel.podlink.PodLinks`. own_cookie: of the node's own namespace."""

    own_cookie: int

    def locate(self, ips: Collection[bytes]) -> Link | None:
        """Find the link of the pod with these addresses."""


class PodNames:
    """Pods by address and by namespace cookie. Written by the worker thread alone, read from any: values are frozen."""

    def __init__(self, node: str, open_links: Callable[[], Links | None]) -> None:
        """open_links: called in the worker thread when links are looked for; None where they can't be."""
        self._node = node
        self._open_links = open_links
        self._links: Links | None = None
        self._next_look_up = 0.0
        self._addresses: dict[str, tuple[bytes, ...]] = {}
        self._pods_at: dict[bytes, tuple[tuple[str, bool], ...]] = {}  # address -> (pod, whether it is running well)
        self._unlocated: dict[str, tuple[bytes, ...]] = {}  # this node's pods whose namespace is to be looked up
        self._pod_of_cookie: dict[int, str] = {}

    def put(self, key: str, pod: Pod | None) -> None:
        """Take in a pod, or forget it."""
        for ip in self._addresses.pop(key, ()):
            rest = tuple(entry for entry in self._pods_at[ip] if entry[0] != key)
            if rest:
                self._pods_at[ip] = rest
            else:
                del self._pods_at[ip]
        self._unlocated.pop(key, None)
        if pod is None:
            self._pod_of_cookie = {cookie: name for cookie, name in self._pod_of_cookie.items() if name != key}
            return
        addresses, alive = addresses_of(pod), _alive(pod)
        self._addresses[key] = addresses
        for ip in addresses:
            self._pods_at[ip] = (*self._pods_at.get(ip, ()), (key, alive))
        if pod.spec.node_name == self._node and not pod.spec.host_network and addresses:
            self._unlocated[key] = addresses

    def at(self, ip: bytes) -> str | None:
        """The pod with an address; None if nobody has it, or several do (the node's own address, a finished pod's)."""
        entries = self._pods_at.get(ip, ())
        names = [key for key, alive in entries if alive] or [key for key, _ in entries]
        return names[0] if len(names) == 1 else None

    def with_cookie(self, cookie: int) -> str | None:
        """The pod in a network namespace, or "host"; None if it is not known (yet)."""
        return self._pod_of_cookie.get(cookie)

    def look_up_cookies(self) -> None:
        """Find namespaces that are not known, for a moment at most. Only worth it while somebody watches events."""
        now = time.monotonic()
        if now < self._next_look_up:
            return
        self._links = self._links or self._open_links()
        if self._links is not None:
            self._pod_of_cookie[self._links.own_cookie] = HOST
            self._locate(self._links, until=now + LOOK_UP_SECONDS)
        self._next_look_up = time.monotonic() + LOOK_UP_SECONDS

    def _locate(self, links: Links, until: float) -> None:
        """Look for pods in turn; who is not found is asked for again after all others."""
        for key, addresses in list(self._unlocated.items()):
            if time.monotonic() > until:
                return
            del self._unlocated[key]
            link = links.locate(addresses)
            if link is None or link.cookie is None:
                self._unlocated[key] = addresses
            else:
                self._pod_of_cookie[link.cookie] = key


def addresses_of(pod: Pod) -> tuple[bytes, ...]:
    """A pod's addresses, each once; what is no address is left out."""
    written = [entry.ip for entry in pod.status.pod_ips or ()] + [pod.status.pod_ip or ""]
    return tuple(dict.fromkeys(ip for text in written if text and (ip := _parsed(text)) is not None))


def _parsed(text: str) -> bytes | None:
    try:
        return parse_ip(text)
    except ValueError:
        return None


def _alive(pod: Pod) -> bool:
    ready = any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ())
    return ready and pod.metadata.deletion_timestamp is None
