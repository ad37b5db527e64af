"""From Findings to a Report. Pure: what a node has in, what it can and can't do out.

A mode is refused for what would make it redirect nothing, or do harm; what works less well is a limit. The reasons that
an agent would give at its start are asked of the agent's own code (`plan`, `describe`, `mode_of`).
"""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from lrp_operator.agent.config import Loaded, load
from lrp_operator.cli.doctor.findings import Findings
from lrp_operator.datapath.ending import listing
from lrp_operator.datapath.model import DatapathError, Feature, SocketLevel, TcLevel
from lrp_operator.datapath.plan import TcBuild, describe, plan
from lrp_operator.datapath.programs import is_ciliums

FORMER_OPTMEM = 20480
"""What the kernel gave each socket before it gave more (net.core.optmem_max): less was somebody's choice."""

_NOT_ON_THE_NODE = {"ipvlan", "macvlan", "sriov", "host-device", "vlan", "tap"}
"""CNI plugins whose pods have no link on the node."""
_BLIND = "others' programs can't be seen without CAP_SYS_ADMIN and CAP_NET_ADMIN"
_NO_PROXY = "no rules of one, and none answers"
_MOST_NAMES = 4
_NOWHERE = Path("/nonexistent")  # what an earlier agent left is no question of what a node can


class ModeName(StrEnum):
    """The four modes, as `make demo` and the docs call them."""

    SOCKETS = "sockets"
    TC = "tc"
    REPLACE = "replace"
    HOST_ONLY = "host-only"


VALUES: dict[ModeName, dict[str, bool]] = {
    ModeName.SOCKETS: {"kubeProxyReplacement": False, "socketLB.enabled": True},
    ModeName.TC: {"kubeProxyReplacement": False},
    ModeName.REPLACE: {"kubeProxyReplacement": True},
    ModeName.HOST_ONLY: {"kubeProxyReplacement": True, "socketLB.hostNamespaceOnly": True},
}
"""What a chart's values say for each."""


class State(StrEnum):
    """How a thing that was looked at stands."""

    FINE = "fine"
    NOTE = "note"
    WRONG = "wrong"
    UNSEEN = "unseen"


class Can(StrEnum):
    """Whether a node can work in a mode."""

    YES = "yes"
    LIMITED = "limited"
    NO = "no"
    UNKNOWN = "unknown"

    @property
    def words(self) -> str:
        """How people are told."""
        return _WORDS[self]


_WORDS = {Can.YES: "can", Can.LIMITED: "can, with limits", Can.NO: "cannot", Can.UNKNOWN: "can't be told"}


class Check(Struct, frozen=True):
    """One thing that was looked at."""

    name: str
    state: State
    text: str


class ModeVerdict(Struct, frozen=True):
    """What a node can in one mode. means: in words; values: as the chart has them; reasons: why not, or the limits."""

    mode: ModeName
    means: str
    values: dict[str, bool]
    verdict: Can
    reasons: list[str]


class Report(Struct, frozen=True):
    """The doctor's answer."""

    checks: list[Check]
    modes: list[ModeVerdict]


def diagnose(found: Findings) -> Report:
    """Say how a node stands."""
    return Report(list(_checks(found)), [_verdict(found, name, load(None, {}, VALUES[name])) for name in ModeName])


# --- What a mode can --------------------------------------------------------------------------------------------------


def _verdict(found: Findings, name: ModeName, loaded: Loaded) -> ModeVerdict:
    refusals, limits = list(_refusals(found, loaded)), list(_limits(found, loaded))
    if refusals:
        can, reasons = Can.NO, refusals
    elif found.features is None or not found.sees_programs:
        can, reasons = Can.UNKNOWN, [found.no_features or _BLIND]
    else:
        can, reasons = (Can.LIMITED if limits else Can.YES), limits
    return ModeVerdict(name, loaded.mode.name, VALUES[name], can, reasons)


def _refusals(found: Findings, loaded: Loaded) -> Iterator[str]:
    """Why a node can't work in a mode at all."""
    cgroups, sockets = found.cgroups, loaded.mode.socket_level is not SocketLevel.OFF
    if found.no_bcc:
        yield found.no_bcc
    if found.no_bpffs:
        yield found.no_bpffs
    if cgroups.why_not:
        yield cgroups.why_not
    if found.features:
        try:
            plan(loaded.datapath(_NOWHERE, _NOWHERE), found.features, found.host_cookie)
        except DatapathError as error:
            yield str(error)
    if sockets and cgroups.uncovered:
        yield cgroups.uncovered
    if sockets and cgroups.closed:
        yield f"another program is on {_named(cgroups.closed)} of {cgroups.root} and admits no others"
    if sockets and (theirs := [other for other in cgroups.others if is_ciliums(other)]):
        yield (
            f"Cilium redirects sockets on this node ({_named(theirs)}), and two that redirect undo each other's work: "
            "use its own local redirect policies, or set socketLB.enabled: false there"
        )
    if loaded.mode.tc_level is TcLevel.PODS:
        yield from _link_refusals(found)


