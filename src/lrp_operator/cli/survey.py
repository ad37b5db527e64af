"""What the resolver says of policies in a live cluster: as a whole, and node by node. Pure: objects in, findings out.

Everything that a policy means comes from the agents' own resolver; here are only its questions. A node is resolved with
nothing but what can matter there: the policies that claim the same frontends, the Services that have or lend them, and
its pods. So thousands of nodes take no longer than it takes to read them.

A policy that the controller has rejected as it is now is left out of the cluster: it holds nothing, whatever settings
it was rejected by, and lrpctl may not know these.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from msgspec import Struct, field, structs

from lrp_operator.api.addresses import L4Addr
from lrp_operator.api.nodestate import NodeReport
from lrp_operator.api.objects import Node, ObjectMeta, Pod, Policy, Service
from lrp_operator.resolve.cluster import ClusterResolver, Picture
from lrp_operator.resolve.engine import WHOLE_CLUSTER, Resolver
from lrp_operator.resolve.model import FrontendVerdict, PolicyVerdict, Resolution
from lrp_operator.resolve.options import ResolveOptions
from lrp_operator.resolve.services import addresses_of
from lrp_operator.resolve.views import PodView, view_node_ips, view_policy, view_service


class Live(Struct, frozen=True):
    """What was read of the cluster, by name: "namespace/name", of nodes the name alone."""

    policies: Mapping[str, Policy] = field(default_factory=dict)
    services: Mapping[str, Service] = field(default_factory=dict)
    pods: Mapping[str, Pod] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    reports: Mapping[str, NodeReport] = field(default_factory=dict)


class Fate(StrEnum):
    """What becomes of a connection to a frontend on a node."""

    REDIRECTED = "redirected"
    REFUSED = "refused"
    USUAL = "usual"  # as without the policy

    @property
    def words(self) -> str:
        """How people are told."""
        return "as usual" if self is Fate.USUAL else self.value


class FrontendFate(Struct, frozen=True, omit_defaults=True):
    """What becomes of one frontend on a node. message: why it is not redirected."""

    frontend: str
    fate: Fate
    backends: list["Backend"] = []
    reason: str = ""
    message: str = ""


class Backend(Struct, frozen=True):
    """What serves a frontend. pod: "namespace/name"."""

    address: str
    pod: str

    def __str__(self) -> str:
        return f"{self.address} {self.pod}"


class NodeFate(Struct, frozen=True, omit_defaults=True):
    """What becomes of a policy on a node.

    agent: how its agent stands to that, in a word (Standing); problem: the same in a sentence, empty if all is well.
    """

    node: str
    frontends: list[FrontendFate]
    agent: str = ""
    problem: str = ""

    @property
    def redirects(self) -> int:
        """How many frontends are redirected."""
        return sum(frontend.fate is Fate.REDIRECTED for frontend in self.frontends)


class Survey:
    """A cluster's policies, resolved once; asked for one policy, or one node, at a time."""

    def __init__(self, live: Live, options: ResolveOptions) -> None:
        self.live = live
        self._options = options
        self._cluster = ClusterResolver(options)
        self._whole = Resolver(WHOLE_CLUSTER, options)
        objects: tuple[Policy | Service, ...] = (*live.policies.values(), *live.services.values())
        for obj in objects:
            self._cluster.upsert(obj)
            self._whole.upsert(obj)
        for node in live.nodes.values():
            self._cluster.upsert(node)
        for pod in live.pods.values():
            self._cluster.upsert(pod)
        self._cluster.resolve()
        self._whole.resolve()
        self._pods_at: dict[str, list[Pod]] = {}
        for pod in live.pods.values():
            self._pods_at.setdefault(pod.spec.node_name or "", []).append(pod)

    def picture(self, policy: str) -> Picture:
        """Say what became of a policy in the cluster."""
        picture = self._cluster.picture(policy)
        assert picture is not None, policy
        return picture

    def rivals(self, policy: str) -> set[str]:
        """Name the other policies that claim a frontend of this one, as far as they are accepted."""
        case = self._whole.case_of(policy)
        claims = case.claims.frontends if case else ()
        return {rival for claim in claims for rival in self.claimants(claim.frontend)} - {policy}

    def claimants(self, frontend: L4Addr) -> set[str]:
        """Name the policies that claim a frontend, on some node or other."""
        return {claimant.policy for claimant in self._whole.claimants(frontend)}

    def neighbours(self, frontend: L4Addr) -> list[tuple[str, str]]:
        """List the policies that claim another port or protocol of the same address, each with the frontend."""
        return sorted(
            (policy, str(claim.frontend))
            for policy in self._whole.policies()
            if (case := self._whole.case_of(policy)) is not None
            for claim in case.claims.frontends
            if claim.frontend.ip == frontend.ip and claim.frontend != frontend
        )

    def nodes(self, policy: str) -> list[NodeFate]:
        """Say what becomes of a policy on each node, if it is accepted."""
        picture, case = self.picture(policy), self._whole.case_of(policy)
        if case is None or not picture.verdict.accepted:
            return []
        related = self._related({policy} | self.rivals(policy), [claim.frontend for claim in case.claims.frontends])
        return [NodeFate(node, _fates(self._on(node, related), policy)) for node in sorted(self.live.nodes)]

    def concerned(self, frontend: L4Addr) -> set[str]:
        """Name the policies that claim a frontend, and those that claim anything else that these claim."""
        claimants = self.claimants(frontend)
        return claimants.union(*map(self.rivals, claimants))

    def on_node(self, node: str, frontend: L4Addr) -> Resolver:
        """Resolve for a node whatever concerns a frontend."""
        policies = self.concerned(frontend)
        cases = [case for policy in policies if (case := self._whole.case_of(policy)) is not None]
        claimed = {claim.frontend for case in cases for claim in case.claims.frontends}
        return self._on(node, self._related(policies, claimed | {frontend}))

    def services_at(self, frontend: L4Addr) -> list[tuple[str, str]]:
        """List the Services to which an address belongs, at any node, each with what it is to them."""
        node_ips = frozenset[bytes]().union(*map(view_node_ips, self.live.nodes.values()))
        return [
            (key, kind.value)
            for key, service in sorted(self.live.services.items())
            if (kind := addresses_of(view_service(service), {frontend.ip} & node_ips).get(frontend)) is not None
        ]

    def _related(self, policies: Iterable[str], frontends: Iterable[L4Addr]) -> list[Policy | Service]:
        """Choose what can matter to policies and frontends, on whatever node."""
        policies, frontends = set(policies), set(frontends)
        ips = {frontend.ip for frontend in frontends}
        services = [
            service
            for key, service in self.live.services.items()
            if policies & self._whole.policies_naming(key)
            or not frontends.isdisjoint(addresses_of(view_service(service), ips))
        ]
        return [*(self.live.policies[policy] for policy in sorted(policies)), *services]

    def _on(self, node: str, related: Iterable[Policy | Service]) -> Resolver:
        resolver = Resolver(node, self._options)
        for obj in (*related, *self._of_node(node)):
            resolver.upsert(obj)
        resolver.resolve()
        return resolver

    def _of_node(self, node: str) -> list[Node | Pod]:
        there = self.live.nodes.get(node)
        return [*([there] if there else []), *self._pods_at.get(node, ())]


