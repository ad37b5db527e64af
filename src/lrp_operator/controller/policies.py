"""Policies as they are now: kopf says which have changed, and they are read.

kopf runs in a thread of its own, with a loop of its own (it cancels what it does not know there), and does nothing but
tell names: no finalizers, no annotations, no handler that remembers anything in a user's object. What a name stands for
is read when there is time, so a hundred edits are one reading, and neither order nor repetition of events matters.

kopf does not notice what was deleted while its watch was cut for long, but it names everything anew after that. So
everything is listed then, whenever many names come at once, and now and then.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast

import aiohttp
import kopf
import msgspec
from msgspec import Raw, Struct

from lrp_operator.api.objects import Policy
from lrp_operator.sources.kube.client import KubeClient
from lrp_operator.sources.kube.credentials import Credentials
from lrp_operator.sources.kube.errors import ApiError
from lrp_operator.sources.kube.resources import POLICIES

log = logging.getLogger(__name__)

PAGE_SIZE = "500"
_WORDS_OF_AN_ERROR = 200
FRESH_LOGIN_SECONDS = 300
"""Credentials rotate: kopf asks for them anew this often."""


class _Meta(Struct, frozen=True, gc=False):
    version: str = msgspec.field(default="", name="resourceVersion")


class _Beside(Struct, frozen=True, gc=False):
    metadata: _Meta
    status: Any = None


class SeenPolicy(Struct, frozen=True):
    """A policy, which state of it this is, and the status that it shows."""

    policy: Policy
    version: str
    status: Mapping[str, Any]

    @property
    def uid(self) -> str:
        """Which object of this name."""
        return self.policy.metadata.uid

    @classmethod
    def read(cls, raw: bytes | Raw) -> "SeenPolicy":
        """Decode one. Raises msgspec.DecodeError."""
        beside = msgspec.json.decode(raw, type=_Beside)
        status = beside.status if isinstance(beside.status, dict) else {}
        return cls(msgspec.json.decode(raw, type=Policy), beside.metadata.version, status)


class _ListMeta(Struct, frozen=True, gc=False):
    more: str = msgspec.field(default="", name="continue")


class _Page(Struct, frozen=True, gc=False):
    metadata: _ListMeta
    items: list[Raw] | None = None


class PolicyReader:
    """Reads policies from the API server."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client

    async def get(self, key: str) -> SeenPolicy | None:
        """Read one; None if it is not there, or can't be read. Raises ApiFailure."""
        namespace, _, name = key.partition("/")
        try:
            return _read(await self._client.request("GET", f"{POLICIES.path(namespace)}/{name}"))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(self) -> dict[str, SeenPolicy]:
        """Read all that there are, none if the kind itself is not there. Raises ApiFailure, msgspec.DecodeError."""
        found: dict[str, SeenPolicy] = {}
        params = {"limit": PAGE_SIZE}
        while True:
            try:
                page = msgspec.json.decode(await self._client.request("GET", POLICIES.path(), params), type=_Page)
            except ApiError as error:
                if error.status == 404:
                    return {}
                raise
            found |= {seen.policy.metadata.key: seen for seen in map(_read, page.items or ()) if seen}
            if not page.metadata.more:
                return found
            params = {"limit": PAGE_SIZE, "continue": page.metadata.more}


def _read(raw: bytes | Raw) -> SeenPolicy | None:
    """Decode one policy; one that can't be read is told and does not keep others from being read."""
    try:
        return SeenPolicy.read(raw)
    except msgspec.DecodeError as error:
        log.warning("a policy can't be read: %s", error)
        return None


class KopfEndedError(Exception):
    """kopf does not watch any more."""


class ChangedNames:
    """The names of policies that have changed, told by kopf."""

    def __init__(self, make_credentials: Callable[[], Credentials]) -> None:
        """make_credentials: for kopf's own loop, as credentials belong to the loop that uses them."""
        self._make_credentials = make_credentials
        self._names: dict[str, str] = {}
        self._wake = asyncio.Event()
        self.named_anew = True  # kopf has listed: what was deleted meanwhile it does not say; whoever lists resets it

    async def take(self) -> dict[str, str]:
        """Wait for names; which resourceVersion each was told with."""
        await self._wake.wait()
        self._wake.clear()
        names, self._names = self._names, {}
        return names

    def wake(self) -> None:
        """Have whoever takes come back, names or not."""
        self._wake.set()

    def put(self, name: str, version: str, *, listed: bool = False) -> None:
        """Take in a name, perhaps because kopf has listed. On the loop of whoever takes."""
        self._names[name] = version
        self.named_anew = self.named_anew or listed
        self._wake.set()

    async def run(self) -> None:
        """Have kopf watch for ever; if we are cancelled, it ends with the process. Raises KopfEndedError."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Exception | None] = loop.create_future()

        def live() -> None:
            error: Exception | None = None
            try:
                asyncio.run(self._operate(loop))
            except Exception as caught:  # noqa: BLE001 - handed over to the loop that waits for it
                error = caught
            with contextlib.suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(ended.set_result, error)

        threading.Thread(target=live, name="kopf", daemon=True).start()
        error = await asyncio.shield(ended)
        raise KopfEndedError(f"kopf does not watch any more: {str(error)[:_WORDS_OF_AN_ERROR]}") from error

    async def _operate(self, loop: asyncio.AbstractEventLoop) -> None:
        registry = kopf.OperatorRegistry()

        @kopf.on.event("cilium.io", "v2", POLICIES.plural, registry=registry)
        async def note(namespace: str | None, name: str | None, body: kopf.Body, event: Any, **_: Any) -> None:
            version = str(body.get("metadata", {}).get("resourceVersion", ""))
            put = partial(self.put, f"{namespace}/{name}", version, listed=event["type"] is None)
            loop.call_soon_threadsafe(put)

        credentials = self._make_credentials()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            return await _session(credentials)

        settings = kopf.OperatorSettings()
        settings.scanning.disabled = True
        settings.posting.enabled = False
        # It speaks with no peers; asked for a name, it would look for its user's, who in a container has none.
        me = cast("Any", "lrp-controller")
        await kopf.operator(registry=registry, settings=settings, identity=me, standalone=True, clusterwide=True)


async def _session(credentials: Credentials) -> kopf.AiohttpSession:
    """Give kopf a session with our credentials, good for a while."""
    access = await credentials.access()
    headers = {"Authorization": access.authorization} if access.authorization else {}
    connector = aiohttp.TCPConnector(limit=0, ssl=access.tls if access.tls is not None else True)
    return kopf.AiohttpSession(
        server=access.server,
        aiohttp_session=aiohttp.ClientSession(connector=connector, headers=headers, proxy=access.proxy),
        expiration=datetime.now(UTC) + timedelta(seconds=FRESH_LOGIN_SECONDS),
    )
