"""Reads a node into Findings. Changes nothing; what can't be read becomes a sentence in `unseen`.

Inside the agent's container the node's own files are seen through process 1, which is the node's where the pod has
`hostPID`. On the node itself that leads to the same files.

Others' programs on pods' links are asked whether they let packets pass, by a test run, as the agent asks them.
"""

import http.client
import json
import os
import platform
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from lrp_operator.cli.doctor.findings import Cgroups, Cni, Findings, KubeProxy, PodsLink
from lrp_operator.datapath.links import LinkPrograms, is_gone
from lrp_operator.datapath.place import is_bpffs, is_cgroup2, why_not_covered
from lrp_operator.datapath.plan import hook_function
from lrp_operator.datapath.programs import names_of
from lrp_operator.kernel import bpf, features, netfilter
from lrp_operator.kernel.cgroup import CgroupError, below, find_root, version_1_mounts
from lrp_operator.kernel.netns import NetnsError, own_netns_cookie
from lrp_operator.kernel.podlink import PodFinder
from lrp_operator.kernel.rtnl import Link
from lrp_operator.kernel.sockstorage import can_be_listed
from lrp_operator.loader.messages import Request
from lrp_operator.loader.run import LoaderError, build

NODE = Path("/proc/1/root")
CNI_FOLDER = "etc/cni/net.d"
KUBE_PROXY = ("127.0.0.1", 10249)
NEEDED = {"SYS_ADMIN": 21, "SYS_PTRACE": 19, "NET_ADMIN": 12}
"""What the chart's DaemonSet gives an agent, but for SYS_RESOURCE, which only matters before Linux 5.11."""

_CILIUM_MAPS = "sys/fs/bpf/tc/globals"
_CILIUM_LINKS = ("cilium_host", "cilium_net", "cilium_vxlan", "cilium_geneve", "lxc_health")
_MOST_CGROUPS = 100_000
_NAME_LETTERS = 15  # so much of a program's name the kernel keeps


