"""The control part: what the agent takes to get redirects into the kernel, and what it takes of the node for itself.

Times are absolute, and this is whatever machine it is: so before each measurement a loop of plain Python is timed, and
every figure is also told in loops. That ratio is steadier than the time where others work on the machine too.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks.crowd import BACKENDS, crowd
from benchmarks.ratios import Estimate
from benchmarks.targets import verdict
from benchmarks.topology import BenchmarkError
from lab import Node
from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath.engine import Datapath, cleanup
from lrp_operator.datapath.model import DatapathSettings
from lrp_operator.kernel import bpf
from lrp_operator.kernel.netns import in_netns
from lrp_operator.loader.kept import VARIABLE
from lrp_operator.resolve.model import Delta, FrontendEntry

FRONTENDS, PODS, POLICIES = 10_000, 250, 100
_CHANGES = 50
_PATIENCE = 30.0
_LOOPS = 200_000


@dataclass(slots=True)
class Measure:
    """One line of the table. taken: a value for each repetition, and loops: the reference loop's seconds before it."""

    what: str
    unit: str = "s"
    target: float | None = None
    taken: list[float] = field(default_factory=list)
    loops: list[float] = field(default_factory=list)

    @property
    def found(self) -> Estimate:
        """The median, and the range that nine of ten repetitions are in (all of them, where there are few)."""
        ordered = sorted(self.taken)
        edge = len(ordered) // 20
        return Estimate(median(ordered), ordered[edge], ordered[-1 - edge])


class Measures:
    """All lines, by a short name, in the order of the table."""

    def __init__(self) -> None:
        nothing, current = "nothing in the kernel", "its pins current"
        self.lines = {
            "open-fresh": Measure(f"Datapath.open(), {nothing}"),
            "open-empty": Measure(f"Datapath.open(), {current}, no frontends"),
            "program": Measure(f"{FRONTENDS:,} frontends with {BACKENDS} backends each, from nothing", target=0.3),
            "change-map": Measure("one changed backend among them, until it is in the map", target=0.001),
            "change": Measure("the same, until flush returns (stale sockets ended)"),
            "open-full": Measure(f"Datapath.open(), {current}, {FRONTENDS:,} frontends"),
            "adopt": Measure("the same frontends wanted again after that: update, flush"),
            "ready-fresh": Measure(f"lrp-agent, exec to ready, {nothing}", target=1.5),
            "ready-booted": Measure("lrp-agent, exec to ready, after a boot (builds are kept)"),
            "ready-current": Measure(f"lrp-agent, exec to ready, {current}", target=0.6),
            "rss": Measure(f"lrp-agent's RSS, {PODS} pods, {POLICIES} policies, scraped once", "MiB", 60),
        }

    def add(self, name: str, value: float, loop: float) -> None:
        """Note a value and the reference loop's time before it."""
        self.lines[name].taken.append(value)
        self.lines[name].loops.append(loop)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        loop = reference_loop()
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began, loop)


def reference_loop() -> float:
    """Seconds that a fixed amount of plain Python takes now."""
    began = time.perf_counter()
    seen: dict[bytes, int] = {}
    for number in range(_LOOPS):
        seen[(number & 0xFFF).to_bytes(4, "big")] = number
    return time.perf_counter() - began


def measure(repeats: int, tell: Callable[[str], None]) -> Measures:
    """Do all of it, some times over."""
    measures = Measures()
    with tempfile.TemporaryDirectory(prefix="lrp-bench-") as directory, Node() as node:
        manifests = Path(directory, "manifests")
        manifests.mkdir()
        write_manifests(manifests, node.name)
        for number in range(repeats):
            tell(f"control: repetition {number + 1} of {repeats}")
            cgroup = node.cgroup / f"bench{number}"
            cgroup.mkdir()
            settings = DatapathSettings(node.bpf / f"datapath{number}", cgroup, max_frontends=16384, max_backends=65536)
            in_netns(node.netns, lambda settings=settings: _datapath(settings, measures))  # type: ignore[misc]
            _agent(node, manifests, Path(directory, f"agent{number}"), measures)
    tell("")
    return measures


