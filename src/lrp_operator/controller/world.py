"""All that the controller knows, and the status that each policy should show. No effects: put things in, read out.

Nothing is said of a policy before everything that its status rests on has been told at least once: Services, Nodes, the
nodes' reports, and the pods of its namespace. Half a picture would tell people that nothing works.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from lrp_operator.api.addresses import L4Addr
from lrp_operator.api.nodestate import NodeRedirectState
from lrp_operator.api.objects import Node, ObjectMeta, Pod, Policy, Service
from lrp_operator.controller.fold import Known, differs, fold, standings_in
from lrp_operator.controller.policies import SeenPolicy
from lrp_operator.controller.reports import NodeReports
from lrp_operator.resolve.cluster import ClusterResolver, Picture
from lrp_operator.resolve.indices import MultiIndex
from lrp_operator.resolve.options import ResolveOptions
from lrp_operator.sources.kube.told import is_newer


class Handover(NamedTuple):
    """A frontend that changed hands: which policies had it, and which have it now."""

    frontend: L4Addr
    before: tuple[str, ...]
    after: tuple[str, ...]


class Job(NamedTuple):
    """What a policy should show, where that differs from what it shows."""

    meta: ObjectMeta
    status: dict[str, Any]
    shown: Mapping[str, Any]

    @property
    def urgent(self) -> bool:
        """Whether people would act on the difference."""
        same_generation = self.status["observedGeneration"] == self.shown.get("observedGeneration")
        return not same_generation or standings_in(self.status) != standings_in(self.shown)


class World:
    """What there is."""

    def __init__(self, options: ResolveOptions) -> None:
        self._cluster = ClusterResolver(options)
        self._reports = NodeReports()
        self._pictures: dict[str, Picture] = {}
        self._seen: dict[str, SeenPolicy] = {}
        self._owners: MultiIndex[L4Addr, str] = MultiIndex()
        self._pods: MultiIndex[str, str] = MultiIndex()
        self._touched: set[str] = set()
        self._namespaces_told: set[str] = set()

    # --- In ---

    def put_policy(self, key: str, seen: SeenPolicy | None) -> None:
        """Take in a policy as it was read (None: it is gone), unless a later state of it is known."""
        old = self._seen.get(key)
        if not (seen and old and seen.uid == old.uid and is_newer(old.version, seen.version)):
            self._set_policy(key, seen)

    def _set_policy(self, key: str, seen: SeenPolicy | None) -> None:
        old = self._seen.pop(key, None)
        if seen is not None:
            self._seen[key] = seen
            self._cluster.upsert(seen.policy)
        elif old is not None:
            self._cluster.delete(Policy, key)
        self._touched.add(key)

    def put_all_policies(self, found: Mapping[str, SeenPolicy]) -> None:
        """Take in all policies that there are; a listing is believed whatever versions it has."""
        for key in [*(self._seen.keys() - found.keys()), *found]:
            seen = found.get(key)
            if seen is None or seen.version != self.version(key):
                self._set_policy(key, seen)

    def put(self, upserts: Iterable[Service | Pod | Node], deletes: Iterable[str], kind: type) -> None:
        """Take in Services, pods or Nodes."""
        for key in deletes:
            self._cluster.delete(kind, key)
            self._pods.discard(key.partition("/")[0], key)
        for obj in upserts:
            self._cluster.upsert(obj)
            if isinstance(obj, Pod):
                self._pods.add(obj.metadata.namespace, obj.metadata.key)

    def put_reports(self, upserts: Iterable[NodeRedirectState], deletes: Iterable[str]) -> None:
        """Take in what nodes report."""
        for key in deletes:
            self._put_report(key.rpartition("/")[2], None)
        for state in upserts:
            self._put_report(state.metadata.name, state)

    def namespace_told(self, namespace: str) -> None:
        """Take in that all pods of a namespace have been told."""
        if namespace not in self._namespaces_told:
            self._namespaces_told.add(namespace)
            self._touched |= {key for key in self._seen if key.partition("/")[0] == namespace}

    def forget_namespace(self, namespace: str) -> None:
        """Forget a namespace's pods: they are followed no more."""
        self._namespaces_told.discard(namespace)
        for key in tuple(self._pods.get(namespace, ())):
            self.put((), (key,), Pod)

    def shows(self, key: str, seen: SeenPolicy) -> None:
        """Take in a policy as it is after we wrote its status: it may have been edited since it was read."""
        old = self._seen.get(key)
        if old is not None and seen.policy == old.policy:
            self._seen[key] = seen
        else:
            self.put_policy(key, seen)

    def touch_all(self) -> None:
        """Have every policy looked at."""
        self._touched |= self._seen.keys()

    def _put_report(self, node: str, state: NodeRedirectState | None) -> None:
        changed, of_itself = self._reports.put(node, state.report if state else None)
        self._touched |= changed
        if of_itself:
            self._touched |= self._cluster.policies_at(node)

    # --- Out ---

    @property
    def namespaces(self) -> set[str]:
        """The namespaces that have policies."""
        return {key.partition("/")[0] for key in self._seen}

    @property
    def policies(self) -> Collection[str]:
        """The policies that there are."""
        return self._seen.keys()

    @property
    def uids(self) -> set[str]:
        """Which objects these are."""
        return {seen.uid for seen in self._seen.values()}

    @property
    def pictures(self) -> Mapping[str, Picture]:
        """What became of each, as the last `settle` left it."""
        return self._pictures

    def version(self, key: str) -> str | None:
        """Which state of a policy is known."""
        seen = self._seen.get(key)
        return seen.version if seen else None

    def settle(self) -> tuple[set[str], list[Handover]]:
        """Work out what all that came means: the policies to be looked at, and the frontends that changed hands."""
        touched, self._touched = self._touched | self._cluster.resolve(), set()
        before: dict[L4Addr, tuple[str, ...]] = {}
        for key in touched:
            self._settle(key, before)
        if touched:
            self._reports.forget_unused()
        handovers = [Handover(frontend, old, self._owners_of(frontend)) for frontend, old in before.items()]
        return touched, [handover for handover in handovers if handover.before != handover.after]

    def job(self, key: str) -> Job | None:
        """Say what a policy should show, if it shows something else."""
        seen, picture = self._seen.get(key), self._pictures.get(key)
        if seen is None or picture is None or key.partition("/")[0] not in self._namespaces_told:
            return None
        meta, now = seen.policy.metadata, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        status = fold(meta, Known(picture, self._reports, self._cluster.nodes), seen.status, now)
        return Job(meta, status, seen.status) if differs(status, seen.status) else None

    def status(self, key: str) -> dict[str, Any] | None:
        """What a policy should show; None as long as that is not known."""
        job = self.job(key)
        seen = self._seen.get(key)
        return job.status if job else dict(seen.status) if seen else None

    def _settle(self, key: str, before: dict[L4Addr, tuple[str, ...]]) -> None:
        old, new = self._pictures.pop(key, None), self._cluster.picture(key)
        if new is not None:
            self._pictures[key] = new
        had, has = old.owned if old else frozenset(), new.owned if new else frozenset()
        for frontend in had ^ has:
            before.setdefault(frontend, self._owners_of(frontend))
            if frontend in has:
                self._owners.add(frontend, key)
            else:
                self._owners.discard(frontend, key)

    def _owners_of(self, frontend: L4Addr) -> tuple[str, ...]:
        return tuple(sorted(self._owners.get(frontend, ())))
