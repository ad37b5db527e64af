"""Follows one kind of object for ever: lists it, watches it, and finds its way back after anything that goes wrong.

        ┌──────────────── history is gone (410), or resuming keeps failing ──────────────┐
        ▼                                                                                │
      list ──────────▶ synced ──────────▶ watch ──▶ cut, silent, refused ──▶ pause ──▶ resume

A listing is a watch that begins with everything there is (a "watch list", Kubernetes 1.32 and later), which spares both
sides a large answer; where the server refuses that, or does not say where its beginning ends, pages of 500. Either is
consistent: as new as anything that was written before. A watch resumes at the last version it has seen, bookmarks
included. What is news is for told.py to say.

Pauses grow, with full jitter, and what the server asks for (Retry-After) is added; they begin anew after a watch that
stood for longer than the last one. So however things fail, nothing is asked in a loop, and a server that ends all
watches at one moment is not asked for all of them at the next. A silent watch is dead after `inactivity`: the server
sends a bookmark every minute. If it was silent from its beginning, all is listed anew: a server that was restored from
a backup has nothing to say about a version that lies in its future.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Generic

import msgspec
from msgspec import Raw, Struct

from lrp_operator.sources.kube.backoff import Backoff, Pauses
from lrp_operator.sources.kube.client import KubeClient, Status
from lrp_operator.sources.kube.errors import ApiError, ApiFailure, ApiSilent, ApiUnreachable, CredentialsError
from lrp_operator.sources.kube.resources import Resource, T
from lrp_operator.sources.kube.told import UNDECODABLE, Told, is_newer

PAGE_SIZE = "500"
END_OF_LIST = "k8s.io/initial-events-end"
RESUMES = 3
"""So many refusals in a row, and the history is not asked for any more."""
ABSENT = 3
"""So many times in a row the server must not know a kind of object, until that means that there are none."""
_UNRELATED = (401, 403, 404, 410, 429)
"""What a server may answer that says nothing about how it was asked."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long an informer waits, in seconds.

    inactivity: for any byte on a watch. beginning: the same while a watch list still tells what there is.
    lifetime: a watch is asked to end after at least so long, and at most twice, so that servers share the watches.
    """

    inactivity: float = 80.0
    beginning: float = 30.0
    lifetime: int = 300
    pauses: Pauses = field(default_factory=Pauses)


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What is new; to be taken in as a whole, the deletes first (an object may be deleted and made again).

    deletes: "namespace/name"; "/name" for what has no namespace.
    synced: all that there is has been told at least once.
    problem: a sentence about what hinders the informer just now; empty if nothing does.
    unreadable: sentences about objects that can't be decoded; what was told of them before still stands.
    """

    upserts: tuple[T, ...] = ()
    deletes: tuple[str, ...] = ()
    synced: bool = False
    problem: str = ""
    unreadable: tuple[str, ...] = ()


class _Unintelligible(ApiFailure):
    """What came is not what the API sends."""


class _Event(Struct, frozen=True, gc=False):
    type: str
    object: Raw


class _ListMetadata(Struct, frozen=True, gc=False):
    version: str = msgspec.field(default="", name="resourceVersion")
    more: str = msgspec.field(default="", name="continue")
    annotations: dict[str, str] | None = None


class _Bookmark(Struct, frozen=True, gc=False):
    metadata: _ListMetadata


class _Page(Struct, frozen=True, gc=False):
    metadata: _ListMetadata
    items: list[Raw] | None = None


_EVENT = msgspec.json.Decoder(_Event)
_BOOKMARK = msgspec.json.Decoder(_Bookmark)
_PAGE = msgspec.json.Decoder(_Page)
_STATUS = msgspec.json.Decoder(Status)


def _is(failure: ApiFailure | None, status: int) -> bool:
    return isinstance(failure, ApiError) and failure.status == status