# --- The datapath, called as the agent does


def _datapath(settings: DatapathSettings, measures: Measures) -> None:
    entries = list(crowd(FRONTENDS))
    wanted = Delta({entry.frontend: entry for entry in entries}, {}, {})
    datapath = Datapath(settings)
    try:
        with measures.timed("open-fresh"):
            datapath.open()
        datapath.close()
        with measures.timed("open-empty"):
            datapath.open()
        with measures.timed("program"):
            datapath.update(wanted)
            report = datapath.flush(complete=True)
        if report.problems or report.written != FRONTENDS:
            raise BenchmarkError(f"not all was programmed: {report}")
        for entry in islice(entries, _CHANGES):
            _change(datapath, entry, measures)
        datapath.close()
        datapath = Datapath(settings)
        with measures.timed("open-full"):
            datapath.open()
        with measures.timed("adopt"):
            datapath.update(wanted)
            datapath.flush(complete=True)
    finally:
        datapath.close()
        cleanup(settings.bpf_root, settings.cgroup_root)


def _change(datapath: Datapath, entry: FrontendEntry, measures: Measures) -> None:
    """Replace a frontend's last backend."""
    kept, last = entry.backends[:-1], entry.backends[-1]
    other = L4Addr((int.from_bytes(last.ip, "big") | 1 << 22).to_bytes(4, "big"), last.port, last.protocol)
    changed = FrontendEntry(entry.frontend, entry.type, entry.policy, entry.service, (*kept, other))
    loop = reference_loop()
    with _stamped_writes() as stamps:
        began = time.perf_counter()
        datapath.update(Delta({entry.frontend: changed}, {}, {}))
        report = datapath.flush(complete=True)
        ended = time.perf_counter()
    if report.written != 1:
        raise BenchmarkError(f"one backend was changed, but: {report}")
    # The slots are written first; with the last write the frontend points to them.
    measures.add("change-map", stamps[-1] - began, loop)
    measures.add("change", ended - began, loop)


@contextmanager
def _stamped_writes() -> Iterator[list[float]]:
    """Note when each write to a map has been done."""
    stamps: list[float] = []
    write = bpf.Map.update_many

    def stamped(opened: bpf.Map, items: list[tuple[bytes, bytes]]) -> None:
        write(opened, items)
        stamps.append(time.perf_counter())

    with patch.object(bpf.Map, "update_many", stamped):
        yield stamps


# --- The agent's process


def _agent(node: Node, manifests: Path, state: Path, measures: Measures) -> None:
    pins = node.bpf / state.name
    cgroup = node.cgroup / state.name
    cgroup.mkdir()
    program = Path(sys.executable).parent / "lrp-agent"
    options = ["--manifests", str(manifests), "--node-name", node.name, "--bpf-lb-sock", "true"]
    command = [str(program), *options, "--cgroup-root", str(cgroup), "--bpf-root", str(pins)]
    kept = {VARIABLE: str(state.with_suffix(".kept"))}
    for name in ("ready-fresh", "ready-booted", "ready-current"):
        with state.with_suffix(".log").open("wb") as log:
            environment = os.environ | kept | {"LRP_API_SOCKET": str(state.with_suffix(".sock"))}
            loop = reference_loop()
            began = time.perf_counter()
            agent = node.popen(command, env=environment, stdout=log, stderr=log)
            _wait_until_ready(node, agent, state.with_suffix(".log"))
            measures.add(name, time.perf_counter() - began, loop)
        if name == "ready-current":
            measures.add("rss", _resident_mib(node), loop)
        agent.terminate()
        agent.wait(timeout=10)
        if name == "ready-fresh":
            cleanup(pins, cgroup)  # as a boot does
    cleanup(pins, cgroup)


