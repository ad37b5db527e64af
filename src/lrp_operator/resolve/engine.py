"""Change tracking: from objects that come, change and go to the table, computing anew only what a change concerns.

The life of a change. `upsert` and `delete` see the object (views.py) and, if it looks different from before, note
what it touches; nothing is computed. `resolve` then makes five passes, each noting what the next has to look at:

    ask      each touched policy: what it asks for, and who is over its namespace's limit   frontends.py, rations.py
    plan     each touched policy: which frontends it claims, and which pods serve each      frontends.py, backends.py
    decide   each touched address: who has it, and the table's entry                        ownership.py, services.py
    judge    each touched policy: the verdict on it                                         verdicts.py
    exempt   each touched pod: from which redirects it is exempt                            here

The result of a pass depends on the objects as they are, never on what it was before, so that any order of events
gives what a start from scratch gives. What came out is compared with what was there: a Delta has only what differs.
"""

from collections.abc import Hashable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TypeVar, assert_never

from msgspec import Struct

from lrp_operator.api.addresses import L4Addr
from lrp_operator.api.objects import ClusterObject, EndpointSlice, Node, Pod, Policy, Service
from lrp_operator.api.policy import AddressMatcher, OnNoBackend, PolicyRules, ServiceMatcher
from lrp_operator.resolve import verdicts
from lrp_operator.resolve.age import Age
from lrp_operator.resolve.backends import backends_of
from lrp_operator.resolve.book import ServiceBook
from lrp_operator.resolve.frontends import Claims, claims_of
from lrp_operator.resolve.indices import MultiIndex
from lrp_operator.resolve.model import (
    Delta,
    FrontendEntry,
    FrontendType,
    PolicyReason,
    PolicyVerdict,
    Resolution,
    SkipEntry,
)
from lrp_operator.resolve.options import ClusterIPs, ResolveOptions
from lrp_operator.resolve.ownership import Claimant, Ownership, ServiceClaim, decide
from lrp_operator.resolve.rations import Rations
from lrp_operator.resolve.selection import Selection
from lrp_operator.resolve.services import cluster_ip_entry, is_shown
from lrp_operator.resolve.views import (
    PodView,
    PolicyView,
    view_node_ips,
    view_pod,
    view_policy,
    view_service,
    view_slice,
)