def _link_refusals(found: Findings) -> Iterator[str]:
    """Why pods can't be redirected at their links."""
    if elsewhere := [plugin for plugin in found.cni.plugins[:1] if plugin in _NOT_ON_THE_NODE]:
        yield f"the CNI plugin {elsewhere[0]} ({found.cni.file}) gives pods no link on the node to attach programs to"
    shadowed = [link for link in found.links if link.why_not]
    if shadowed and len(shadowed) == len(found.links):
        yield f"programs have no place on any pod's link: {shadowed[0].name}: {shadowed[0].why_not}"


def _limits(found: Findings, loaded: Loaded) -> Iterator[str]:
    """What works less well than it could."""
    mode, cgroups = loaded.mode, found.cgroups
    sockets, links = mode.socket_level is not SocketLevel.OFF, mode.tc_level is TcLevel.PODS
    for feature in _features(found, sockets=sockets, links=links):
        if not feature.available:
            yield f"the kernel has no {feature.name}: {feature.consequence}"
    yield from mode.notes
    yield from _kube_proxy_limits(found, replaces=mode.replaces_kube_proxy)
    if found.cilium:
        yield (
            f"Cilium is on this node ({_named(found.cilium)}): only where its own local redirect policies are off, and "
            "with despiteCilium: true"
        )
    if sockets and (others := [other for other in cgroups.others if not is_ciliums(other)]):
        yield f"others' programs run beside ours ({_named(others)}): where one changes an address, ours may not know it"
    if sockets and found.optmem_max is not None and found.optmem_max < FORMER_OPTMEM:
        yield (
            f"net.core.optmem_max is {found.optmem_max}: sockets with many options may find no room for what is "
            f"remembered of a redirect, and go unredirected (the kernel's own was {FORMER_OPTMEM})"
        )
    if links and (shadowed := [link.name for link in found.links if link.why_not]):
        yield f"{len(shadowed)} of {len(found.links)} pods' links have no place for programs: {_named(shadowed)}"


def _features(found: Findings, *, sockets: bool, links: bool) -> Iterator[Feature]:
    """What the kernel can do or can't, as far as it matters to the levels that are asked for."""
    if found.features is None:
        return
    of_sockets = describe(found.features)
    if sockets:
        yield from of_sockets
        yield listing(available=found.lists_sockets)
    if links:
        yield from describe(found.features, TcBuild.SERVING)[len(of_sockets) :]


def _kube_proxy_limits(found: Findings, *, replaces: bool) -> Iterator[str]:
    if found.kube_proxy.told or found.kube_proxy.rules != ():
        return
    if replaces:
        yield "no kube-proxy was found: say where the API server is (k8sServiceHost, k8sServicePort)"
    else:
        yield "no kube-proxy was found: Services without a policy are for somebody else to serve"


# --- What was looked at -----------------------------------------------------------------------------------------------


def _checks(found: Findings) -> Iterator[Check]:
    yield _kernel(found)
    yield Check("BCC", State.WRONG if found.no_bcc else State.FINE, found.no_bcc or found.bcc)
    yield from _cgroup_checks(found)
    yield Check("bpffs", State.WRONG if found.no_bpffs else State.FINE, found.no_bpffs or found.bpffs)
    yield _links(found)
    yield _cni(found)
    yield _kube_proxy(found)
    yield from _bridge_netfilter(found)
    yield from _cilium(found)
    yield _capabilities(found)
    optmem = "can't be seen" if found.optmem_max is None else found.optmem_max
    yield Check("limits", State.FINE, f"locked memory {found.memlock} (raised where it counts), optmem_max {optmem}")
    for sentence in found.unseen:
        yield Check("unseen", State.UNSEEN, sentence)


