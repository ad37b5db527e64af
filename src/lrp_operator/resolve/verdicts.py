"""What became of a policy: the reasons, in the order of semantics.md, section 7. sentences.py has the words."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from msgspec import Struct

from lrp_operator.api.addresses import L4Addr
from lrp_operator.api.policy import AddressMatcher, OnNoBackend, PolicyRules
from lrp_operator.resolve import sentences
from lrp_operator.resolve.backends import reason_for_none
from lrp_operator.resolve.frontends import Claim, Claims
from lrp_operator.resolve.model import FrontendReason, FrontendVerdict, PolicyReason, PolicyVerdict
from lrp_operator.resolve.options import ResolveOptions
from lrp_operator.resolve.ownership import Claimant, Ownership
from lrp_operator.resolve.rations import Shortage
from lrp_operator.resolve.views import PodView


class Case(Struct, frozen=True):
    """All that a verdict on a valid policy rests on.

    shortage: why its namespace has no room for it, if it has none.
    node: empty for the cluster as a whole. pods: those that the policy selects there, by name.
    served: the frontends that one of them serves. owners: for each frontend that it claims.
    """

    node: str
    namespace: str
    claimant: Claimant
    rules: PolicyRules
    claims: Claims
    pods: Sequence[PodView]
    served: AbstractSet[L4Addr]
    owners: Mapping[L4Addr, Ownership]
    shortage: Shortage | None = None


def invalid(policy: str, generation: int, message: str) -> PolicyVerdict:
    """Reject a policy that could not be read."""
    return PolicyVerdict(policy, accepted=False, reason=PolicyReason.INVALID, message=message, generation=generation)


def judge(case: Case, generation: int, options: ResolveOptions) -> PolicyVerdict:
    """Say what became of a valid policy."""
    frontends = tuple(_judge_frontend(case, claim) for claim in case.claims.frontends)
    claims = case.claims
    message = _what_is_missing(case, options)
    if frontends:
        message = " ".join(part for part in (_summary(case, frontends), message, _exemption(case, frontends)) if part)
    return PolicyVerdict(case.claimant.policy, claims.accepted, claims.reason, message, frontends, generation)


def _judge_frontend(case: Case, claim: Claim) -> FrontendVerdict:
    frontend = claim.frontend
    owner = case.owners[frontend]
    if owner.service is not None and case.claimant.by_address:
        message = sentences.owned_by_service(frontend, owner.service)
        return _not_redirected(frontend, FrontendReason.ADDRESS_OWNED_BY_SERVICE, message)
    if owner.holder is not None and owner.holder.policy != case.claimant.policy:
        message = sentences.conflict(owner.holder, case.claimant)
        return _not_redirected(frontend, FrontendReason.CONFLICT, message)
    if frontend in case.served:
        return FrontendVerdict(frontend, redirected=True)
    reason = reason_for_none(case.pods)
    message = _why_no_backend(case, claim, reason)
    if case.rules.on_no_backend is OnNoBackend.DROP:
        return _not_redirected(frontend, reason, f"{message} {sentences.REFUSED}", drop=True)
    return _not_redirected(frontend, reason, message)


def _not_redirected(frontend: L4Addr, reason: FrontendReason, message: str, *, drop: bool = False) -> FrontendVerdict:
    return FrontendVerdict(frontend, redirected=False, reason=reason, message=message, drop=drop)


def _why_no_backend(case: Case, claim: Claim, reason: FrontendReason) -> str:
    match reason:
        case FrontendReason.NO_LOCAL_POD:
            for_some_nodes = case.rules.node_selector is not None
            return sentences.no_local_pod(case.node, case.namespace, for_some_nodes=for_some_nodes)
        case FrontendReason.NO_READY_POD:
            return sentences.no_ready_pod(case.pods)
        case _:
            return sentences.no_matching_port(claim, case.pods)


def _what_is_missing(case: Case, options: ResolveOptions) -> str:
    """Say what keeps a policy from claiming what it asks for, if anything does."""
    claims, matcher = case.claims, case.rules.frontend
    if case.shortage is not None:
        return sentences.too_many_frontends(case.namespace, case.shortage)
    if claims.reason is PolicyReason.NODE_NOT_SELECTED:
        return sentences.node_not_selected(case.node)
    if claims.reason is PolicyReason.NAMESPACE_NOT_ALLOWED:
        return sentences.namespace_not_allowed(case.namespace, options.address_matcher_namespaces)
    if isinstance(matcher, AddressMatcher):
        return "" if claims.accepted else sentences.address_not_allowed(matcher, options.address_matcher_cidrs)
    if claims.service is None:
        return sentences.service_not_found(matcher)
    if claims.reason is PolicyReason.SERVICE_HAS_NO_CLUSTER_IP:
        return sentences.no_cluster_ip(claims.service)
    if claims.missing or not claims.frontends:
        return sentences.ports_not_found(claims.service, claims.missing)
    return ""


def _summary(case: Case, frontends: Sequence[FrontendVerdict]) -> str:
    if not case.node:  # how many nodes redirect is not for resolution to know
        return ""
    redirected = sum(frontend.redirected for frontend in frontends)
    refused = sum(frontend.drop for frontend in frontends)
    return sentences.redirected(case.node, len(frontends), redirected, refused)


def _exemption(case: Case, frontends: Sequence[FrontendVerdict]) -> str:
    if not case.rules.skip_redirect_from_backend or not any(f.redirected or f.drop for f in frontends):
        return ""
    on_host = [pod for pod in case.pods if pod.host_network]
    return sentences.host_network_exempt(on_host) if on_host else ""
