"""One way to ask the API server: a request and its answer, or a watch and its lines.

    async with KubeClient(ServiceAccount()) as client:
        body = await client.request("GET", "/api/v1/namespaces/kube-system")
        async with aclosing(client.lines("/api/v1/pods", {"watch": "true"}, inactivity=80)) as batches:
            async for lines in batches: ...

Whatever goes wrong is an ApiFailure (errors.py). What is done about it, and when, is for the caller to decide, with one
exception: refused credentials (401) are replaced and the request is made once more, because tokens rotate. `away` tells
since when the server can't be reached, as all users of a client see it together.
"""

import asyncio
import json
import os
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
FAREWELL_SECONDS = 0.1
"""So long TLS connections that were left get to say goodbye, which is when their sockets are closed."""
STANDING_SECONDS = 0.5
"""A watch on which no error came for so long stands."""

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"  # JSON is YAML

_READ_BUFFER = 1 << 18
_WORDS_OF_AN_ERROR = 500

Params = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Away:
    """The server can't be reached: since when, and why at first."""

    since: datetime
    why: str

    def __str__(self) -> str:
        return f"the API server can't be reached since {self.since:%H:%M:%S} UTC ({self.why})"


class _Details(msgspec.Struct, frozen=True, gc=False):
    """What a failure says beside its message."""

    retry_after: float = msgspec.field(default=0.0, name="retryAfterSeconds")


class Status(msgspec.Struct, frozen=True, gc=False):
    """A failure as the API writes it: as an answer, or as the last line of a watch."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None

    def error(self) -> ApiError:
        """Make what is raised."""
        return ApiError(self.code, self.reason, self.message, self.details.retry_after if self.details else 0.0)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request before it is sent."""

    method: str
    path: str
    params: Params | None
    timeout: aiohttp.ClientTimeout
    body: bytes | None = None
    content_type: str = JSON


class KubeClient:
    """Requests to one API server. Connects when it is first asked; close it, or use it in `async with`."""

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
            await asyncio.sleep(FAREWELL_SECONDS)

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
        async with self._answer(_Asked(method, path, params, timeout, body, content_type)) as response:
            return await response.read()

    async def apply(self, path: str, obj: Mapping[str, Any], field_manager: str, *, force: bool = True) -> bytes:
        """Server-Side Apply: have the fields of `obj` be as they are there. Raises ApiFailure."""
        params = {"fieldManager": field_manager, "force": str(force).lower()}
        return await self.request("PATCH", path, params, json.dumps(obj).encode(), APPLY_PATCH)

    async def lines(self, path: str, params: Params, *, inactivity: float) -> AsyncGenerator[list[bytes]]:
        """Watch: yield the lines that come, as many as come together, until the server ends the watch.

        The first yield may be an empty list: the watch stands, and nothing has come yet.
        inactivity: after so many seconds without a byte the watch is dead (ApiSilent). Raises ApiFailure. A line may be
        of any length; one that is cut off by the end is left out.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=inactivity)
        async with self._answer(_Asked("GET", path, params, timeout)) as response:
            chunk = await _first(response)
            if chunk is None:
                yield []
                chunk = await response.content.readany()
            rest = bytearray()
            while chunk:
                rest += chunk
                if b"\n" in chunk:
                    *lines, last = bytes(rest).split(b"\n")
                    rest = bytearray(last)
                    yield lines
                chunk = await response.content.readany()

    @asynccontextmanager
    async def _answer(self, asked: _Asked) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a request, if it is a yes; released in the end."""
        access = await self._credentials.access()
        response = await self._send(asked, access)
        if response.status == 401:
            response.release()
            await self._credentials.refused(access)
            response = await self._send(asked, await self._credentials.access())
        try:
            if response.status >= 300:
                raise await _error_in(response)
            yield response
        except TimeoutError as error:
            raise ApiSilent(f"nothing comes from the API server any more ({asked.path})") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ApiUnreachable(f"the API server's answer broke off: {_why(error)}") from error
        finally:
            response.release()

    async def _send(self, asked: _Asked, access: Access) -> aiohttp.ClientResponse:
        """Send a request; its answer's head, whatever it says. Raises ApiUnreachable."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)  # each watch is a connection
            self._session = aiohttp.ClientSession(connector=connector, read_bufsize=_READ_BUFFER)
        headers = dict(self._headers)
        if access.authorization:
            headers["Authorization"] = access.authorization
        if asked.body is not None:
            headers["Content-Type"] = asked.content_type
        try:
            response = await self._session.request(
                asked.method,
                access.server + asked.path,
                params=asked.params,
                data=asked.body,
                headers=headers,
                timeout=asked.timeout,
                ssl=access.tls if access.tls is not None else True,
                server_hostname=access.server_name,
                proxy=access.proxy,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:  # OSError: timeouts too; ValueError: no host's name
            self.away = self.away or Away(datetime.now(UTC), _why(error))
            raise ApiUnreachable(str(self.away)) from error
        self.away = None
        return response


async def _first(response: aiohttp.ClientResponse) -> bytes | None:
    """Return what comes first; None if a while passes without it, and then nothing is lost."""
    try:
        async with asyncio.timeout(STANDING_SECONDS):
            return await response.content.readany()
    except TimeoutError:
        return None


async def _error_in(response: aiohttp.ClientResponse) -> ApiError:
    """Read a failure from an answer."""
    body = await response.read()
    try:
        status = msgspec.json.decode(body, type=Status)
    except msgspec.DecodeError:
        status = Status(message=body[:_WORDS_OF_AN_ERROR].decode(errors="replace").strip() or str(response.reason))
    asked_to_wait = response.headers.get("Retry-After", "")
    seconds = float(asked_to_wait) if asked_to_wait.isdecimal() else status.error().retry_after
    return ApiError(response.status, status.reason, status.message, seconds)


def _why(error: Exception) -> str:
    """Put what a library says into few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted: {error.certificate_error}"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
