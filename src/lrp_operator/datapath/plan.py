"""What a node needs in its kernel: which maps, which programs, made with which constants, pinned where.

On the bpffs, below the bpf root (a folder of the product's own):

    links/<hook>                       one link per cgroup hook, for ever at the same place: its program is swapped
    tables-<layout>/<map>              what this node redirects; another size or layout is another folder
    tables-<layout>/programs-<build>/  the socket level's programs that use those tables
    tables-<layout>/tc-<build>/        the TC level's
    sockets-v<N>/<map>                 what sockets remember; outlives tables
    flows-v<N>/<map>                   the TC level's flows; outlives tables
    links/<hook>_sockets-v<N>          an earlier version's programs for replies and closing, while it has sockets

Whoever comes next finds all by these names. Nothing is pinned for a pod's link: what is attached there goes with it.
"""

import re
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path

from lrp_operator.datapath.model import DatapathError, DatapathSettings, Feature, SocketLevel, TcLevel
from lrp_operator.kernel import bpf
from lrp_operator.kernel.features import KernelFeatures
from lrp_operator.loader.messages import Program, ProgramSet
from lrp_operator.loader.sources import MAP_SOURCES, SOURCES, bpf_directory, digest

_RING_BYTES = 1 << 18
_MAX_SKIPS = 16384
_MAX_CLIENTS = 65536  # session affinity: an LRU

# Replies and closing first: see programs.py.
_HOOKS_IPV4 = (bpf.AttachType.RECVMSG4, bpf.AttachType.GETPEERNAME4, bpf.AttachType.CONNECT4, bpf.AttachType.SENDMSG4)
_HOOKS_IPV6 = (bpf.AttachType.RECVMSG6, bpf.AttachType.GETPEERNAME6, bpf.AttachType.CONNECT6, bpf.AttachType.SENDMSG6)
REPLY_HOOKS = frozenset(hook for hook in bpf.AttachType if not hook.name.startswith(("CONNECT", "SENDMSG")))
"""What replies and closing pass: sockets that were redirected need these as long as they live."""
TC_FUNCTIONS = ("lrp_from_pod", "lrp_from_port", "lrp_to_pod")


class TcBuild(Enum):
    """Which programs the TC level needs. LEAVING: the mode has none, but flows of an earlier one have not ended."""

    NONE = 0
    SERVING = 1
    LEAVING = 2


@dataclass(frozen=True, slots=True)
class Build:
    """Everything that decides which maps and programs a node needs. hooks: of cgroups, in the order of attaching.

    sockets_leaving: the mode has no socket level, but sockets of an earlier one may still be open: their replies and
    their closing are served on.
    """

    root: Path
    hooks: tuple[bpf.AttachType, ...]
    map_defines: dict[str, int]
    program_defines: dict[str, int]
    tc: TcBuild = TcBuild.NONE
    max_flows: int = 1
    sockets_leaving: bool = False

    @property
    def tables(self) -> Path:
        """Folder of the tables' pins; its name changes with sizes and layouts."""
        sizes = ",".join(f"{name}={value}" for name, value in sorted(self.map_defines.items()))
        return self.root / f"tables-{digest(MAP_SOURCES, sizes)}"

    @property
    def sockets(self) -> Path:
        """Folder of the socket storages' pins."""
        return self.root / f"sockets-v{_version('SOCKETS')}"

    @property
    def flows(self) -> Path:
        """Folder of the flows' pins."""
        return self.root / f"flows-v{_version('FLOWS')}"

    @property
    def folders(self) -> dict[str, str]:
        """Where each kind of map that is needed is pinned."""
        kinds = {"TABLES": self.tables, "SOCKETS": self.sockets}
        if self.tc is not TcBuild.NONE:
            kinds["FLOWS"] = self.flows
        return {kind: str(folder) for kind, folder in kinds.items()}

    @property
    def socket_programs(self) -> ProgramSet:
        """The socket level's programs."""
        kinds = {hook_function(hook): Program(hook.program_type, hook) for hook in self.hooks}
        return self._set("programs", "socket.c", kinds, self.program_defines)

    @property
    def tc_programs(self) -> ProgramSet:
        """The TC level's programs."""
        serving = self.tc is TcBuild.SERVING
        functions = TC_FUNCTIONS if self.tc is not TcBuild.NONE else ()
        kinds = {function: Program(bpf.ProgType.SCHED_CLS) for function in functions}
        return self._set("tc", "tc.c", kinds, {**self.program_defines, "LRP_NEW_FLOWS": int(serving)})

    def _set(self, name: str, source: str, functions: dict[str, Program], defines: dict[str, int]) -> ProgramSet:
        constants = ",".join(f"{name}={value}" for name, value in sorted(defines.items()))
        folder = self.tables / f"{name}-{digest(SOURCES, constants)}"
        return ProgramSet(source, str(folder), functions, defines)

    def link(self, hook: bpf.AttachType, version: str = "") -> Path:
        """The pin of a hook's link; with a version, of the one that serves sockets of that version."""
        return self.root / "links" / (f"{hook.name.lower()}_{version}" if version else hook.name.lower())


def hook_function(hook: bpf.AttachType) -> str:
    """Name of the C function for a cgroup's hook."""
    return f"lrp_{hook.name.lower()}"


