"""Programs and links: what a mode needs, whether it is in the kernel already, and attaching it without a gap.

On the bpffs, below the bpf root (a folder of the product's own):

    links/<hook>                       one link per hook, for ever at the same place: the program in it is swapped
    tables-<layout>/<map>              what this node redirects; another size or layout is another folder
    tables-<layout>/programs-<build>/  programs that use those tables
    sockets-v<N>/<map>                 what sockets remember; outlives tables
    links/<hook>_sockets-v<N>          an earlier version's programs for replies and closing, while it has sockets

Whoever comes next finds all by these names. A link is updated in place (BPF_LINK_UPDATE), never detached and attached,
so there is no moment without a program. What replies and closing pass (recvmsg, getpeername, sock_release) is swapped
before what makes new memories (connect, sendmsg).

When the layout of what sockets remember changes, sockets that stand keep what they have, and only the old programs can
read it. So before a reply hook's link gets the new program, the old program gets a link of its own behind it. It stays
until no socket remembers anything in the old way (`release_sockets`). Behind, because a socket that sends again is
remembered in the new way too, and that counts: the old program then meets an address that it does not know. What the
old way can't be told any more is that a socket now talks to a pod directly: replies from a pod that it was once
redirected to seem to come from the frontend, and if it is connected, it is ended when that pod leaves the frontend.
"""

import errno
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lrp_operator.datapath.model import DatapathError, DatapathSettings, Feature, SocketLevel
from lrp_operator.kernel import bpf
from lrp_operator.kernel.features import KernelFeatures
from lrp_operator.loader.messages import Request
from lrp_operator.loader.run import LoaderError, build
from lrp_operator.loader.sources import bpf_directory, digest, map_names

_RING_BYTES = 1 << 18
_MAX_SKIPS = 16384
_MAX_CLIENTS = 65536  # session affinity: an LRU

# Replies and closing first: see the module's text.
_HOOKS_IPV4 = (bpf.AttachType.RECVMSG4, bpf.AttachType.GETPEERNAME4, bpf.AttachType.CONNECT4, bpf.AttachType.SENDMSG4)
_HOOKS_IPV6 = (bpf.AttachType.RECVMSG6, bpf.AttachType.GETPEERNAME6, bpf.AttachType.CONNECT6, bpf.AttachType.SENDMSG6)
_OF_OLD_SOCKETS = frozenset(hook for hook in bpf.AttachType if not hook.name.startswith(("CONNECT", "SENDMSG")))


