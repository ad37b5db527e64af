"""Following a real API server in a test: the objects as an informer tells them, and waiting for what is to come."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

from lrp_operator.sources.kube.backoff import Pauses
from lrp_operator.sources.kube.client import KubeClient
from lrp_operator.sources.kube.credentials import ServiceAccount
from lrp_operator.sources.kube.informer import Change, Informer, Timing
from lrp_operator.sources.kube.resources import T
from tests.cluster.apiserver import Cluster, Manifest

PATIENCE = 40.0
QUICK = Timing(inactivity=3.0, beginning=3.0, pauses=Pauses(first=0.1, most=1.0))


@dataclass
class Followed(Generic[T]):
    """What an informer has told."""

    objects: dict[str, T] = field(default_factory=dict)
    changes: list[Change[T]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def names(self) -> str:
        """The objects' names, sorted, as one text."""
        return " ".join(sorted(key.rpartition("/")[2] for key in self.objects))

    @property
    def now(self) -> Change[T]:
        """How things stand."""
        return self.changes[-1] if self.changes else Change()

    async def until(self, condition: Callable[[], bool], what: str = "it") -> None:
        """Wait for something that is to come."""
        await until(condition, lambda: f"{what}: {self.names!r} {self.now}")

    async def shows(self, names: str) -> None:
        """Wait until these objects are there, all of them told, and nothing is wrong."""
        await self.until(lambda: self.names == names and self.now.synced and not self.now.problem, names)

    def take(self, change: Change[T]) -> None:
        """Take in a change, as every reader is to."""
        self.changes.append(change)
        for key in change.deletes:
            self.objects.pop(key, None)
        for obj in change.upserts:
            anything: Any = obj
            self.objects[anything.metadata.key] = obj


async def until(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    """Wait for something that is to come."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what()}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def following(informer: Informer[T]) -> AsyncIterator[Followed[T]]:
    """Follow, in the background, until the end of the block."""
    followed: Followed[T] = Followed()

    async def follow() -> None:
        async with aclosing(informer.changes()) as changes:
            async for change in changes:
                followed.take(change)

    task = asyncio.create_task(follow())
    try:
        yield followed
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def account(cluster: Cluster, directory: Path, server: str = "", token: str = "") -> ServiceAccount:
    """The cluster's administrator, in files as a pod has them."""
    (directory / "ca.crt").write_bytes(cluster.ca.read_bytes())
    (directory / "token").write_text(token or cluster.token)
    return ServiceAccount(server or cluster.url, directory)


def connect(cluster: Cluster, directory: Path, server: str = "") -> KubeClient:
    """A client of the cluster, or of a proxy in front of it."""
    return KubeClient(account(cluster, directory, server))


def service(name: str, namespace: str, **spec: Any) -> Manifest:
    """A Service with a ClusterIP."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}], **spec},
    }


def policy(name: str, namespace: str, frontend: Manifest, app: str = "dns") -> Manifest:
    """A policy that redirects to pods of an app, to their DNS port."""
    backend = {
        "localEndpointSelector": {"matchLabels": {"app": app}},
        "toPorts": [{"port": "53", "protocol": "UDP", "name": "dns"}],
    }
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumLocalRedirectPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"redirectFrontend": frontend, "redirectBackend": backend},
    }


def to_service(name: str, namespace: str) -> Manifest:
    """A frontend: every port of a Service."""
    return {"serviceMatcher": {"serviceName": name, "namespace": namespace}}


def to_address(ip: str) -> Manifest:
    """A frontend: an address."""
    return {"addressMatcher": {"ip": ip, "toPorts": [{"port": "53", "protocol": "UDP"}]}}


def heed(cluster: Cluster, order: str, state: Manifest, report: Manifest) -> None:
    """Wait for the order to withdraw, and answer it as a node's agent does. order: the ConfigMap's path."""
    end = time.monotonic() + PATIENCE
    while "data" in (found := cluster.request("GET", order).body):
        assert time.monotonic() < end, "nobody orders to withdraw"
        time.sleep(0.1)
    cluster.apply(state | {"report": report | {"withdrawn": found["metadata"]["resourceVersion"]}})
