"""The Kubernetes API as a source of objects: what this node needs to decide alone, and nothing else.

    policies        all namespaces
    Services        those that policies are about (kube_services.py); all, where kube-proxy is replaced
    EndpointSlices  only where kube-proxy is replaced, and only those that kube-proxy would read
    Pods            of this node
    Nodes           this one

Each is an informer of its own; what they tell is gathered here and handed on as one change. While the API server is
away nothing is handed on, so everything stays as it is, and the status says since when. The source is complete once
every watch has told all that it is about: before that, an agent that has just started touches nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Generic

import msgspec
from msgspec import Struct

from lrp_operator.agent.kube_services import NeededServices
from lrp_operator.agent.parts import ObjectKey, SourceUpdate
from lrp_operator.api.objects import ClusterObject, Node, Policy, Service
from lrp_operator.resolve.views import view_node_ips
from lrp_operator.sources.kube.client import KubeClient
from lrp_operator.sources.kube.informer import Change, Informer, Timing
from lrp_operator.sources.kube.resources import NODES, PODS, POLICIES, SERVICES, SLICES, Resource, T

KUBE_PROXYS_SLICES = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name"
AS_THEY_ARE = "redirects go on as they are"
USUAL = Timing()


class _Nodes(Struct, frozen=True):
    items: list[Node]


_NODES = msgspec.json.Decoder(_Nodes)


class Watch(Generic[T]):
    """An informer that is being followed, and how it stands."""

    def __init__(self, informer: Informer[T], take: Callable[[Change[T]], None]) -> None:
        self._informer = informer
        self._take = take
        self._task: asyncio.Task[None] | None = None
        self.synced = False
        self.problem = ""
        self.unreadable: tuple[str, ...] = ()

    def start(self) -> asyncio.Task[None]:
        """Begin."""
        self._task = asyncio.create_task(self._run())
        return self._task

    def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        async with aclosing(self._informer.changes()) as changes:
            async for change in changes:
                self.synced, self.problem, self.unreadable = change.synced, change.problem, change.unreadable
                self._take(change)


class KubernetesSource:
    """The objects that a node needs, followed live."""

    def __init__(self, client: KubeClient, node: str, *, replaces_kube_proxy: bool, timing: Timing = USUAL) -> None:
        self.name = f"the Kubernetes API at {client.server}"
        self.node_uid = ""  # empty while there is no Node object
        self.node_ips: frozenset[bytes] = frozenset()
        self.policy_uids: dict[str, str] = {}
        self.client = client
        self._node = node
        self._replaces = replaces_kube_proxy
        self._timing = timing
        self._needed = NeededServices(self, self._tell_service)
        self._waiting: dict[str, Policy] = {}  # until what they are about is known
        self._watches: dict[asyncio.Task[None], Watch[Any]] = {}
        self._bug: BaseException | None = None
        self._news: dict[ObjectKey, ClusterObject | None] = {}
        self._wake = asyncio.Event()

    async def changes(self) -> AsyncIterator[SourceUpdate]:
        """Tell everything there is, then every change. Ending it closes the client."""
        self._begin()
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._bug is not None:
                    raise self._bug
                yield self._update()
        finally:
            tasks = list(self._watches)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.client.close()

    async def look_up_node(self) -> str:
        """Ask for the uid of this Node, for who follows nothing; empty if there is none. Raises ApiFailure."""
        body = await self.client.request("GET", NODES.path(), {"fieldSelector": f"metadata.name={self._node}"})
        return next((node.metadata.uid for node in _NODES.decode(body).items), "")

    def _begin(self) -> None:
        self._open(POLICIES, self._take_policies)
        self._open(PODS, self._taking(PODS), field_selector=f"spec.nodeName={self._node}")
        self._open(NODES, self._take_node, field_selector=f"metadata.name={self._node}")
        if self._replaces:
            self._open(SERVICES, self._taking(SERVICES))
            self._open(SLICES, self._taking(SLICES), label_selector=KUBE_PROXYS_SLICES)

    def follow(self, service: str | None, take: Callable[[Change[Service]], None]) -> Watch[Service]:
        """Watch one Service ("namespace/name"), or (None) all."""
        namespace, _, name = (service or "").partition("/")
        return self._open(
            SERVICES, take, namespace=namespace or None, field_selector=f"metadata.name={name}" if name else ""
        )

    def _open(
        self,
        resource: Resource[T],
        take: Callable[[Change[T]], None],
        *,
        namespace: str | None = None,
        field_selector: str = "",
        label_selector: str = "",
    ) -> Watch[T]:
        """Begin to follow objects. What they are is told to `take`, before this source's reader is woken."""
        informer = Informer(
            self.client,
            resource,
            namespace=namespace,
            field_selector=field_selector,
            label_selector=label_selector,
            timing=self._timing,
        )

        def heard(change: Change[T]) -> None:
            take(change)
            self._wake.set()

        watch = Watch(informer, heard)
        task = watch.start()
        self._watches[task] = watch
        task.add_done_callback(self._ended)
        return watch

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Forget a watch that was stopped; an exception is a bug, and goes up."""
        del self._watches[task]
        if not task.cancelled():
            self._bug = task.exception()
        self._wake.set()

    # --- What the watches tell ---

    def _taking(self, resource: Resource[T]) -> Callable[[Change[T]], None]:
        """Pass objects on as they come."""
        kind: type[Any] = resource.type

        def take(change: Change[T]) -> None:
            for key in change.deletes:
                self._news[kind, key] = None
            for obj in change.upserts:
                known: Any = obj
                self._news[kind, known.metadata.key] = known

        return take

    def _take_node(self, change: Change[Node]) -> None:
        self._taking(NODES)(change)
        if change.deletes:
            self.node_uid, self.node_ips = "", frozenset()
        for node in change.upserts:
            self.node_uid, self.node_ips = node.metadata.uid, view_node_ips(node)

    def _take_policies(self, change: Change[Policy]) -> None:
        for key in change.deletes:
            self.policy_uids.pop(key, None)
            self._waiting.pop(key, None)
            self._news[Policy, key] = None
            if not self._replaces:
                self._needed.set_policy(key, None)
        for policy in change.upserts:
            key = policy.metadata.key
            self.policy_uids[key] = policy.metadata.uid
            self._waiting[key] = policy
            if not self._replaces:
                self._needed.set_policy(key, policy)

    def _tell_service(self, key: str, service: Service | None) -> None:
        self._news[Service, key] = service

    # --- What the agent is told ---

    def _update(self) -> SourceUpdate:
        """Gather what is new, and say how things stand."""
        for key in [key for key in self._waiting if self._replaces or self._needed.covers(key)]:
            self._news[Policy, key] = self._waiting.pop(key)
        news, self._news = self._news, {}
        watches = self._watches.values()
        complete = all(watch.synced for watch in watches) and not self._waiting
        unreadable = [sentence for watch in watches for sentence in watch.unreadable]
        hindered = [f"{watch.problem}; {AS_THEY_ARE}" for watch in watches if watch.problem]
        return SourceUpdate(
            upserts=tuple(obj for obj in news.values() if obj is not None),
            deletes=tuple(key for key, obj in news.items() if obj is None),
            problems=tuple(dict.fromkeys([*hindered, *unreadable])),
            complete=complete,
            whole=complete and not unreadable,
        )