def _fates(resolver: Resolver, policy: str) -> list[FrontendFate]:
    """Put a policy's part of a node's resolution as it is told."""
    resolution, pods = resolver.resolution(), selected(resolver, policy)
    verdict = next(verdict for verdict in resolution.verdicts if verdict.policy == policy)
    if not verdict.frontends:
        return [FrontendFate("", Fate.USUAL, reason=verdict.reason, message=verdict.message)]
    return [fate_of(item, resolution, pods) for item in verdict.frontends]


def selected(resolver: Resolver, policy: str) -> Sequence[PodView]:
    """List the pods of a resolver's node that a policy selects, by name."""
    case = resolver.case_of(policy)
    return case.pods if case else ()


def fate_of(item: FrontendVerdict, resolution: Resolution, pods: Iterable[PodView]) -> FrontendFate:
    """Say what becomes of one frontend of a policy on a node, with the names of those of its pods that serve it."""
    if not item.redirected:
        fate = Fate.REFUSED if item.drop else Fate.USUAL
        return FrontendFate(str(item.frontend), fate, reason=item.reason or "", message=item.message)
    names = {ip: pod.key for pod in pods if pod.can_serve for ip in pod.ips}
    entry = next(entry for entry in resolution.frontends if entry.frontend == item.frontend)
    backends = [Backend(str(backend), names[backend.ip]) for backend in entry.backends]
    return FrontendFate(str(item.frontend), Fate.REDIRECTED, backends)