class Informer(Generic[T]):
    """Follows the objects of a kind: all, those of a namespace, those that selectors select."""

    def __init__(
        self,
        client: KubeClient,
        resource: Resource[T],
        *,
        namespace: str | None = None,
        field_selector: str = "",
        label_selector: str = "",
        timing: Timing = Timing(),
    ) -> None:
        self._client = client
        self._resource = resource
        self._path = resource.path(namespace)
        self._selectors = {"fieldSelector": field_selector, "labelSelector": label_selector}
        self._timing = timing
        self._told = Told(resource)
        self._backoff = Backoff(timing.pauses)
        self._version: str | None = None  # where the watch resumes; None: list anew
        self._as_stream = True  # whether to list by a watch list
        self._stands_since: float | None = None
        self._heard = False
        self._refusals = 0
        self._absences = 0
        self._synced = False
        self._problem = ""

    async def changes(self) -> AsyncGenerator[Change[T]]:
        """Tell what there is, as it comes, and then what changes, for ever. Raises nothing but bugs."""
        last: Change[T] = Change()
        while True:
            failure: ApiFailure | None = None
            try:
                async with aclosing(self._follow()) as moments:
                    async for _ in moments:
                        if (change := self._change()) != last:
                            yield change
                            last = replace(change, upserts=(), deletes=())
            except ApiFailure as error:
                failure = error
            pause = self._ended(failure)
            if (change := self._change()) != last:
                yield change
                last = replace(change, upserts=(), deletes=())
            await asyncio.sleep(pause)

    def _change(self) -> Change[T]:
        upserts, deletes = self._told.take()
        return Change(upserts, deletes, self._synced, self._problem, tuple(self._told.unreadable.values()))

    # --- One try: from a listing, or from where the last one ended, until something ends it -------------------------

    async def _follow(self) -> AsyncGenerator[None]:
        """List if need be, and watch; yield whenever there may be something to tell. Raises ApiFailure."""
        self._stands_since, self._heard = None, False
        if self._version is None:
            self._told.begin()
            if not self._as_stream:
                async with aclosing(self._list()) as pages:
                    async for _ in pages:
                        yield
        patience = self._timing.beginning if self._version is None else self._timing.inactivity
        async with aclosing(self._client.lines(self._path, self._watch_params(), inactivity=patience)) as batches:
            async for lines in batches:
                failure = self._read(lines)
                if failure is None and self._version is not None:
                    self._stand()
                yield
                if failure is not None:
                    raise failure

    async def _list(self) -> AsyncGenerator[None]:
        """List in pages. Raises ApiFailure."""
        more = ""
        while True:
            body = await self._client.request("GET", self._path, self._params(limit=PAGE_SIZE, **{"continue": more}))
            try:
                page = _PAGE.decode(body)
                for item in page.items or ():
                    self._told.put(item)
            except UNDECODABLE as error:
                raise _Unintelligible(f"the list of {self._path} can't be read: {error}") from error
            more = page.metadata.more
            if not more:
                self._listed(page.metadata.version)
            yield
            if not more:
                return

    def _params(self, **more: str) -> dict[str, str]:
        return {name: value for name, value in (self._selectors | more).items() if value}

    def _watch_params(self) -> dict[str, str]:
        lifetime = self._timing.lifetime
        common = self._params(
            watch="true",
            allowWatchBookmarks="true",
            timeoutSeconds=str(random.randint(lifetime, 2 * lifetime)),  # noqa: S311 - no secret
        )
        if self._version is not None:
            return common | {"resourceVersion": self._version}
        return common | {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}

    def _listed(self, version: str) -> None:
        """All that there is has been told; from here on it is watched."""
        self._told.end()
        self._version = version
        self._synced = True

    def _stand(self) -> None:
        """The watch stands: whatever was wrong is over."""
        if self._stands_since is None:
            self._stands_since = time.monotonic()
            self._problem = ""

    # --- What comes on a watch --------------------------------------------------------------------------------------

    def _read(self, lines: list[bytes]) -> ApiFailure | None:
        """Take in what came; what ends the watch, if there is such a thing in it."""
        for line in lines:
            try:
                event = _EVENT.decode(line)
                match event.type:
                    case "ADDED" | "MODIFIED":
                        self._advance(self._told.put(event.object))
                    case "DELETED":
                        self._advance(self._told.drop(event.object))
                    case "BOOKMARK":
                        self._bookmark(_BOOKMARK.decode(event.object).metadata)
                    case "ERROR":
                        return _STATUS.decode(event.object).error()
                self._heard = True
            except UNDECODABLE as error:
                return _Unintelligible(f"what comes on the watch of {self._path} is no event: {error}")
        return None

    def _bookmark(self, bookmark: _ListMetadata) -> None:
        """The server says how far all has been told; one such mark ends the beginning of a watch list."""
        if self._version is not None:
            self._told.settle()
            self._advance(bookmark.version)
        elif (bookmark.annotations or {}).get(END_OF_LIST) == "true":
            self._listed(bookmark.version)

    def _advance(self, version: str) -> None:
        if self._version is not None and is_newer(version, self._version):
            self._version = version

    # --- What ends a try, and what to do next -----------------------------------------------------------------------

    def _ended(self, failure: ApiFailure | None) -> float:
        """Learn from how a try ended: where to begin the next one, and after which pause."""
        if self._refuses_watch_list(failure):
            self._as_stream = False
            return 0.0
        stood = time.monotonic() - self._stands_since if self._stands_since is not None else 0.0
        if stood > self._backoff.calm:
            self._backoff.succeeded()
            self._refusals = 0
        self._choose_beginning(failure)
        self._problem = "" if self._stands_since is not None else self._sentence(failure)
        return self._backoff.failed(failure.retry_after if isinstance(failure, ApiError) else 0.0)

    def _refuses_watch_list(self, failure: ApiFailure | None) -> bool:
        """Whether the server can't list by a watch: it says so, or its watch does not say where the beginning ends."""
        if self._version is not None or not self._as_stream:
            return False
        if isinstance(failure, ApiError):
            return 400 <= failure.status < 500 and failure.status not in _UNRELATED
        return isinstance(failure, ApiSilent)

    def _choose_beginning(self, failure: ApiFailure | None) -> None:
        """Decide whether the next try may resume, or has to list anew."""
        if isinstance(failure, _Unintelligible) or (isinstance(failure, ApiError) and failure.status not in _UNRELATED):
            self._refusals += 1
        expired = isinstance(failure, ApiError) and failure.expired
        lost = isinstance(failure, ApiSilent) and not self._heard
        if expired or lost or self._refusals >= RESUMES or _is(failure, 404):
            self._version = None
            self._refusals = 0
        self._absences = self._absences + 1 if _is(failure, 404) else 0
        if self._absences >= ABSENT:
            self._told.begin()
            self._told.end()

    def _sentence(self, failure: ApiFailure | None) -> str:
        """Say what is wrong; nothing, if it is only that a history has ended."""
        if isinstance(failure, ApiError) and failure.expired:
            return ""
        if failure is None:
            return f"the API server ended the watch of {self._resource.plural} before it had told what there is"
        if _is(failure, 404):
            return (
                f"the API server does not know {self._resource.plural} ({self._path}): "
                "install their CustomResourceDefinition; until then they are asked for again and again"
            )
        return str(failure) if self._is_about_server(failure) else f"{self._resource.plural}: {failure}"

    @staticmethod
    def _is_about_server(failure: ApiFailure) -> bool:
        return isinstance(failure, ApiUnreachable | CredentialsError)
