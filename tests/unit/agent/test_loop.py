"""The circle: sources to datapath, with a datapath that works, one that does not, and one that does at times."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from lrp_operator.agent.config import load
from lrp_operator.agent.desired import Desired
from lrp_operator.agent.lock import LockHeldError
from lrp_operator.agent.loop import Circle, Timing
from lrp_operator.agent.pods import PodNames
from lrp_operator.agent.worker import Worker
from lrp_operator.datapath.model import DatapathError, FlushReport, KernelFrontend
from tests.unit.agent.fakes import (
    FakeDatapath,
    FaultyDatapath,
    GivenSource,
    address_policy,
    endpoints,
    eventually,
    frontend,
    pod,
    policy,
    service,
)

QUICK = Timing(retry_first=0.001, retry_most=0.01, reconcile=0.02, hits=0.005)
RARE = Timing(retry_first=0.001, retry_most=0.01, reconcile=3600, hits=3600)
BOTH = ["10.244.0.9:53/UDP", "10.244.0.225:53/UDP"]
DNS = {"10.96.0.10:53/TCP": ["10.244.0.225:53/TCP"], "10.96.0.10:53/UDP": ["10.244.0.225:53/UDP"]}


def nothing() -> None:
    """Stands for a lock that is there to be had."""


@asynccontextmanager
async def going(
    datapath: FakeDatapath,
    *sources: GivenSource,
    timing: Timing = RARE,
    hold_pins: Callable[[], None] = nothing,
    **flags: str,
) -> AsyncIterator[Circle]:
    """A circle that goes round."""
    worker = Worker()
    desired = Desired("n1", load(None, {}, flags), PodNames("n1", lambda: None))
    circle = Circle(desired, datapath, worker, sources, hold_pins=hold_pins, timing=timing)
    task = asyncio.create_task(circle.run())
    try:
        yield circle
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert worker.stop(10)


def dns_source() -> GivenSource:
    source = GivenSource()
    source.give(service(), endpoints("10.244.1.51"), policy(skipRedirectFromBackend=True), pod())
    return source


async def test_objects_become_entries_and_go_again() -> None:
    datapath, source = FakeDatapath(), dns_source()
    async with going(datapath, source):
        await eventually(lambda: datapath.table() == DNS)
        source.give(pod(ready=False))
        await eventually(lambda: datapath.table() == {})
        source.give(pod(), pod("other", "10.244.0.9"))
        await eventually(
            lambda: datapath.table().get("10.96.0.10:53/UDP") == ["10.244.0.9:53/UDP", "10.244.0.225:53/UDP"]
        )
        source.take(policy())
        await eventually(lambda: datapath.table() == {})


async def test_kube_proxys_entries_are_shown_but_never_programmed() -> None:
    datapath, source = FakeDatapath(), dns_source()
    async with going(datapath, source) as circle:
        await eventually(lambda: datapath.table() == DNS)
        shown = [str(entry.frontend) for entry in circle.desired.resolution().frontends]
        assert shown == ["10.96.0.10:53/TCP", "10.96.0.10:53/UDP", "10.96.0.10:9153/TCP"]


async def test_a_replaced_kube_proxys_entries_are_programmed() -> None:
    datapath, source = FakeDatapath(), dns_source()
    async with going(datapath, source, kubeProxyReplacement="true"):
        await eventually(lambda: datapath.table() == DNS | {"10.96.0.10:9153/TCP": ["10.244.1.51:9153/TCP"]})


async def test_policies_can_be_switched_off() -> None:
    datapath, source = FakeDatapath(), dns_source()
    flags = {"kubeProxyReplacement": "true", "localRedirectPolicies.enabled": "false"}
    async with going(datapath, source, **flags):
        await eventually(lambda: datapath.table().get("10.96.0.10:53/UDP") == ["10.244.1.51:53/UDP"])


async def test_nothing_is_resolved_or_pruned_before_every_source_is_complete() -> None:
    datapath, early, late = FakeDatapath(), dns_source(), GivenSource()
    late.give(pod("other", "10.244.0.9"), complete=False)
    async with going(datapath, early, late) as circle:
        await eventually(lambda: circle.outcome.opened and all(s.keys for s in circle.sources))
        await circle.worker.run(nothing)
        assert datapath.table() == {}
        assert "flush complete" not in datapath.calls
        late.give()
        await eventually(
            lambda: datapath.table().get("10.96.0.10:53/UDP") == ["10.244.0.9:53/UDP", "10.244.0.225:53/UDP"]
        )
        assert "flush complete" in datapath.calls


async def test_what_an_earlier_agent_left_is_pruned_once_complete() -> None:
    datapath, source = FakeDatapath(), dns_source()
    left = frontend("169.254.169.254:80/TCP")
    datapath.kernel[left] = KernelFrontend(99, left, (), ("local-redirect",), 1)
    async with going(datapath, source):
        await eventually(lambda: datapath.table() == DNS)


async def test_what_may_belong_to_an_unreadable_file_is_not_pruned() -> None:
    datapath, source = FakeDatapath(), GivenSource()
    source.give(service(), policy(), pod(), problems=("b.yaml: it is no YAML",))
    left = frontend("169.254.169.254:80/TCP")
    datapath.kernel[left] = KernelFrontend(99, left, (), ("local-redirect",), 1)
    async with going(datapath, source):
        await eventually(lambda: set(datapath.table()) == {*DNS, str(left)})
        assert "flush complete" not in datapath.calls
        source.give()
        await eventually(lambda: datapath.table() == DNS)


async def test_opening_is_tried_again_and_told_meanwhile() -> None:
    datapath, source = FakeDatapath(), dns_source()
    datapath.open_errors = ["cgroup v2 is not mounted"] * 5
    async with going(datapath, source, timing=Timing(retry_first=0.05, retry_most=0.05)) as circle:
        await eventually(lambda: circle.outcome.error == "cgroup v2 is not mounted")
        await eventually(lambda: datapath.table() == DNS)
        assert datapath.calls.count("open") == 6
        assert circle.outcome.error == ""


async def test_verdicts_are_known_although_the_datapath_is_not_open() -> None:
    datapath, source = FakeDatapath(), dns_source()
    datapath.open_errors = ["no rights"] * 1000
    async with going(datapath, source) as circle:
        await eventually(lambda: circle.desired.resolution().verdicts)
        assert "update" not in datapath.calls


async def test_changes_while_closed_are_not_lost() -> None:
    datapath, source = FakeDatapath(), dns_source()
    datapath.open_errors = ["not yet"] * 20
    async with going(datapath, source) as circle:
        await eventually(lambda: circle.desired.resolution().verdicts)
        source.give(address_policy("meta", "169.254.169.254"), pod("proxy", "10.244.0.7", "proxy"))
        source.take(policy())
        await eventually(lambda: datapath.table() == {"169.254.169.254:8080/TCP": ["10.244.0.7:80/TCP"]})


async def test_pending_changes_are_one_pass() -> None:
    datapath, source = FakeDatapath(), GivenSource()
    async with going(datapath, source) as circle:
        await eventually(lambda: circle.outcome.opened)
        before = len(datapath.calls)
        for n in range(100):
            source.give(pod("cache", f"10.244.0.{n}"))
        source.give(service(), policy(), pod())
        await eventually(lambda: datapath.table() == DNS)
        assert datapath.calls[before:].count("update") < 20


@pytest.mark.parametrize("seed", range(12))
async def test_a_faulty_datapath_gets_there_in_the_end(seed: int) -> None:
    datapath, source = FaultyDatapath(seed), dns_source()
    async with going(datapath, source, timing=QUICK) as circle:
        for n in range(20):
            source.give(address_policy(f"p{n}", f"169.254.1.{n}"), pod("proxy", f"10.244.3.{n}", "proxy"))
            if n % 3 == 0:
                source.take(address_policy(f"p{n // 2}", ""))
            await asyncio.sleep(0)
        await eventually(lambda: datapath.faults > 10)
        datapath.calm()
        removed = {n // 2 for n in range(0, 20, 3) if n // 2 != n}
        kept = {f"169.254.1.{n}:8080/TCP": ["10.244.3.19:80/TCP"] for n in range(20) if n not in removed and n}
        await eventually(lambda: datapath.table() == DNS | kept and not circle.outcome.problems)
        assert circle.last_sync is not None


async def test_everything_is_done_in_one_thread_that_is_not_the_loops() -> None:
    datapath, source = FakeDatapath(), dns_source()
    async with going(datapath, source, timing=QUICK) as circle:
        await eventually(lambda: datapath.table() == DNS and "reconcile" in datapath.calls and circle.hits.uses)
    assert len(datapath.threads) == 1
    assert datapath.threads.isdisjoint({threading.get_ident()})


async def test_changed_links_are_looked_for() -> None:
    datapath, source = FakeDatapath(), dns_source()
    async with going(datapath, source) as circle:
        await eventually(lambda: datapath.table() == DNS)
        assert "relocate" not in datapath.calls
        circle.links_changed()
        await eventually(lambda: "relocate" in datapath.calls)


async def test_changed_links_cost_nothing_where_no_pod_is_exempt() -> None:
    datapath, source = FakeDatapath(), GivenSource()
    source.give(service(), policy(), pod())
    async with going(datapath, source) as circle:
        await eventually(lambda: datapath.table() == DNS)
        passes = datapath.calls.count("update")
        circle.links_changed()
        source.give(pod("other", "10.244.0.9"))
        await eventually(lambda: datapath.table().get("10.96.0.10:53/UDP") == BOTH)
        assert "relocate" not in datapath.calls
        assert datapath.calls.count("update") == passes + 1


async def test_an_error_is_followed_by_a_reconcile() -> None:
    datapath, source = FakeDatapath(), dns_source()
    async with going(datapath, source) as circle:
        await eventually(lambda: datapath.table() == DNS)
        good, datapath.status = datapath.status, broken
        circle.links_changed()
        await eventually(lambda: circle.outcome.error == "the link is gone")
        datapath.status = good
        await eventually(lambda: not circle.outcome.error)
        assert "reconcile" in datapath.calls


def broken() -> None:
    raise DatapathError("the link is gone")


async def test_a_lock_that_somebody_else_has_ends_the_circle() -> None:
    def held() -> None:
        raise LockHeldError("pid 7")

    worker = Worker()
    desired = Desired("n1", load(None, {}, {}), PodNames("n1", lambda: None))
    circle = Circle(desired, FakeDatapath(), worker, [], hold_pins=held)
    with pytest.raises(ExceptionGroup) as raised:
        await circle.run()
    assert raised.group_contains(LockHeldError)
    worker.stop(10)


async def test_a_bug_ends_the_circle() -> None:
    datapath = FakeDatapath()
    datapath.open = lambda: {}["bug"]  # type: ignore[method-assign]
    worker = Worker()
    circle = Circle(
        Desired("n1", load(None, {}, {}), PodNames("n1", lambda: None)), datapath, worker, [], hold_pins=nothing
    )
    with pytest.raises(ExceptionGroup) as raised:
        await circle.run()
    assert raised.group_contains(KeyError)
    worker.stop(10)


async def test_a_flush_that_asks_for_another_gets_one() -> None:
    """Nothing has changed meanwhile, nothing has failed, and no reconcile is due."""

    class AsksTwice(FakeDatapath):
        def flush(self, *, complete: bool) -> FlushReport:
            report = super().flush(complete=complete)
            return replace(report, again_in=0.001 if self.calls.count("flush complete") < 3 else 0.0)

    datapath = AsksTwice()
    async with going(datapath, dns_source()):
        await eventually(lambda: datapath.calls.count("flush complete") == 3)
        await asyncio.sleep(0.05)
        assert datapath.calls.count("flush complete") == 3