def _wait_until_ready(node: Node, agent: "subprocess.Popen[Any]", log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while agent.poll() is None and time.monotonic() < deadline:
        status, _ = in_netns(node.netns, lambda: _get(9882, "/readyz"))
        if status == 200:
            return
        time.sleep(0.005)
    raise BenchmarkError(f"the agent did not become ready:\n{log.read_text()}")


def _resident_mib(node: Node) -> float:
    _, text = in_netns(node.netns, lambda: _get(9881, "/metrics"))
    lines = [line for line in text.splitlines() if line.startswith("process_resident_memory_bytes ")]
    return float(lines[0].split()[1]) / (1 << 20)


def _get(port: int, path: str) -> tuple[int, str]:
    """Ask the agent; status 0 while nobody answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except ConnectionError:
        return 0, ""
    finally:
        connection.close()


# --- What the agent is given


def write_manifests(directory: Path, node: str) -> None:
    """Pods, Services and policies: half of the policies match an address, half a Service."""
    for number in range(PODS):
        _write(directory, f"pod-{number}", _pod(number, node))
    for number in range(POLICIES):
        by_service = number % 2 == 0
        if by_service:
            _write(directory, f"service-{number}", _service(number))
        _write(directory, f"policy-{number}", _policy(number, by_service=by_service))


def _write(directory: Path, name: str, manifest: dict[str, Any]) -> None:
    (directory / f"{name}.json").write_text(json.dumps(manifest))


def _pod(number: int, node: str) -> dict[str, Any]:
    address = f"10.244.{number >> 7}.{2 + (number & 0x7F)}"
    ports = [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"pod-{number}", "namespace": "default", "labels": {"app": f"app-{number % POLICIES}"}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none", "ports": ports}]},
        "status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def _service(number: int) -> dict[str, Any]:
    address = f"10.96.1.{number}"
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"service-{number}", "namespace": "default"},
        "spec": {"clusterIP": address, "clusterIPs": [address], "ports": ports},
    }


def _policy(number: int, *, by_service: bool) -> dict[str, Any]:
    ports = [{"port": "53", "protocol": "UDP"}]
    if by_service:
        frontend: dict[str, Any] = {
            "serviceMatcher": {"serviceName": f"service-{number}", "namespace": "default"},
        }
    else:
        frontend = {"addressMatcher": {"ip": f"169.254.20.{number}", "toPorts": ports}}
    selector = {"matchLabels": {"app": f"app-{number}"}}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumLocalRedirectPolicy",
        "metadata": {"name": f"policy-{number}", "namespace": "default"},
        "spec": {
            "redirectFrontend": frontend,
            "redirectBackend": {"localEndpointSelector": selector, "toPorts": ports},
        },
    }


# --- What comes out


def lines(measures: Measures) -> Iterator[str]:
    """The table."""
    loops = [loop for line in measures.lines.values() for loop in line.loops]
    yield f"The agent (median and range; a loop of plain Python took {_written(median(loops), 's')} meanwhile)"
    yield ""
    yield f"  {'':64}{'median':>10}{'range':>24}{'in loops':>10}{'at most':>10}"
    for line in measures.lines.values():
        found = line.found
        span = f"{_written(found.low, line.unit)} .. {_written(found.high, line.unit)}"
        in_loops = f"{_in_loops(line):.3f}" if line.unit == "s" else ""
        target, judged = "", ""
        if line.target is not None:
            target, judged = _written(line.target, line.unit), verdict(line.target, found)
        yield (
            f"  {line.what:64}{_written(found.value, line.unit):>10}{span:>24}{in_loops:>10}{target:>10}  {judged}"
        ).rstrip()


def data(measures: Measures) -> dict[str, Any]:
    """The same for programs."""
    return {
        name: {
            "what": line.what,
            "unit": line.unit,
            **line.found._asdict(),
            "in_loops": _in_loops(line) if line.unit == "s" else None,
            "target": line.target,
            "verdict": verdict(line.target, line.found) if line.target is not None else None,
        }
        for name, line in measures.lines.items()
    }


def _in_loops(line: Measure) -> float:
    return median(taken / loop for taken, loop in zip(line.taken, line.loops, strict=True))


def _written(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:.1f} {unit}"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"
