"""Which of several controllers writes: the one that holds a Lease (coordination.k8s.io/v1).

    candidate ──(the Lease is free, or nobody has renewed it for its duration)──▶ leader
        ▲                                                                           │ renews every 2 s
        └──────(another holds it, or no renewal got through for 7 of 10 s)──────────┘

Taking and renewing are updates with the resourceVersion that was read, so of two that try only one succeeds. Clocks of
different machines are never compared: a candidate counts, by its own clock, how long the Lease has stayed as it is.

A leader stops writing 7 s after it *asked* for its last successful renewal. The server can't have written it before,
and nobody else can have seen it before, so another takes over 3 s later at the earliest; requests still on their way
have that long to arrive. The clock counts while the machine sleeps.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from lrp_operator.sources.kube.client import KubeClient
from lrp_operator.sources.kube.errors import ApiError, ApiFailure

log = logging.getLogger(__name__)

NEVER = float("-inf")


def clock() -> float:
    """Seconds that only ever grow, also while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """Seconds. duration: unrenewed for so long, it may be taken. give_up: unrenewed for so long, it is not used."""

    duration: int = 10
    give_up: float = 7.0
    renew: float = 2.0


class LeaseSpec(Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a Lease says."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class LeaseMeta(Struct, frozen=True, rename="camel", omit_defaults=True):
    """Which Lease, and which state of it."""

    name: str
    namespace: str = ""
    resource_version: str = ""


class Lease(Struct, frozen=True, rename="camel"):
    """coordination.k8s.io/v1 Lease."""

    metadata: LeaseMeta
    spec: LeaseSpec = LeaseSpec()
    api_version: str = "coordination.k8s.io/v1"
    kind: str = "Lease"


class Tenure:
    """What one candidate knows of the Lease, and so whether it leads or may try to. No effects."""

    def __init__(self, me: str, timing: LeaseTiming) -> None:
        self.me = me
        self._timing = timing
        self._lease: Lease | None = None
        self._seen_at = 0.0
        self._until = NEVER

    @property
    def lease(self) -> Lease | None:
        """The Lease as it was last seen."""
        return self._lease

    def see(self, lease: Lease | None, now: float) -> None:
        """Take in the Lease as it is now (None: there is none)."""
        version = lease.metadata.resource_version if lease else None
        if self._lease is None or version != self._lease.metadata.resource_version:
            self._seen_at = now
        self._lease = lease
        if lease is None or lease.spec.holder_identity != self.me:
            self._until = NEVER

    def hold(self, lease: Lease, asked_at: float, now: float) -> None:
        """Take in that the server has made us the holder, as was asked at a moment."""
        self._lease, self._seen_at = lease, now
        self._until = asked_at + self._timing.give_up

    def may_take(self, now: float) -> bool:
        """Whether to try to become or stay the holder."""
        spec = self._lease.spec if self._lease else LeaseSpec()
        if not spec.holder_identity or spec.holder_identity == self.me:
            return True
        return now >= self._seen_at + max(spec.lease_duration_seconds or 0, self._timing.duration)

    def remaining(self, now: float) -> float:
        """For how many seconds this candidate leads for sure; 0 if it does not."""
        return max(0.0, self._until - now)

    def wanted(self, stamp: str) -> LeaseSpec:
        """What the Lease is to say when we hold it."""
        old = self._lease.spec if self._lease else LeaseSpec()
        same = old.holder_identity == self.me
        return LeaseSpec(
            holder_identity=self.me,
            lease_duration_seconds=self._timing.duration,
            acquire_time=old.acquire_time if same else stamp,
            renew_time=stamp,
            lease_transitions=(old.lease_transitions or 0) + (not same and self._lease is not None),
        )


class Elector:
    """Tries to become the leader and to stay it, for ever."""

    def __init__(
        self,
        client: KubeClient,
        lease: str,
        me: str,
        changed: Callable[[], None],
        timing: LeaseTiming = LeaseTiming(),
    ) -> None:
        """lease: "namespace/name". me: a name that no other candidate has. changed: called when we begin to lead."""
        namespace, _, name = lease.partition("/")
        self._client = client
        self._timing = timing
        self._changed = changed
        self._meta = LeaseMeta(name, namespace)
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._tenure = Tenure(me, timing)
        self._led = False
        self.problem = ""

    @property
    def holder(self) -> str:
        """Who holds the Lease, as last seen; empty if nobody does."""
        lease = self._tenure.lease
        return (lease.spec.holder_identity or "") if lease else ""

    def remaining(self) -> float:
        """For how many seconds we lead for sure; 0 if we don't."""
        return self._tenure.remaining(clock())

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._timing.give_up / 2):
                    await self._try()
                self.problem = ""
            except (ApiFailure, TimeoutError, msgspec.DecodeError) as error:
                self.problem = (
                    f"the Lease {self._meta.namespace}/{self._meta.name} can't be used: {error or 'no answer'}"
                )
            self._tell()
            await asyncio.sleep(self._timing.renew)

    async def release(self) -> None:
        """Let another take over at once. Nothing may be written after this was called."""
        lease = self._tenure.lease
        if lease is None or not self.remaining():
            return
        self._tenure.see(None, clock())
        spec = LeaseSpec(lease_duration_seconds=1, lease_transitions=lease.spec.lease_transitions)
        try:
            async with asyncio.timeout(self._timing.renew):
                await self._put(lease.metadata, spec)
            log.info("the Lease is free for another controller")
        except (ApiFailure, TimeoutError, msgspec.DecodeError) as error:
            log.warning("the Lease could not be released (%s): another waits until it runs out", error)

    async def _try(self) -> None:
        """Look at the Lease unless it is ours, and take or renew it if that may be. Raises ApiFailure."""
        if not self.remaining():
            self._tenure.see(await self._get(), clock())
        if not self._tenure.may_take(clock()):
            return
        asked_at = clock()
        wanted = self._tenure.wanted(datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
        lease = self._tenure.lease
        try:
            held = await (self._put(lease.metadata, wanted) if lease else self._create(wanted))
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            self._tenure.see(await self._get(), clock())  # somebody was faster
            return
        self._tenure.hold(held, asked_at, clock())

    async def _get(self) -> Lease | None:
        try:
            return _decoded(await self._client.request("GET", f"{self._path}/{self._meta.name}"))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _put(self, meta: LeaseMeta, spec: LeaseSpec) -> Lease:
        body = msgspec.json.encode(Lease(meta, spec))
        return _decoded(await self._client.request("PUT", f"{self._path}/{self._meta.name}", body=body))

    async def _create(self, spec: LeaseSpec) -> Lease:
        return _decoded(
            await self._client.request("POST", self._path, body=msgspec.json.encode(Lease(self._meta, spec)))
        )

    def _tell(self) -> None:
        """Log, and pass on, that leadership has come or gone."""
        leads = self.remaining() > 0
        if leads == self._led:
            return
        self._led = leads
        if leads:
            log.info("this controller (%s) leads: it writes status", self._tenure.me)
            self._changed()
        else:
            log.warning("this controller leads no more: %s", self.problem or f"{self.holder} does")


def _decoded(body: bytes) -> Lease:
    return msgspec.json.decode(body, type=Lease)
