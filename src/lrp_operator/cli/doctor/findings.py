"""What was found on a node: values, nothing else. An empty text or list: there is no such thing."""

from pathlib import Path

from msgspec import Struct

from lrp_operator.kernel.features import KernelFeatures


class Cgroups(Struct, frozen=True):
    """Cgroup v2, and the programs of others there.

    root: where it is mounted; None if it is not. why_not: why it can't be used. uncovered: why a mount does not cover
    the node. version_1: mounts of version 1 beside it. others: "program on hook", what runs beside ours.
    closed: hooks where a program came alone and admits no other.
    """

    root: Path | None
    why_not: str = ""
    uncovered: str = ""
    version_1: tuple[Path, ...] = ()
    others: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()


class PodsLink(Struct, frozen=True):
    """A link that leads into another namespace. others: programs and filters there; why_not: no place for ours."""

    name: str
    bridged: bool
    others: tuple[str, ...] = ()
    why_not: str = ""


class Cni(Struct, frozen=True):
    """The configuration that the container runtime takes: the first by name. plugins: their types, in their order."""

    file: str = ""
    plugins: tuple[str, ...] = ()


class KubeProxy(Struct, frozen=True):
    """Who serves Services.

    rules: the modes whose traces are here, None where they can't be seen. told: the mode that a kube-proxy says it has.
    """

    rules: tuple[str, ...] | None = ()
    told: str = ""


class Findings(Struct, frozen=True):
    """A node, as it was found.

    features: what the kernel can do; None where it may not be asked (no_features says why). lists_sockets: it tells
    what sockets remember. sees_programs: others' programs could be looked at. host_cookie: of the node's namespace.
    bcc, bpffs: version and place; no_bcc, no_bpffs: why they can't be used. cilium: signs of it on the node;
    cilium_kinds: its kinds in the cluster. bridge_netfilter: the setting; None without the module. optmem_max: bytes a
    socket may have for what is kept with it; None where it can't be seen. lacking: capabilities that an agent needs and
    this process has not. unseen: what could not be looked at, and why.
    """

    kernel: str
    machine: str
    features: KernelFeatures | None
    cgroups: Cgroups
    no_features: str = ""
    sees_programs: bool = True
    lists_sockets: bool = True
    host_cookie: int | None = None
    bcc: str = ""
    no_bcc: str = ""
    no_bpffs: str = ""
    bpffs: str = ""
    links: tuple[PodsLink, ...] = ()
    cni: Cni = Cni()
    kube_proxy: KubeProxy = KubeProxy()
    cilium: tuple[str, ...] = ()
    cilium_kinds: tuple[str, ...] = ()
    bridge_netfilter: bool | None = None
    optmem_max: int | None = None
    memlock: str = ""
    lacking: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
