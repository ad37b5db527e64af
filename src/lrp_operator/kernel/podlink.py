"""From a pod's address to its host-side link and its network namespace.

    address -> route -> a veth (or netkit)                                      pods that the node routes to
    address -> route -> a bridge -> neighbour -> hardware address -> its port   pods on a bridge
    link -> the id of its other end's namespace -> that namespace -> its cookie

The way begins at the node's own tables and never at what is found inside a namespace: a pod can give itself any
address, but not make the node route it there. What could mislead is refused, with the reason:

- an address that is the node's own: the pod shares the node's namespace, whose cookie `own_cookie` tells;
- a way through a gateway: the pod is on another machine;
- a link with a default route, or with a node address in a subnet: the node's uplink, which may be a veth itself where
  nodes are containers. (A bridge has such an address by right; its *port* is the pod's link.)
- on a bridge that is itself the way out, a port whose other end does not have the neighbour's hardware address: the
  uplink again, with somebody behind it.

On a bridge, who has an address may not be known, or only by hearsay from a predecessor: then the kernel is made to ask,
which takes well under a millisecond when the pod answers. Only if the old hardware address does not answer is it
forgotten and everybody asked.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType
from typing import Self

from lrp_operator.kernel.netns import (
    NetnsError,
    NetnsListing,
    NetnsRef,
    Where,
    list_netns,
    netns_cookie,
    own_netns_cookie,
)
from lrp_operator.kernel.rtnl import NUD_CERTAIN, NUD_HEARSAY, NUD_PERMANENT, Link, Neighbour, Rtnl

_POINT_TO_POINT = {"veth", "netkit"}
_ANSWER_WITHIN = 0.05  # the pod's kernel is this one: it answers at once, however busy the pod is


class NoPodLinkError(Exception):
    """There is no pod's link at an address; the text says why, in one sentence."""


@dataclass(frozen=True, slots=True)
class PodLink:
    """A pod's link on the node.

    netns, cookie: of the pod, the link's other end; None when no process or name that we may see leads there.
    """

    ifindex: int
    ifname: str
    netns: NetnsRef | None
    cookie: int | None


@dataclass(frozen=True, slots=True)
class PodInterface:
    """One of a pod's links on the node. bridged: it is the port of a bridge (else the node routes to the pod)."""

    ifindex: int
    ifname: str
    bridged: bool


class PodFinder:
    """Finds pods' links from one namespace, the node's: the calling thread's, unless another is given.

    For one thread at a time. Raises OSError (from every method) where netlink can't be used.
    """

    def __init__(self, where: Where | None = None) -> None:
        self._rtnl = Rtnl(where)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the namespace. May be called twice."""
        self._rtnl.close()

    def interfaces(self, ips: Collection[bytes], links: Collection[Link]) -> tuple[PodInterface, ...]:
        """All links of the pod that has these addresses: those that these lead to, and others into its namespace.

        links: all of the node's, as `all_links` gives them. Raises NoPodLinkError, which tells why there is none.
        """
        found: dict[int, Link] = {}
        refused: list[NoPodLinkError] = []
        for ip in ips:
            try:
                link = self._link_of(ip)
                found[link.index] = link
            except NoPodLinkError as error:
                refused.append(error)
        if not found:
            raise refused[0] if refused else NoPodLinkError("the pod has no address")
        return self.with_siblings(found, links)

    def with_siblings(self, indexes: Collection[int], links: Collection[Link]) -> tuple[PodInterface, ...]:
        """Describe some links, and all others into their namespaces."""
        found = {link.index: link for link in links if link.index in indexes}
        # Links into a namespace that is being torn down all have the same id, a negative one.
        spaces = {link.peer_nsid for link in found.values() if link.peer_nsid is not None and link.peer_nsid >= 0}
        found |= {link.index: link for link in links if link.peer_nsid in spaces and self.may_be_a_pods(link)}
        return tuple(self.interface(link) for _, link in sorted(found.items()))

    def all_links(self) -> list[Link]:
        """Every link of the node's namespace."""
        return self._rtnl.links()

    def may_be_a_pods(self, link: Link) -> bool:
        """Whether a link leads into another namespace and is not the node's own way to other machines."""
        if link.kind not in _POINT_TO_POINT or link.peer_nsid is None:
            return False
        bridged = self._is_bridged(link)
        return not self._rtnl.has_default_route(link.master if bridged else link.index) and (
            bridged or not self._rtnl.is_on_a_network(link.index)
        )

    def _is_bridged(self, link: Link) -> bool:
        master = self._rtnl.link(link.master) if link.master else None
        return master is not None and master.kind == "bridge"

    def interface(self, link: Link) -> PodInterface:
        """Describe a link."""
        return PodInterface(link.index, link.name, self._is_bridged(link))

    def _link_of(self, ip: bytes) -> Link:
        written = str(ip_address(ip))
        if ip_address(ip).is_link_local:
            raise NoPodLinkError(f"{written} is a link-local address, which means another host on each link")
        route = self._rtnl.route(ip)
        if route is None:
            raise NoPodLinkError(f"the node has no route to {written}")
        if route.local:
            raise NoPodLinkError(f"{written} is the node's own address")
        if route.gateway:
            raise NoPodLinkError(f"{written} is reached through a gateway: it is on another machine")
        link = self._rtnl.link(route.link)
        if link is None:
            raise NoPodLinkError(f"the link towards {written} is gone")
        if link.kind == "bridge":
            link = self._port_of(link, ip)
        elif self._rtnl.has_default_route(link.index) or self._rtnl.is_on_a_network(link.index):
            raise NoPodLinkError(f"{written} is reached by {link.name}, which is the node's link to other machines")
        if link.kind not in _POINT_TO_POINT:
            raise NoPodLinkError(f"{written} is reached by {link.name}, which is no veth ({link.kind or 'hardware'})")
        if link.peer_nsid is None:
            raise NoPodLinkError(f"{written} is reached by {link.name}, whose other end is on the node itself")
        return link

    def _port_of(self, bridge: Link, ip: bytes) -> Link:
        """The port of a bridge behind which an address is."""
        mac = self._mac_of(bridge, ip)
        index = self._rtnl.bridge_port(bridge.index, mac) if mac else None
        link = None if index is None else self._rtnl.link(index)
        if mac is None or link is None:
            raise NoPodLinkError(f"nobody on bridge {bridge.name} answers for {ip_address(ip)}")
        if self._rtnl.has_default_route(bridge.index) and link.peer_nsid is not None:
            end = self._rtnl.link(link.peer, link.peer_nsid)
            if end is None or end.mac != mac:
                raise NoPodLinkError(f"{ip_address(ip)} is behind {link.name}, which leads to other machines")
        return link

    def _mac_of(self, bridge: Link, ip: bytes) -> bytes | None:
        """Who has an address on a bridge; the kernel is made to ask where it is not sure."""
        known = self._rtnl.neighbour(bridge.index, ip)
        if known and known.state & NUD_HEARSAY:
            self._rtnl.confirm_neighbour(bridge.index, ip)
            certain = self._await_certainty(bridge, ip)
            if certain:
                return certain
        # The bridge forgets after minutes what the neighbour table keeps for longer; an answer teaches it anew.
        elif known and (known.state & NUD_PERMANENT or self._is_on(bridge, known)):
            return known.mac
        if known:
            # Also an unanswered question: its repetition would be a second away, a new one is asked at once.
            self._rtnl.forget_neighbour(bridge.index, ip)
        self._rtnl.ask_for_neighbour(bridge.index, ip)
        return self._await_certainty(bridge, ip)

    def _is_on(self, bridge: Link, known: Neighbour) -> bool:
        return bool(known.state & NUD_CERTAIN) and self._rtnl.bridge_port(bridge.index, known.mac) is not None

    def _await_certainty(self, bridge: Link, ip: bytes) -> bytes | None:
        deadline = time.monotonic() + _ANSWER_WITHIN
        pause = 0.0001
        while True:
            known = self._rtnl.neighbour(bridge.index, ip)
            if known and known.state & NUD_CERTAIN:
                return known.mac
            if time.monotonic() > deadline:
                return None
            time.sleep(pause)
            pause = min(pause * 2, 0.01)


