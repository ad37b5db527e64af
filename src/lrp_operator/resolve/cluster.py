"""The cluster's view of policies: what became of each, and on which nodes a pod can serve.

Whether a policy is accepted, what it claims and which Service has an address are the same on every node: one Resolver,
for no node (WHOLE_CLUSTER), says so. Which pods serve is each node's own, and so is who has a contested frontend where
a node-selector keeps a rival away: the pods of each node are looked at with the functions that the node itself uses.
A changed pod has only its own node looked at anew.

A nodePort of a Service belongs to it at each node's own addresses; that only the node knows, and it reports it.
"""

from collections.abc import Collection, Mapping
from typing import assert_never

from msgspec import Struct, structs

from lrp_operator.api.addresses import L4Addr
from lrp_operator.api.objects import Node, Pod, Policy, Service
from lrp_operator.api.policy import LabelSelector
from lrp_operator.resolve import verdicts
from lrp_operator.resolve.backends import backends_of
from lrp_operator.resolve.engine import WHOLE_CLUSTER, Resolver
from lrp_operator.resolve.frontends import Claims
from lrp_operator.resolve.indices import MultiIndex
from lrp_operator.resolve.model import FrontendReason, PolicyReason, PolicyVerdict
from lrp_operator.resolve.options import ResolveOptions
from lrp_operator.resolve.ownership import decide
from lrp_operator.resolve.selection import Selection
from lrp_operator.resolve.views import PodView, PolicyView, view_pod

ClusterInput = Policy | Service | Pod | Node


class Share(Struct, frozen=True, gc=False):
    """What one node does for a policy: the frontends that a pod there can serve, and how many such pods there are."""

    frontends: frozenset[L4Addr]
    pods: int


class Picture(Struct, frozen=True):
    """What became of a policy in the cluster.

    verdict: a frontend is `redirected` if a pod of any node can serve it. shares: by node, only where there is any.
    nodes: on how many nodes the policy applies. owned: the frontends that it holds, on some node at least.
    """

    verdict: PolicyVerdict
    shares: Mapping[str, Share]
    nodes: int
    owned: frozenset[L4Addr]


_BLOCKED = (FrontendReason.ADDRESS_OWNED_BY_SERVICE, FrontendReason.CONFLICT)
_NO_SHARE = Share(frozenset(), 0)


