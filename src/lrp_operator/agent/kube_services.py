"""Which of the cluster's Services a node has to know where kube-proxy stays, and where it gets them from.

A redirect needs two kinds: those that policies name (serviceMatcher), for their ClusterIPs; and any that has an address
which a policy names (addressMatcher), because that policy must not take it. A cluster may have ten thousand Services
and a node a handful of policies, so what is asked of the API server depends on the policies:

    only names, at most 16 at a time      a watch of each Service by its name: unaffected by the cluster's size
    else                                  one watch of all; what no policy is about is kept packed, and told nobody

Link-local addresses (metadata services, node-local DNS) ask for nothing: the API server refuses them as external
addresses of a Service, and no allocator hands them out. Any other address needs all Services: the API has no selector
for "has this address" (`spec.clusterIP` is only the first of two; external and load-balancer addresses have none). Once
all are followed, that stays until the agent ends, and watches by name are opened at a bounded rate: else a tenant who
edits a policy in a loop would have every node list all Services in a loop.

A policy is told only when the Services that it is about are known (`covers`): told earlier, it would take a Service's
address for a moment, or be said to name a Service that does not exist.
"""

import ipaddress
import re
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from lrp_operator.api.addresses import parse_ip
from lrp_operator.api.crd import PolicyInvalid, parse_policy
from lrp_operator.api.objects import Policy, Service
from lrp_operator.api.policy import ServiceMatcher
from lrp_operator.resolve.indices import MultiIndex
from lrp_operator.sources.kube.informer import Change

MOST_NAMED = 16
"""So many Services are watched each by its name; for more of them, one watch of all costs both sides less."""
OPENINGS = 64
SECONDS_PER_OPENING = 60.0
"""So many watches by name may be opened at once, and then one a minute; who needs more follows all."""

Handle = str | bytes | int
"""By what a policy is about a Service: its "namespace/name", an address of it, a nodePort of it."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def handles_of(policy: Policy) -> frozenset[Handle]:
    """Which Services a policy is about. An invalid one is about none, nor is one whose Service can't exist."""
    try:
        matcher = parse_policy(policy).frontend
    except PolicyInvalid:
        return frozenset()
    if isinstance(matcher, ServiceMatcher):
        return frozenset({f"{matcher.namespace}/{matcher.name}"} if _NAME.fullmatch(matcher.name) else ())
    if ipaddress.ip_address(matcher.ip).is_link_local:
        return frozenset()
    return frozenset({matcher.ip, *(port.port for port in matcher.ports)})


class Followed(Protocol):
    """A watch of Services that was begun."""

    @property
    def synced(self) -> bool:
        """Whether all that it is about has been told."""

    def stop(self) -> None:
        """End it."""


class Watches(Protocol):
    """Begins watches."""

    def follow(self, service: str | None, take: Callable[[Change[Service]], None]) -> Followed:
        """Watch one Service ("namespace/name"), or (None) all."""


class _Store:
    """Services packed (a quarter of the memory), and found by their addresses and nodePorts."""

    def __init__(self) -> None:
        self._packed: dict[str, bytes] = {}
        self._at: MultiIndex[Handle, str] = MultiIndex()

    def get(self, key: str) -> Service | None:
        packed = self._packed.get(key)
        return msgspec.msgpack.decode(packed, type=Service) if packed is not None else None

    def at(self, handle: Handle) -> set[str]:
        """Name the Services that a policy with this handle is about."""
        if isinstance(handle, str):
            return {handle} if handle in self._packed else set()
        return set(self._at.get(handle, ()))

    def put(self, key: str, service: Service | None) -> None:
        for handle in _places(old) if (old := self.get(key)) else ():
            self._at.discard(handle, key)
        if service is None:
            self._packed.pop(key, None)
            return
        meta = msgspec.structs.replace(service.metadata, annotations=None)
        self._packed[key] = msgspec.msgpack.encode(msgspec.structs.replace(service, metadata=meta))
        for handle in _places(service):
            self._at.add(handle, key)


