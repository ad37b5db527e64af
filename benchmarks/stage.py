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
from benchmarks.packets import Scene
from benchmarks.program import Wish
from benchmarks.runner import Runner
from benchmarks.topology import BenchmarkError, Client, Stand, compile_c
from lab import Node
from lrp_operator.kernel import bpf
from lrp_operator.resolve.model import FrontendEntry

_LET_PASS = bytes([0xB7, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])  # r0 = 1; exit
_RULES_SECONDS = 600  # nft takes a minute and a half for 10,000 Services
ROOT = Path(__file__).parents[1]


class Stage:
    """The stands, and the cgroups that programs have been attached to."""

    def __init__(self) -> None:
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
        return Stand(self._stack.enter_context(Node()), self._measure)

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
            path = {"PYTHONPATH": str(self._checkout(name, sources))} if sources else {}
            self._child("benchmarks.program", msgspec.json.encode(wish), path)
            self._cgroups[name] = Path(wish.cgroup)
        return self._cgroups[name]

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
        path = {"PYTHONPATH": str(self._checkout(name, sources))} if sources else {}
        self._child("benchmarks.program", msgspec.json.encode(wish), path)
        return Scene(name, Path(wish.bpf_root), self.stand.client.veth.index)

    def runner(self) -> Runner:
        """Start what runs packets through programs, on the shared node."""
        runner = Runner(self.stand.node, compile_c("testrun.c", self._directory))
        self._stack.callback(runner.end)
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
            self._child("benchmarks.prototype.load", msgspec.json.encode(wish), {})
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

    def _child(self, module: str, given: bytes, environment: Mapping[str, str]) -> None:
        """Run a module of ours on the shared node. Raises BenchmarkError with what it says when it fails."""
        child = self.stand.node.popen(
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