class Examination:
    """One look at this node. bpf_root: where pins would be; cgroup_root: where programs would go, None: its mount."""

    def __init__(self, bpf_root: Path, cgroup_root: Path | None) -> None:
        self._bpf_root = bpf_root
        self._cgroup_root = cgroup_root
        self._unseen: list[str] = []
        self._files = self._nodes_files()

    def findings(self, cilium_kinds: tuple[str, ...], unseen: str) -> Findings:
        """Look at everything. cilium_kinds, unseen: what the API server tells, or why it does not."""
        found, no_features = self._features()
        bcc, no_bcc = _bcc()
        bpffs, no_bpffs = self._bpffs()
        links = self._links()
        lacking = _lacking()
        sees_programs = found is not None and not {"SYS_ADMIN", "NET_ADMIN"} & set(lacking)
        self._unseen += [unseen] if unseen else []
        return Findings(
            kernel=platform.release(),
            machine=platform.machine(),
            features=found,
            no_features=no_features,
            sees_programs=sees_programs,
            lists_sockets=not sees_programs or can_be_listed(),
            host_cookie=_cookie(),
            cgroups=self._cgroups(sees_programs=sees_programs),
            bcc=bcc,
            no_bcc=no_bcc,
            bpffs=bpffs,
            no_bpffs=no_bpffs,
            links=self._pods_links(tcx=found.tcx) if found and sees_programs else (),
            cni=self._cni(),
            kube_proxy=self._kube_proxy(links),
            cilium=self._cilium(links),
            cilium_kinds=cilium_kinds,
            bridge_netfilter=None if (on := _sysctl("net/bridge/bridge-nf-call-iptables")) is None else bool(on),
            optmem_max=_sysctl("net/core/optmem_max"),
            memlock=_limit(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]),
            lacking=lacking,
            unseen=tuple(self._unseen),
        )

    def _nodes_files(self) -> Path:
        try:
            with os.scandir(NODE):
                return NODE
        except OSError as error:
            self._unseen.append(f"the node's files are looked for in /: {NODE} is closed ({error.strerror})")
            return Path("/")

    # --- The kernel and its file systems

    def _features(self) -> tuple[features.KernelFeatures | None, str]:
        try:
            return features.probe(), ""
        except PermissionError:
            return None, "no right to load programs: run it as root (sudo lrpctl doctor), or in the agent's container"

    def _bpffs(self) -> tuple[str, str]:
        """Where the file system for pins is and whose, or why there is none. An agent makes its own folder there."""
        place = next(path for path in (self._bpf_root, *self._bpf_root.parents) if _exists(path))
        if not is_bpffs(place):
            return "", f"{place} is not on a bpffs: mount one (mount -t bpf bpf /sys/fs/bpf)"
        device = place.stat().st_dev
        written = f"{os.major(device)}:{os.minor(device)}"
        try:
            lines = Path("/proc/1/mountinfo").read_text(encoding="utf-8").splitlines()
        except OSError as error:
            self._unseen.append(f"whether {place} is the node's own: its mounts are closed to us ({error.strerror})")
            return str(place), ""
        if any(line.split()[2] == written for line in lines):
            return f"{place}, which process 1 has, too", ""
        return "", f"{place} is a bpffs, but none that process 1 has: what is pinned there goes with this container"

    def _cgroups(self, *, sees_programs: bool) -> Cgroups:
        try:
            root = self._cgroup_root or find_root().path
        except CgroupError as error:
            return Cgroups(None, why_not=str(error))
        if not is_cgroup2(root):
            return Cgroups(root, why_not=f"{root} is no directory of cgroup v2")
        others, closed = self._others_on(root) if sees_programs else (set[str](), list[str]())
        return Cgroups(
            root,
            uncovered=why_not_covered(root),
            version_1=tuple(version_1_mounts()),
            others=tuple(sorted(others)),
            closed=tuple(closed),
        )

    def _others_on(self, root: Path) -> tuple[set[str], list[str]]:
        """Others' programs on our hooks, at the root and below; and hooks of the root that admit no more."""
        found: dict[bpf.AttachType, set[int]] = {hook: set() for hook in bpf.AttachType}
        closed: list[str] = []
        for cgroup in (root, *below(root, limit=_MOST_CGROUPS)):
            with _unless_gone(), _directory(cgroup) as opened:
                for hook, programs in found.items():
                    programs.update(bpf.attached_programs(opened, hook, effective=True))
                    if cgroup == root and not bpf.admits_more(opened, hook):
                        closed.append(hook.name.lower())
        return {
            f"{name} on {hook.name.lower()}"
            for hook, programs in found.items()
            for name in names_of(programs)
            if name != hook_function(hook)[:_NAME_LETTERS]
        }, closed

    # --- Links, and who else is here

    def _links(self) -> list[Link]:
        with PodFinder() as finder:
            return finder.all_links()

    def _pods_links(self, *, tcx: bool) -> tuple[PodsLink, ...]:
        if not _is_in_nodes_netns():
            self._unseen.append("pods' links: this process is not in the node's network namespace (hostNetwork)")
        with closing(LinkPrograms({}, tcx=tcx)) as programs, PodFinder() as finder:
            found = []
            for link in finder.all_links():
                with _unless_gone():
                    if finder.may_be_a_pods(link):
                        others, why_not = programs.neighbours(link.index)
                        found.append(PodsLink(link.name, finder.interface(link).bridged, tuple(others), why_not))
        return tuple(found)

    def _cni(self) -> Cni:
        found, unseen = read_cni(self._files / CNI_FOLDER)
        self._unseen += [unseen] if unseen else []
        return found

    def _kube_proxy(self, links: list[Link]) -> KubeProxy:
        rules = {"ipvs"} if any(link.name == "kube-ipvs0" for link in links) else set[str]()
        try:
            for chain in netfilter.chains():
                if chain.table == "kube-proxy":
                    rules.add("nftables")
                elif chain.name == "KUBE-SERVICES":
                    rules.add("iptables")
        except OSError as error:
            self._unseen.append(f"kube-proxy's rules: netfilter can't be asked ({error.strerror})")
            return KubeProxy(None, _told_by_kube_proxy())
        # In mode ipvs it writes some rules of iptables, too.
        return KubeProxy(("ipvs",) if "ipvs" in rules else tuple(sorted(rules)), _told_by_kube_proxy())

    def _cilium(self, links: list[Link]) -> tuple[str, ...]:
        signs = [f"link {link.name}" for link in links if link.name in _CILIUM_LINKS]
        try:
            maps = [path for path in (self._files / _CILIUM_MAPS).iterdir() if path.name.startswith("cilium_")]
        except FileNotFoundError:
            maps = []
        except OSError as error:
            self._unseen.append(f"Cilium's maps: /{_CILIUM_MAPS} can't be read ({error.strerror})")
            maps = []
        signs += [f"{len(maps)} maps in /{_CILIUM_MAPS}"] if maps else []
        return tuple(signs)