__all__ = ["ClusterIPs", "ResolveOptions", "Resolver", "resolve"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def resolve(objects: Iterable[ClusterObject], node: str, options: ResolveOptions) -> Resolution:
    """Resolve objects for a node. Of several objects with one kind and name the last counts."""
    resolver = Resolver(node, options)
    for obj in objects:
        resolver.upsert(obj)
    resolver.resolve()
    return resolver.resolution()


class Plan(Struct, frozen=True):
    """What a valid policy would do if it had all that it claims. backends: for each frontend claimed."""

    claimant: Claimant
    claims: Claims
    backends: dict[L4Addr, tuple[L4Addr, ...]]


@dataclass(slots=True)
class Touched:
    """What the passes of the next `resolve` have to look at."""

    policies: set[str] = field(default_factory=set)
    frontends: set[L4Addr] = field(default_factory=set)
    verdicts: set[str] = field(default_factory=set)
    pods: set[str] = field(default_factory=set)


WHOLE_CLUSTER = ""
"""The node to resolve for if it is no node but the cluster: no pod is on it, and every node-selector takes it in."""


class Resolver:
    """The resolution of one node, kept up to date."""

    def __init__(self, node: str, options: ResolveOptions) -> None:
        self._node = node
        self._options = options
        # What there is.
        self._policies: dict[str, PolicyView] = {}
        self._pods: dict[str, PodView] = {}
        self._book = ServiceBook()
        self._selection = Selection()
        self._node_labels: dict[str, str] = {}
        self._policies_of_service: MultiIndex[str, str] = MultiIndex()
        self._for_some_nodes: set[str] = set()
        # What follows from it.
        self._asked: dict[str, Claims] = {}
        self._rations = Rations(options.max_frontends_per_namespace)
        self._plans: dict[str, Plan] = {}
        self._claimants: MultiIndex[L4Addr, Claimant] = MultiIndex()
        self._owners: dict[L4Addr, Ownership] = {}
        self._exempt_from: dict[str, frozenset[L4Addr]] = {}
        # What came out.
        self._frontends: dict[L4Addr, FrontendEntry] = {}
        self._verdicts: dict[str, PolicyVerdict] = {}
        self._skips: dict[str, SkipEntry] = {}
        self._touched = Touched()

    def upsert(self, obj: ClusterObject) -> None:
        """Take in an object, new or changed."""
        key = obj.metadata.key
        match obj:
            case Policy():
                self._set_policy(key, obj)
            case Service():
                self._set_service(key, obj)
            case EndpointSlice():
                self._set_slice(key, obj)
            case Pod():
                self._set_pod(key, obj)
            case Node():
                self._set_node(obj.metadata.name, obj)
            case _:
                assert_never(obj)

    def delete(self, kind: type[ClusterObject], key: str) -> None:
        """Forget the object of this kind and name ("namespace/name"; a Node's is "/name"), if it is there."""
        if kind is Policy:
            self._set_policy(key, None)
        elif kind is Service:
            self._set_service(key, None)
        elif kind is EndpointSlice:
            self._set_slice(key, None)
        elif kind is Pod:
            self._set_pod(key, None)
        elif kind is Node:
            self._set_node(key.rpartition("/")[2], None)

    def resolve(self) -> Delta:
        """Bring the resolution up to date and tell what that changed since the previous call, in output order."""
        touched, self._touched = self._touched, Touched()
        frontends: dict[L4Addr, FrontendEntry | None] = {}
        judged: dict[str, PolicyVerdict | None] = {}
        skips: dict[str, SkipEntry | None] = {}
        for key in touched.policies:
            self._ask(key)
        touched.policies |= self._rations.changed()
        for key in touched.policies:
            self._plan(key, touched)
        for frontend in touched.frontends:
            _put(self._frontends, frontend, self._decide(frontend, touched), frontends)
        for key in touched.verdicts:
            _put(self._verdicts, key, self._judge(key, touched), judged)
        for key in touched.pods:
            _put(self._skips, key, self._exempt(key), skips)
        return Delta(
            frontends=dict(sorted(frontends.items(), key=lambda item: item[0].sort_key)),
            verdicts=dict(sorted(judged.items())),
            skips=dict(sorted(skips.items())),
        )

    def resolution(self) -> Resolution:
        """Return the whole, as the last `resolve` left it."""
        return Resolution(
            node=self._node,
            frontends=tuple(sorted(self._frontends.values(), key=lambda entry: entry.frontend.sort_key)),
            verdicts=tuple(verdict for _, verdict in sorted(self._verdicts.items())),
            skips=tuple(skip for _, skip in sorted(self._skips.items())),
        )

    def policy(self, key: str) -> PolicyView | None:
        """Find a policy."""
        return self._policies.get(key)

    def policies(self) -> list[str]:
        """Name the policies that there are."""
        return list(self._policies)

    def claimants(self, frontend: L4Addr) -> AbstractSet[Claimant]:
        """The policies that claim a frontend, as the last `resolve` left it."""
        return self._claimants.get(frontend, frozenset())

    def services_at(self, frontend: L4Addr) -> AbstractSet[ServiceClaim]:
        """The Services to which a frontend belongs."""
        return self._book.claims_at(frontend)

    def case_of(self, policy: str) -> verdicts.Case | None:
        """All that the verdict on a valid policy rests on, as the last `resolve` left it."""
        view, plan = self._policies.get(policy), self._plans.get(policy)
        return self._case(policy, view.rules, plan) if view and view.rules and plan else None

    def policies_naming(self, service: str) -> AbstractSet[str]:
        """The policies whose serviceMatcher names a Service."""
        return self._policies_of_service.get(service, frozenset())

    # --- What a change touches ---

    def _set_policy(self, key: str, policy: Policy | None) -> None:
        old = self._policies.get(key)
        if (old and old.written) == policy:
            return
        self._touched.policies.add(key)
        self._touched.pods |= self._selection.pods_of(key)
        if old is not None:
            self._forget_policy(key, old)
        if policy is not None:
            self._learn_policy(key, view_policy(policy))
        self._touched.pods |= self._selection.pods_of(key)

    def _forget_policy(self, key: str, view: PolicyView) -> None:
        del self._policies[key]
        self._selection.remove_policy(key)
        self._for_some_nodes.discard(key)
        service = _service_of(view.rules)
        if service is not None:
            self._policies_of_service.discard(service, key)

    def _learn_policy(self, key: str, view: PolicyView) -> None:
        self._policies[key] = view
        if view.rules is not None:
            self._selection.set_policy(key, view.written.metadata.namespace, view.rules.selector)
            if view.rules.node_selector is not None:
                self._for_some_nodes.add(key)
        service = _service_of(view.rules)
        if service is not None:
            self._policies_of_service.add(service, key)

    def _set_service(self, key: str, service: Service | None) -> None:
        old = self._book.service(key)
        view = view_service(service) if service else None
        if view == old:
            return
        self._touched.frontends |= self._book.set_service(key, view)
        self._touched.policies |= self._policies_of_service.get(key, set())

    def _set_slice(self, key: str, slice_: EndpointSlice | None) -> None:
        if self._options.cluster_ips is not ClusterIPs.OMIT:
            view = view_slice(slice_, self._node) if slice_ else None
            self._touched.frontends |= self._book.set_slice(key, view)

    def _set_pod(self, key: str, pod: Pod | None) -> None:
        here = pod is not None and pod.spec.node_name == self._node
        view = view_pod(pod) if pod and here else None
        if self._pods.get(key) == view:
            return
        self._touched.pods.add(key)
        self._touched.policies |= self._selection.policies_of(key)
        if view is None:
            del self._pods[key]
            self._selection.remove_pod(key)
        else:
            self._pods[key] = view
            self._selection.set_pod(key, view.namespace, view.labels)
        self._touched.policies |= self._selection.policies_of(key)

    def _set_node(self, name: str, node: Node | None) -> None:
        if name != self._node:
            return
        self._touched.frontends |= self._book.set_node_ips(view_node_ips(node))
        labels = (node.metadata.labels if node else None) or {}
        if labels != self._node_labels:
            self._node_labels = labels
            self._touched.policies |= self._for_some_nodes

    # --- The passes ---

    def _ask(self, key: str) -> None:
        """Work out anew what a policy asks for, wherever it applies and whether or not there is room for it."""
        view = self._policies.get(key)
        if view is None or view.rules is None:
            self._asked.pop(key, None)
            self._rations.ask(key, Age(), 0)
            return
        name = _service_of(view.rules)
        service = self._book.service(name) if name else None
        asked = claims_of(view.rules, view.written.metadata.namespace, service, self._options)
        self._asked[key] = asked
        self._rations.ask(key, view.age, len(asked.frontends))

    def _plan(self, key: str, touched: Touched) -> None:
        """Work out anew what a policy claims."""
        touched.verdicts.add(key)
        old, new = self._plans.pop(key, None), self._make_plan(key)
        if old is not None:
            for claim in old.claims.frontends:
                self._claimants.discard(claim.frontend, old.claimant)
                touched.frontends.add(claim.frontend)
        if new is not None:
            self._plans[key] = new
            for claim in new.claims.frontends:
                self._claimants.add(claim.frontend, new.claimant)
                touched.frontends.add(claim.frontend)

    def _make_plan(self, key: str) -> Plan | None:
        view = self._policies.get(key)
        if view is None or view.rules is None:
            return None
        claims, pods = self._granted(key, view.rules), self._pods_of(key)
        claimant = Claimant(key, view.age, by_address=isinstance(view.rules.frontend, AddressMatcher))
        return Plan(claimant, claims, {claim.frontend: backends_of(claim, pods) for claim in claims.frontends})

    def _granted(self, key: str, rules: PolicyRules) -> Claims:
        """What a policy may claim on this node of what it asks for."""
        if self._rations.shortage(key) is not None:
            return Claims(PolicyReason.TOO_MANY_FRONTENDS)
        elsewhere = rules.node_selector is not None and not rules.node_selector.matches(self._node_labels)
        asked = self._asked[key]
        if elsewhere and asked.accepted and self._node != WHOLE_CLUSTER:
            return Claims(PolicyReason.NODE_NOT_SELECTED)
        return asked

    def _decide(self, frontend: L4Addr, touched: Touched) -> FrontendEntry | None:
        """Decide who has a frontend, and make its entry."""
        claimants = self._claimants.get(frontend, set())
        owner = decide(claimants, self._book.claims_at(frontend))
        if self._owners.get(frontend) != owner:
            touched.verdicts.update(claimant.policy for claimant in claimants)
        if claimants:
            self._owners[frontend] = owner
        else:
            self._owners.pop(frontend, None)
        return self._redirect_entry(frontend, owner) or self._cluster_ip_entry(frontend, owner)

    def _redirect_entry(self, frontend: L4Addr, owner: Ownership) -> FrontendEntry | None:
        if owner.holder is None:
            return None
        key = owner.holder.policy
        plan, rules = self._plans[key], self._policies[key].rules
        backends = plan.backends[frontend]
        if not backends and (rules is None or rules.on_no_backend is not OnNoBackend.DROP):
            return None
        service = plan.claims.service
        skips = rules is not None and rules.skip_redirect_from_backend
        replaces = self._options.cluster_ips is ClusterIPs.SERVE
        return FrontendEntry(
            frontend=frontend,
            type=FrontendType.LOCAL_REDIRECT,
            policy=key,
            service=service.key if service else None,
            backends=backends,
            refuse=not backends,
            original=self._cluster_ip_entry(frontend, owner) if skips and replaces else None,
        )

    def _cluster_ip_entry(self, frontend: L4Addr, owner: Ownership) -> FrontendEntry | None:
        claim, mode = owner.service, self._options.cluster_ips
        service = self._book.service(claim.service) if claim else None
        if claim is None or service is None or not is_shown(service, claim.kind, frontend, mode):
            return None
        return cluster_ip_entry(frontend, service, self._book.slices_of(service.key), mode)

    def _judge(self, key: str, touched: Touched) -> PolicyVerdict | None:
        """Give a policy its verdict, and note from which frontends its pods are exempt."""
        view, plan = self._policies.get(key), self._plans.get(key)
        verdict = self._verdict(key, view, plan) if view else None
        exempt: frozenset[L4Addr] = frozenset()
        if verdict and view and view.rules and view.rules.skip_redirect_from_backend:
            exempt = frozenset(f.frontend for f in verdict.frontends if f.redirected or f.drop)
        if self._exempt_from.pop(key, frozenset()) != exempt:
            touched.pods |= self._selection.pods_of(key)
        if exempt:
            self._exempt_from[key] = exempt
        return verdict

    def _verdict(self, key: str, view: PolicyView, plan: Plan | None) -> PolicyVerdict:
        meta = view.written.metadata
        if view.rules is None or plan is None:
            return verdicts.invalid(key, meta.generation, view.problem)
        return verdicts.judge(self._case(key, view.rules, plan), meta.generation, self._options)

    def _case(self, key: str, rules: PolicyRules, plan: Plan) -> verdicts.Case:
        return verdicts.Case(
            node=self._node,
            namespace=key.partition("/")[0],
            claimant=plan.claimant,
            rules=rules,
            claims=plan.claims,
            pods=self._pods_of(key),
            served={frontend for frontend, backends in plan.backends.items() if backends},
            owners=self._owners,
            shortage=self._rations.shortage(key),
        )

    def _exempt(self, key: str) -> SkipEntry | None:
        """List what a pod is exempt from, by all policies that select it, whether or not it is ready."""
        pod = self._pods.get(key)
        if pod is None:
            return None
        policies = self._selection.policies_of(key)
        exempt = {frontend for policy in policies for frontend in self._exempt_from.get(policy, ())}
        if not exempt:
            return None
        frontends = tuple(sorted(exempt, key=lambda frontend: frontend.sort_key))
        return SkipEntry(key, pod.uid, pod.ips, pod.host_network, frontends)

    def _pods_of(self, policy: str) -> list[PodView]:
        return [self._pods[key] for key in sorted(self._selection.pods_of(policy))]


def _service_of(rules: PolicyRules | None) -> str | None:
    """Name the Service that a policy's serviceMatcher is about."""
    if rules is None or not isinstance(rules.frontend, ServiceMatcher):
        return None
    return f"{rules.frontend.namespace}/{rules.frontend.name}"


def _put(current: dict[K, V], key: K, value: V | None, changes: dict[K, V | None]) -> None:
    """Set or (None) remove a value, and note it among the changes if it differs."""
    if current.get(key) == value:
        return
    changes[key] = value
    if value is None:
        del current[key]
    else:
        current[key] = value
