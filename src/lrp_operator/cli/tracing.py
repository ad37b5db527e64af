"""One connection of one pod, followed through a cluster as it was read. Pure: from objects to steps and a result.

Each step is something that can decide: where the pod is, what its node's agent says, whose the address is, which policy
has it, whether the pod is exempt, and which pods of the node serve. All are told, also after one that decides, because
who asks wants to know what else would have to change.
"""

from collections.abc import Sequence

from msgspec import Struct

from lrp_operator.agent.config import TC_ONLY
from lrp_operator.api.addresses import L4Addr, format_ip
from lrp_operator.api.objects import Pod
from lrp_operator.cli.loading import Loaded
from lrp_operator.cli.survey import (
    Backend,
    Fate,
    Live,
    Standing,
    Survey,
    fate_of,
    hindrance_of,
    selected,
    standing_of,
)
from lrp_operator.resolve.model import FrontendReason, FrontendVerdict, Resolution
from lrp_operator.resolve.options import ResolveOptions
from lrp_operator.resolve.views import PodView

MOST_HINTS = 3
_NOT_ITS_OWN = (FrontendReason.ADDRESS_OWNED_BY_SERVICE, FrontendReason.CONFLICT)


class Step(Struct, frozen=True):
    """One thing that was looked at."""

    about: str
    text: str


class Trace(Struct, frozen=True):
    """What happens to a connection. because: a sentence; policy: the one that has the frontend, if any."""

    pod: str
    node: str
    destination: str
    result: Fate
    because: str
    backends: list[Backend]
    policy: str
    steps: list[Step]


class _Held(Struct, frozen=True):
    """A frontend that a policy has on the node, and how it stands there."""

    policy: str
    verdict: FrontendVerdict
    wanted: int


def trace(pod: Pod, frontend: L4Addr, loaded: Loaded) -> Trace:
    """Follow a connection."""
    return _Tracer(pod, frontend, loaded).trace()


