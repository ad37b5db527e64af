"""The fast clients and servers of storm.c, started on the lab's pods, and the frontends that they agree on.

Frontend number k is VIP+1+k; its backends are port FIRST+k of one or several of three pods, and nobody else's. So an
answer tells whether it came from a backend of the frontend that was dialled. What is not redirected fails at once, for
the client has an unreachable route to all VIPs: a moment without a redirect can't hide.
"""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from lab import Node, Pod
from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath.engine import cleanup
from lrp_operator.datapath.model import DatapathSettings, FlushReport
from lrp_operator.resolve.model import Delta, FrontendEntry
from tests.datapath.world import TCP, UDP, InNode, entry

SOURCE = Path(__file__).parent / "storm.c"
Number = TypeVar("Number", int, float)
LONG = bool(os.environ.get("LRP_LONG"))
VIP4, VIP6 = "10.97.0.0", "fd00:97::"
ROUTES = (("10.97.0.0/16", "-4"), ("fd00:97::/64", "-6"))
PORT = 7000  # every frontend's
FIRST = 20000
PODS = 3


def size(default: Number, full: Number) -> Number:
    """How much a test does: by default, and with LRP_LONG=1 in the environment."""
    return full if LONG else default


def build(folder: Path) -> Path:
    """Compile storm.c."""
    program = folder / "storm"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", program, SOURCE], check=True)
    return program


