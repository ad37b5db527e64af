"""The Services of the cluster and their endpoints, with an index by address.

Every change answers with the addresses that it touches, so that only those are decided again.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from lrp_operator.api.addresses import L4Addr
from lrp_operator.resolve.indices import MultiIndex
from lrp_operator.resolve.ownership import ServiceClaim
from lrp_operator.resolve.services import addresses_of
from lrp_operator.resolve.views import ServiceView, SliceView

_NOTHING: frozenset[ServiceClaim] = frozenset()


class ServiceBook:
    """Services and EndpointSlices by name ("namespace/name")."""

    def __init__(self) -> None:
        self._services: dict[str, ServiceView] = {}
        self._slices: dict[str, SliceView] = {}
        self._slices_of: MultiIndex[str, str] = MultiIndex()
        self._claims_at: MultiIndex[L4Addr, ServiceClaim] = MultiIndex()
        self._node_ips: frozenset[bytes] = frozenset()

    def service(self, key: str) -> ServiceView | None:
        """Find a Service."""
        return self._services.get(key)

    def slices_of(self, service: str) -> list[SliceView]:
        """List the slices of a Service, in no order."""
        return [self._slices[key] for key in self._slices_of.get(service, ())]

    def claims_at(self, address: L4Addr) -> AbstractSet[ServiceClaim]:
        """List the Services to which an address, port and protocol belongs."""
        return self._claims_at.get(address, _NOTHING)

    def set_service(self, key: str, service: ServiceView | None) -> set[L4Addr]:
        """Take in a Service, new, changed, or (None) gone; return the addresses that this touches."""
        old = self._services.pop(key, None)
        if service is not None:
            self._services[key] = service
        if old == service:
            return set()
        touched = set()
        for address, claim in self._claims(old):
            self._claims_at.discard(address, claim)
            touched.add(address)
        for address, claim in self._claims(service):
            self._claims_at.add(address, claim)
            touched.add(address)
        return touched

    def set_slice(self, key: str, slice_: SliceView | None) -> set[L4Addr]:
        """Take in an EndpointSlice, new, changed, or (None) gone; return the addresses that this touches."""
        old = self._slices.pop(key, None)
        if slice_ is not None:
            self._slices[key] = slice_
        if old == slice_:
            return set()
        if old is not None:
            self._slices_of.discard(old.service, key)
        if slice_ is not None:
            self._slices_of.add(slice_.service, key)
        services = {view.service for view in (old, slice_) if view is not None}
        return {address for service in services for address, _ in self._claims(self._services.get(service))}

    def set_node_ips(self, ips: frozenset[bytes]) -> set[L4Addr]:
        """Take in the node's own addresses; return the addresses that this touches."""
        if ips == self._node_ips:
            return set()
        with_node_ports = {key: view for key, view in self._services.items() if view.node_ports}
        touched = set()
        for key in with_node_ports:
            touched |= self.set_service(key, None)
        self._node_ips = ips
        for key, view in with_node_ports.items():
            touched |= self.set_service(key, view)
        return touched

    def _claims(self, service: ServiceView | None) -> Iterable[tuple[L4Addr, ServiceClaim]]:
        if service is None:
            return
        for address, kind in addresses_of(service, self._node_ips).items():
            yield address, ServiceClaim(service.key, service.age, kind)