class _Tracer:
    """What is known of the connection, step by step. `against` gathers what keeps it from being redirected."""

    def __init__(self, pod: Pod, frontend: L4Addr, loaded: Loaded) -> None:
        self._pod = pod
        self._node = pod.spec.node_name or ""
        self._frontend = frontend
        self._loaded = loaded
        self._survey = Survey(loaded.live, ResolveOptions())
        self._report = loaded.live.reports.get(self._node)
        self._steps: list[Step] = []
        self._against: list[str] = []

    def trace(self) -> Trace:
        key = self._pod.metadata.key
        if not self._node:
            self._step("node", f"Pod {key} is not on a node yet.")
            return self._end(Fate.USUAL, f"pod {key} connects to nothing yet: it is on no node.")
        on_host = " and uses the node's own network" if self._pod.spec.host_network else ""
        self._step("node", f"Pod {key} is on node {self._node}{on_host}.")
        self._agent()
        services = self._survey.services_at(self._frontend)
        self._address(services)
        resolver = self._survey.on_node(self._node, self._frontend)
        resolution = resolver.resolution()
        held = self._policy(resolution, services)
        usual = f"it goes {self._usual_way(services)}"
        if held is None:
            return self._end(Fate.USUAL, f"{usual}: {self._against[0] if self._against else _nobody(services)}.")
        self._exemption(resolution, held)
        return self._served(resolution, held, usual, selected(resolver, held.policy))

    def _step(self, about: str, text: str) -> None:
        self._steps.append(Step(about, text))

    def _end(self, result: Fate, because: str, backends: list[Backend] | None = None, policy: str = "") -> Trace:
        destination = str(self._frontend)
        key = self._pod.metadata.key
        return Trace(key, self._node, destination, result, because, backends or [], policy, self._steps)

    # --- The steps ---

    def _agent(self) -> None:
        """What the node's agent says of itself."""
        report = self._report
        if hindrance := hindrance_of(report):
            self._against.append(f"nothing is redirected on its node: {hindrance}")
            self._step("agent", f"Nothing is redirected on node {self._node}: {hindrance.rstrip('.')}.")
            return
        assert report is not None
        problems = "".join(f" It reports: {problem}" for problem in report.problems)
        self._step("agent", f"Its agent ({report.agent_version}) redirects: {report.mode}.{problems}")
        if report.mode.startswith(TC_ONLY) and self._pod.spec.host_network:
            self._against.append("its agent redirects only what pods with a network of their own send")

    def _address(self, services: list[tuple[str, str]]) -> None:
        """Whose address it is."""
        for service, kind in services:
            self._step("address", f"{self._frontend} is {_a(kind)} of Service {service}.")
        if not services:
            self._step("address", f"{self._frontend} belongs to no Service.")

    def _policy(self, resolution: Resolution, services: list[tuple[str, str]]) -> _Held | None:
        """Which policy has it, and what became of others that want it."""
        held = None
        for verdict in resolution.verdicts:
            item = next((item for item in verdict.frontends if item.frontend == self._frontend), None)
            if item is not None and item.reason not in _NOT_ITS_OWN:
                held = _Held(verdict.policy, item, sum(other.redirected for other in verdict.frontends))
                self._step("policy", f"Policy {verdict.policy} has {self._frontend}.")
            elif item is not None:
                self._step("policy", f"Policy {verdict.policy} wants it and does not get it: {item.message}")
            elif verdict.policy in self._survey.claimants(self._frontend):
                self._step("policy", f"Policy {verdict.policy} is about it, but not here: {verdict.message}")
        self._rejected()
        if held is None:
            self._nobody_has_it(services)
        return held

    def _rejected(self) -> None:
        """Policies that want it and were rejected."""
        if not self._loaded.rejected:
            return
        rejected = {key: self._loaded.policies[key].policy for key in self._loaded.rejected}
        asked = Survey(Live(policies=rejected, services=self._loaded.live.services), ResolveOptions())
        for policy in sorted(asked.claimants(self._frontend)):
            self._step("policy", f"Policy {policy} is about it, but rejected: {self._loaded.rejected[policy]}")

    def _nobody_has_it(self, services: list[tuple[str, str]]) -> None:
        others = [kind for _, kind in services if kind != "ClusterIP"]
        only = f" Policies for a Service redirect its ClusterIPs only, never its {others[0]}." if others else ""
        near = self._survey.neighbours(self._frontend)
        hints = ", ".join(f"{frontend} (policy {policy})" for policy, frontend in near[:MOST_HINTS])
        more = f" and {len(near) - MOST_HINTS} more" if len(near) > MOST_HINTS else ""
        hint = f" At the same address, policies are about {hints}{more}." if near else ""
        self._step("policy", f"No policy redirects {self._frontend} on this node.{only}{hint}")

    def _exemption(self, resolution: Resolution, held: _Held) -> None:
        """Whether the pod reaches the original all the same."""
        host = self._pod.spec.host_network
        exempt = [
            skip.pod
            for skip in resolution.skips
            if self._frontend in skip.frontends and (skip.pod == self._pod.metadata.key or (host and skip.host_network))
        ]
        if exempt:
            whose = "it is a backend" if self._pod.metadata.key in exempt else f"it shares the network of {exempt[0]}"
            self._against.append(f"the pod is exempt (skipRedirectFromBackend of policy {held.policy})")
            self._step("exemption", f"The pod is exempt, as {whose}: skipRedirectFromBackend.")
        else:
            self._step("exemption", "The pod is not exempt.")

    def _served(self, resolution: Resolution, held: _Held, usual: str, pods: Sequence[PodView]) -> Trace:
        """Which pods serve it, and so what happens."""
        fate = fate_of(held.verdict, resolution, pods)
        backends = fate.backends
        self._backends(held, backends, pods)
        if fate.fate is Fate.REDIRECTED and not self._against:
            self._reported(held)
        if self._against:
            return self._end(Fate.USUAL, f"{usual}: {self._against[0].rstrip('.')}.", policy=held.policy)
        if fate.fate is Fate.REDIRECTED:
            listed = ", ".join(f"{backend.address} ({backend.pod})" for backend in backends)
            to = f"to one of {listed}" if len(backends) > 1 else f"to {listed}"
            return self._end(fate.fate, f"it goes {to}, by policy {held.policy}.", backends, held.policy)
        if fate.fate is Fate.REFUSED:
            return self._end(fate.fate, f"{fate.reason}: {fate.message}", policy=held.policy)
        return self._end(Fate.USUAL, f"{usual}: {fate.reason}: {fate.message}", policy=held.policy)

    def _backends(self, held: _Held, backends: Sequence[Backend], pods: Sequence[PodView]) -> None:
        """Every pod of the node that the policy selects, and whether it serves."""
        serving = {backend.pod: backend.address for backend in backends}
        states = []
        for view in pods:
            state = "terminating" if view.terminating else "ready" if view.ready else "not ready"
            what = f"serves on {serving[view.key]}" if view.key in serving else "does not serve this"
            states.append(f"{view.key} ({', '.join(map(format_ip, view.ips)) or 'no address'}) is {state}, {what}")
        if states:
            self._step("backends", f"Pods of node {self._node} that the policy selects: {'; '.join(states)}.")
        else:
            self._step("backends", held.verdict.message)

    def _reported(self, held: _Held) -> None:
        """Whether the agent says that it has done so."""
        meta = self._loaded.policies[held.policy].metadata
        standing, problem = standing_of(self._report, meta, held.wanted)
        if standing is Standing.PROGRAMMED:
            self._step("agent", f"The agent of {self._node} reports policy {held.policy} programmed.")
            return
        self._step("agent", f"The agent of {self._node} does not report it programmed: {problem.rstrip('.')}.")
        self._against.append(f"{problem.rstrip('.')}, so perhaps it is not redirected yet")

    def _usual_way(self, services: list[tuple[str, str]]) -> str:
        """Where it goes if nobody redirects it."""
        return f"to Service {services[0][0]}" if services else f"to {format_ip(self._frontend.ip)} itself"


def _a(kind: str) -> str:
    return f"an {kind}" if kind.startswith("external") else f"a {kind}"


def _nobody(services: list[tuple[str, str]]) -> str:
    if services and all(kind != "ClusterIP" for _, kind in services):
        return f"it is {_a(services[0][1])}, and policies for a Service redirect ClusterIPs only"
    return "no policy redirects it on this node"
