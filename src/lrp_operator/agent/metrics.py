"""Prometheus metrics, made when somebody asks: nothing is counted twice, and nothing is kept for those who don't.

This module is imported at the first request, so an agent that nobody scrapes does not carry prometheus_client.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from lrp_operator import __version__
from lrp_operator.agent.apimodel import Status
from lrp_operator.agent.hits import Use
from lrp_operator.agent.loop import SYNC_BUCKETS, SyncTimes
from lrp_operator.api.addresses import L4Addr
from lrp_operator.resolve.model import FrontendEntry, PolicyVerdict, Resolution

Sample = tuple[list[str], float]


class Facts:
    """What metrics are made of, as of one moment."""

    def __init__(
        self,
        status: Status,
        resolution: Resolution,
        owned: Mapping[L4Addr, FrontendEntry],
        uses: Mapping[L4Addr, Use],
        sync_times: SyncTimes,
    ) -> None:
        self.status = status
        self.verdicts = resolution.verdicts
        self.owned = dict(owned)
        self.uses = dict(uses)
        self.sync_times = sync_times


def render(facts: Facts) -> tuple[bytes, str]:
    """Write all metrics in Prometheus' text format; the text, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(facts))
    ProcessCollector(registry=registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Collector(Collector):
    """Turns facts into metric families."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        yield from self._hits()
        yield from self._states()
        yield from self._kernel()
        yield from self._syncs()

    def _hits(self) -> Iterator[Metric]:
        labels = ["frontend", "policy", "service"]
        rows = [
            ([str(frontend), entry.policy or "", entry.service or ""], use.hits)
            for frontend, use in self._facts.uses.items()
            if (entry := self._facts.owned.get(frontend))
        ]
        counters = (
            ("redirected", "Connects and datagram sends sent to a backend."),
            ("refused", "Connects and sends refused, for want of a backend."),
            ("skipped", "Connects and sends of exempt pods, left alone."),
            ("failed", "Connects and sends left alone because their state could not be kept."),
        )
        for name, text in counters:
            yield counter(f"lrp_{name}", text, labels, [(row, getattr(hits, name)) for row, hits in rows])

    def _states(self) -> Iterator[Metric]:
        status = self._facts.status
        frontends = status.frontends
        yield gauge(
            "lrp_frontends",
            "Frontends by state on this node.",
            ["state"],
            [
                (["local_redirect"], frontends.local_redirect),
                (["refused"], frontends.refused),
                (["cluster_ip"], frontends.cluster_ip),
                (["not_redirected"], frontends.not_redirected),
            ],
        )
        yield gauge(
            "lrp_policies", "Policies by verdict.", ["accepted", "reason"], policy_samples(self._facts.verdicts)
        )
        in_sources = sum(len(source.problems) for source in status.sources)
        yield gauge(
            "lrp_problems",
            "Things that are wrong and tried again.",
            ["where"],
            [(["kernel"], len(status.problems)), (["sources"], in_sources)],
        )
        build = [([__version__, status.api_version], 1.0)]
        yield gauge("lrp_build_info", "This agent.", ["version", "api_version"], build)

    def _kernel(self) -> Iterator[Metric]:
        status = self._facts.status
        yield gauge("lrp_ready", "1 when everything was read and written, and is in force.", [], [([], status.ready)])
        yield gauge("lrp_in_force", "1 when the programs are effective where pods are.", [], [([], status.in_force)])
        for name, text, slots in (
            ("lrp_backend_slots_used", "Backend slots in use.", status.slots_used),
            ("lrp_backend_slots_max", "Backend slots that there are.", status.slots_max),
        ):
            yield gauge(name, text, ["family"], [([family], count) for family, count in slots.items()])
        links = Counter(link.state for link in status.links)
        yield gauge("lrp_pod_links", "Pods' links at the TC level.", ["state"], [([s], n) for s, n in links.items()])
        flows: list[Sample] = [([family], count) for family, count in status.flows.items()]
        yield gauge("lrp_connections", "TCP connections at the TC level, when last swept.", ["family"], flows)
        yield gauge("lrp_connections_max", "How many fit, by family.", [], [([], status.flows_max)])
        dropped = status.events_dropped
        yield counter("lrp_events_dropped", "Events lost to observers that read too slowly.", [], [([], dropped)])

    def _syncs(self) -> Iterator[Metric]:
        times, last = self._facts.sync_times, self._facts.status.last_sync
        buckets, below = [], 0
        for bound, count in zip([*map(str, SYNC_BUCKETS), "+Inf"], times.counts, strict=True):
            below += count
            buckets.append((bound, below))
        yield HistogramMetricFamily("lrp_sync_duration_seconds", "How long passes took.", buckets, times.total)
        yield counter(
            "lrp_syncs_failed", "Passes after which something is to be tried again.", [], [([], times.failures)]
        )
        stamp: list[Sample] = [([], last.timestamp())] if last else []
        yield gauge("lrp_last_sync_timestamp_seconds", "When the kernel was last as wanted.", [], stamp)


def policy_samples(verdicts: tuple[PolicyVerdict, ...]) -> list[Sample]:
    """Count policies by acceptance and reason."""
    counts = Counter((str(verdict.accepted).lower(), verdict.reason.value) for verdict in verdicts)
    return [([*key], count) for key, count in counts.items()]


def gauge(name: str, text: str, labels: list[str], samples: list[Sample]) -> Metric:
    """Make a gauge."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, float(value))
    return family


def counter(name: str, text: str, labels: list[str], samples: list[Sample]) -> Metric:
    """Make a counter; `_total` is added to its name."""
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, float(value))
    return family
