"""What the agent takes on a real API server: until a change is in the node's map, to start in a large cluster, at rest.

A change is timed from the moment when the request that makes it is sent until the frontend is in (or out of) the pinned
map, which is looked at every half a millisecond. So the API server's own part, some milliseconds, is in it.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from benchmarks import cluster_objects as objects
from benchmarks.cluster_lines import Effort, Lines, Tell
from benchmarks.cluster_processes import PATIENCE, Agent, Api, requests_of
from benchmarks.topology import BenchmarkError
from lab import Node
from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath.layout import frontend_key
from lrp_operator.kernel import bpf
from tests.cluster.apiserver import Cluster

STANDING_POLICIES, PODS = 100, 250
SERVICES, ENDPOINTS_EACH = 10_000, 10
_LOOK_SECONDS = 0.0005
_RECONCILE_SECONDS = 38
"""After so long an agent has read the kernel back once."""
_OWN = IPv4Address("169.254.77.1")
_OWN_POD = IPv4Address("10.244.0.9")


def measure(cluster: Cluster, effort: Effort, lines: Lines, tell: Tell) -> None:
    """Do all of it, in a cluster that ends up large."""
    api = Api(cluster)
    cluster.store(objects.usual_node(STANDING_POLICIES, PODS), at_once=objects.AT_ONCE)
    with tempfile.TemporaryDirectory(prefix="lrp-bench-") as directory, Node() as node:
        with _agent(cluster, node, "usual", Path(directory)) as agent:
            tell("cluster: changes, one by one")
            _changes(api, agent, effort.changes, lines)
            tell("cluster: an agent at rest")
            _rest(cluster, agent, effort.rest, lines)
        _start(cluster, node, "none", Path(directory), lines)
        tell(f"cluster: {SERVICES:,} Services, {SERVICES * ENDPOINTS_EACH:,} endpoints")
        for some in objects.many_services(SERVICES, ENDPOINTS_EACH):
            cluster.store(some, at_once=objects.AT_ONCE)
        _wait_until_known(api)
        _start(cluster, node, "many", Path(directory), lines)
        for number in range(effort.starts):
            tell(f"cluster: kube-proxy replaced, start {number + 1} of {effort.starts}")
            _first_sync(cluster, node, f"replacing{number}", Path(directory), lines)
    api.close()


@contextmanager
def _agent(cluster: Cluster, node: Node, name: str, room: Path, *flags: str) -> Iterator[Agent]:
    agent = Agent(cluster, node, name, objects.NODE, room, *flags)
    try:
        agent.wait_until_ready()
        yield agent
    finally:
        agent.end()


# --- Changes ----------------------------------------------------------------------------------------------------------


class _Frontends:
    """A node's frontends, as the pinned map has them."""

    def __init__(self, agent: Agent) -> None:
        self._map = bpf.Map.open(agent.frontends[0])
        self._eye = ThreadPoolExecutor(1, "eye")

    def timed(self, frontend: L4Addr, *, there: bool, change: Callable[[], None]) -> tuple[float, float]:
        """Make a change; the seconds until the frontend is there (or not), and until the API server has answered."""
        began = time.perf_counter()
        seen = self._eye.submit(self._until, frontend_key(frontend), there)
        change()
        answered = time.perf_counter() - began
        return seen.result() - began, answered

    def _until(self, key: bytes, there: bool) -> float:
        deadline = time.perf_counter() + PATIENCE
        while (self._map.lookup(key) is not None) is not there:
            if time.perf_counter() > deadline:
                raise BenchmarkError(f"in vain for a frontend to be {'there' if there else 'gone'}")
            time.sleep(_LOOK_SECONDS)
        return time.perf_counter()

    def count(self) -> int:
        """How many there are."""
        return sum(1 for _ in self._map.items())

    def close(self) -> None:
        self._eye.shutdown()
        self._map.close()