def _kernel(found: Findings) -> Check:
    name = f"Linux {found.kernel}, {found.machine}"
    if found.features is None:
        return Check("kernel", State.UNSEEN, f"{name}: {found.no_features}")
    missing = [feature.name for feature in _features(found, sockets=True, links=True) if not feature.available]
    if missing:
        return Check("kernel", State.NOTE, f"{name}: without {', '.join(missing)}")
    return Check("kernel", State.FINE, f"{name}: has all that is asked for")


def _cgroup_checks(found: Findings) -> Iterator[Check]:
    cgroups = found.cgroups
    if wrong := cgroups.why_not or cgroups.uncovered:
        yield Check("cgroup v2", State.WRONG, wrong)
    else:
        beside = f"; version 1 is beside it ({len(cgroups.version_1)} mounts)" if cgroups.version_1 else ""
        yield Check("cgroup v2", State.FINE, f"{cgroups.root}{beside}")
    for hook in cgroups.closed:
        yield Check("sockets' hooks", State.WRONG, f"{hook}: a program there admits no others")
    if cgroups.others:
        yield Check("sockets' hooks", State.NOTE, f"others' programs: {_named(cgroups.others)}")
    elif not found.sees_programs:
        yield Check("sockets' hooks", State.UNSEEN, _BLIND)
    elif cgroups.root:
        yield Check("sockets' hooks", State.FINE, "nobody else's programs")


def _links(found: Findings) -> Check:
    links = found.links
    if not found.sees_programs:
        return Check("pods' links", State.UNSEEN, _BLIND)
    if not links:
        return Check("pods' links", State.NOTE, "none is here, so nothing can be said of programs on them")
    bridged = sum(link.bridged for link in links)
    shapes = ", ".join(filter(None, (_count(bridged, "on a bridge"), _count(len(links) - bridged, "routed"))))
    others = sorted({other for link in links for other in link.others})
    shadowed = [link for link in links if link.why_not]
    if shadowed:
        return Check("pods' links", State.WRONG, f"{shapes}; {shadowed[0].name}: {shadowed[0].why_not}")
    if others:
        return Check("pods' links", State.NOTE, f"{shapes}; others' programs with room beside them: {_named(others)}")
    return Check("pods' links", State.FINE, f"{shapes}; nobody else's programs")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number else ""


def _cni(found: Findings) -> Check:
    if not found.cni.file:
        return Check("CNI", State.NOTE, "no configuration of one was found")
    return Check("CNI", State.FINE, f"{' + '.join(found.cni.plugins) or 'unknown'} ({found.cni.file})")


def _kube_proxy(found: Findings) -> Check:
    told, rules = found.kube_proxy.told, found.kube_proxy.rules
    by = " and ".join(rules or ())
    if rules is None:
        text = f"{told}, as it says; its rules can't be seen" if told else "none answers, and its rules can't be seen"
        return Check("kube-proxy", State.UNSEEN, text)
    if told and rules and told not in rules:
        return Check("kube-proxy", State.NOTE, f"says {told}, but the rules are those of {by}")
    if len(rules) > 1:
        return Check("kube-proxy", State.NOTE, f"rules of {by}: one of them was left by an earlier mode")
    if told:
        return Check("kube-proxy", State.FINE, f"{told}, as it says")
    return Check("kube-proxy", State.FINE, f"{by}, by its rules") if by else Check("kube-proxy", State.NOTE, _NO_PROXY)


def _bridge_netfilter(found: Findings) -> Iterator[Check]:
    """Either setting does for us. kube-proxy needs it on, or answers between two pods of a bridge pass it by."""
    bridged = any(link.bridged for link in found.links)
    if bridged and found.kube_proxy.rules and found.bridge_netfilter is not True:
        text = "off: answers between pods of one bridge pass kube-proxy by, so its Services time out there"
        yield Check("bridge-nf-call-iptables", State.NOTE, text)


def _cilium(found: Findings) -> Iterator[Check]:
    if found.cilium:
        yield Check("Cilium", State.NOTE, f"is on this node: {_named(found.cilium)}")
    if found.cilium_kinds:
        kinds = _named(found.cilium_kinds)
        yield Check("Cilium", State.NOTE, f"its kinds are in the cluster ({kinds}): set crds.install: false")
    if not found.cilium and not found.cilium_kinds:
        yield Check("Cilium", State.FINE, "no sign of it")


def _capabilities(found: Findings) -> Check:
    if found.lacking:
        names = ", ".join(found.lacking)
        return Check("capabilities", State.NOTE, f"this process has no {names}: an agent needs them")
    return Check("capabilities", State.FINE, "all that an agent needs")


def _named(names: tuple[str, ...] | list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
