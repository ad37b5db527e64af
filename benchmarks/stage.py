"""Everything that a run puts on the machine, made when a row first needs it, and removed at the end whatever happens.

The lab's nodes remove their namespaces, cgroups and bpffs (and with that all programs) also on Ctrl-C; what a killed
run leaves is swept by the next one, or by `python -m lab.cleanup`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from benchmarks.netfilter import services
from benchmarks.packets import Case, Kind, Scene
from benchmarks.program import Wish
from benchmarks.runner import EMPTY, Runner
from benchmarks.topology import BenchmarkError, Client, Stand, compile_c
from lab import Node, Pod
from lrp_operator.api.addresses import Protocol
from lrp_operator.kernel import bpf
from lrp_operator.kernel.netns import in_netns
from lrp_operator.resolve.model import FrontendEntry

_LET_PASS = bytes([0xB7, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])  # r0 = 1; exit
_RULES_SECONDS = 600  # nft takes a minute and a half for 10,000 Services
NEXT = bytes([0xB7, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x95, 0, 0, 0, 0, 0, 0, 0])
"""r0 = TC_ACT_UNSPEC; exit"""

Links = Callable[[Stand], Sequence[Pod]]
"""On which pods' links of a stand programs are."""

ROOT = Path(__file__).parents[1]