@dataclass
class Seen:
    """What clients saw, summed up."""

    asked: Counter[str] = field(default_factory=Counter)
    ended: int = 0
    failed: int = 0
    wrong: int = 0
    complaints: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Take in what one client printed."""
        said = json.loads(line)
        self.asked.update(said["asked"])
        self.ended += said["ended"]
        self.failed += said["failed"]
        self.wrong += said["wrong"]
        self.complaints += said["complaints"]

    @property
    def total(self) -> int:
        """All exchanges."""
        return sum(self.asked.values())

    def check(self) -> None:
        """See that there were exchanges of each kind, and that nothing went wrong with any."""
        assert self.asked
        assert all(self.asked.values()), self.asked
        assert (self.failed, self.wrong) == (0, 0), self.complaints

    def __str__(self) -> str:
        """One line of figures."""
        kinds = ", ".join(f"{kind} {number:,}" for kind, number in self.asked.items())
        seen = f"{self.ended} sockets ended, {self.failed} failed, {self.wrong} wrong"
        return f"{self.total:,} exchanges ({kinds}), {seen}"


class Clients:
    """Running clients. A context manager: `seen` is there when it is left."""

    def __init__(self, processes: Sequence["subprocess.Popen[str]"]) -> None:
        self._processes = processes
        self.seen = Seen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.stop()
        for process in self._processes:
            process.kill()

    def stop(self) -> None:
        """Have them finish, and sum up."""
        for process in self._processes:
            assert process.stdin
            process.stdin.close()
        for process in self._processes:
            assert process.stdout
            said = process.stdout.read()
            assert process.wait(60) == 0, f"a client ended with {process.returncode}"
            self.seen.add(said)

    def again(self) -> None:
        """Have a crowd ask once more on all its sockets."""
        for process in self._processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        for process in self._processes:
            assert process.stdout
            assert process.stdout.readline() == "asked\n"


class Ground:
    """A node with a client, three pods that serve every frontend, and (unless an agent is used) a datapath."""

    def __init__(self, node: Node, storm: Path, frontends: int, **settings: Any) -> None:
        self.node, self.storm, self.frontends = node, storm, frontends
        self.settings = DatapathSettings(node.bpf / "lrp", node.cgroup, **settings)
        self._served: set[tuple[int, int]] = set()
        self.client = self.client_pod("client")
        self.pods = [self._serving(number) for number in range(PODS)]
        self.datapath = InNode(node, self.settings)

    def client_pod(self, name: str) -> Pod:
        """A pod, made when first asked for, from which nothing reaches a VIP but by a redirect."""
        if name in self.node.pods:
            return self.node.pods[name]
        pod = self.node.pod(name)
        for route, family in ROUTES:
            pod.run(["ip", family, "route", "add", "unreachable", route])
        return pod

    def _serving(self, number: int) -> Pod:
        # Other runs on this machine have pods too, and sockets are ended by address, in every namespace.
        run = os.getpid() % 0x7FFF
        own = f"10.{128 + (run >> 8)}.{run & 255}.{number + 100}", f"fd00:{run:x}::{number + 100:x}"
        pod = self.node.pod(f"pod{number}", ipv4=own[0], ipv6=own[1])
        self._serve(pod, number, FIRST, self.frontends)
        return pod

    def more_servers(self, number: int, first: int, count: int) -> None:
        """Have a pod serve further ports."""
        if (number, first) not in self._served:
            self._served.add((number, first))
            self._serve(self.pods[number], number, first, count)

    def _serve(self, pod: Pod, number: int, first: int, count: int) -> None:
        server = pod.popen(
            [self.storm, "serve", str(number), str(first), str(count)], stdout=subprocess.PIPE, text=True
        )
        assert server.stdout
        assert server.stdout.readline() == "ready\n"

    def close(self) -> None:
        """Take the datapath away."""
        self.datapath.close()
        cleanup(self.settings.bpf_root, self.settings.cgroup_root)

    # --- Frontends

    def program(self, entries: Iterable[FrontendEntry]) -> FlushReport:
        """Add these to the table, or change them, and see that it worked."""
        report: FlushReport = self._flush({wanted.frontend: wanted for wanted in entries})
        assert report.problems == ()
        return report

    def remove(self, frontends: Iterable[L4Addr]) -> FlushReport:
        """Take these away."""
        return self._flush(dict.fromkeys(frontends))

    def clear(self) -> None:
        """Take everything away."""
        self.remove([row.frontend for row in self.datapath.frontends()])
        self.datapath.reconcile()

    def _flush(self, frontends: Mapping[L4Addr, FrontendEntry | None]) -> FlushReport:
        self.datapath.update(Delta(dict(frontends), {}, {}))
        report: FlushReport = self.datapath.flush(complete=True)
        return report

    def entry(
        self, number: int, protocol: Protocol, *, six: bool, pods: Sequence[int], base: tuple[str, str] = (VIP4, VIP6)
    ) -> FrontendEntry:
        """Frontend number k, with its ports of some of the pods."""
        vip = L4Addr.make(vip_of(number, six=six, base=base), PORT, protocol)
        chosen = [self.pods[p].ipv6 if six else self.pods[p].ipv4 for p in pods]
        return entry(vip, *(L4Addr.make(host, FIRST + number, protocol) for host in chosen))

    def all_entries(self, **more: Any) -> list[FrontendEntry]:
        """Every frontend, of both protocols and families, with all pods."""
        return [
            self.entry(number, protocol, six=six, pods=range(PODS), **more)
            for number in range(self.frontends)
            for protocol in (TCP, UDP)
            for six in (False, True)
        ]

    # --- Clients

    def ask(self, kinds: str, ways: str = "46m", *, pause: int = 0) -> Clients:
        """Start a client on each CPU (see storm.c). pause: microseconds, where others need the CPU as well."""
        cpus = sorted(os.sched_getaffinity(0))
        return Clients([self._start("ask", kinds, ways, str(cpu), str(pause)) for cpu in cpus])

    def crowd(self, sockets: int, ways: dict[Pod, str]) -> Clients:
        """Start clients that hold many sockets, one in each of these pods."""
        return Clients([self._start("crowd", str(sockets), way, place=place) for place, way in ways.items()])

    def threads(self, number: int, way: str) -> Clients:
        """Start threads that share a socket."""
        return Clients([self._start("threads", str(number), way)])

    def _start(self, *words: str, place: Pod | None = None) -> "subprocess.Popen[str]":
        where = [VIP4, VIP6, str(PORT), str(FIRST), str(self.frontends)]
        command = [self.storm, *words, *where]
        return (place or self.client).popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def vip_of(number: int, *, six: bool, base: tuple[str, str] = (VIP4, VIP6)) -> str:
    """The address of frontend number k, as storm.c counts them."""
    if six:
        return f"{base[1]}{number + 1:x}"
    a, b, _, _ = base[0].split(".")
    return f"{a}.{b}.{(number + 1) >> 8}.{(number + 1) & 255}"
