"""Reads objects of the cluster, whole lists in pages; whatever is in the way becomes a sentence.

A person who may not read something is told what exactly, by the words that a role has for it. Of several questions
asked at once, all that is forbidden is told at once.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, Self

import msgspec
from msgspec import Raw, Struct, field
from pydantic import ValidationError

from lrp_operator import __version__
from lrp_operator.api.objects import ObjectMeta, Policy
from lrp_operator.api.status import PolicyStatus
from lrp_operator.sources.kube.client import KubeClient
from lrp_operator.sources.kube.credentials import Credentials
from lrp_operator.sources.kube.errors import ApiError, ApiFailure, ApiUnreachable
from lrp_operator.sources.kube.resources import POLICIES, Resource, T

PAGE_SIZE = "500"


class NoAnswer(Exception):  # noqa: N818 -- whether that is an error is for who asked to say
    """The cluster does not tell; the text is a sentence for people."""


class NotAllowedError(NoAnswer):
    """We may not read that."""


class NoSuchKindError(NoAnswer):
    """The cluster has no such kind of object."""


class LivePolicy(Struct, frozen=True):
    """A policy and the status that it shows, both as they were written."""

    metadata: ObjectMeta
    spec: Any = None
    status: Any = None

    @property
    def policy(self) -> Policy:
        """The policy as resolution knows it."""
        return Policy(self.metadata, self.spec)

    @property
    def shown(self) -> PolicyStatus:
        """The status as far as it is one of ours: what others may have written there says nothing."""
        try:
            return PolicyStatus.model_validate(self.status or {})
        except ValidationError:
            return PolicyStatus()

    @property
    def rejection(self) -> str:
        """Why the controller has rejected the policy as it is now; empty if it has not."""
        shown = self.shown
        if shown.observed_generation != self.metadata.generation:
            return ""
        return next((c.message for c in shown.conditions if c.type == "Accepted" and c.status == "False"), "")


LIVE_POLICIES = Resource(POLICIES.prefix, POLICIES.plural, POLICIES.kind, LivePolicy)


class _ListMeta(Struct, frozen=True):
    more: str = field(default="", name="continue")


class _Page(Struct, frozen=True):
    metadata: _ListMeta
    items: list[Raw] | None = None


class Reader:
    """Reads from one API server; use it in `async with`."""

    def __init__(self, credentials: Credentials) -> None:
        self._client = KubeClient(credentials, user_agent=f"lrpctl/{__version__}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def get(self, resource: Resource[T], name: str, namespace: str | None = None) -> T | None:
        """Read one object; None if it is not there. Raises NoAnswer."""
        try:
            body = await self._client.request("GET", f"{resource.path(namespace)}/{name}")
        except ApiError as error:
            if error.status == 404 and error.reason == "NotFound" and error.message.endswith("not found"):
                return None
            raise self._sentence(error, "get", resource, namespace) from error
        except ApiFailure as error:
            raise self._sentence(error, "get", resource, namespace) from error
        return _decoded(body, resource)

    async def list(self, resource: Resource[T], namespace: str | None = None, **selectors: str) -> list[T]:
        """Read all objects of a namespace, or all there are. selectors: fieldSelector and others. Raises NoAnswer."""
        found: list[T] = []
        params = {"limit": PAGE_SIZE} | selectors
        while True:
            try:
                page = msgspec.json.decode(
                    await self._client.request("GET", resource.path(namespace), params), type=_Page
                )
            except (ApiFailure, msgspec.DecodeError) as error:
                raise self._sentence(error, "list", resource, namespace) from error
            found += [_decoded(item, resource) for item in page.items or ()]
            if not page.metadata.more:
                return found
            params = {"limit": PAGE_SIZE, "continue": page.metadata.more} | selectors

    def _sentence(self, error: Exception, verb: str, resource: Resource[Any], namespace: str | None) -> NoAnswer:
        """Put what is in the way into words."""
        group = resource.prefix.split("/")[2] if resource.prefix.startswith("/apis/") else ""
        what = f"{resource.plural}.{group}" if group else resource.plural
        if isinstance(error, ApiUnreachable):
            why = self._client.away.why if self._client.away else str(error)
            return NoAnswer(f"the API server at {self._client.server} can't be reached: {why}")
        if not isinstance(error, ApiError):
            return NoAnswer(str(error))
        if error.status == 401:
            return NoAnswer(f"the API server at {self._client.server} does not accept your credentials; renew them")
        if error.status == 403:
            where = f"in namespace {namespace}" if namespace else "of the whole cluster"
            role = f'apiGroups: ["{group}"], resources: [{resource.plural}], verbs: [{verb}]'
            return NotAllowedError(f"you may not {verb} {what} {where}: it takes a role with {role}")
        if error.status == 404:
            return NoSuchKindError(
                f"the cluster knows no {resource.kind}: the CustomResourceDefinition {what} is not installed"
            )
        return NoAnswer(str(error))


async def together(*questions: Awaitable[Any]) -> tuple[Any, ...]:
    """Ask several questions at once. Raises NoAnswer; with all that is forbidden, if that is what is wrong."""
    answers = await asyncio.gather(*questions, return_exceptions=True)
    wrong = [answer for answer in answers if isinstance(answer, BaseException)]
    forbidden = [str(answer) for answer in wrong if isinstance(answer, NotAllowedError)]
    if forbidden and len(forbidden) == len(wrong):
        raise NotAllowedError("\n".join(dict.fromkeys(forbidden)))
    if wrong:
        raise next((answer for answer in wrong if not isinstance(answer, NotAllowedError)), wrong[0])
    return tuple(answers)


def _decoded(raw: bytes | Raw, resource: Resource[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=resource.type)
    except msgspec.DecodeError as error:
        raise NoAnswer(f"a {resource.kind} of the cluster can't be read by lrpctl {__version__}: {error}") from error