def _version(of: str) -> str:
    return _version_in(bpf_directory(), of)


@cache
def _version_in(folder: Path, of: str) -> str:
    found = re.search(rf"#define LRP_{of}_VERSION (\d+)", (folder / "config.h").read_text())
    assert found is not None
    return found[1]


def plan(settings: DatapathSettings, features: KernelFeatures, host_cookie: int | None) -> Build:
    """Decide what to build. host_cookie: of the node's own namespace. Raises DatapathError where a mode can't be."""
    defines = {
        "LRP_IPV4": int(settings.ipv4),
        "LRP_IPV6": int(settings.ipv6),
        "LRP_CLUSTER_IP": int(settings.cluster_ip),
        "LRP_HAVE_NETNS_COOKIE": int(features.netns_cookie_helper),
        "LRP_HAVE_SET_RETVAL": int(features.set_retval),
        "LRP_SOCKET_TABLE": int(_has_socket_table(features)),
        "LRP_HAVE_MPTCP": int(features.mptcp),
        "LRP_HAVE_COARSE_TIME": int(features.coarse_time),
    }
    if settings.socket_level is SocketLevel.HOST_ONLY:
        if host_cookie is None or not features.netns_cookie_helper:
            raise DatapathError("socketLB.hostNamespaceOnly needs network namespace cookies, which this kernel has not")
        defines["LRP_HOST_NETNS_COOKIE"] = host_cookie
    if not features.ring_buffer:
        raise DatapathError("this kernel has no BPF ring buffer (Linux 5.8 has it): upgrade it")
    sizes = {
        "LRP_MAX_FRONTENDS": settings.max_frontends,
        "LRP_MAX_BACKENDS": settings.max_backends,
        "LRP_MAX_SKIPS": _MAX_SKIPS,
        "LRP_MAX_CLIENTS": _MAX_CLIENTS if settings.cluster_ip else 1,
        "LRP_RING_BYTES": _RING_BYTES,
    }
    hooks = _hooks(settings, features)
    leaving = settings.socket_level is SocketLevel.OFF
    if leaving:
        had_sockets = any((settings.bpf_root / "links").glob("*"))
        hooks = tuple(hook for hook in hooks if hook in REPLY_HOOKS) if had_sockets else ()
    build = Build(settings.bpf_root, hooks, sizes, defines, max_flows=settings.max_flows)
    return replace(build, tc=_tc(settings, build.flows), sockets_leaving=leaving and bool(hooks))


def _hooks(settings: DatapathSettings, features: KernelFeatures) -> tuple[bpf.AttachType, ...]:
    """The cgroup hooks of the socket level. Raises DatapathError where it is on and the kernel lacks one."""
    hooks = (*(_HOOKS_IPV6 if settings.ipv6 or settings.ipv4 else ()), *(_HOOKS_IPV4 if settings.ipv4 else ()))
    if _has_socket_table(features):
        hooks = (bpf.AttachType.INET_SOCK_RELEASE, *hooks)
    missing = [hook.name.lower() for hook in hooks if hook not in features.hooks]
    if missing and settings.socket_level is SocketLevel.OFF:
        return ()
    if missing:
        raise DatapathError(f"this kernel has no cgroup hooks {', '.join(missing)} (Linux 5.8 has them): upgrade it")
    return tuple(sorted(hooks, key=lambda hook: hook.name.startswith(("CONNECT", "SENDMSG"))))


def _tc(settings: DatapathSettings, flows: Path) -> TcBuild:
    if settings.tc_level is TcLevel.PODS:
        return TcBuild.SERVING
    return TcBuild.LEAVING if flows.is_dir() else TcBuild.NONE


def may_have_been_redirecting(root: Path) -> bool:
    """Whether an agent has left something below a bpf root that sockets or flows may need."""
    return any((root / "links").glob("*")) or any(root.glob("flows-v*"))


def _has_socket_table(features: KernelFeatures) -> bool:
    return features.compare_and_swap and bpf.AttachType.INET_SOCK_RELEASE in features.hooks


def describe(features: KernelFeatures, tc: TcBuild = TcBuild.NONE) -> tuple[Feature, ...]:
    """Tell people what this kernel has, and what does not work for want of it. tc: what the TC level is built for."""
    wishes = [
        ("netns cookie in BPF", features.netns_cookie_helper, "skipRedirectFromBackend and session affinity are off"),
        ("SO_NETNS_COOKIE", features.netns_cookie_option, "no skipRedirectFromBackend, no hostNamespaceOnly"),
        ("table of sockets", _has_socket_table(features), "new redirected sockets cost some hundred nanoseconds more"),
        ("bpf_skc_to_mptcp_sock", features.mptcp, "getpeername of an MPTCP connection shows the pod's address"),
        ("bpf_set_retval", features.set_retval, "a refused connect says EPERM instead of ECONNREFUSED"),
    ]
    if tc is not TcBuild.NONE:
        wishes += [
            ("tcx", features.tcx, "the TC level uses filters of a clsact qdisc, which may stay empty on pods' links"),
            ("bpf_ktime_get_coarse_ns", features.coarse_time, "a packet at the TC level costs some nanoseconds more"),
        ]
    return tuple(Feature(name, have, "" if have else consequence) for name, have, consequence in wishes)
