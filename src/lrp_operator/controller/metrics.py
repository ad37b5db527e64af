"""Prometheus metrics of the controller, made when somebody asks."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

Samples = Iterable[tuple[list[str], float]]


class Facts(NamedTuple):
    """What metrics are made of, as of one moment. statuses: what each policy should show."""

    leads: bool
    ready: bool
    statuses: Mapping[str, Mapping[str, Any]]
    writes: Mapping[tuple[str, str], int]
    waiting: int


def render(facts: Facts) -> tuple[bytes, str]:
    """Write all metrics in Prometheus' text format; the text, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(facts))
    ProcessCollector(registry=registry)
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Collector(Collector):
    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        facts = self._facts
        yield _gauge("lrp_controller_leader", "1 for the controller that writes status.", [], [([], facts.leads)])
        yield _gauge("lrp_controller_ready", "1 when all that is followed has been read.", [], [([], facts.ready)])
        yield _gauge("lrp_controller_waiting", "Policies whose status waits to be written.", [], [([], facts.waiting)])
        writes = CounterMetricFamily("lrp_controller_writes", "Writes, by what and how.", labels=["what", "result"])
        for (what, result), count in facts.writes.items():
            writes.add_metric([what, result], count)
        yield writes
        conditions = Counter(
            (condition["type"], condition["status"], condition["reason"])
            for status in facts.statuses.values()
            for condition in status.get("conditions", ())
        )
        yield _gauge(
            "lrp_policy_conditions",
            "Policies by condition.",
            ["condition", "status", "reason"],
            [([*key], count) for key, count in conditions.items()],
        )
        yield _gauge(
            "lrp_policy_nodes",
            "Nodes by policy: with a pod that can serve, with redirects in force, and without a pod that can serve.",
            ["policy", "state"],
            [
                ([policy, state], status.get(field, 0))
                for policy, status in facts.statuses.items()
                for state, field in _STATES
            ],
        )


_STATES = (("wanted", "nodesWanted"), ("programmed", "nodesProgrammed"), ("falling_back", "nodesFallingBack"))


def _gauge(name: str, text: str, labels: list[str], samples: Samples) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, float(value))
    return family
