"""One way to ask the API server: a request and its answer, or a watch and its lines.

    async with KubeClient(ServiceAccount()) as client:
        body = await client.request("GET", "/api/v1/namespaces/kube-system")
        async with aclosing(client.lines("/api/v1/pods", {"watch": "true"}, inactivity=80)) as batches:
            async for lines in batches: ...

Whatever goes wrong is an ApiFailure (errors.py). What is done about it, and when, is for the caller to decide, with one
exception: a refused token (401) is replaced and the request made once more, because tokens rotate. `away` tells since
when the server can't be reached, as all users of a client see it together.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

import aiohttp
import msgspec

from lrp_operator import __version__
from lrp_operator.sources.kube.credentials import Access, Credentials
from lrp_operator.sources.kube.errors import ApiError, ApiSilent, ApiUnreachable

REQUEST_SECONDS = 30.0
"""So long a request and its whole answer may take."""
CONNECT_SECONDS = 10.0
STANDING_SECONDS = 0.5
"""A watch on which no error comes for so long stands."""

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"  # JSON is YAML

Params = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Away:
    """The server can't be reached: since when, and why at first."""

    since: datetime
    why: str

    def __str__(self) -> str:
        return f"the API server can't be reached since {self.since:%H:%M:%S} UTC ({self.why})"


class StatusDetails(msgspec.Struct, frozen=True, gc=False):
    """What a failure says beside its message."""

    retry_after: float = msgspec.field(default=0.0, name="retryAfterSeconds")


class Status(msgspec.Struct, frozen=True, gc=False):
    """A failure as the API writes it, in an answer or as a watch's last line."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: StatusDetails = StatusDetails()


class KubeClient:
    """Requests to one API server. Sends nothing before it is asked; close it, or use it in `async with`."""

    def __init__(self, credentials: Credentials, *, user_agent: str = f"lrp-operator/{__version__}") -> None:
        self._credentials = credentials
        self._headers = {"User-Agent": user_agent, "Accept": JSON}
        self._session: aiohttp.ClientSession | None = None
        self.away: Away | None = None

    @property
    def server(self) -> str:
        """The API server's URL."""
        return self._credentials.server

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self,
        method: str,
        path: str,
        params: Params | None = None,
        body: bytes | None = None,
        content_type: str = JSON,
    ) -> bytes:
        """Ask, and return the answer's body. Raises ApiFailure."""
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS)
        async with self._answer(method, path, params, body, content_type, timeout) as response:
            return await response.read()

    async def apply(self, path: str, obj: Mapping[str, Any], field_manager: str, *, force: bool = True) -> bytes:
        """Server-Side Apply: have the fields of `obj` be as they are there. Raises ApiFailure."""
        params = {"fieldManager": field_manager, "force": str(force).lower()}
        return await self.request("PATCH", path, params, json.dumps(obj).encode(), APPLY_PATCH)

    async def lines(self, path: str, params: Params, *, inactivity: float) -> AsyncGenerator[list[bytes]]:
        """Watch: yield the lines that come, as many as come together, until the server ends the watch.

        The first yield may be an empty list: the watch stands, and nothing has come yet.
        inactivity: after so many seconds without a byte the watch is dead (ApiSilent). Raises ApiFailure.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=None)
        async with self._answer("GET", path, params, None, JSON, timeout, patience=inactivity) as response:
            told, rest = False, b""
            while True:
                try:
                    async with asyncio.timeout(inactivity if told else STANDING_SECONDS):
                        chunk = await response.content.readany()
                except TimeoutError:
                    if told:
                        raise ApiSilent(f"nothing came on the watch of {path} for {inactivity:.0f} s") from None
                    told = True
                    yield []
                    continue
                if not chunk:
                    return
                *lines, rest = (rest + chunk).split(b"\n")
                if lines:
                    told = True
                    yield lines

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        params: Params | None,
        body: bytes | None,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
        patience: float = REQUEST_SECONDS,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, and again with new credentials if these are refused; the answer, if it is a yes.

        patience: so many seconds the head of the answer may take.
        """
        access = await self._credentials.access()
        with self._told():
            response = await self._send(access, method, path, params, body, content_type, timeout, patience)
        try:
        	pass
        finally:
            response.release()
