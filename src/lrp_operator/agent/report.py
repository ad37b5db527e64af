"""What this node has programmed, told to the cluster: its NodeRedirectState, from which the controller makes statuses.

    a pass has ended ──▶ 1 s to gather ──▶ is the report another one? ──▶ written by Server-Side Apply ──▶ 10 s of rest

One small object, owned by the Node, that only this agent writes; nothing is written while nothing changes. Listed are
the policies that redirect something here, as the kernel's maps say, and those that something is wrong with here that
only this node can know: an entry that could not be written, an address of its own that is a Service's nodePort. What
the controller can work out for itself (no pod here, an unready pod) is not repeated by every node.
"""

import asyncio
import logging
import time
from collections.abc import Iterable

import msgspec

from lrp_operator import __version__
from lrp_operator.agent.kube_source import KubernetesSource
from lrp_operator.agent.logs import OnChange
from lrp_operator.agent.loop import Circle
from lrp_operator.agent.view import View
from lrp_operator.agent.worker import WorkerBusyError
from lrp_operator.api.addresses import L4Addr
from lrp_operator.api.nodestate import (
    GROUP,
    MAX_MESSAGE,
    MAX_POLICIES,
    MAX_PROBLEMS,
    MAX_SENTENCE,
    PLURAL,
    VERSION,
    NodeReport,
    PolicyReport,
)
from lrp_operator.api.withdrawal import labels_of_reports
from lrp_operator.datapath.model import DatapathError
from lrp_operator.resolve.model import FrontendReason, FrontendVerdict, PolicyVerdict
from lrp_operator.sources.kube.backoff import Backoff, Pauses
from lrp_operator.sources.kube.errors import ApiError, ApiFailure

log = logging.getLogger(__name__)

MANAGER = "lrp-agent"
NOT_PROGRAMMED = "NotProgrammed"


class Pace(msgspec.Struct, frozen=True):
    """When reports are written, in seconds. gather: after a pass; rest: after a write."""

    gather: float = 1.0
    rest: float = 10.0
    pauses: Pauses = Pauses(first=2.0, most=60.0)


USUAL = Pace()


