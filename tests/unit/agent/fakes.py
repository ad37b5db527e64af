"""A datapath without a kernel, one that fails at random, sources of given objects, and a way to wait for things."""

import asyncio
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from lrp_operator.agent.parts import SourceUpdate
from lrp_operator.api.addresses import L4Addr, Protocol, format_ip
from lrp_operator.api.objects import ClusterObject, EndpointSlice, Pod, Policy, Service
from lrp_operator.datapath.model import (
    DatapathError,
    DatapathSettings,
    DatapathStatus,
    Feature,
    FlushReport,
    Hits,
    KernelBackend,
    KernelFrontend,
    KernelSkip,
    PodPlace,
    RedirectEvent,
)
from lrp_operator.resolve.model import Delta, FrontendEntry, SkipEntry

DEADLINE = 20.0


class FakeDatapath:
    """Does what a datapath promises, in dictionaries. Like the kernel, `kernel` outlives `close`."""

    def __init__(self, settings: DatapathSettings | None = None) -> None:
        self.settings = settings
        self.kernel: dict[L4Addr, KernelFrontend] = {}
        self.kernel_skips: dict[str, SkipEntry] = {}
        self.counters: dict[L4Addr, Hits] = {}
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self.open_errors: list[str] = []  # taken one by one by `open`
        self.in_force = True
        self.message = ""
        self._wanted: dict[L4Addr, FrontendEntry] = {}
        self._skips: dict[str, SkipEntry] = {}
        self._next_id = 1
        self._events: list[RedirectEvent] = []
        self._ring = os.pipe()
        os.set_blocking(self._ring[0], False)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.threads.add(threading.get_ident())

    def open(self) -> None:
        self._called("open")
        if self.open_errors:
            raise DatapathError(self.open_errors.pop(0))

    def update(self, delta: Delta) -> None:
        self._called("update")
        for frontend, entry in delta.frontends.items():
            if entry is None:
                self._wanted.pop(frontend, None)
                self.kernel.pop(frontend, None)
            else:
                self._wanted[frontend] = entry
        for pod, skip in delta.skips.items():
            if skip is None:
                self._skips.pop(pod, None)
            else:
                self._skips[pod] = skip

    def flush(self, *, complete: bool) -> FlushReport:
        self._called("flush complete" if complete else "flush")
        written = [self._write(entry) for entry in self._wanted.values() if not self._is_written(entry)]
        leftovers = [frontend for frontend in self.kernel if frontend not in self._wanted] if complete else []
        for frontend in leftovers:
            del self.kernel[frontend]
        self.kernel_skips = dict(self._skips)
        return FlushReport(written=len(written), removed=len(leftovers))

    def _is_written(self, entry: FrontendEntry) -> bool:
        there = self.kernel.get(entry.frontend)
        return there is not None and tuple(slot.backend for slot in there.backends) == entry.backends

    def _write(self, entry: FrontendEntry) -> None:
        backends = tuple(KernelBackend(n, backend) for n, backend in enumerate(entry.backends))
        there = self.kernel.get(entry.frontend)
        number = there.id if there else self._next_id
        self._next_id += there is None
        self.kernel[entry.frontend] = KernelFrontend(number, entry.frontend, backends, ("local-redirect",), 1)
        self.counters.setdefault(entry.frontend, Hits())

    def reconcile(self) -> FlushReport:
        self._called("reconcile")
        return FlushReport()

    def frontends(self) -> list[KernelFrontend]:
        self._called("frontends")
        return list(self.kernel.values())

    def held(self, frontends: Iterable[L4Addr]) -> set[L4Addr]:
        self._called("held")
        return {frontend for frontend in frontends if frontend in self.kernel}

    def skips(self) -> list[KernelSkip]:
        self._called("skips")
        return [
            KernelSkip(4711, 0, frontend, skip.pod)
            for skip in self.kernel_skips.values()
            for frontend in skip.frontends
        ]

    def hits(self) -> dict[L4Addr, Hits]:
        self._called("hits")
        return dict(self.counters)

    def status(self) -> DatapathStatus:
        self._called("status")
        missing = Feature("sock_destroy", available=False, consequence="resolvers notice a dead cache late")
        return DatapathStatus(
            self.in_force, self.message, {"connect4": 17}, (missing,), (), {"ipv4": len(self.kernel)}, {"ipv4": 1024}
        )

    def want_pods(self, pods: Mapping[str, PodPlace]) -> None:
        self.pods = dict(pods)

    def pod_of_link(self, ifindex: int) -> str | None:  # noqa: ARG002 - no link is known
        return None

    def relocate(self) -> None:
        self._called("relocate")

    def watch_events(self, on: bool) -> None:
        self._called("events on" if on else "events off")

    def happen(self, *events: RedirectEvent) -> None:
        """Let redirects happen."""
        self._events += events
        os.write(self._ring[1], b"!")

    def read_events(self) -> list[RedirectEvent]:
        self._called("read_events")
        try:
            os.read(self._ring[0], 1 << 16)
        except BlockingIOError:
            return []
        events, self._events = self._events, []
        return events

    def events_fd(self) -> int:
        return self._ring[0]

    def end_redirecting(self) -> bool:
        self._called("end_redirecting")
        return bool(self.kernel)

    def close(self) -> None:
        self._called("close")
        for fd in self._ring:
            os.close(fd)
        self._ring = ()

    def table(self) -> dict[str, list[str]]:
        """What the kernel holds, as texts."""
        entries = sorted(dict(self.kernel).values(), key=lambda entry: entry.frontend.sort_key)
        return {str(entry.frontend): [str(slot.backend) for slot in entry.backends] for entry in entries}


