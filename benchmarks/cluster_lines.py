"""The lines of the cluster part's table: what is measured, what is promised, and whether that is so.

Many samples give their 50th and 99th percentile with intervals from resampling; few give their median and range. A line
is judged as everywhere here: met or not only if the whole interval says so.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import Any

from benchmarks.ratios import Estimate, estimate
from benchmarks.targets import verdict

Tell = Callable[[str], None]
_MANY = 30
_UNITS = {
    "s": "{:.2f} s",
    "ms": "{:.1f} ms",
    "MiB": "{:.1f} MiB",
    "KiB": "{:.1f} KiB",
    "%": "{:.1f} %",
    "rate": "{:.1f}",
    "": "{:.0f}",
}


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done. changes: of each kind; rest, churn: seconds."""

    changes: int
    starts: int
    rest: float
    reports: int
    churn: float


THOROUGH = Effort(changes=120, starts=3, rest=60, reports=40, churn=20)
QUICK = Effort(changes=30, starts=1, rest=15, reports=10, churn=10)


@dataclass(slots=True)
class Line:
    """One thing that is measured. target: at most so much, for the 99th percentile where there are many samples."""

    what: str
    unit: str
    target: float | None = None
    samples: list[float] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, Estimate]:
        """What came out, by what it is; the last of them is what a target is for."""
        if len(self.samples) < _MANY:
            return {"": Estimate(median(self.samples), min(self.samples), max(self.samples))}
        return {f"p{share}": estimate(self.samples, _percentile(share)) for share in (50, 99)}

    def written(self, value: float) -> str:
        """A value for people."""
        return f"{value * 1000:.1f} ms" if self.unit == "s" and value < 1 else _UNITS[self.unit].format(value)


def _percentile(share: int) -> Callable[[Sequence[float]], float]:
    def figure(samples: Sequence[float]) -> float:
        return sorted(samples)[ceil(len(samples) * share / 100) - 1]

    return figure


class Lines:
    """All lines, by a short name, in the order of the table."""

    def __init__(self) -> None:
        stays, many = "kube-proxy stays", "10,000 Services with 100,000 endpoints"
        start = f"lrp-agent's start, {stays}"
        self.lines = {
            "apply": Line("apply a policy for an address, until it is in the node's map", "s", 0.1),
            "apply-service": Line("the same for a Service that no other policy names", "s", 0.1),
            "answer": Line("  of which until the API server has answered", "s"),
            "ready": Line("a pod turns ready, until its frontend is in the map", "s", 0.05),
            "unready": Line("a pod turns unready, until it is not", "s", 0.05),
            "rest-others": Line("requests at rest that are no watches, while it was looked at", "", 0),
            "rest-watches": Line("watches begun anew at rest, in an hour at this rate", ""),
            "rest-cpu": Line("CPU at rest", "%"),
            "rss-none": Line(f"{start}, no Services: RSS", "MiB"),
            "rss-many": Line(f"{start}, {many}: RSS", "MiB"),
            "rss-growth": Line("  which is more by", "%", 5),
            "received-none": Line(f"{start}, no Services: received", "KiB"),
            "received-many": Line(f"{start}, {many}: received", "KiB"),
            "received-growth": Line("  which is more by", "%", 5),
            "requests-none": Line(f"{start}, no Services: requests", ""),
            "requests-many": Line(f"{start}, {many}: requests", ""),
            "first-sync": Line(f"kube-proxy replaced, {many}: first sync", "s", 3),
            "first-sync-cpu": Line("  of which CPU of the agent", "s"),
            "exec-to-ready": Line("  and from exec to ready, nothing in the kernel", "s"),
            "rss-replacing": Line("  and then its RSS", "MiB", 200),
            "rss-later": Line("  and after it has read the kernel back", "MiB", 200),
            "peak-replacing": Line("  and its largest so far", "MiB"),
            "controller-ready": Line("lrp-controller, 1,000 policies, 5,000 nodes' reports: exec to ready", "s"),
            "controller-rss": Line("  and then its RSS", "MiB", 300),
            "controller-peak": Line("  its largest, with all reports changing", "MiB"),
            "controller-idle": Line("  writes of statuses that were right", "", 0),
            "current": Line("a node's report changes, until the policy's status says so", "s", 5),
            "current-churn": Line("the same while reports of all nodes change", "s", 5),
            "churn": Line("  how many changed in a second", ""),
            "writes": Line("  the controller's writes in a second", "rate", 5),
        }

    def add(self, name: str, value: float) -> None:
        """Note a sample."""
        self.lines[name].samples.append(value)

    def compare(self) -> None:
        """Work out what is told as a difference of two others."""
        for what in ("rss", "received"):
            none, many = (median(self.lines[f"{what}-{services}"].samples) for services in ("none", "many"))
            self.add(f"{what}-growth", (many / none - 1) * 100)


def table(lines: Lines) -> Iterator[str]:
    """The table."""
    yield "On a real API server (percentiles with 95 % intervals; median and range of few)"
    yield ""
    yield f"  {'':96}{'':4}{'found':>10}{'interval':>24}{'at most':>10}"
    for line in lines.lines.values():
        if not line.samples:
            continue
        for name, found in line.figures.items():
            span = f"{line.written(found.low)} .. {line.written(found.high)}" if len(line.samples) > 1 else ""
            target = ""
            if line.target is not None and name != "p50":
                target = f"{line.written(line.target):>10}  {verdict(line.target, found)}"
            what = line.what if name != "p99" else ""
            yield f"  {what:96}{name:4}{line.written(found.value):>10}{span:>24}{target}".rstrip()


def data(lines: Lines) -> dict[str, Any]:
    """The same for programs."""
    return {
        name: {
            "what": line.what.strip(),
            "unit": line.unit,
            "samples": len(line.samples),
            "figures": {key or "median": found._asdict() for key, found in line.figures.items()},
            "target": line.target,
            "verdict": verdict(line.target, [*line.figures.values()][-1]) if line.target is not None else None,
        }
        for name, line in lines.lines.items()
        if line.samples
    }