class Reporter:
    """Writes the report of a node."""

    def __init__(
        self, source: KubernetesSource, view: View, circle: Circle, *, order: str = "", pace: Pace = USUAL
    ) -> None:
        """order: to withdraw, by which this agent goes, "namespace/name"; empty if by none."""
        self._labels = labels_of_reports(order) if order else {}
        self._source = source
        self._view = view
        self._circle = circle
        self._pace = pace
        self._backoff = Backoff(pace.pauses)
        self._written: tuple[str, NodeReport] | None = None
        self._told = OnChange(log)

    async def run(self) -> None:
        """Write the report whenever it is another one, until cancelled."""
        while True:
            await self._circle.passed.wait()
            await asyncio.sleep(self._pace.gather)
            self._circle.passed.clear()
            began = time.monotonic()
            try:
                pause = self._pace.rest if await self._write() else 0.0
                self._backoff.succeeded()
                self._view.reporting = ""
            except (ApiFailure, DatapathError, OSError, WorkerBusyError) as error:
                pause = self._failed(error)
            self._told.tell("report", self._view.reporting, cured="the node's report is written again")
            # Looking at large maps keeps the worker from other things: a twentieth of its time at most.
            looking = min(20 * (time.monotonic() - began), self._pace.rest)
            await asyncio.sleep(max(pause, looking))

    def _failed(self, error: Exception) -> float:
        """Tell what is wrong, and have it tried again; the pause before that."""
        self._circle.passed.set()
        self._view.reporting = f"the node's report can't be written: {error}"
        if isinstance(error, ApiError) and error.status == 404:
            self._view.reporting += f" (is the CustomResourceDefinition {PLURAL}.{GROUP} installed?)"
        asked = error.retry_after if isinstance(error, ApiError) else 0.0
        return max(self._backoff.failed(asked), self._pace.rest if isinstance(error, ApiError) else 0.0)

    async def _write(self) -> bool:
        """Write the report if it is another one than the last; whether it was. Raises what `ask` and the API do."""
        owner, report = self._source.node_uid, await self._circle.worker.ask(self._make)
        if report is None or self._written == (owner, report):
            return False
        await self._put(owner, report)
        return True

    async def tell_withdrawn(self, order: str) -> None:
        """Tell that nothing of ours is on the node any more, by that order; returns when the cluster knows."""
        report = NodeReport(
            agent_version=__version__,
            mode=self._view.identity.loaded.mode.name,
            in_force=False,
            message=shortened(self._view.standing(), MAX_MESSAGE),
            withdrawn=order,
        )
        while True:
            try:
                return await self._put(await self._source.look_up_node(), report)
            except ApiFailure as error:
                pause = self._failed(error)
            self._told.tell("report", self._view.reporting, cured="the node's report is written again")
            await asyncio.sleep(pause)

    async def _put(self, owner: str, report: NodeReport) -> None:
        """Write a report. Raises ApiFailure."""
        node = self._view.identity.node
        if not owner:
            raise ApiFailure(f"there is no Node named {node}")
        obj = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "NodeRedirectState",
            "metadata": {
                "name": node,
                "labels": self._labels,
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": owner}],
            },
            "report": msgspec.to_builtins(report),
        }
        await self._source.client.apply(f"/apis/{GROUP}/{VERSION}/{PLURAL}/{node}", obj, MANAGER)
        self._written = (owner, report)

    def _make(self) -> NodeReport | None:
        """Say how the node stands; None before there was a complete pass. Runs in the worker thread."""
        outcome = self._circle.outcome
        if not outcome.complete:
            return None
        in_force = outcome.opened and outcome.status is not None and outcome.status.in_force
        verdicts = self._circle.desired.resolution().verdicts
        claimed = {frontend.frontend for verdict in verdicts for frontend in verdict.frontends}
        held = self._circle.datapath.held(claimed) if outcome.opened else set()
        entries = [self._policy(verdict, held) for verdict in verdicts]
        listed = sorted((entry for entry in entries if entry), key=lambda entry: (entry.reason is None, entry.policy))
        problems = [problem for problem in self._view.problems() if problem != self._view.reporting]
        return NodeReport(
            agent_version=__version__,
            mode=self._view.identity.loaded.mode.name,
            in_force=in_force,
            message=None if in_force else shortened(self._view.standing(), MAX_MESSAGE),
            problems=tuple(shortened(problem, MAX_SENTENCE) for problem in problems[:MAX_PROBLEMS]),
            policies=tuple(listed[:MAX_POLICIES]),
            policy_count=len(listed),
            omitted_policies=max(0, len(listed) - MAX_POLICIES),
        )

    def _policy(self, verdict: PolicyVerdict, held: set[L4Addr]) -> PolicyReport | None:
        """Say how a policy stands here; None if the controller knows that as well."""
        redirected = sum(frontend.redirected and frontend.frontend in held for frontend in verdict.frontends)
        reason, message = self._trouble(verdict.frontends, held)
        if not redirected and not reason:
            return None
        return PolicyReport(
            policy=verdict.policy,
            uid=self._source.policy_uids.get(verdict.policy, ""),
            generation=verdict.generation,
            frontends=len(verdict.frontends),
            redirected=redirected,
            reason=reason,
            message=shortened(message, MAX_SENTENCE) if message else None,
        )

    def _trouble(self, frontends: Iterable[FrontendVerdict], held: set[L4Addr]) -> tuple[str | None, str | None]:
        """Find the first thing that is wrong with a policy's frontends here."""
        for frontend in frontends:
            if (frontend.redirected or frontend.drop) and frontend.frontend not in held:
                why = next(iter(self._circle.outcome.problems), "the kernel's maps do not hold it")
                return NOT_PROGRAMMED, f"{frontend.frontend} is not programmed: {why}"
            own = frontend.frontend.ip in self._source.node_ips
            if own and frontend.reason is FrontendReason.ADDRESS_OWNED_BY_SERVICE:
                return frontend.reason.value, frontend.message
        return None, None


def shortened(sentence: str, length: int) -> str:
    """Keep a sentence within what the schema takes."""
    return sentence if len(sentence) <= length else sentence[: length - 3] + "..."