def _changes(api: Api, agent: Agent, times: int, lines: Lines) -> None:
    own, service = objects.pod("own", _OWN_POD, "own"), _new_service()
    status = own.pop("status")
    api.apply(_without_uid(own))
    path = f"{api.path(own)}/status"
    api.merge(path, {"status": status})
    api.apply(service)
    vip = api.ask("GET", api.path(service))["spec"]["clusterIP"]
    frontends = _Frontends(agent)
    for name, frontend, at in (
        ("apply", objects.to_address(_OWN), str(_OWN)),
        ("apply-service", objects.to_service("dns"), vip),
    ):
        policy = _without_uid(objects.policy("own", frontend, "own"))
        address = L4Addr.make(at, 53, Protocol.UDP)
        for _ in range(times):
            _pause()
            taken, answered = frontends.timed(address, there=True, change=lambda policy=policy: api.apply(policy))  # type: ignore[misc]
            lines.add(name, taken)
            lines.add("answer", answered)
            _pause()
            frontends.timed(address, there=False, change=lambda policy=policy: api.delete(policy))  # type: ignore[misc]
    policy = _without_uid(objects.policy("own", objects.to_address(_OWN), "own"))
    address = L4Addr.make(str(_OWN), 53, Protocol.UDP)
    frontends.timed(address, there=True, change=lambda: api.apply(policy))
    for _ in range(times):
        for ready, name in ((False, "unready"), (True, "ready")):
            _pause()
            change = {"status": {"conditions": objects.conditions(ready=ready)}}
            taken, _ = frontends.timed(address, there=ready, change=lambda change=change: api.merge(path, change))  # type: ignore[misc]
            lines.add(name, taken)
    frontends.close()
    for manifest in (policy, service):
        api.delete(manifest)


def _pause() -> None:
    """Wait a little, so that changes keep no step with what the agent does now and then."""
    time.sleep(random.uniform(0.01, 0.06))  # noqa: S311 - no secret


def _without_uid(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest as people write it."""
    meta = {key: value for key, value in manifest["metadata"].items() if key in ("name", "namespace", "labels")}
    return manifest | {"metadata": meta}


def _new_service() -> dict[str, Any]:
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}]
    metadata = {"name": "dns", "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports}}


# --- At rest, and at start --------------------------------------------------------------------------------------------


def _rest(cluster: Cluster, agent: Agent, seconds: float, lines: Lines) -> None:
    """Count what an agent asks for while nothing happens."""
    time.sleep(12)  # its last report
    before, cpu = len(requests_of(cluster, agent.user)), agent.seconds()
    time.sleep(seconds)
    asked = requests_of(cluster, agent.user)[before:]
    lines.add("rest-cpu", (agent.seconds() - cpu) / seconds * 100)
    lines.add("rest-others", sum(request.verb != "watch" for request in asked))
    lines.add("rest-watches", sum(request.verb == "watch" for request in asked) * 3600 / seconds)


def _start(cluster: Cluster, node: Node, services: str, room: Path, lines: Lines) -> None:
    """Start an agent where kube-proxy stays; what it takes of memory and of the API server."""
    with _agent(cluster, node, f"stays-{services}", room) as agent:
        time.sleep(3)  # its report is written
        lines.add(f"rss-{services}", agent.memory())
        lines.add(f"received-{services}", agent.received())
        lines.add(f"requests-{services}", len(requests_of(cluster, agent.user)))


def _wait_until_known(api: Api) -> None:
    """Wait until the API server has taken in what was put into etcd."""
    last = f"/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/service-{SERVICES - 1}-x2c4f?resourceVersion=0"
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            api.ask("GET", last)
        except BenchmarkError:
            time.sleep(0.2)
        else:
            return
    raise BenchmarkError("the API server does not show what was put into etcd")


def _first_sync(cluster: Cluster, node: Node, name: str, room: Path, lines: Lines) -> None:
    """Start an agent that replaces kube-proxy, twice: with the API server there; and holding it back at first.

    Held back until the datapath is open, which takes the agent as long in any cluster.
    """
    began = time.perf_counter()
    with _agent(cluster, node, name, room, "--kube-proxy-replacement", "true") as agent:
        lines.add("exec-to-ready", time.perf_counter() - began)
        _check(agent)
        time.sleep(3)  # its report is written
        lines.add("rss-replacing", agent.memory())
        if not lines.lines["rss-later"].samples:
            time.sleep(_RECONCILE_SECONDS)
            lines.add("rss-later", agent.memory())
            lines.add("peak-replacing", agent.memory("VmHWM"))
    agent = Agent(cluster, node, f"{name}-held", objects.NODE, room, "--kube-proxy-replacement", "true")
    try:
        with cluster.frozen():
            agent.wait(lambda: bool(agent.frontends) and agent.answers(), "open its datapath")
            time.sleep(1)
            began, cpu = time.perf_counter(), agent.seconds()
        agent.wait_until_ready()
        lines.add("first-sync", time.perf_counter() - began)
        lines.add("first-sync-cpu", agent.seconds() - cpu)
        _check(agent)
    finally:
        agent.end()


def _check(agent: Agent) -> None:
    frontends = _Frontends(agent)
    found = frontends.count()
    frontends.close()
    if found < SERVICES:
        raise BenchmarkError(f"an agent that is ready has {found} frontends, not {SERVICES}")
