"""`lrp-controller withdraw`: has every agent withdraw from its node, and waits for all. So `helm uninstall` begins.

    the order is given ─▶ reports and agents' pods are followed ─▶ all have withdrawn: the reports are deleted ─▶ 0
                                                                └▶ time is up: which have not, and what to do ─▶ 1

A node is waited for if it has a report, or an agent that is ready, which will write one. So one whose agent is gone is
waited for as well, and named in the end: what an agent has left in a kernel goes on redirecting, and only on that node
can it be removed. Where that was done by hand and the report deleted, an agent that fails all the time does not count.

Where the kind of the reports is not there any more, no agent can answer: that is told at once, and nothing is done. If
there are no agents either, an earlier uninstall has come that far, and there is nothing to wait for.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Generic, TypeVar

import msgspec

from lrp_operator import __version__
from lrp_operator.api.nodestate import GROUP, PLURAL, NodeRedirectState
from lrp_operator.api.objects import ConfigMap, Pod
from lrp_operator.api.withdrawal import ORDER_KEY, labels_of_reports
from lrp_operator.controller import EXIT_FAILED
from lrp_operator.controller.feeds import NODE_STATES
from lrp_operator.sources.kube.backoff import Backoff, Pauses
from lrp_operator.sources.kube.client import MERGE_PATCH, KubeClient
from lrp_operator.sources.kube.credentials import Credentials
from lrp_operator.sources.kube.errors import ApiError, ApiFailure
from lrp_operator.sources.kube.informer import Informer
from lrp_operator.sources.kube.resources import PODS, T

GATHER_SECONDS = 1.0
"""So long what comes is gathered before it is told."""
NAMED = 10
"""So many nodes are named in a line on how it goes; in the end, all."""
KIND = f"{PLURAL}.{GROUP}"

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be done, and how long it may take.

    order: "namespace/name" of the ConfigMap. agents: label selector of their pods, which are in its namespace.
    image: theirs.
    """

    order: str
    agents: str
    image: str
    seconds: float

    @property
    def namespace(self) -> str:
        """Where it all is."""
        return self.order.partition("/")[0]

    @property
    def reports(self) -> str:
        """Label selector of the reports that answer: another release's nodes are its own business."""
        return ",".join(f"{label}={value}" for label, value in labels_of_reports(self.order).items())


class _Pods(msgspec.Struct, frozen=True):
    items: list[Pod]


def run(credentials: Credentials, wanted: Wanted) -> int:
    """Do it; the exit code."""
    return asyncio.run(Withdrawal(credentials, wanted).run())


def waited_for(states: Iterable[NodeRedirectState], pods: Iterable[Pod], order: str) -> dict[str, str]:
    """Nodes that have not been withdrawn from, and why, as far as can be seen from afar.

    order: the ConfigMap's resourceVersion; empty if there is none any more, and agents may have heeded any.
    """
    agents = {pod.spec.node_name: pod for pod in pods if pod.spec.node_name}
    reports = {state.metadata.name: state.report for state in states}
    found: dict[str, str] = {}
    for node, report in reports.items():
        pod = agents.get(node)
        if report is not None and report.withdrawn and order in ("", report.withdrawn):
            continue
        found[node] = (
            f"its agent has not withdrawn (pod {pod.metadata.name}, {pod.status.phase})"
            if pod
            else "no agent is there to withdraw"
        )
    for node, pod in agents.items():
        if node not in reports and _is_ready(pod):
            found[node] = f"its agent has not reported anything (pod {pod.metadata.name})"
    return dict(sorted(found.items()))


def _is_ready(pod: Pod) -> bool:
    return any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or ())