class FaultyDatapath(FakeDatapath):
    """Fails whole calls and single entries at random, until `calm`; what fails stays wanted, as is promised."""

    def __init__(self, seed: int, chance: float = 0.5) -> None:
        super().__init__()
        self._random = random.Random(seed)  # noqa: S311 - repeatable faults
        self._chance = chance
        self.faults = 0

    def calm(self) -> None:
        """Fail no more."""
        self._chance = 0.0

    def _fails(self) -> bool:
        failed = self._random.random() < self._chance
        self.faults += failed
        return failed

    def _may_fail(self, name: str) -> None:
        if self._fails():
            raise self._random.choice([DatapathError(f"{name}: the node says no"), OSError(12, "Out of memory")])

    def open(self) -> None:
        self._may_fail("open")
        super().open()

    def flush(self, *, complete: bool) -> FlushReport:
        self._may_fail("flush")
        refused = {frontend: entry for frontend, entry in self._wanted.items() if self._fails()}
        everything, self._wanted = self._wanted, {k: v for k, v in self._wanted.items() if k not in refused}
        report = super().flush(complete=False)
        self._wanted = everything
        pruned = super().flush(complete=complete).removed if complete and not refused else 0
        return FlushReport(
            written=report.written, removed=pruned, problems=tuple(f"{k}: no memory for it" for k in refused)
        )

    def reconcile(self) -> FlushReport:
        self._may_fail("reconcile")
        return super().reconcile()

    def status(self) -> DatapathStatus:
        self._may_fail("status")
        return super().status()

    def hits(self) -> dict[L4Addr, Hits]:
        self._may_fail("hits")
        return super().hits()


class GivenSource:
    """A source that tells what it is given."""

    name = "objects given by a test"

    def __init__(self, *updates: SourceUpdate) -> None:
        self._updates: asyncio.Queue[SourceUpdate] = asyncio.Queue()
        for update in updates:
            self._updates.put_nowait(update)

    def give(self, *objects: ClusterObject, complete: bool = True, problems: tuple[str, ...] = ()) -> None:
        update = SourceUpdate(upserts=objects, complete=complete, problems=problems, whole=not problems)
        self._updates.put_nowait(update)

    def take(self, *objects: ClusterObject) -> None:
        self._updates.put_nowait(SourceUpdate(deletes=tuple((type(o), o.metadata.key) for o in objects)))

    async def changes(self) -> AsyncIterator[SourceUpdate]:
        while True:
            yield await self._updates.get()


class FakeLink(NamedTuple):
    """Where a pod is."""

    cookie: int | None


class FakeLinks:
    """Knows pods' namespaces by their first address."""

    own_cookie = 1

    def __init__(self, **cookies: int) -> None:
        self.cookies = {"10.244.0.225": 77} | cookies
        self.asked: list[str] = []

    def locate(self, ips: Collection[bytes]) -> FakeLink | None:
        address = format_ip(next(iter(ips)))
        self.asked.append(address)
        return FakeLink(self.cookies[address]) if address in self.cookies else None