class Stage:
    """The stands, and the cgroups that programs have been attached to. bridge: pods are on their node's bridge."""

    def __init__(self, *, bridge: bool = False) -> None:
        self._bridge = bridge
        self._stack = ExitStack()
        self._directory = Path()
        self._measure = Path()
        self._cgroups: dict[str, Path] = {}

    def __enter__(self) -> Self:
        self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="lrp-bench-")))
        try:
            self._measure = compile_c("measure.c", self._directory)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def new_stand(self) -> Stand:
        """A stand for one row alone."""
        return Stand(self._stack.enter_context(Node()), self._measure, self._bridge)

    @cached_property
    def stand(self) -> Stand:
        """The stand that all rows share that need none of their own."""
        stand = self.new_stand()
        stand.node.pod("exempt")
        return stand

    def client(self, row: str, stand: Stand, cgroup: Path, dials: str) -> Client:
        """Start a row's measuring process."""
        client = Client(row, stand, cgroup, dials)
        self._stack.callback(client.end)
        return client

    def product(
        self,
        name: str,
        frontends: int,
        sources: Path | None,
        *,
        affinity: bool = False,
        exempt: bool = False,
        table: bool = True,
    ) -> Path:
        """The product's datapath on a cgroup of its own; rows that name the same one share it.

        sources: another build: a folder like bpf/, or a checkout with bpf/ and src/.
        """
        if name not in self._cgroups:
            wish = Wish(
                bpf_root=str(self.stand.node.bpf / name),
                cgroup=str(self.stand.seat(name)),
                backend=self.stand.backend.ipv4,
                frontends=frontends,
                affinity=affinity,
                exempt=self.stand.node.pods["exempt"].ipv4 if exempt else None,
                table=table,
            )
            self._program(self.stand, wish, name, sources)
            self._cgroups[name] = Path(wish.cgroup)
        return self._cgroups[name]

    def translating(
        self, name: str, frontends: int, sources: Path | None, links: Links, *, miss: bool = False
    ) -> Stand:
        """A stand of its own with the product's TC level. miss: the pod that has the server is no backend there."""
        stand = self.new_stand()
        served = stand.node.pod("elsewhere") if miss else stand.backend
        wish = Wish(
            bpf_root=str(stand.node.bpf / "lrp"),
            cgroup=str(stand.node.cgroup),
            backend=served.ipv4,
            frontends=frontends,
            tc=True,
            pods={pod.short_name: pod.ipv4 for pod in links(stand)},
        )
        self._program(stand, wish, name, sources)
        return stand

    def empty_links(self, links: Links) -> Stand:
        """A stand of its own with programs on pods' links that do nothing but let pass."""
        stand = self.new_stand()

        def attach(program: bpf.Fd) -> None:
            for pod in links(stand):
                for hook in bpf.TcxHook:
                    bpf.attach_to_link(program, pod.veth.index, hook, bpf.Place.LAST)

        with bpf.load_program(bpf.ProgType.SCHED_CLS, NEXT) as program:
            in_netns(stand.node.netns, lambda: attach(program))
        return stand

    def packets(self, name: str, frontends: int, sources: Path | None) -> Scene:
        """The product's TC level on tables of its own, attached nowhere: for packets that are run through it."""
        wish = Wish(
            bpf_root=str(self.stand.node.bpf / name),
            cgroup=str(self.stand.seat(name)),
            backend=self.stand.backend.ipv4,
            frontends=frontends,
            tc=True,
            mirrors=True,
        )
        self._program(self.stand, wish, name, sources)
        return Scene(name, Path(wish.bpf_root), self.stand.client.veth.index)

    def runner(self) -> Runner:
        """Start what runs packets through programs, on the shared node; case 0 is an empty program."""
        runner = Runner(self.stand.node, compile_c("testrun.c", self._directory))
        self._stack.callback(runner.end)
        pin = self.stand.node.bpf / "empty"
        with bpf.load_program(bpf.ProgType.SCHED_CLS, NEXT) as program:
            bpf.pin(program, pin)
        runner.add(EMPTY, Case("empty", Kind.MISS, 4, Protocol.TCP), pin, self.stand.client.veth.index)
        return runner

    def rival(self, name: str, frontends: int) -> Path:
        """The prototype of the usual scheme on a cgroup of its own; rows that name the same one share it."""
        if name not in self._cgroups:
            wish = Wish(
                bpf_root=str(self.stand.node.bpf / name),
                cgroup=str(self.stand.seat(name)),
                backend=self.stand.backend.ipv4,
                frontends=frontends,
            )
            self._child(self.stand, "benchmarks.prototype.load", msgspec.json.encode(wish), {})
            self._cgroups[name] = Path(wish.cgroup)
        return self._cgroups[name]

    def empty(self, name: str) -> Path:
        """Programs that do nothing but let pass, on the hooks that the product uses; they go with this process."""
        cgroup = self.stand.seat(name)
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        for hook in bpf.AttachType:
            with bpf.load_program(hook.program_type, _LET_PASS, hook) as program:
                self._stack.enter_context(bpf.link_to_cgroup(program, directory, hook))
        os.close(directory)
        return cgroup

    def netfilter(self, command: list[str], write: Callable[[Sequence[FrontendEntry]], str], count: int) -> Stand:
        """A stand of its own whose node has kube-proxy's rules for so many Services."""
        if shutil.which(command[0]) is None:
            raise BenchmarkError(
                f"{command[0]} is not installed: apt-get install iptables nftables, or leave its rows out"
            )
        stand = self.new_stand()
        rules = self._directory / f"{command[0]}-{count}"
        rules.write_text(write(services(count, stand.backend.ipv4)))
        stand.node.run([*command, rules], timeout=_RULES_SECONDS)
        return stand

    def _program(self, stand: Stand, wish: Wish, name: str, sources: Path | None) -> None:
        path = {"PYTHONPATH": str(self._checkout(name, sources))} if sources else {}
        self._child(stand, "benchmarks.program", msgspec.json.encode(wish), path)

    def _child(self, stand: Stand, module: str, given: bytes, environment: Mapping[str, str]) -> None:
        """Run a module of ours on a stand's node. Raises BenchmarkError with what it says when it fails."""
        child = stand.node.popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = child.communicate(given)
        if child.returncode:
            raise BenchmarkError(f"{module} failed: {said.decode(errors='replace').strip()}")

    def _checkout(self, name: str, sources: Path) -> Path:
        """Where Python is to look for the product: a checkout's src, or one made of links around a bpf folder."""
        if (sources / "src").is_dir() and (sources / "bpf").is_dir():
            return (sources / "src").resolve()
        if not (sources / "socket.c").is_file():
            raise BenchmarkError(f"{sources} holds no socket.c, nor is it a checkout with bpf/ and src/")
        made = self._directory / name
        (made / "src").mkdir(parents=True)
        # The loader finds the sources beside the package that it is part of.
        (made / "src" / "lrp_operator").symlink_to(ROOT / "src" / "lrp_operator")
        (made / "bpf").symlink_to(sources.resolve())
        return made / "src"
