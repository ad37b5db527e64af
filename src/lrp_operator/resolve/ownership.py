"""Who has a frontend.

Decided per address, port and protocol, from who claims it now and never from what was before.
A policy with an addressMatcher never takes what belongs to a Service. Among the policies left, the oldest has it,
then the first by name, whether or not anything on this node can serve it (semantics.md, section 6). Where two
Services have one ClusterIP (no API server allows that, a file may), the same order holds between them.
"""

from collections.abc import Iterable

from msgspec import Struct

from lrp_operator.resolve.age import Age
from lrp_operator.resolve.services import AddressKind


class Claimant(Struct, frozen=True):
    """A policy that claims a frontend. by_address: with an addressMatcher."""

    policy: str
    age: Age
    by_address: bool

    @property
    def rank(self) -> tuple[Age, str]:
        """The smaller has it."""
        return (self.age, self.policy)


class ServiceClaim(Struct, frozen=True):
    """A Service to which an address, port and protocol belongs, and as what."""

    service: str
    age: Age
    kind: AddressKind

    @property
    def rank(self) -> tuple[bool, Age, str]:
        """The smaller has it: a Service whose ClusterIP it is comes before all others."""
        return (self.kind is not AddressKind.CLUSTER_IP, self.age, self.service)


class Ownership(Struct, frozen=True):
    """Who has a frontend. service: where it belongs to one, the policies with an addressMatcher are out."""

    service: ServiceClaim | None = None
    holder: Claimant | None = None


def decide(claimants: Iterable[Claimant], services: Iterable[ServiceClaim]) -> Ownership:
    """Decide who has a frontend."""
    service = min(services, key=lambda claim: claim.rank, default=None)
    eligible = [claimant for claimant in claimants if not (claimant.by_address and service)]
    return Ownership(service, min(eligible, key=lambda claimant: claimant.rank, default=None))
