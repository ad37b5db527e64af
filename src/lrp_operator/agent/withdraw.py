"""Withdrawing from the node: on the cluster's order, everything of ours leaves the kernel, and the cluster is told.

    the order ─▶ nothing new is redirected ─▶ a while in which replies are still served ─▶ programs, pins, their
    directory go ─▶ the node's report says `withdrawn` ─▶ nothing is touched any more until this process ends

The order is a ConfigMap (api/withdrawal.py), read before anything is touched: an agent that was killed in the middle
goes on withdrawing when it is started again, and one whose node is clear keeps it so.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from lrp_operator.agent.loop import Circle
from lrp_operator.agent.sync import Outcome
from lrp_operator.api.withdrawal import orders_withdrawal
from lrp_operator.datapath.model import DatapathError
from lrp_operator.sources.kube.backoff import Backoff, Pauses
from lrp_operator.sources.kube.client import KubeClient
from lrp_operator.sources.kube.informer import Informer, Timing
from lrp_operator.sources.kube.resources import CONFIG_MAPS

log = logging.getLogger(__name__)

GRACE_SECONDS = 10.0
"""So long replies to what was redirected are still served: a resolver asks again after 5 seconds."""
USUAL = Timing()

WITHDRAWING = "withdrawing: nothing new is redirected here, replies to what was are still served"
WITHDRAWN = "withdrawn, as the cluster ordered: nothing of ours is in this node's kernel"


class Order:
    """The order to withdraw, followed. place: "namespace/name" of the ConfigMap; its client is closed in the end."""

    def __init__(self, client: KubeClient, place: str, timing: Timing = USUAL) -> None:
        namespace, _, name = place.partition("/")
        self.place = place
        self.known = False
        self.given = False
        self.revoked = False  # there is an order, and it says something else
        self.version = ""  # of the ConfigMap, while there is one
        self.problem = ""
        self._client = client
        self._informer = Informer(
            client, CONFIG_MAPS, namespace=namespace, field_selector=f"metadata.name={name}", timing=timing
        )
        self._news = asyncio.Condition()

    async def run(self) -> None:
        """Follow it until cancelled."""
        async with self._client, aclosing(self._informer.changes()) as changes:
            async for change in changes:
                if change.deletes:
                    self.given = self.revoked = False
                for order in change.upserts:
                    self.version = order.metadata.resource_version
                    self.given = orders_withdrawal(order.data)
                    self.revoked = not self.given
                self.known, self.problem = change.synced, change.problem
                async with self._news:
                    self._news.notify_all()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something is true of it."""
        async with self._news:
            await self._news.wait_for(holds)


class Withdrawal:
    """Takes everything off the node, step by step; each is told where people look, and tried until it is done."""

    def __init__(
        self,
        circle: Circle,
        hold_pins: Callable[[], None],
        remove_all: Callable[[], list[str]],
        *,
        grace: float = GRACE_SECONDS,
    ) -> None:
        """hold_pins: takes the lock on what is pinned, if anything is. remove_all: takes it all away; what it was."""
        self._circle = circle
        self._hold_pins = hold_pins
        self._remove_all = remove_all
        self._grace = grace
        self._backoff = Backoff(Pauses())

    async def run(self) -> None:
        """Withdraw. The circle must have come to rest. Raises LockHeldError, and what is a bug."""
        log.info("%s", WITHDRAWING)
        self._tell(WITHDRAWING)
        try:
            if await self._circle.worker.run(self._end_redirecting):
                await asyncio.sleep(self._grace)
        except (DatapathError, OSError) as error:
            log.warning("replies to what was redirected are not served any more: %s", error)
        await self._remove()
        log.info("%s", WITHDRAWN)
        self._tell(WITHDRAWN)

    def _end_redirecting(self) -> bool:
        self._hold_pins()
        return self._circle.datapath.end_redirecting()

    async def _remove(self) -> None:
        while True:
            try:
                removed = await self._circle.worker.run(self._take_away)
                break
            except (DatapathError, OSError) as error:
                log.warning("not everything could be removed yet: %s", error)
                self._tell(f"withdrawing, but not everything could be removed yet: {error}")
            await asyncio.sleep(self._backoff.failed())
        for name in removed:
            log.info("removed %s", name)

    def _take_away(self) -> list[str]:
        self._hold_pins()
        self._circle.datapath.close()
        return self._remove_all()

    def _tell(self, sentence: str) -> None:
        """Have it said wherever the circle's outcome is."""
        self._circle.outcome = Outcome(opened=False, error=sentence)
