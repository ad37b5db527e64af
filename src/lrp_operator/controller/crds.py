"""Our kinds of objects in the cluster: installed and upgraded when asked to, and what the policies' kind can do here.

A CustomResourceDefinition of ours carries a version; a newer one is never replaced by an older one. One that is not
ours (Cilium's own) is left alone. Cilium's has no status subresource, so nothing can be written there: then Events and
metrics say what became of policies.
"""

import logging
from typing import Any

import msgspec
from msgspec import Struct

from lrp_operator.api.schema import CRD_VERSION, VERSION_ANNOTATION, crds
from lrp_operator.sources.kube.client import KubeClient
from lrp_operator.sources.kube.errors import ApiError, ApiFailure
from lrp_operator.sources.kube.resources import POLICIES

log = logging.getLogger(__name__)

FIELD_MANAGER = "lrp-controller"
_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class _Meta(Struct, frozen=True):
    annotations: dict[str, str] | None = None


class _Definition(Struct, frozen=True):
    metadata: _Meta


class _Resource(Struct, frozen=True):
    name: str


class _Resources(Struct, frozen=True):
    resources: list[_Resource] = []


async def install(client: KubeClient) -> None:
    """Have every kind of ours be as this version knows it, unless somebody knows better. Raises ApiFailure."""
    for definition in crds().values():
        name = definition["metadata"]["name"]
        if sentence := _why_not(name, await _annotations(client, name)):
            log.warning("%s", sentence)
            continue
        await client.apply(f"{_PATH}/{name}", definition, FIELD_MANAGER)
        log.info("CustomResourceDefinition %s is installed (version %d)", name, CRD_VERSION)


def _why_not(name: str, there: dict[str, str] | None) -> str:
    """Say why a definition that is there is left alone; empty if it may be written."""
    if there is None:
        return ""
    version = there.get(VERSION_ANNOTATION)
    if version is None:
        return f"CustomResourceDefinition {name} is not ours (no annotation {VERSION_ANNOTATION}): it is left as it is"
    if not version.isdecimal():
        return f"CustomResourceDefinition {name} has version {version[:20]!r}, which is no number: it is left as it is"
    if int(version) > CRD_VERSION:
        return f"CustomResourceDefinition {name} is newer ({version[:20]}) than ours ({CRD_VERSION}): it stays"
    return ""


async def _annotations(client: KubeClient, name: str) -> dict[str, str] | None:
    """Read what a definition says of itself; None if it is not there. Raises ApiFailure."""
    try:
        body = await client.request("GET", f"{_PATH}/{name}")
    except ApiError as error:
        if error.status == 404:
            return None
        raise
    return msgspec.json.decode(body, type=_Definition).metadata.annotations or {}


class Surface:
    """What the policies' kind can do in this cluster."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self.is_served = False
        self.has_status = False

    @property
    def problem(self) -> str:
        """What is missing, in a sentence; empty if nothing is."""
        if not self.is_served:
            return f"the API server does not know {POLICIES.plural}: install their CustomResourceDefinition"
        if not self.has_status:
            return (
                f"the CustomResourceDefinition of {POLICIES.plural} has no status subresource (it is Cilium's own):"
                " what becomes of policies is told in Events and metrics only"
            )
        return ""

    async def look(self) -> bool:
        """Find out, and return whether the kind is served; what can't be found out stays as it was."""
        try:
            found = msgspec.json.decode(await self._client.request("GET", POLICIES.prefix), type=_Resources)
        except ApiError as error:
            if error.status == 404:
                self._set(set())
        except (ApiFailure, msgspec.DecodeError) as error:
            log.warning("what can be done with %s can't be found out: %s", POLICIES.plural, error)
        else:
            self._set({resource.name for resource in found.resources})
        return self.is_served

    def _set(self, names: set[Any]) -> None:
        before = self.problem
        self.is_served = POLICIES.plural in names
        self.has_status = f"{POLICIES.plural}/status" in names
        if self.problem != before and self.problem:
            log.warning("%s", self.problem)