class ClusterResolver:
    """Pictures of all policies, kept up to date."""

    def __init__(self, options: ResolveOptions) -> None:
        self._options = options
        self._resolver = Resolver(WHOLE_CLUSTER, options)
        self._selection = Selection()
        self._pods: dict[str, tuple[str, PodView]] = {}
        self._pods_at: MultiIndex[str, str] = MultiIndex()
        self._labels: dict[str, dict[str, str]] = {}
        self._for_some_nodes: set[str] = set()
        self._shares: dict[str, dict[str, Share]] = {}
        # What the next `resolve` has to look at: policies, and policies on a node.
        self._touched: set[str] = set()
        self._touched_at: set[tuple[str, str]] = set()
        self._recount = False  # the nodes, of which every policy says on how many it falls back

    def upsert(self, obj: ClusterInput) -> None:
        """Take in an object, new or changed."""
        key = obj.metadata.key
        match obj:
            case Policy():
                self._touch(key)
                self._resolver.upsert(obj)
                self._learn_policy(key)
            case Service():
                self._touched |= self._resolver.policies_naming(key)
                self._resolver.upsert(obj)
            case Pod():
                self._set_pod(key, obj)
            case Node():
                self._set_node(obj.metadata.name, obj.metadata.labels or {})
            case _:
                assert_never(obj)

    def delete(self, kind: type[ClusterInput], key: str) -> None:
        """Forget the object of this kind and name ("namespace/name"; a Node's is "/name"), if it is there."""
        if kind is Policy:
            self._touch(key)
            self._resolver.delete(Policy, key)
            self._selection.remove_policy(key)
            self._for_some_nodes.discard(key)
        elif kind is Service:
            self._touched |= self._resolver.policies_naming(key)
            self._resolver.delete(Service, key)
        elif kind is Pod:
            self._set_pod(key, None)
        elif kind is Node:
            self._set_node(key.rpartition("/")[2], None)

    def resolve(self) -> set[str]:
        """Bring the pictures up to date; the policies whose picture may have changed, or that are gone."""
        delta = self._resolver.resolve()
        touched, self._touched = self._touched | delta.verdicts.keys(), set()
        touched |= {rival for policy in touched for rival in self._rivals(policy)}
        touched_at, self._touched_at = self._touched_at, set()
        for policy in touched:
            self._share_anew(policy)
        for policy, node in touched_at:
            if policy not in touched:
                self._put_share(policy, node)
        recounted, self._recount = self.policies() if self._recount else (), False
        return touched.union((policy for policy, _ in touched_at), recounted)

    def policies(self) -> list[str]:
        """Name the policies that there are."""
        return self._resolver.policies()

    def policies_at(self, node: str) -> set[str]:
        """Name the policies that select a pod of a node."""
        return {policy for pod in self._pods_at.get(node, ()) for policy in self._selection.policies_of(pod)}

    @property
    def nodes(self) -> Mapping[str, object]:
        """The Nodes that there are, by name."""
        return self._labels

    def picture(self, key: str) -> Picture | None:
        """Say what became of a policy, as the last `resolve` left it."""
        view, case = self._resolver.policy(key), self._resolver.case_of(key)
        if view is None:
            return None
        generation, nodes = view.written.metadata.generation, self._nodes_for(view)
        if case is None:
            return Picture(verdicts.invalid(key, generation, view.problem), {}, len(nodes), frozenset())
        verdict = verdicts.judge(self._cluster_case(key, case, nodes), generation, self._options)
        owned = frozenset(f.frontend for f in verdict.frontends if f.reason not in _BLOCKED)
        return Picture(verdict, self._shares.get(key, {}), len(nodes), owned)

    def _cluster_case(self, key: str, case: verdicts.Case, nodes: Collection[str]) -> verdicts.Case:
        """Complete what is the same on every node with what is not."""
        claims, selector = case.claims, case.rules.node_selector
        if claims.accepted and selector is not None and not nodes:
            claims = Claims(PolicyReason.NODE_NOT_SELECTED)
        selected = [self._pods[pod] for pod in sorted(self._selection.pods_of(key))]
        owners = {}
        for frontend in (claim.frontend for claim in claims.frontends):
            alone = decide((case.claimant,), self._resolver.services_at(frontend))
            owners[frontend] = alone if self._is_held(key, frontend, nodes) else case.owners[frontend]
        return structs.replace(
            case,
            claims=claims,
            pods=[pod for node, pod in selected if self._applies(selector, node)],
            served=frozenset().union(*{share.frontends for share in self._shares.get(key, {}).values()}),
            owners=owners,
        )

    def _nodes_for(self, view: PolicyView) -> Collection[str]:
        """Name the nodes on which a policy applies."""
        selector = view.rules.node_selector if view.rules else None
        return (
            self._labels if selector is None else [n for n, labels in self._labels.items() if selector.matches(labels)]
        )

    # --- What a change touches ---

    def _touch(self, policy: str) -> None:
        """Have a policy looked at anew, and those that claim what it claims."""
        self._touched.add(policy)
        self._touched |= self._rivals(policy)

    def _rivals(self, policy: str) -> set[str]:
        """Name the policies that claim a frontend of this one, where node-selectors can divide them."""
        case = self._resolver.case_of(policy)
        if case is None or not self._for_some_nodes:
            return set()
        claims = case.claims.frontends
        return {rival.policy for claim in claims for rival in self._resolver.claimants(claim.frontend)}

    def _learn_policy(self, key: str) -> None:
        view = self._resolver.policy(key)
        rules = view.rules if view else None
        self._selection.remove_policy(key)
        self._for_some_nodes.discard(key)
        if rules is not None:
            self._selection.set_policy(key, key.partition("/")[0], rules.selector)
        if rules is not None and rules.node_selector is not None:
            self._for_some_nodes.add(key)

    def _set_pod(self, key: str, pod: Pod | None) -> None:
        node = (pod.spec.node_name if pod else None) or ""
        new = (node, view_pod(pod)) if pod and node else None
        old = self._pods.get(key)
        if new == old:
            return
        self._touch_pod(key, old)
        if old is not None:
            self._pods_at.discard(old[0], key)
        if new is None:
            self._pods.pop(key, None)
            self._selection.remove_pod(key)
            return
        self._pods[key] = new
        self._pods_at.add(node, key)
        self._selection.set_pod(key, new[1].namespace, new[1].labels)
        self._touch_pod(key, new)

    def _touch_pod(self, key: str, placed: tuple[str, PodView] | None) -> None:
        if placed is not None:
            self._touched_at |= {(policy, placed[0]) for policy in self._selection.policies_of(key)}

    def _set_node(self, name: str, labels: dict[str, str] | None) -> None:
        old = self._labels.get(name)
        if labels == old:
            return
        if labels is None:
            del self._labels[name]
        else:
            self._labels[name] = labels
        self._touched |= self._for_some_nodes
        self._recount = self._recount or labels is None or old is None

    # --- Shares ---

    def _share_anew(self, policy: str) -> None:
        self._shares.pop(policy, None)
        for node in {self._pods[pod][0] for pod in self._selection.pods_of(policy)}:
            self._put_share(policy, node)

    def _put_share(self, policy: str, node: str) -> None:
        share, shares = self._share(policy, node), self._shares.setdefault(policy, {})
        if share.frontends:
            shares[node] = share
        else:
            shares.pop(node, None)
        if not shares:
            del self._shares[policy]

    def _share(self, policy: str, node: str) -> Share:
        case = self._resolver.case_of(policy)
        if case is None or not self._applies(case.rules.node_selector, node):
            return _NO_SHARE
        here, selected = self._pods_at.get(node, set()), self._selection.pods_of(policy)
        pods = [self._pods[key][1] for key in here & selected]
        frontends: set[L4Addr] = set()
        serving: set[str] = set()
        for claim in case.claims.frontends:
            able = [pod for pod in pods if backends_of(claim, (pod,))]
            if able and self._is_held(policy, claim.frontend, (node,)):
                frontends.add(claim.frontend)
                serving.update(pod.key for pod in able)
        return Share(frozenset(frontends), len(serving))

    def _applies(self, selector: LabelSelector | None, node: str) -> bool:
        return selector is None or selector.matches(self._labels.get(node))

    def _is_held(self, policy: str, frontend: L4Addr, nodes: Collection[str]) -> bool:
        """Whether a policy has a frontend on each of these nodes, on all of which it applies."""
        claimants, services = self._resolver.claimants(frontend), self._resolver.services_at(frontend)
        holder = decide(claimants, services).holder
        if holder is None or holder.policy == policy:
            return holder is not None
        if not any(claimant.policy in self._for_some_nodes for claimant in claimants):
            return False
        for node in nodes:
            here = [claimant for claimant in claimants if self._applies(self._node_selector(claimant.policy), node)]
            holder = decide(here, services).holder
            if holder is None or holder.policy != policy:
                return False
        return bool(nodes)

    def _node_selector(self, policy: str) -> LabelSelector | None:
        view = self._resolver.policy(policy)
        return view.rules.node_selector if view and view.rules else None
