"""What the datapath is asked for and what it answers: the values that the agent and the CLI share with it."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from lrp_operator.api.addresses import L4Addr


class SocketLevel(StrEnum):
    """Whose sockets are redirected at the socket level."""

    EVERYWHERE = "everywhere"
    HOST_ONLY = "host-namespace-only"
    OFF = "off"


class TcLevel(StrEnum):
    """Whose packets are redirected at the TC level."""

    PODS = "pods"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class DatapathSettings:
    """What a node's datapath is built for.

    max_frontends: of both address families together, less one (each has an id for its counters, and id 0 is nobody's).
    max_backends: slots for each address family; an update needs room for the old and the new run.
    max_flows: TCP connections at the TC level, for each address family.
    """

    bpf_root: Path
    cgroup_root: Path
    socket_level: SocketLevel = SocketLevel.EVERYWHERE
    tc_level: TcLevel = TcLevel.OFF
    ipv4: bool = True
    ipv6: bool = True
    cluster_ip: bool = False  # kube-proxy is replaced: session affinity, and room for every Service
    terminate_tcp: bool = False  # end TCP connections too when their backend goes (UDP always)
    max_frontends: int = 4096
    max_backends: int = 16384
    max_flows: int = 65536


class DatapathError(Exception):
    """The node can't be programmed; the text is one sentence for people, with what to do about it."""


class Feature(Struct, frozen=True):
    """One thing that the kernel may be able to do, and what is missing where it is not."""

    name: str
    available: bool
    consequence: str = ""  # what works less well without it; empty when available


class PodPlace(Struct, frozen=True):
    """Where a pod of this node is. ips: its addresses (4 or 16 bytes); none while it has not got them yet."""

    uid: str
    ips: tuple[bytes, ...]


class LinkState(StrEnum):
    """How a pod's link stands at the TC level."""

    ATTACHED = "attached"
    WAITING = "waiting"  # its turn has not come: many links came at once, or the node has just started
    SHADOWED = "shadowed"  # another program's place would make ours see half of what passes: left alone
    MISSING = "missing"  # the pod's link is not found
    FAILED = "failed"


class PodLinkStatus(Struct, frozen=True):
    """One of a pod's links on the node. link: its name; empty where none is found. message: why it is not attached."""

    pod: str
    link: str
    state: LinkState
    message: str = ""


class DatapathStatus(Struct, frozen=True):
    """How things stand in the kernel.

    in_force: our programs are effective where pods' sockets are; message: a sentence, empty when all is well.
    programs: name -> kernel program id of what is attached. problems: entries that could not be written, and why.
    """

    in_force: bool
    message: str
    programs: dict[str, int] = {}
    features: tuple[Feature, ...] = ()
    problems: tuple[str, ...] = ()
    slots_used: dict[str, int] = {}  # "ipv4"/"ipv6" -> backend slots in use
    slots_max: dict[str, int] = {}
    links: tuple[PodLinkStatus, ...] = ()
    flows: dict[str, int] = {}  # "ipv4"/"ipv6" -> TCP connections at the TC level
    flows_max: int = 0


class KernelBackend(Struct, frozen=True):
    """One slot of a frontend's run. slot: its index in the backends map."""

    slot: int
    backend: L4Addr


class KernelFrontend(Struct, frozen=True):
    """One frontend as the kernel's maps hold it, read back and decoded.

    flags: their names in layout.FLAG_NAMES. original: where those go who are exempt; none: they are refused; None: they
    are let pass.
    """

    id: int
    frontend: L4Addr
    backends: tuple[KernelBackend, ...]
    flags: tuple[str, ...]
    generation: int
    original: tuple[KernelBackend, ...] | None = None


class KernelSkip(Struct, frozen=True):
    """One exemption as the kernel's map holds it.

    netns_cookie: of the namespace that is exempt, at socket level; 0 where it is a link's, at TC level (ifindex).
    """

    netns_cookie: int
    ifindex: int
    frontend: L4Addr
    pod: str | None  # "namespace/name" where the agent knows whose namespace it is


class Hits(Struct, frozen=True):
    """A frontend's counters since its id was given out.

    redirected: connects and datagram sends sent to a backend; refused: those refused for want of one;
    skipped: those of exempt pods, on their way to the original destination;
    failed: those left untouched because socket state could not be kept.
    """

    redirected: int = 0
    refused: int = 0
    skipped: int = 0
    failed: int = 0


class RedirectEvent(Struct, frozen=True):
    """One connect or send, as it happened.

    hook: "connect" or "sendmsg", or "packet" at the TC level; action: "redirected", "refused", "skipped" or "failed"
    (as in Hits). backend: where it was sent; a skipped one is where kube-proxy is replaced, to the Service's endpoint.
    netns_cookie, pid, command: of the caller, at socket level; ifindex: of the pod's link, at TC level.
    """

    hook: str
    action: str
    frontend: L4Addr
    backend: L4Addr | None
    netns_cookie: int
    pid: int
    command: str
    ifindex: int = 0


class FlushReport(Struct, frozen=True):
    """What one flush did.

    written, removed: frontends; sockets_ended: by SOCK_DESTROY; problems: sentences, what is retried next time.
    repaired: sentences, what a reconcile found wrong in the kernel and has put right.
    again_in: seconds after which another flush is due, though nothing changes; 0: none is.
    links_attached, links_left: pods' links that got our programs, and that lost them.
    """

    written: int = 0
    removed: int = 0
    sockets_ended: int = 0
    problems: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    again_in: float = 0.0
    links_attached: int = 0
    links_left: int = 0
