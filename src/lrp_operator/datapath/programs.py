"""The programs of both levels: loading them, and attaching the socket level's to the cgroup without a gap.

A link is updated in place (BPF_LINK_UPDATE), never detached and attached, so there is no moment without a program. What
replies and closing pass (recvmsg, getpeername, sock_release) is swapped before what makes new memories (connect,
sendmsg). Where everything is pinned is told in `plan`.

When the layout of what sockets remember changes, sockets that stand keep what they have, and only the old programs can
read it. So before a reply hook's link gets the new program, the old program gets a link of its own behind it. It stays
until no socket remembers anything in the old way (`release_sockets`). Behind, because a socket that sends again is
remembered in the new way too, and that counts: the old program then meets an address that it does not know. What the
old way can't be told any more is that a socket now talks to a pod directly: replies from a pod that it was once
redirected to seem to come from the frontend, and if it is connected, it is ended when that pod leaves the frontend.
"""

import errno
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lrp_operator.datapath.model import DatapathError
from lrp_operator.datapath.plan import REPLY_HOOKS, Build, hook_function
from lrp_operator.kernel import bpf
from lrp_operator.loader.messages import ProgramSet, Request
from lrp_operator.loader.run import LoaderError, build
from lrp_operator.loader.sources import map_names


class Programs:
    """The programs of one build, and the links of its socket level."""

    def __init__(self, wanted: Build, cgroup_root: Path) -> None:
        self.wanted = wanted
        self._cgroup_root = cgroup_root
        self._loaded: dict[Path, bpf.Fd] = {}  # by pin

    def load(self) -> bool:
        """Open the programs' pins; have built first what is missing. True if something was built.

        Raises DatapathError.
        """
        sets = [programs for programs in (self.wanted.socket_programs, self.wanted.tc_programs) if programs.functions]
        there = self._maps_are_there()
        missing = [programs for programs in sets if not there or not self._adopt(programs)]
        if there and not missing:
            return False
        for programs in missing:
            shutil.rmtree(programs.folder, ignore_errors=True)
        sizes = {**self.wanted.map_defines, "LRP_MAX_FLOWS": self.wanted.max_flows}
        try:
            build(Request(self.wanted.folders, sizes, missing))
        except LoaderError as error:
            raise DatapathError(str(error)) from error
        for programs in missing:
            if not self._adopt(programs):
                raise DatapathError(f"the loader ended well, but {programs.folder} does not hold all programs")
        return True

    def _maps_are_there(self) -> bool:
        """Whether all maps are pinned: programs that use one whose pin is gone can't be filled."""
        folders = self.wanted.folders
        return all((Path(folders[kind]) / name.lower()).exists() for name, kind in map_names(folders).items())

    def _adopt(self, programs: ProgramSet) -> bool:
        paths = [Path(programs.folder) / function for function in programs.functions]
        for path in paths:
            if old := self._loaded.pop(path, None):
                old.close()
            try:
                self._loaded[path] = bpf.open_pin(path)
            except FileNotFoundError:
                return False
        return True

    def _program(self, hook: bpf.AttachType) -> bpf.Fd:
        return self._loaded[Path(self.wanted.socket_programs.folder) / hook_function(hook)]

    def ids(self) -> set[int]:
        """Ids of this build's programs."""
        return {bpf.prog_info(program).id for program in self._loaded.values()}

    def tc_programs(self) -> dict[str, bpf.Fd]:
        """The TC level's programs by their C functions; none where there is no TC level."""
        programs = self.wanted.tc_programs
        return {function: self._loaded[Path(programs.folder) / function] for function in programs.functions}

    def socket_folders(self) -> list[Path]:
        """Folders of the socket storages that are pinned, of every version; ours first."""
        others = set(self.wanted.root.glob("sockets-v*")) - {self.wanted.sockets}
        return [self.wanted.sockets, *sorted(others)]

    def repin(self) -> list[str]:
        """Pin programs again whose pins someone removed; return what was missing. Raises OSError."""
        found: list[str] = []
        for path, program in self._loaded.items():
            if not path.exists():
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                bpf.pin(program, path)
                found.append(f"{path.name.removeprefix('lrp_')}: the program's pin was missing")
        return found

    def attach(self) -> list[str]:
        """Make every hook's link hold our program; return what had to be done, as sentences. Raises DatapathError."""
        done: list[str] = []
        (self.wanted.root / "links").mkdir(mode=0o700, exist_ok=True)
        cgroup = os.open(self._cgroup_root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _refuse_cilium(cgroup, self.wanted.hooks)
            for hook in self.wanted.hooks:
                if hook in REPLY_HOOKS:
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
        program = self._program(hook)
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

    def others(self) -> list[Path]:
        """Pins of links that no hook of ours needs, nor sockets of another version."""
        versions = [folder.name for folder in self.socket_folders() if folder != self.wanted.sockets]
        kept = {self.wanted.link(hook) for hook in self.wanted.hooks}
        kept |= {self.wanted.link(hook, version) for hook in self.wanted.hooks for version in versions}
        return [path for path in (self.wanted.root / "links").glob("*") if path not in kept]

    def _detach_others(self) -> None:
        for path in self.others():
            _remove_link(path)

    def leave_sockets(self) -> None:
        """The mode has no socket level, and no socket remembers one: detach what served replies. Raises OSError."""
        self.wanted = replace(self.wanted, hooks=(), sockets_leaving=False)
        self._detach_others()

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
        kept = {Path(self.wanted.socket_programs.folder), Path(self.wanted.tc_programs.folder)}
        for path in [*self.wanted.tables.glob("programs-*"), *self.wanted.tables.glob("tc-*")]:
            if path not in kept:
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
                for hook in self.wanted.hooks
                if bpf.prog_info(self._program(hook)).id not in bpf.attached_programs(directory, hook, effective=True)
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
        for name in names_of(bpf.attached_programs(cgroup, hook, effective=True)):
            if is_ciliums(name):
                raise DatapathError(
                    f"Cilium redirects sockets on this node (its program {name} is on {hook.name.lower()}): use "
                    "its own local redirect policies, or set socketLB.enabled: false there"
                )


def is_ciliums(program: str) -> bool:
    """Whether a program on a cgroup's hook is of Cilium's socket load balancer."""
    return program.startswith("cil_sock")


def names_of(numbers: Iterable[int]) -> list[str]:
    """Names of loaded programs, by their ids. Raises OSError."""
    names: list[str] = []
    for number in numbers:
        with suppress(FileNotFoundError), bpf.open_program(number) as program:  # it may have gone meanwhile
            names.append(bpf.prog_info(program).name)
    return names


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


def _why_not_attached(error: OSError, cgroup_root: Path) -> str:
    if error.errno == errno.EPERM:
        return (
            f"programs can't be attached to the cgroup {cgroup_root}: no right to (CAP_NET_ADMIN, CAP_BPF), or another"
            " program is there that allows no others"
        )
    return f"programs can't be attached to the cgroup {cgroup_root}: {error}"


def cleanup(bpf_root: Path) -> list[str]:
    """Detach and unpin all of ours below a bpf root; return what was removed. Raises OSError.

    What is attached to pods' links is no concern of this: see `links`.
    """
    removed: list[str] = []
    for path in sorted(bpf_root.glob("links/*")):
        _remove_link(path)
        removed.append(f"link {path.name}")
    for folder in sorted(
        path for kind in ("links", "tables-*", "sockets-v*", "flows-v*") for path in bpf_root.glob(kind)
    ):
        removed += [f"pin {path.relative_to(bpf_root)}" for path in sorted(folder.rglob("*")) if not path.is_dir()]
        shutil.rmtree(folder)
    return removed
