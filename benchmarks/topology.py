"""Where the measuring happens: client pod, node, backend pod, each a namespace, joined by veths (the project's lab).

    client pod ── veth ── node (forwards) ── veth ── backend pod
      CPU 0                                            CPU 1

A `Stand` is one such node with the server in its backend pod. Rows that are eBPF programs share one stand: each has a
cgroup of its own below the client pod's, with its own programs attached, so they meet only its own client. Netfilter's
rules act on a whole namespace, so each of those rows gets a stand of its own, and connection tracking is only there.

A `Client` is one row's measuring process. It sleeps until it is its turn.
"""

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from lab import Node, Place, Pod

FRONTEND = "10.96.0.1"
TCP_PORT, UDP_PORT, OWN_PORT = 80, 53, 54
"""The same numbers on the frontend and on the backend. OWN_PORT: where a client answers itself (measure.c)."""

_HERE = Path(__file__).parent


class BenchmarkError(Exception):
    """Something is missing on this machine, or did not work; the text is for people."""


def compile_c(name: str, directory: Path) -> Path:
    """Compile one of the measuring programs, by its source's name, into a directory."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise BenchmarkError(
            "the measuring programs are C and gcc is not installed: "
            "apt-get install --no-install-recommends gcc libc6-dev"
        )
    source, program = _HERE / name, directory / Path(name).stem
    done = subprocess.run(
        [compiler, "-O2", "-Wall", "-o", program, source], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"gcc could not compile {name}:\n{done.stderr}")
    return program


@dataclass
class Stand:
    """A node with a client pod and a backend pod in which the server runs.

    measure: the compiled program. bridge: the pods are on the node's bridge.
    """

    node: Node
    measure: Path
    bridge: bool = False
    client: Pod = field(init=False)
    backend: Pod = field(init=False)

    def __post_init__(self) -> None:
        self.client = self.node.pod("client", bridge=self.bridge)
        self.backend = self.node.pod("backend", bridge=self.bridge)
        server = self.backend.popen(
            [self.measure, "serve", str(TCP_PORT), str(UDP_PORT)], stdout=subprocess.PIPE, text=True
        )
        assert server.stdout
        if server.stdout.readline() != "ready\n":
            raise BenchmarkError("the server did not start: are there two CPUs?")

    def seat(self, name: str) -> Path:
        """Make a cgroup of its own below the client pod's, for programs to be attached to."""
        cgroup = self.client.cgroup / name
        cgroup.mkdir()
        return cgroup


class Client:
    """A row's measuring process: in the client pod's namespace, in the row's cgroup, on CPU 0."""

    def __init__(self, row: str, stand: Stand, cgroup: Path, dials: str) -> None:
        self._row = row
        self._place = Place(stand.client.name, stand.client.netns, cgroup)
        ports = [str(port) for port in (TCP_PORT, UDP_PORT, OWN_PORT)]
        self._process: subprocess.Popen[str] = self._place.popen(
            [stand.measure, "client", dials, *ports, stand.backend.netns_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.clock_floor = int(self._read().removeprefix("ready "))

    def take_turn(self, test: str, times: int) -> int:
        """Do a test some times; return the median in nanoseconds."""
        assert self._process.stdin
        self._process.stdin.write(f"{test} {times}\n")
        try:
            return int(self._read())
        except BenchmarkError as error:
            raise BenchmarkError(f"row {self._row}, test {test}: {error}") from error

    def _read(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            _, why = self._process.communicate()
            raise BenchmarkError(why.strip() or "no answer came: a datagram was lost")
        return line

    def end(self) -> None:
        """End the process."""
        self._place.end_processes()