@contextmanager
def _unless_gone() -> Iterator[None]:
    """Pass over what goes while we look: links and cgroups do."""
    try:
        yield
    except OSError as error:
        if not is_gone(error):
            raise


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    """An open directory, as a number for bpf(2)."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield number
    finally:
        os.close(number)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # a folder above it is closed to us: that one can be asked
        return False


def read_cni(folder: Path) -> tuple[Cni, str]:
    """The configuration in use, or as much as is found of it; and a sentence, if it can't be read."""
    what = "the CNI's configuration"
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix in {".conf", ".conflist", ".json"})
    except FileNotFoundError:
        return Cni(), ""
    except OSError as error:
        return Cni(), f"{what}: {folder} can't be read ({error.strerror})"
    if not files:
        return Cni(), ""
    try:
        tree = json.loads(files[0].read_text(encoding="utf-8"))
        return Cni(files[0].name, tuple(str(plugin["type"]) for plugin in tree.get("plugins", [tree]))), ""
    except OSError as error:
        return Cni(files[0].name), f"{what}: {files[0].name} can't be read ({error.strerror})"
    except (ValueError, KeyError, AttributeError, TypeError):
        return Cni(files[0].name), f"{what}: {files[0].name} is not understood"


def _cookie() -> int | None:
    try:
        return own_netns_cookie()
    except NetnsError:
        return None


def _bcc() -> tuple[str, str]:
    """BCC's version, asked as the agent loads it: by a child that is to build nothing."""
    try:
        return build(Request({}, {}, [])).bcc_version, ""
    except LoaderError as error:
        return "", error.failure.message


def _is_in_nodes_netns() -> bool:
    """Process 1 is the node's, or there is nobody to compare with."""
    try:
        return Path("/proc/1/ns/net").stat().st_ino == Path("/proc/thread-self/ns/net").stat().st_ino
    except OSError:
        return True


def _told_by_kube_proxy() -> str:
    """The mode that a kube-proxy on this node tells; empty if none answers."""
    connection = http.client.HTTPConnection(*KUBE_PROXY, timeout=1)
    try:
        connection.request("GET", "/proxyMode")
        answer = connection.getresponse()
        text = answer.read(100).decode(errors="replace").strip()
        return text if answer.status == http.client.OK and text.isalpha() else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _sysctl(name: str) -> int | None:
    """A number; None where this kernel, or this namespace, does not have it."""
    try:
        return int(Path("/proc/sys", name).read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


def _limit(number: int) -> str:
    return "unlimited" if number == resource.RLIM_INFINITY else f"{number >> 10} KiB"


def _lacking() -> tuple[str, ...]:
    """Capabilities that an agent needs and this process has not."""
    (effective,) = (int(value, 16) for name, value in _status() if name == "CapEff")
    return tuple(name for name, number in NEEDED.items() if not effective >> number & 1)


def _status() -> Iterator[tuple[str, str]]:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        yield name, value.strip()