@dataclass(frozen=True, slots=True)
class Build:
    """Everything that decides which maps and programs a node needs. hooks: in the order of attaching."""

    root: Path
    hooks: tuple[bpf.AttachType, ...]
    map_defines: dict[str, int]
    program_defines: dict[str, int]

    @property
    def tables(self) -> Path:
        """Folder of the tables' pins; its name changes with sizes and layouts."""
        sizes = ",".join(f"{name}={value}" for name, value in sorted(self.map_defines.items()))
        return self.root / f"tables-{digest(['structs.h', 'config.h', 'maps.c'], sizes)}"

    @property
    def sockets(self) -> Path:
        """Folder of the socket storages' pins."""
        version = re.search(r"#define LRP_SOCKETS_VERSION (\d+)", (bpf_directory() / "config.h").read_text())
        assert version is not None
        return self.root / f"sockets-v{version[1]}"

    @property
    def programs(self) -> Path:
        """Folder of the programs' pins; its name changes with the sources and constants."""
        defines = ",".join(f"{name}={value}" for name, value in sorted(self.program_defines.items()))
        return self.tables / f"programs-{digest(['*.c', '*.h', 'include/**/*.h'], defines)}"

    def link(self, hook: bpf.AttachType, version: str = "") -> Path:
        """The pin of a hook's link; with a version, of the one that serves sockets of that version."""
        return self.root / "links" / (f"{hook.name.lower()}_{version}" if version else hook.name.lower())


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
    }
    if settings.socket_level is SocketLevel.HOST_ONLY:
        if host_cookie is None or not features.netns_cookie_helper:
            raise DatapathError("socketLB.hostNamespaceOnly needs network namespace cookies, which this kernel has not")
        defines["LRP_HOST_NETNS_COOKIE"] = host_cookie
    hooks = (*(_HOOKS_IPV6 if settings.ipv6 or settings.ipv4 else ()), *(_HOOKS_IPV4 if settings.ipv4 else ()))
    if _has_socket_table(features):
        hooks = (bpf.AttachType.INET_SOCK_RELEASE, *hooks)
    if settings.socket_level is SocketLevel.OFF:
        hooks = ()
    missing = [hook.name.lower() for hook in hooks if hook not in features.hooks]
    if missing:
        raise DatapathError(f"this kernel has no cgroup hooks {', '.join(missing)} (Linux 5.8 has them): upgrade it")
    if hooks and not features.ring_buffer:
        raise DatapathError("this kernel has no BPF ring buffer (Linux 5.8 has it): upgrade it")
    sizes = {
        "LRP_MAX_FRONTENDS": settings.max_frontends,
        "LRP_MAX_BACKENDS": settings.max_backends,
        "LRP_MAX_SKIPS": _MAX_SKIPS,
        "LRP_MAX_CLIENTS": _MAX_CLIENTS if settings.cluster_ip else 1,
        "LRP_RING_BYTES": _RING_BYTES,
    }
    ordered = tuple(sorted(hooks, key=lambda hook: hook.name.startswith(("CONNECT", "SENDMSG"))))
    return Build(settings.bpf_root, ordered, sizes, defines)


def _has_socket_table(features: KernelFeatures) -> bool:
    return features.compare_and_swap and bpf.AttachType.INET_SOCK_RELEASE in features.hooks


def describe(features: KernelFeatures) -> tuple[Feature, ...]:
    """Tell people what this kernel has, and what does not work for want of it."""
    wishes = (
        ("netns cookie in BPF", features.netns_cookie_helper, "skipRedirectFromBackend and session affinity are off"),
        ("SO_NETNS_COOKIE", features.netns_cookie_option, "skipRedirectFromBackend is not in force"),
        ("table of sockets", _has_socket_table(features), "new redirected sockets cost some hundred nanoseconds more"),
        ("bpf_skc_to_mptcp_sock", features.mptcp, "getpeername of an MPTCP connection shows the pod's address"),
        ("bpf_set_retval", features.set_retval, "a refused connect says EPERM instead of ECONNREFUSED"),
    )
    return tuple(Feature(name, have, "" if have else consequence) for name, have, consequence in wishes)


