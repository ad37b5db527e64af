"""What resolution yields: the values that the datapath programs and that people are shown. All frozen."""

from enum import StrEnum

from msgspec import Struct

from lrp_operator.api.addresses import L4Addr


class FrontendType(StrEnum):
    """Who decides a frontend's backends."""

    LOCAL_REDIRECT = "LocalRedirect"
    CLUSTER_IP = "ClusterIP"


class FrontendEntry(Struct, frozen=True, gc=False):
    """One frontend of this node's table.

    policy: "namespace/name" of the owning policy; service: of the Service whose ClusterIP it is. None if there is none.
    backends: sorted by L4Addr.sort_key, all of the frontend's family and protocol. Empty only if refuse is set, or
        (ClusterIP, kube-proxy in place) where the entry is for display.
    refuse: connects are refused at once: on-no-backend "drop", or a replaced kube-proxy's Service without endpoints.
    affinity_seconds: how long a client keeps its backend (sessionAffinity ClientIP); 0 means not at all.
    original: what pods have instead that are exempt (skipRedirectFromBackend), where kube-proxy is replaced: the entry
        of the Service itself. None: they are let pass, for somebody else knows the way, or there is no Service.
    """

    frontend: L4Addr
    type: FrontendType
    policy: str | None
    service: str | None
    backends: tuple[L4Addr, ...]
    refuse: bool = False
    affinity_seconds: int = 0
    original: "FrontendEntry | None" = None


class FrontendReason(StrEnum):
    """Why a policy's frontend is not redirected on this node; the first that applies, in this order."""

    ADDRESS_OWNED_BY_SERVICE = "AddressOwnedByService"
    CONFLICT = "Conflict"
    NO_LOCAL_POD = "NoLocalPod"
    NO_READY_POD = "NoReadyPod"
    NO_MATCHING_PORT = "NoMatchingPort"


class PolicyReason(StrEnum):
    """Where a policy stands. The first five are accepted, the others are not."""

    ACCEPTED = "Accepted"
    SERVICE_NOT_FOUND = "ServiceNotFound"
    SERVICE_HAS_NO_CLUSTER_IP = "ServiceHasNoClusterIP"
    SERVICE_PORT_NOT_FOUND = "ServicePortNotFound"
    NODE_NOT_SELECTED = "NodeNotSelected"
    INVALID = "Invalid"
    NAMESPACE_NOT_ALLOWED = "NamespaceNotAllowed"
    ADDRESS_NOT_ALLOWED = "AddressNotAllowed"
    TOO_MANY_FRONTENDS = "TooManyFrontends"


class FrontendVerdict(Struct, frozen=True, gc=False):
    """What became of one frontend of a policy. drop: it is held with no backend, and connects to it are refused.

    message: a sentence for people, naming the object in the way; empty when redirected.
    """

    frontend: L4Addr
    redirected: bool
    reason: FrontendReason | None = None
    message: str = ""
    drop: bool = False


class PolicyVerdict(Struct, frozen=True, gc=False):
    """What became of a policy on this node. policy: "namespace/name"; message: a sentence for people."""

    policy: str
    accepted: bool
    reason: PolicyReason
    message: str
    frontends: tuple[FrontendVerdict, ...] = ()
    generation: int = 0


class SkipEntry(Struct, frozen=True, gc=False):
    """A pod that reaches the original destination of these frontends (skipRedirectFromBackend).

    pod: "namespace/name"; uid: of this incarnation; ips: its addresses (4 or 16 bytes, network order).
    host_network: the pod shares the node's own namespace, which is exempt as a whole.
    """

    pod: str
    uid: str
    ips: tuple[bytes, ...]
    host_network: bool
    frontends: tuple[L4Addr, ...]


class Resolution(Struct, frozen=True):
    """The whole result for one node.

    frontends: redirected ones, refused ones and ClusterIP ones, in output order (L4Addr.sort_key).
    verdicts, skips: by policy and by pod, in order of their names.
    """

    node: str
    frontends: tuple[FrontendEntry, ...]
    verdicts: tuple[PolicyVerdict, ...]
    skips: tuple[SkipEntry, ...]


class Delta(Struct, frozen=True):
    """What one recomputation changed; None stands for an entry that is no more."""

    frontends: dict[L4Addr, FrontendEntry | None]
    verdicts: dict[str, PolicyVerdict | None]
    skips: dict[str, SkipEntry | None]
