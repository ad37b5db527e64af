"""One rollout of a node-local DNS cache after another, in the orders that a cluster has for it.

Whoever stops is told first, serves on for a grace period, and dies after it: the steps below wait in between until the
agent has acted on what was said, which takes a fraction of any grace period.
"""

import time
from dataclasses import dataclass
from itertools import cycle

from lab import Pod, Server
from tests.rollout.cluster import Cluster, described
from tests.rollout.traffic import Stages

BETWEEN = 0.15  # seconds in which clients meet what a step has made


@dataclass(slots=True)
class Cache:
    """A DNS cache pod and its server. name: as the cluster knows it."""

    pod: Pod
    name: str
    server: Server


class Rollouts:
    """A cache that is replaced again and again."""

    def __init__(self, cluster: Cluster, stages: Stages) -> None:
        self._cluster = cluster
        self._stages = stages
        self._orders = cycle([self.gap, self.surge, self.in_a_row, self.same_name])
        self.addresses: list[str] = []  # of every cache that has been ready, in order
        self.cache = self._new()
        self._ready(self.cache)
        cluster.redirected_to([self.cache.pod])

    def next(self) -> None:
        """Replace the cache, in the next of the four orders."""
        next(self._orders)()

    def gap(self) -> None:
        """The new pod becomes ready only after the old one has gone: meanwhile the Service's own backends serve."""
        old, new = self.cache, self._new()
        self._terminating(old)
        self._cluster.redirected_to([])
        self._pause()
        self._ready(new)
        self._cluster.redirected_to([new.pod])
        self._dies(old)
        self.cache = new

    def surge(self) -> None:
        """The new pod is ready beside the old one before that is stopped (maxSurge: 1)."""
        old, new = self.cache, self._new()
        self._ready(new)
        self._cluster.redirected_to([old.pod, new.pod])
        self._pause()
        self._terminating(old)
        self._cluster.redirected_to([new.pod])
        self._dies(old)
        self.cache = new

    def in_a_row(self) -> None:
        """The old pod is stopped and the new one gets ready, and nobody waits for the agent in between."""
        old, new = self.cache, self._new()
        self._terminating(old)
        self._ready(new)
        self._cluster.redirected_to([new.pod])
        self._dies(old)
        self.cache = new

    def same_name(self) -> None:
        """The new pod has the old one's name and another address (a StatefulSet's or a static pod)."""
        old = self.cache
        self._terminating(old)
        self._cluster.redirected_to([])
        self._pause()
        self._dies(old)
        self.cache = self._new(old.name)
        self._pause()
        self._ready(self.cache)
        self._cluster.redirected_to([self.cache.pod])
        self._pause()

    def end(self) -> None:
        """Take the last cache away too."""
        self._terminating(self.cache)
        self._cluster.redirected_to([])
        self._dies(self.cache)

    # --- Steps

    def _pause(self) -> None:
        time.sleep(BETWEEN)

    def _new(self, name: str = "") -> Cache:
        self._stages.enter("a new pod starts")
        pod = self._cluster.dns_pod()
        cache = Cache(pod, name or pod.short_name, self._cluster.serve(pod))
        self._say(cache, ready=False)
        return cache

    def _ready(self, cache: Cache) -> None:
        self._cluster.probe(cache.pod)
        self._stages.enter("the new pod gets ready")
        self.addresses.append(cache.pod.ipv4)
        self._say(cache, ready=True)

    def _terminating(self, cache: Cache) -> None:
        self._stages.enter("the old pod is stopped")
        self._say(cache, ready=True, terminating=True)

    def _dies(self, cache: Cache) -> None:
        self._stages.enter("the old pod is not ready")
        self._say(cache, ready=False, terminating=True)
        self._pause()
        self._stages.enter("the old pod dies")
        cache.server.stop()
        self._pause()
        self._cluster.delete(cache.name)
        cache.pod.remove()

    def _say(self, cache: Cache, *, ready: bool, terminating: bool = False) -> None:
        said = described(cache.pod, cache.name, ready=ready, terminating=terminating)
        self._cluster.write(cache.name, said)
