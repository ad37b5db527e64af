"""What the controller follows with informers, and puts into the world: Services, Nodes, reports, and some pods.

Services are all followed, as a projection: an address that a policy names may belong to any of them. Pods only in the
namespaces that have policies, each by an informer of its own that ends when the namespace's last policy goes.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from lrp_operator.api import nodestate
from lrp_operator.api.nodestate import NodeRedirectState
from lrp_operator.api.objects import Node, Service
from lrp_operator.controller.world import World
from lrp_operator.sources.kube.client import KubeClient
from lrp_operator.sources.kube.informer import Change, Informer
from lrp_operator.sources.kube.resources import NODES, PODS, SERVICES, Resource

NODE_STATES = Resource(
    f"/apis/{nodestate.GROUP}/{nodestate.VERSION}", nodestate.PLURAL, "NodeRedirectState", NodeRedirectState
)


class Feeds:
    """The informers, and how far they are. changed: called after anything was put into the world."""

    def __init__(self, client: KubeClient, world: World, changed: Callable[[], None]) -> None:
        self._client = client
        self._world = world
        self._changed = changed
        self._states: dict[str, Change[Any]] = {kind: Change() for kind in (*_CLUSTER_WIDE, NODE_STATES.plural)}
        self._pods: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None

    @property
    def complete(self) -> bool:
        """Whether all that concerns the cluster as a whole has been told once."""
        return all(change.synced for name, change in self._states.items() if not name.startswith("pods"))

    @property
    def problems(self) -> list[str]:
        """What hinders the informers just now, a sentence each."""
        hindered = {change.problem for change in self._states.values() if change.problem}
        return sorted(hindered.union(*(change.unreadable for change in self._states.values())))

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as self._tasks:
            for name, (resource, kind) in _CLUSTER_WIDE.items():
                self._tasks.create_task(self._follow(name, Informer(self._client, resource), kind))
            self._tasks.create_task(self._follow_reports())
            self.follow_namespaces()

    def follow_namespaces(self) -> None:
        """Follow the pods of the namespaces that have policies now, and no others."""
        if self._tasks is None:
            return
        wanted = self._world.namespaces
        for namespace in self._pods.keys() - wanted:
            self._pods.pop(namespace).cancel()
            del self._states[f"pods of {namespace}"]
            self._world.forget_namespace(namespace)
        for namespace in wanted - self._pods.keys():
            self._states[f"pods of {namespace}"] = Change()
            self._pods[namespace] = self._tasks.create_task(self._follow_pods(namespace))

    async def _follow(self, name: str, informer: Informer[Any], kind: type) -> None:
        async with aclosing(informer.changes()) as changes:
            async for change in changes:
                self._states[name] = change
                self._world.put(change.upserts, change.deletes, kind)
                self._changed()

    async def _follow_reports(self) -> None:
        async with aclosing(Informer(self._client, NODE_STATES).changes()) as changes:
            async for change in changes:
                self._states[NODE_STATES.plural] = change
                self._world.put_reports(change.upserts, change.deletes)
                self._changed()

    async def _follow_pods(self, namespace: str) -> None:
        async with aclosing(Informer(self._client, PODS, namespace=namespace).changes()) as changes:
            async for change in changes:
                self._states[f"pods of {namespace}"] = change
                self._world.put(change.upserts, change.deletes, PODS.type)
                if change.synced:
                    self._world.namespace_told(namespace)
                self._changed()


_CLUSTER_WIDE: dict[str, tuple[Resource[Any], type]] = {
    SERVICES.plural: (SERVICES, Service),
    NODES.plural: (NODES, Node),
}