class PodLinks(PodFinder):
    """Locates pods with their namespaces. namespaces: lists those in which pods may be.

    Raises NetnsCookieUnsupportedError where the kernel tells no cookies.
    """

    def __init__(self, where: Where | None = None, namespaces: Callable[[], NetnsListing] = list_netns) -> None:
        self.own_cookie = own_netns_cookie() if where is None else netns_cookie(where)
        super().__init__(where)
        self._list = namespaces
        self._by_nsid: dict[int, NetnsRef] = {}

    def locate(self, ips: Collection[bytes]) -> PodLink | None:
        """The link of the pod that has these addresses; None if there is none (any more)."""
        try:
            return self.find(ips)
        except NoPodLinkError:
            return None

    def find(self, ips: Collection[bytes]) -> PodLink:
        """Do the same, but raise NoPodLinkError, which tells why there is none.

        A pod's addresses must not lead to different links; one that leads nowhere does no harm beside one that does.
        """
        links: dict[int, Link] = {}
        refused: list[NoPodLinkError] = []
        for ip in ips:
            try:
                link = self._link_of(ip)
                links[link.index] = link
            except NoPodLinkError as error:
                refused.append(error)
        if len(links) > 1:
            names = ", ".join(sorted(link.name for link in links.values()))
            raise NoPodLinkError(f"the pod's addresses lead to different links: {names}")
        if not links:
            raise refused[0] if refused else NoPodLinkError("the pod has no address")
        (link,) = links.values()
        return self._with_namespace(link)

    def _with_namespace(self, link: Link) -> PodLink:
        assert link.peer_nsid is not None
        known = self._by_nsid.get(link.peer_nsid)
        cookie = self._cookie(known, link.peer_nsid)
        if cookie is None:  # ids and paths are used again, so what was right a moment ago need not be so now
            self._learn()
            known = self._by_nsid.get(link.peer_nsid)
            cookie = self._cookie(known, link.peer_nsid)
        if cookie is not None and cookie == self.own_cookie:
            raise NoPodLinkError(f"{link.name} leads back to the node's own namespace")
        return PodLink(link.index, link.name, None if cookie is None else known, cookie)

    def _cookie(self, netns: NetnsRef | None, nsid: int) -> int | None:
        """A namespace's cookie, if it is there and is the one that the node knows by this id."""
        if netns is None:
            return None
        try:
            with netns.open() as fd:
                return netns_cookie(fd) if self._rtnl.nsid(fd) == nsid else None
        except NetnsError:
            return None

    def _learn(self) -> None:
        """Ask for the id of every namespace that can be found."""
        self._by_nsid.clear()
        for netns in self._list().namespaces:
            try:
                with netns.open() as fd:
                    nsid = self._rtnl.nsid(fd)
            except NetnsError:
                continue
            if nsid is not None:
                self._by_nsid[nsid] = netns
