"""What people are told: the state of the circle and of the kernel, put into the words of `apimodel`.

Everything here is made in the worker thread, so that one answer shows one moment.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from lrp_operator.agent import apimodel
from lrp_operator.agent.config import Loaded
from lrp_operator.agent.events import EventHub, Seen
from lrp_operator.agent.hits import Use
from lrp_operator.agent.loop import Circle
from lrp_operator.agent.pods import PodNames
from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath.model import DatapathSettings, KernelBackend, KernelFrontend, RedirectEvent
from lrp_operator.resolve.model import FrontendEntry, FrontendType, FrontendVerdict, PolicyVerdict, Resolution


@dataclass(frozen=True, slots=True)
class Identity:
    """Who and where this agent is."""

    node: str
    loaded: Loaded
    settings: DatapathSettings
    started: datetime


class View:
    """Answers to what people ask the agent."""

    def __init__(self, identity: Identity, circle: Circle, pods: PodNames, hub: EventHub) -> None:
        self.identity = identity
        self.closed_doors: dict[str, str] = {}  # addresses that can't be listened on -> why
        self.reporting = ""  # why the node's report can't be written
        self._circle = circle
        self._pods = pods
        self._hub = hub

    def standing(self) -> str:
        """Why redirects are not (all) in force; empty when they are."""
        outcome = self._circle.outcome
        if not outcome.opened or outcome.status is None:
            return outcome.error or "the datapath is being opened"
        if not outcome.status.in_force:
            return outcome.status.message or "the programs are not effective where pods' sockets are"
        waiting = [source for source in self._circle.sources if not source.complete]
        if waiting:
            why = "; ".join(problem for source in waiting for problem in source.problems)
            return f"waiting for {', '.join(source.name for source in waiting)}{': ' * bool(why)}{why}"
        if not outcome.complete or (outcome.error and self._circle.last_sync is None):
            return outcome.error or "the first complete pass is under way"
        return ""

    def problems(self) -> list[str]:
        """What is wrong with the kernel or the agent, and tried again."""
        outcome = self._circle.outcome
        messages = [outcome.status.message] if outcome.status and outcome.status.message else []
        reporting = [self.reporting] if self.reporting else []
        return list(dict.fromkeys([*outcome.problems, *messages, *self.closed_doors.values(), *reporting]))

    def status(self) -> apimodel.Status:
        """Answer `lrpctl status`."""
        circle, kernel = self._circle, self._circle.outcome.status
        whole, message, problems = circle.desired.resolution(), self.standing(), self.problems()
        sources = [
            apimodel.SourceState(source.name, source.complete, len(source.keys), list(source.problems))
            for source in circle.sources
        ]
        return apimodel.Status(
            node=self.identity.node,
            pid=os.getpid(),
            started=self.identity.started,
            mode=self.identity.loaded.mode.name,
            notes=[*self.identity.loaded.warnings, *self.identity.loaded.mode.notes],
            ready=not message,
            healthy=not message and not problems and not any(source.problems for source in sources),
            in_force=bool(kernel and kernel.in_force),
            message=message,
            pins=apimodel.Pins(str(self.identity.settings.bpf_root), str(self.identity.settings.cgroup_root)),
            programs=dict(kernel.programs) if kernel else {},
            features=[apimodel.FeatureState(f.name, f.available, f.consequence) for f in kernel.features]
            if kernel
            else [],
            sources=sources,
            policies=count_policies(whole.verdicts),
            frontends=self._count_frontends(whole),
            problems=problems,
            slots_used=dict(kernel.slots_used) if kernel else {},
            slots_max=dict(kernel.slots_max) if kernel else {},
            last_sync=circle.last_sync,
            events_dropped=self._hub.dropped,
            links=[apimodel.PodLink(link.pod, link.link, link.state.value, link.message) for link in kernel.links]
            if kernel
            else [],
            flows=dict(kernel.flows) if kernel else {},
            flows_max=kernel.flows_max if kernel else 0,
        )

    def services(self) -> apimodel.Services:
        """Answer `lrpctl service list`."""
        kernel = self._kernel()
        whole = self._circle.desired.resolution()
        if kernel:
            self._circle.look_at_hits()
        return apimodel.Services(
            node=whole.node,
            programmed=self._circle.outcome.opened,
            frontends=[self._frontend(entry, kernel.get(entry.frontend)) for entry in whole.frontends],
        )

    def policies(self) -> apimodel.Policies:
        """Answer `lrpctl lrp list`."""
        kernel = self._kernel()
        whole = self._circle.desired.resolution()
        entries = {entry.frontend: entry for entry in whole.frontends}
        return apimodel.Policies(
            node=whole.node,
            policies=[self._policy(verdict, entries, kernel) for verdict in whole.verdicts],
            exempt=[apimodel.ExemptPod(skip.pod, [str(f) for f in skip.frontends]) for skip in whole.skips],
        )

    def bpf_lb(self) -> apimodel.BpfLb:
        """Answer `lrpctl bpf lb list`."""
        entries = sorted(self._kernel().values(), key=lambda entry: entry.frontend.sort_key)
        return apimodel.BpfLb(entries=[self._kernel_entry(entry) for entry in entries])

    def bpf_skip(self) -> apimodel.BpfSkip:
        """Answer `lrpctl bpf skip list`."""
        skips = self._circle.datapath.skips() if self._circle.outcome.opened else []
        skips.sort(key=lambda skip: (skip.pod or "", skip.netns_cookie, skip.ifindex, skip.frontend.sort_key))
        return apimodel.BpfSkip(
            entries=[
                apimodel.KernelExemption(skip.netns_cookie, str(skip.frontend), skip.pod, skip.ifindex)
                for skip in skips
            ]
        )

    def redirect(self, seen: Seen) -> apimodel.Redirect:
        """Put an event into people's words. Runs in the event loop: it touches names only."""
        event = seen.event
        entry = self._circle.desired.in_kernel.get(event.frontend)
        return apimodel.Redirect(
            time=seen.time,
            hook=event.hook,
            action=event.action,
            frontend=str(event.frontend),
            service=entry.service if entry else None,
            policy=entry.policy if entry else None,
            backend=str(event.backend) if event.backend else None,
            backend_pod=self._pods.at(event.backend.ip) if event.backend else None,
            client=self._client(event),
            netns_cookie=event.netns_cookie,
            pid=event.pid,
            command=event.command,
            ifindex=event.ifindex,
        )

    def _client(self, event: RedirectEvent) -> str | None:
        if event.ifindex:
            return self._circle.datapath.pod_of_link(event.ifindex)
        return self._pods.with_cookie(event.netns_cookie)

    def _kernel(self) -> dict[L4Addr, KernelFrontend]:
        if not self._circle.outcome.opened:
            return {}
        return {entry.frontend: entry for entry in self._circle.datapath.frontends()}

    def _frontend(self, entry: FrontendEntry, kernel: KernelFrontend | None) -> apimodel.ServiceFrontend:
        use = self._circle.hits.uses.get(entry.frontend) if kernel else None
        return apimodel.ServiceFrontend(
            id=kernel.id if kernel else None,
            frontend=str(entry.frontend),
            service=entry.service,
            type=entry.type.value,
            policy=entry.policy,
            backends=self._backends(entry, kernel),
            refuse=entry.refuse,
            hits=_hit_counts(use),
            last_hit=use.last if use else None,
            hit_before_start=bool(use and use.before),
        )

    def _backends(self, entry: FrontendEntry, kernel: KernelFrontend | None) -> list[apimodel.BackendState]:
        programmed = {slot.backend for slot in kernel.backends} if kernel else set()
        ours = self._circle.desired.is_ours(entry)
        return [
            apimodel.BackendState(
                backend=str(backend),
                pod=self._pods.at(backend.ip),
                state=("active" if backend in programmed else "pending") if ours else "kube-proxy",
            )
            for backend in entry.backends
        ]

    def _policy(
        self,
        verdict: PolicyVerdict,
        entries: Mapping[L4Addr, FrontendEntry],
        kernel: Mapping[L4Addr, KernelFrontend],
    ) -> apimodel.PolicyState:
        def frontend(one: FrontendVerdict) -> apimodel.PolicyFrontend:
            entry = entries.get(one.frontend) if one.redirected else None
            return apimodel.PolicyFrontend(
                frontend=str(one.frontend),
                redirected=one.redirected,
                reason=one.reason.value if one.reason else None,
                message=one.message,
                drop=one.drop,
                backends=self._backends(entry, kernel.get(one.frontend)) if entry else [],
            )

        return apimodel.PolicyState(
            policy=verdict.policy,
            accepted=verdict.accepted,
            reason=verdict.reason.value,
            message=verdict.message,
            frontends=[frontend(one) for one in verdict.frontends],
        )

    def _kernel_entry(self, entry: KernelFrontend) -> apimodel.KernelEntry:
        return apimodel.KernelEntry(
            id=entry.id,
            frontend=str(entry.frontend),
            flags=list(entry.flags),
            generation=entry.generation,
            backends=self._kernel_slots(entry.backends),
            original=None if entry.original is None else self._kernel_slots(entry.original),
        )

    def _kernel_slots(self, slots: Iterable[KernelBackend]) -> list[apimodel.KernelSlot]:
        return [apimodel.KernelSlot(one.slot, str(one.backend), self._pods.at(one.backend.ip)) for one in slots]

    def _count_frontends(self, whole: Resolution) -> apimodel.FrontendCounts:
        ours = [entry for entry in whole.frontends if self._circle.desired.is_ours(entry)]
        kinds = Counter("refused" if entry.refuse else entry.type for entry in ours)
        return apimodel.FrontendCounts(
            local_redirect=kinds[FrontendType.LOCAL_REDIRECT],
            refused=kinds["refused"],
            cluster_ip=kinds[FrontendType.CLUSTER_IP],
            not_redirected=sum(
                not frontend.redirected and not frontend.drop
                for verdict in whole.verdicts
                for frontend in verdict.frontends
            ),
        )


def count_policies(verdicts: Iterable[PolicyVerdict]) -> apimodel.PolicyCounts:
    """Count policies by how they stand."""
    counts = Counter[str]()
    for verdict in verdicts:
        counts["accepted" if verdict.accepted else "rejected"] += 1
        counts["redirecting"] += any(frontend.redirected for frontend in verdict.frontends)
    return apimodel.PolicyCounts(counts["accepted"], counts["rejected"], counts["redirecting"])


def _hit_counts(use: Use | None) -> apimodel.HitCounts | None:
    hits = use.hits if use else None
    return apimodel.HitCounts(hits.redirected, hits.refused, hits.skipped, hits.failed) if hits else None