def _places(service: Service) -> Iterator[bytes | int]:
    """List a Service's addresses and nodePorts."""
    spec, balancer = service.spec, service.status.load_balancer
    ingress = (balancer.ingress if balancer else None) or ()
    written = (spec.cluster_ip, *(spec.cluster_ips or ()), *(spec.external_ips or ()), *(entry.ip for entry in ingress))
    for text in written:
        try:
            yield parse_ip(text or "")
        except ValueError:  # "None", or nothing
            continue
    yield from (port.node_port for port in spec.ports or () if port.node_port)


class NeededServices:
    """The Services that policies are about, as they come, change and go."""

    def __init__(self, watches: Watches, tell: Callable[[str, Service | None], None]) -> None:
        """tell: is told of every needed Service that came or changed, and (None) that went or is needed no more."""
        self._watches = watches
        self._tell = tell
        self._about: dict[str, frozenset[Handle]] = {}
        self._wanted: MultiIndex[Handle, str] = MultiIndex()  # handle -> policies
        self._store = _Store()
        self._named: dict[str, Followed] = {}
        self._all: Followed | None = None
        self._all_known = False
        self._told: set[str] = set()
        self._openings = float(OPENINGS)
        self._counted_at = time.monotonic()

    def set_policy(self, key: str, policy: Policy | None) -> None:
        """Take in a policy, new, changed, or (None) gone."""
        old, new = self._about.pop(key, frozenset()), handles_of(policy) if policy else frozenset()
        if new:
            self._about[key] = new
        for handle in old - new:
            self._wanted.discard(handle, key)
        for handle in new - old:
            self._wanted.add(handle, key)
        if old != new:
            self._arrange()
            for service in {service for handle in old ^ new for service in self._store.at(handle)}:
                self._show(service)

    def covers(self, key: str) -> bool:
        """Whether all that a policy is about is known."""
        return self._all_known or all(
            isinstance(handle, str) and handle in self._named and self._named[handle].synced
            for handle in self._about.get(key, ())
        )

    # --- Watching what has to be watched ---

    def _arrange(self) -> None:
        """Begin the watches that are needed, end those that are not."""
        if self._all is not None:
            return
        names = {handle for handle in self._wanted if isinstance(handle, str)}
        missing = names - self._named.keys()
        if len(names) < len(self._wanted) or len(names) > MOST_NAMED or not self._may_open(len(missing)):
            self._follow_all()
            return
        for name in self._named.keys() - names:
            self._named.pop(name).stop()
            self._put(name, None)
        for name in missing:
            self._named[name] = self._watches.follow(name, self._take)

    def _may_open(self, number: int) -> bool:
        now = time.monotonic()
        self._openings = min(self._openings + (now - self._counted_at) / SECONDS_PER_OPENING, OPENINGS)
        self._counted_at = now
        if self._openings < number:
            return False
        self._openings -= number
        return True

    def _follow_all(self) -> None:
        """Follow all Services from now on. The watches by name go on until all are known."""
        store = _Store()

        def take(change: Change[Service]) -> None:
            for key in change.deletes:
                store.put(key, None)
            for service in change.upserts:
                store.put(service.metadata.key, service)
            if self._all_known:
                for key in {*change.deletes, *(service.metadata.key for service in change.upserts)}:
                    self._show(key)
            elif change.synced:
                self._know_all(store)

        self._all = self._watches.follow(None, take)

    def _know_all(self, store: _Store) -> None:
        self._store, self._all_known = store, True
        for watch in self._named.values():
            watch.stop()
        self._named.clear()
        for key in self._told | {key for handle in self._wanted for key in store.at(handle)}:
            self._show(key)

    def _take(self, change: Change[Service]) -> None:
        """Take in what watches by name tell."""
        for key in change.deletes:
            self._put(key, None)
        for service in change.upserts:
            self._put(service.metadata.key, service)

    def _put(self, key: str, service: Service | None) -> None:
        self._store.put(key, service)
        self._show(key)

    def _show(self, key: str) -> None:
        """Tell a Service as it is, if a policy is about it."""
        service = self._store.get(key)
        if service is not None and (key in self._wanted or any(place in self._wanted for place in _places(service))):
            self._told.add(key)
            self._tell(key, service)
        elif key in self._told:
            self._told.discard(key)
            self._tell(key, None)