class Programs:
    """The programs and links of one build."""

    def __init__(self, wanted: Build, cgroup_root: Path) -> None:
        self.wanted = wanted
        self._cgroup_root = cgroup_root
        self._loaded: dict[bpf.AttachType, bpf.Fd] = {}

    def load(self) -> bool:
        """Open the programs' pins; have them built first if one is missing. True if they were built.

        Raises DatapathError.
        """
        if self._adopt():
            return False
        shutil.rmtree(self.wanted.programs, ignore_errors=True)
        request = Request(
            tables=str(self.wanted.tables),
            sockets=str(self.wanted.sockets),
            programs=str(self.wanted.programs),
            source="socket.c",
            hooks={_function(hook): int(hook) for hook in self.wanted.hooks},
            map_defines=self.wanted.map_defines,
            program_defines=self.wanted.program_defines,
        )
        try:
            build(request)
        except LoaderError as error:
            raise DatapathError(str(error)) from error
        if not self._adopt():
            raise DatapathError(f"the loader ended well, but {self.wanted.programs} does not hold all programs")
        return True

    def _adopt(self) -> bool:
        self.close()
        try:
            for hook in self.wanted.hooks:
                self._loaded[hook] = bpf.open_pin(self.wanted.programs / _function(hook))
        except FileNotFoundError:
            self.close()
            return False
        folders = (self.wanted.tables, self.wanted.sockets)
        if all(any((folder / name.lower()).exists() for folder in folders) for name in map_names()):
            return True
        self.close()  # a map's pin is gone: programs that use it can't be filled
        return False

    def socket_folders(self) -> list[Path]:
        """Folders of the socket storages that are pinned, of every version; ours first."""
        others = set(self.wanted.root.glob("sockets-v*")) - {self.wanted.sockets}
        return [self.wanted.sockets, *sorted(others)]

    def repin(self) -> list[str]:
        """Pin programs again whose pins someone removed; return what was missing. Raises OSError."""
        found: list[str] = []
        for hook, program in self._loaded.items():
            path = self.wanted.programs / _function(hook)
            if not path.exists():
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                bpf.pin(program, path)
                found.append(f"{hook.name.lower()}: the program's pin was missing")
        return found

    def attach(self) -> list[str]:
        """Make every hook's link hold our program; return what had to be done, as sentences. Raises DatapathError."""
        done: list[str] = []
        (self.wanted.root / "links").mkdir(mode=0o700, exist_ok=True)
        cgroup = os.open(self._cgroup_root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _refuse_cilium(cgroup, self.wanted.hooks)
            for hook in self.wanted.hooks:
                if hook in _OF_OLD_SOCKETS:
                    self._keep_for_old_sockets(hook, cgroup)
                did = self._attach_hook(hook, cgroup)
                if did:
                    done.append(did)
        except OSError as error:
            raise DatapathError(_why_not_attached(error, self._cgroup_root)) from error
        finally:
            os.close(cgroup)
        self._detach_others()
        return done

    def _attach_hook(self, hook: bpf.AttachType, cgroup: int) -> str:
        path = self.wanted.link(hook)
        program = self._loaded[hook]
        name = hook.name.lower()
        try:
            link = bpf.open_pin(path)
        except FileNotFoundError:
            with bpf.link_to_cgroup(program, cgroup, hook) as made:
                bpf.pin(made, path)
            return f"{name}: attached"
        with link:
            info = bpf.link_info(link)
            if info.cgroup_id != os.fstat(cgroup).st_ino:
                # Of another cgroup, or of one that has died: ours first, then that one goes.
                path.unlink()
                with bpf.link_to_cgroup(program, cgroup, hook) as made:
                    bpf.pin(made, path)
                _detach(link)
                return f"{name}: attached anew"
            if info.prog_id != bpf.prog_info(program).id:
                bpf.update_link(link, program)
                return f"{name}: program replaced"
        return ""

    def _keep_for_old_sockets(self, hook: bpf.AttachType, cgroup: int) -> None:
        """Give what is attached now a link of its own, if it reads sockets' memories of another version."""
        try:
            link = bpf.open_pin(self.wanted.link(hook))
        except FileNotFoundError:
            return
        with link:
            info = bpf.link_info(link)
        if info.cgroup_id != os.fstat(cgroup).st_ino:
            return
        with bpf.open_program(info.prog_id) as program:
            version = self._version_of(program)
            path = self.wanted.link(hook, version)
            if version == self.wanted.sockets.name or not version or path.exists():
                return
            with bpf.link_to_cgroup(program, cgroup, hook) as made:
                bpf.pin(made, path)

    def _version_of(self, program: bpf.Fd) -> str:
        """Name of the folder whose socket storages a program uses; empty if it uses none that is pinned."""
        used = bpf.maps_of(program)
        for folder in self.socket_folders():
            for path in folder.iterdir():
                with bpf.open_pin(path) as storage:
                    if bpf.map_info(storage).id in used:
                        return folder.name
        return ""

    def _detach_others(self) -> None:
        """Detach what no hook of ours needs, nor sockets of another version."""
        versions = [folder.name for folder in self.socket_folders() if folder != self.wanted.sockets]
        kept = {self.wanted.link(hook) for hook in self.wanted.hooks}
        kept |= {self.wanted.link(hook, version) for hook in self.wanted.hooks for version in versions}
        for path in (self.wanted.root / "links").iterdir():
            if path not in kept:
                _remove_link(path)

    def release_sockets(self, folder: Path) -> None:
        """No socket remembers anything in this version's way any more: let go of its programs and maps.

        Raises OSError.
        """
        for path in (self.wanted.root / "links").glob(f"*_{folder.name}"):
            _remove_link(path)
        shutil.rmtree(folder)

    def remove_old(self) -> None:
        """Unpin tables and programs of earlier builds. Call it once nothing attached uses them any more."""
        for path in self.wanted.root.glob("tables-*"):
            if path != self.wanted.tables:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.wanted.tables.glob("programs-*"):
            if path != self.wanted.programs:
                shutil.rmtree(path, ignore_errors=True)

    def attached(self) -> dict[str, int]:
        """Hook -> id of our program in its link, for the links that stand."""
        found: dict[str, int] = {}
        for hook in self.wanted.hooks:
            try:
                with bpf.open_pin(self.wanted.link(hook)) as link:
                    info = bpf.link_info(link)
            except OSError:
                continue
            if info.cgroup_id:
                found[hook.name.lower()] = info.prog_id
        return found

    def missing_in(self, cgroup: Path) -> list[str]:
        """Hooks on which our program is not effective for processes of a cgroup. Raises OSError."""
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return [
                hook.name.lower()
                for hook, program in self._loaded.items()
                if bpf.prog_info(program).id not in bpf.attached_programs(directory, hook, effective=True)
            ]
        finally:
            os.close(directory)

    def close(self) -> None:
        """Close the descriptors; what is pinned goes on."""
        for program in self._loaded.values():
            program.close()
        self._loaded.clear()


def _refuse_cilium(cgroup: int, hooks: tuple[bpf.AttachType, ...]) -> None:
    """Raise DatapathError where Cilium's socket load balancer is: two that redirect undo each other's work.

    Its programs are known by their names (cil_sock4_connect and so on; the kernel keeps 15 letters).
    """
    for hook in hooks:
        for number in bpf.attached_programs(cgroup, hook, effective=True):
            with suppress(FileNotFoundError), bpf.open_program(number) as program:  # it may have gone meanwhile
                name = bpf.prog_info(program).name
                if name.startswith("cil_sock"):
                    raise DatapathError(
                        f"Cilium redirects sockets on this node (its program {name} is on {hook.name.lower()}): use "
                        "its own local redirect policies, or set socketLB.enabled: false there"
                    )


def _remove_link(path: Path) -> None:
    """Detach and unpin. Raises OSError."""
    with bpf.open_pin(path) as link:
        _detach(link)
    path.unlink()


def _detach(link: bpf.Fd) -> None:
    """Detach a link now; the kernel lets go of one that is only unpinned when it comes to it. Raises OSError."""
    try:
        bpf.detach_link(link)
    except OSError as error:
        if error.errno != errno.ENOLINK:  # its cgroup has died already
            raise


def _function(hook: bpf.AttachType) -> str:
    return f"lrp_{hook.name.lower()}"


def _why_not_attached(error: OSError, cgroup_root: Path) -> str:
    if error.errno == errno.EPERM:
        return (
            f"programs can't be attached to the cgroup {cgroup_root}: no right to (CAP_NET_ADMIN, CAP_BPF), or another"
            " program is there that allows no others"
        )
    return f"programs can't be attached to the cgroup {cgroup_root}: {error}"


def cleanup(bpf_root: Path) -> list[str]:
    """Detach and unpin all of ours below a bpf root; return what was removed. Raises OSError."""
    removed: list[str] = []
    for path in sorted(bpf_root.glob("links/*")):
        _remove_link(path)
        removed.append(f"link {path.name}")
    for folder in sorted(path for kind in ("links", "tables-*", "sockets-v*") for path in bpf_root.glob(kind)):
        removed += [f"pin {path.relative_to(bpf_root)}" for path in sorted(folder.rglob("*")) if not path.is_dir()]
        shutil.rmtree(folder)
    return removed
