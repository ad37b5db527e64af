"""Reads what policies rest on in a cluster: as much as is needed to resolve them, and no more."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from msgspec import Struct, structs

from lrp_operator.agent.config import Written
from lrp_operator.api import nodestate
from lrp_operator.api.addresses import L4Addr
from lrp_operator.api.nodestate import NodeRedirectState
from lrp_operator.api.objects import ObjectMeta, Policy
from lrp_operator.api.policy import AddressMatcher
from lrp_operator.cli.reader import LIVE_POLICIES, LivePolicy, NoSuchKindError, NotAllowedError, Reader, together
from lrp_operator.cli.survey import Live, Survey
from lrp_operator.resolve.options import ResolveOptions
from lrp_operator.resolve.views import view_policy
from lrp_operator.sources.kube.resources import CONFIG_MAPS, NODES, PODS, SERVICES, Resource, T


class Named(Struct, frozen=True):
    """An object of which only its name matters."""

    metadata: ObjectMeta


class _Series(Struct, frozen=True, rename="camel"):
    count: int = 0
    last_observed_time: str | None = None


class Event(Struct, frozen=True, rename="camel"):
    """v1 Event, in whichever of its two styles it was written."""

    metadata: ObjectMeta
    type: str | None = None
    reason: str | None = None
    message: str | None = None
    count: int | None = None
    last_timestamp: str | None = None
    event_time: str | None = None
    series: _Series | None = None

    @property
    def times(self) -> int:
        """How often it happened."""
        return (self.series and self.series.count) or self.count or 1

    @property
    def last(self) -> str:
        """When it happened last."""
        series = self.series and self.series.last_observed_time
        return series or self.last_timestamp or self.event_time or self.metadata.creation_timestamp or ""


EVENTS = Resource("/api/v1", "events", "Event", Event)
NODE_STATES = Resource(
    f"/apis/{nodestate.GROUP}/{nodestate.VERSION}", nodestate.PLURAL, "NodeRedirectState", NodeRedirectState
)
SETTINGS_OF_THE_CHART = "app.kubernetes.io/name=lrp-operator,app.kubernetes.io/component=settings"
SETTINGS_KEY = "settings.yaml"
NAMESPACES = Resource("/api/v1", "namespaces", "Namespace", Named)


class Loaded(NamedTuple):
    """A cluster as it was read.

    live: without the policies that the controller has rejected. rejected: these, and why. policies: all of them.
    notes: what could not be seen, a sentence each.
    """

    live: Live
    policies: dict[str, LivePolicy]
    rejected: dict[str, str]
    notes: list[str]


async def load(reader: Reader, namespaces: Collection[str], *, everywhere: bool) -> Loaded:
    """Read policies, Services and pods of some namespaces, all Nodes and what they report. Raises NoAnswer.

    everywhere: policies and Services of all namespaces, as anyone's may be in the way of an addressMatcher.
    """
    places = [None] if everywhere else sorted(namespaces)
    policies, services, pods, nodes, (states, notes) = await together(
        _lists(reader, LIVE_POLICIES, places),
        _lists(reader, SERVICES, places),
        _lists(reader, PODS, sorted(namespaces)),
        reader.list(NODES),
        reports(reader),
    )
    rejected = {policy.metadata.key: why for policy in policies if (why := policy.rejection)}
    live = Live(
        policies={p.metadata.key: p.policy for p in policies if p.metadata.key not in rejected},
        services={service.metadata.key: service for service in services},
        pods={pod.metadata.key: pod for pod in pods},
        nodes={node.metadata.name: node for node in nodes},
        reports={state.metadata.name: state.report for state in states if state.report is not None},
    )
    return Loaded(live, {policy.metadata.key: policy for policy in policies}, rejected, notes)


def names_address(policy: Policy) -> bool:
    """Whether a policy has a valid addressMatcher."""
    rules = view_policy(policy).rules
    return rules is not None and isinstance(rules.frontend, AddressMatcher)


async def _lists(reader: Reader, resource: Resource[T], namespaces: Sequence[str | None]) -> list[T]:
    lists = await together(*(reader.list(resource, namespace) for namespace in namespaces))
    return [obj for found in lists for obj in found]


async def reports(reader: Reader) -> tuple[list[NodeRedirectState], list[str]]:
    """Read what nodes report; where that kind is not installed, no node does. Raises NoAnswer."""
    try:
        return await reader.list(NODE_STATES), []
    except NoSuchKindError as error:
        return [], [f"No node can report: {error}."]


async def settings(reader: Reader) -> Written | str:
    """Read the settings that the chart has given the agents; or say why they are not known. Raises NoAnswer."""
    try:
        found = await reader.list(CONFIG_MAPS, labelSelector=SETTINGS_OF_THE_CHART)
    except NotAllowedError as error:
        return str(error)
    texts = [Written(f"ConfigMap {obj.metadata.key}", (obj.data or {}).get(SETTINGS_KEY, "")) for obj in found]
    if len(texts) != 1:
        return f"there are {len(texts)} ConfigMaps with the labels {SETTINGS_OF_THE_CHART}"
    return texts[0]


async def missing_namespaces(reader: Reader, namespaces: Collection[str]) -> set[str]:
    """Name the namespaces that are not there. One that we may not look at is taken to be there. Raises NoAnswer."""
    return {namespace for namespace in namespaces if not await _is_there(reader, namespace)}


async def _is_there(reader: Reader, namespace: str) -> bool:
    try:
        return await reader.get(NAMESPACES, namespace) is not None
    except NotAllowedError:
        return True


async def with_pods_of(reader: Reader, loaded: Loaded, node: str, frontend: L4Addr) -> Loaded:
    """Read the pods of a node too, of the namespaces whose policies concern a frontend. Raises NoAnswer."""
    policies = Survey(loaded.live, ResolveOptions()).concerned(frontend)
    namespaces = sorted({policy.partition("/")[0] for policy in policies})
    selector = f"spec.nodeName={node}"
    lists = await together(*(reader.list(PODS, namespace, fieldSelector=selector) for namespace in namespaces))
    pods = {pod.metadata.key: pod for found in lists for pod in found}
    return loaded._replace(live=structs.replace(loaded.live, pods=pods))
