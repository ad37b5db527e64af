"""What the agent says on its socket: the words that `lrpctl` and any other reader decode.

JSON, one struct to an answer, keys in camelCase, times in RFC 3339, addresses as text ("10.0.0.10:53/UDP"). Every
answer carries `apiVersion` and `agentVersion`. Within one API version fields are only added; readers ignore what they
don't know, and a reader of another version says so instead of guessing (`lrp_operator.cli.client`).
"""

from datetime import datetime

from msgspec import Struct

from lrp_operator import __version__

API_VERSION = "v1"
DEFAULT_SOCKET = "/run/lrp-operator/agent.sock"


class _Said(Struct, frozen=True, rename="camel"):
    """A part of an answer."""


class Answer(Struct, frozen=True, rename="camel", kw_only=True):
    """What every answer carries; decoded alone to find out whether the rest can be understood."""

    api_version: str = API_VERSION
    agent_version: str = __version__


class Failure(Answer, frozen=True, kw_only=True):
    """Why a request has no answer; a sentence."""

    error: str


class SourceState(_Said, frozen=True):
    """One place that objects come from. complete: everything in it has been read at least once."""

    name: str
    complete: bool
    objects: int
    problems: list[str]


class FeatureState(_Said, frozen=True):
    """Something that the kernel may be able to do. consequence: what works less well without it."""

    name: str
    available: bool
    consequence: str


class PolicyCounts(_Said, frozen=True):
    """How the policies stand. redirecting: accepted, with at least one frontend redirected on this node."""

    accepted: int
    rejected: int
    redirecting: int


class FrontendCounts(_Said, frozen=True):
    """How the frontends stand.

    local_redirect: go to local pods; refused: held with no backend; cluster_ip: balanced by us, not by kube-proxy.
    not_redirected: of accepted policies, but served without them on this node.
    """

    local_redirect: int
    refused: int
    cluster_ip: int
    not_redirected: int


class Pins(_Said, frozen=True):
    """Where the agent works."""

    bpf_root: str
    cgroup_root: str


class PodLink(_Said, frozen=True):
    """One of a pod's links at the TC level; pod: empty while no pod has claimed it.

    state: "attached", "shadowed", "missing" or "failed"; message: why it is not attached.
    """

    pod: str
    link: str
    state: str
    message: str


class Status(Answer, frozen=True, kw_only=True):
    """How the agent and its node stand.

    ready: everything was read and written, and is in force. message: why not; empty when it is.
    healthy: ready, and without problems. notes: what does not work in this mode, and what to mend in the settings.
    problems: of the kernel; each source has its own. last_sync: when the kernel was last as wanted.
    """

    node: str
    pid: int
    started: datetime
    mode: str
    notes: list[str]
    ready: bool
    healthy: bool
    in_force: bool
    message: str
    pins: Pins
    programs: dict[str, int]
    features: list[FeatureState]
    sources: list[SourceState]
    policies: PolicyCounts
    frontends: FrontendCounts
    problems: list[str]
    slots_used: dict[str, int]
    slots_max: dict[str, int]
    last_sync: datetime | None
    events_dropped: int
    links: list[PodLink] = []
    flows: dict[str, int] = {}
    flows_max: int = 0


class BackendState(_Said, frozen=True):
    """One backend of a frontend. state: "active" (in the kernel), "pending" (not yet), "kube-proxy" (left to it)."""

    backend: str
    pod: str | None
    state: str


class HitCounts(_Said, frozen=True):
    """Connects and sends to a frontend, by what became of them (redirected, refused, skipped, failed)."""

    redirected: int
    refused: int
    skipped: int
    failed: int


class ServiceFrontend(_Said, frozen=True):
    """One frontend as `service list` shows it. id: in the kernel; None while it is not there.

    last_hit: None if there was none since the agent started; then hit_before_start tells whether there was one before.
    refuse: connects are refused, for want of a backend.
    """

    id: int | None
    frontend: str
    service: str | None
    type: str
    policy: str | None
    backends: list[BackendState]
    refuse: bool
    hits: HitCounts | None
    last_hit: datetime | None
    hit_before_start: bool


class Services(Answer, frozen=True, kw_only=True):
    """Every frontend that the agent knows; programmed: whether the kernel could be asked."""

    node: str
    programmed: bool
    frontends: list[ServiceFrontend]


class PolicyFrontend(_Said, frozen=True):
    """One frontend of a policy on this node. drop: connects are refused for want of a backend."""

    frontend: str
    redirected: bool
    reason: str | None
    message: str
    drop: bool
    backends: list[BackendState]


class PolicyState(_Said, frozen=True):
    """One policy on this node. exempt: pods that reach the original destination (skipRedirectFromBackend)."""

    policy: str
    accepted: bool
    reason: str
    message: str
    frontends: list[PolicyFrontend]


class ExemptPod(_Said, frozen=True):
    """A pod whose own connects to these frontends reach the original destination (skipRedirectFromBackend)."""

    pod: str
    frontends: list[str]


class Policies(Answer, frozen=True, kw_only=True):
    """Every policy that the agent knows, and the pods that are exempt."""

    node: str
    policies: list[PolicyState]
    exempt: list[ExemptPod]


class KernelSlot(_Said, frozen=True):
    """One backend in the kernel. slot: its index in the backends map."""

    slot: int
    backend: str
    pod: str | None


class KernelEntry(_Said, frozen=True):
    """One frontend as the kernel's maps hold it. original: what exempt pods get instead; None: they are let pass."""

    id: int
    frontend: str
    flags: list[str]
    generation: int
    backends: list[KernelSlot]
    original: list[KernelSlot] | None = None


class BpfLb(Answer, frozen=True, kw_only=True):
    """What the kernel's maps hold, read back."""

    entries: list[KernelEntry]


class KernelExemption(_Said, frozen=True):
    """One exemption as the kernel's map holds it: a network namespace's, or (ifindex) a pod's link's at TC level."""

    netns_cookie: int
    frontend: str
    pod: str | None
    ifindex: int = 0


class BpfSkip(Answer, frozen=True, kw_only=True):
    """The kernel's exemptions, read back."""

    entries: list[KernelExemption]


class Redirect(_Said, frozen=True):
    """One connect or send, as it happened; time: when the agent read it.

    hook: "connect", "sendmsg", or "packet" for the first packet of a flow at the TC level, which tells of its caller
    only the pod's link (ifindex). action: "redirected", "refused", "skipped" or "failed". client: the pod that it came
    from, or "host". backend: where it was sent, if it was; a skipped one is, to an endpoint of the Service, where
    kube-proxy is replaced.
    """

    time: datetime
    hook: str
    action: str
    frontend: str
    service: str | None
    policy: str | None
    backend: str | None
    backend_pod: str | None
    client: str | None
    netns_cookie: int
    pid: int
    command: str
    ifindex: int = 0


class StreamLine(Answer, frozen=True, kw_only=True):
    """One line of the events stream: a redirect, or a sign of life. dropped: events lost to this reader so far."""

    redirect: Redirect | None = None
    dropped: int = 0