async def eventually(true: Callable[[], Any]) -> None:
    """Return when something is so; fail when it is not within the deadline."""
    end = time.monotonic() + DEADLINE
    while not true():
        if time.monotonic() > end:
            raise AssertionError("it did not happen in time")
        await asyncio.sleep(0.005)


def frontend(text: str) -> L4Addr:
    """Read "10.0.0.1:80/TCP"."""
    host, _, rest = text.rpartition(":")
    port, _, protocol = rest.partition("/")
    return L4Addr.make(host.strip("[]"), int(port), Protocol[protocol])


def policy(name: str = "dns", service: str = "kube-dns", namespace: str = "kube-system", **spec: Any) -> Policy:
    """A policy that sends a Service's ports to pods labelled app=<name>."""
    return msgspec.convert(
        {
            "metadata": {"name": name, "namespace": namespace, "creationTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {
                "redirectFrontend": {"serviceMatcher": {"serviceName": service, "namespace": namespace}},
                "redirectBackend": {
                    "localEndpointSelector": {"matchLabels": {"app": name}},
                    "toPorts": [
                        {"port": "53", "name": "dns", "protocol": "UDP"},
                        {"port": "53", "name": "dns-tcp", "protocol": "TCP"},
                    ],
                },
                **spec,
            },
        },
        Policy,
    )


def address_policy(name: str, ip: str, port: int = 8080, app: str = "proxy") -> Policy:
    """A policy that sends an address to pods labelled app=<app>, port 80."""
    port_80 = [{"port": "80", "protocol": "TCP"}]
    return msgspec.convert(
        {
            "metadata": {"name": name, "namespace": "default", "creationTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {
                "redirectFrontend": {"addressMatcher": {"ip": ip, "toPorts": [{"port": str(port), "protocol": "TCP"}]}},
                "redirectBackend": {"localEndpointSelector": {"matchLabels": {"app": app}}, "toPorts": port_80},
            },
        },
        Policy,
    )


def service(name: str = "kube-dns", ip: str = "10.96.0.10", namespace: str = "kube-system") -> Service:
    """The Service of the worked example."""
    ports = [
        {"port": 53, "name": "dns", "protocol": "UDP"},
        {"port": 53, "name": "dns-tcp", "protocol": "TCP"},
        {"port": 9153, "name": "metrics", "protocol": "TCP"},
    ]
    spec = {"clusterIP": ip, "clusterIPs": [ip], "ports": ports}
    return msgspec.convert({"metadata": {"name": name, "namespace": namespace}, "spec": spec}, Service)


def endpoints(*ips: str, service: str = "kube-dns", namespace: str = "kube-system") -> EndpointSlice:
    """The Service's endpoints elsewhere."""
    return msgspec.convert(
        {
            "metadata": {
                "name": f"{service}-x",
                "namespace": namespace,
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [ip], "conditions": {"ready": True}} for ip in ips],
            "ports": [
                {"port": 53, "name": "dns", "protocol": "UDP"},
                {"port": 53, "name": "dns-tcp", "protocol": "TCP"},
                {"port": 9153, "name": "metrics", "protocol": "TCP"},
            ],
        },
        EndpointSlice,
    )


def pod(name: str = "cache", ip: str = "10.244.0.225", app: str = "dns", *, ready: bool = True, **more: Any) -> Pod:
    """A pod of node n1 with DNS ports (app dns) or none declared."""
    ports = [
        {"containerPort": 53, "name": "dns", "protocol": "UDP"},
        {"containerPort": 53, "name": "dns-tcp", "protocol": "TCP"},
    ]
    namespace = more.pop("namespace", "kube-system" if app == "dns" else "default")
    return msgspec.convert(
        {
            "metadata": {"name": name, "namespace": namespace, "uid": name, "labels": {"app": app}},
            "spec": {"nodeName": "n1", "containers": [{"ports": ports if app == "dns" else None}], **more},
            "status": {
                "podIP": ip,
                "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            },
        },
        Pod,
    )


def event(to: str = "10.96.0.10:53/UDP", backend: str | None = "10.244.0.225:53/UDP", **more: Any) -> RedirectEvent:
    """A redirect."""
    values: dict[str, Any] = {"hook": "sendmsg", "action": "redirected", "netns_cookie": 77, "pid": 9, "command": "dig"}
    values |= more
    return RedirectEvent(frontend=frontend(to), backend=frontend(backend) if backend else None, **values)