def as_if_applied(live: Live, policies: Iterable[Policy], replaced: Mapping[str, Policy]) -> Live:
    """Have policies be applied, all at one moment from now: one that replaces another keeps its age, others are new."""
    applied = {policy.metadata.key: _applied(policy, replaced.get(policy.metadata.key)) for policy in policies}
    return structs.replace(live, policies={**live.policies, **applied})


def _applied(policy: Policy, old: Policy | None) -> Policy:
    meta = ObjectMeta("") if old is None else old.metadata
    generation = meta.generation + (old is None or not is_same(policy, old))
    applied = structs.replace(
        policy.metadata,
        creation_timestamp=meta.creation_timestamp,
        uid=meta.uid,
        generation=generation,
        deletion_timestamp=None,
    )
    return structs.replace(policy, metadata=applied)


def is_same(policy: Policy, other: Policy) -> bool:
    """Whether two policies mean the same; the API server writes defaults into what it keeps."""
    view, others = view_policy(policy), view_policy(other)
    return (view.rules, view.problem) == (others.rules, others.problem)


# --- What agents report -----------------------------------------------------------------------------------------------


class Standing(StrEnum):
    """How an agent stands to what its node should redirect."""

    PROGRAMMED = "programmed"
    PENDING = "pending"  # on its way, as far as one can tell
    TROUBLE = "trouble"
    NOTHING_TO_DO = ""


def standing_of(report: NodeReport | None, meta: ObjectMeta, wanted: int) -> tuple[Standing, str]:
    """Say how a node's agent stands to a policy of which `wanted` frontends are to be redirected there, and why."""
    if hindrance := hindrance_of(report):
        silent = Standing.PENDING if wanted else Standing.NOTHING_TO_DO
        return silent if report is None else Standing.TROUBLE, hindrance
    assert report is not None
    entry = next((entry for entry in report.policies if entry.policy == meta.key), None)
    if entry is None:
        return (
            (Standing.PENDING, "its agent does not report this policy yet") if wanted else (Standing.NOTHING_TO_DO, "")
        )
    if entry.uid != meta.uid or entry.generation != meta.generation:
        return Standing.PENDING, "its agent reports an earlier version of the policy"
    if entry.reason:
        return Standing.TROUBLE, entry.message or entry.reason
    if entry.redirected < wanted:
        return Standing.PENDING, f"its agent reports {entry.redirected} of {wanted} frontends redirected"
    return Standing.PROGRAMMED if wanted else Standing.NOTHING_TO_DO, ""


def hindrance_of(report: NodeReport | None) -> str:
    """Say why nothing at all is redirected on a node, by its agent's report; empty if nothing is in the way."""
    if report is None:
        return "no agent has reported from it"
    return "" if report.in_force else (report.message or "what its agent has programmed is not in force")


def verdict_line(verdict: PolicyVerdict) -> str:
    """Write a verdict's reason and sentence."""
    return f"{verdict.reason}: {verdict.message}" if verdict.message else verdict.reason.value