class Withdrawal:
    """Gives the order, and sees to it."""

    def __init__(self, credentials: Credentials, wanted: Wanted) -> None:
        self._wanted = wanted
        self._client = KubeClient(credentials, user_agent=f"lrp-controller/{__version__}")
        self._wake = asyncio.Event()
        agents = Informer(self._client, PODS, namespace=wanted.namespace, label_selector=wanted.agents)
        self._pods = _Followed(agents, self._wake.set)
        self._states = _Followed(Informer(self._client, NODE_STATES, label_selector=wanted.reports), self._wake.set)
        self._problem = ""
        self._order = ""

    async def run(self) -> int:
        """Give the order, wait, and tell how it went; the exit code."""
        async with self._client:
            try:
                async with asyncio.timeout(self._wanted.seconds):
                    if not await self._patiently(self._is_kind_there):
                        return await self._without_answers()
                    await self._patiently(self._give_order)
                    await self._wait()
                    await self._patiently(self._delete_reports)
            except TimeoutError:
                sys.stderr.write(self._what_now())
                return EXIT_FAILED
        return 0

    async def _is_kind_there(self) -> bool:
        try:
            await self._client.request("GET", NODE_STATES.path(), {"limit": "1"})
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return False
        return True

    async def _without_answers(self) -> int:
        """Nobody can say that they have withdrawn: tell, unless there is nobody; the exit code."""
        if await self._patiently(self._count_agents):
            sys.stderr.write(_NO_KIND)
            return EXIT_FAILED
        _say(f"the kind {KIND} has gone, and every agent: an earlier uninstall has come that far")
        return 0

    async def _count_agents(self) -> int:
        """Count the agents' pods that are to stay."""
        path, selected = PODS.path(self._wanted.namespace), {"labelSelector": self._wanted.agents}
        answer = await self._client.request("GET", path, selected)
        return sum(not pod.metadata.deletion_timestamp for pod in msgspec.json.decode(answer, type=_Pods).items)

    async def _give_order(self) -> None:
        namespace, _, name = self._wanted.order.partition("/")
        body = json.dumps({"data": {ORDER_KEY: None}}).encode()
        path = f"/api/v1/namespaces/{namespace}/configmaps/{name}"
        try:
            answer = await self._client.request("PATCH", path, body=body, content_type=MERGE_PATCH)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            _say(f"the ConfigMap {self._wanted.order} has gone: an earlier uninstall has come that far")
        else:
            self._order = msgspec.json.decode(answer, type=ConfigMap).metadata.resource_version
            _say(f"agents are told to withdraw (ConfigMap {self._wanted.order})")

    async def _wait(self) -> None:
        """Follow what nodes say until all have been withdrawn from."""
        following = [asyncio.create_task(followed.run()) for followed in (self._states, self._pods)]
        told = ""
        try:
            while not self._complete or self._left:
                self._problem = self._states.problem or self._pods.problem
                if (line := self._progress()) != told:
                    _say(told := line)
                await self._wake.wait()
                self._wake.clear()
                await asyncio.sleep(GATHER_SECONDS)
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
        _say(f"every agent has withdrawn: nothing is left on {_nodes(len(self._states.objects))}")

    async def _delete_reports(self) -> None:
        await self._client.request("DELETE", NODE_STATES.path(), {"labelSelector": self._wanted.reports})

    async def _patiently(self, ask: Callable[[], Awaitable[A]]) -> A:
        """Ask until the API server answers."""
        backoff = Backoff(Pauses())
        while True:
            try:
                return await ask()
            except ApiFailure as error:
                self._problem = str(error)
                _say(self._problem)
                await asyncio.sleep(backoff.failed(error.retry_after if isinstance(error, ApiError) else 0.0))

    # --- How it stands ---

    @property
    def _complete(self) -> bool:
        return self._states.synced and self._pods.synced

    @property
    def _left(self) -> Mapping[str, str]:
        """Nodes that are waited for, and why."""
        return waited_for(self._states.objects.values(), self._pods.objects.values(), self._order)

    def _progress(self) -> str:
        if self._problem:
            return self._problem
        left = list(self._left)
        more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
        return f"waiting for {_nodes(len(left))}: {', '.join(left[:NAMED])}{more}" if left else "looking who is there"

    def _what_now(self) -> str:
        """Say who has not withdrawn, and what people can do."""
        lines = [f"After {self._wanted.seconds:g} seconds not every agent has withdrawn from its node."]
        lines += [self._problem] if self._problem else []
        lines += [f"  {node}: {why}" for node, why in self._left.items()]
        for node in list(self._left)[:1]:
            debug = f"kubectl debug node/{node} -it --profile=sysadmin --image={self._wanted.image}"
            lines += [
                "What such an agent has put into its node's kernel goes on redirecting. Mend the agent, and uninstall",
                "again. Where it can't be mended, remove everything by hand, and the report, and uninstall again:",
                f"  {debug} -- lrp-agent cleanup --bpf-root=/host/sys/fs/bpf/lrp-operator",
                f"  kubectl delete {KIND} {node}",
                "What it keeps on the disk (/var/lib/lrp-operator, or buildCache.hostRoot) does nothing by itself.",
                "A node that is gone for good needs the second only. `helm uninstall --no-hooks` leaves all as it is.",
            ]
        return "".join(f"{line}\n" for line in lines)


class _Followed(Generic[T]):
    """The objects of a kind, as an informer tells them."""

    def __init__(self, informer: Informer[T], changed: Callable[[], None]) -> None:
        self.objects: dict[str, T] = {}
        self.synced = False
        self.problem = ""
        self._informer = informer
        self._changed = changed

    async def run(self) -> None:
        """Follow until cancelled."""
        async with aclosing(self._informer.changes()) as changes:
            async for change in changes:
                for key in change.deletes:
                    self.objects.pop(key, None)
                for obj in change.upserts:
                    known: Any = obj
                    self.objects[known.metadata.key] = obj
                self.synced, self.problem = change.synced, change.problem
                self._changed()


_NO_KIND = f"""\
The kind {KIND} is not there, so no agent could say that it has withdrawn. Nothing was done.
Install it again, and uninstall again:
  kubectl apply -f deploy/crds/{PLURAL}.yaml
`helm rollback` to the last revision does that too, where the chart has installed it. `helm uninstall --no-hooks` leaves
what is in nodes' kernels, and it goes on redirecting.
"""


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
