"""The processes of the cluster part: an agent and a controller as users run them, and a client of the API server."""

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from benchmarks.topology import BenchmarkError
from lab import Node
from lrp_operator.datapath.engine import cleanup
from tests.cluster.apiserver import LOCALHOST, Cluster, Request, free_ports

PATIENCE = 120.0
_NOBODY = (OSError, http.client.HTTPException)


class Api:
    """The API server, on a connection that stays: no handshake is part of what is timed."""

    def __init__(self, cluster: Cluster) -> None:
        port = urlsplit(cluster.url).port
        self._connection = http.client.HTTPSConnection(LOCALHOST, port, timeout=60, context=cluster.tls())
        self._token = cluster.token
        self._cluster = cluster

    def ask(self, verb: str, path: str, body: Mapping[str, Any] | None = None, kind: str = "json") -> Any:
        """Ask; what is answered. Raises BenchmarkError for anything but a yes."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": f"application/{kind}"}
        self._connection.request(verb, path, None if body is None else json.dumps(body), headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise BenchmarkError(f"{verb} {path}: {answer.status} {text.decode(errors='replace')[:500]}")
        return json.loads(text)

    def apply(self, manifest: Mapping[str, Any]) -> None:
        """Apply a manifest, as kubectl does on the server's side."""
        self.ask("PATCH", f"{self.path(manifest)}?fieldManager=bench&force=true", manifest, "apply-patch+yaml")

    def merge(self, path: str, change: Mapping[str, Any]) -> None:
        """Change some fields."""
        self.ask("PATCH", path, change, "merge-patch+json")

    def delete(self, manifest: Mapping[str, Any]) -> None:
        """Delete an object."""
        self.ask("DELETE", self.path(manifest))

    def path(self, manifest: Mapping[str, Any]) -> str:
        """Where an object is."""
        return self._cluster.path(manifest)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class _Program:
    """A process of ours that is to become ready, and a user of its own to the API server."""

    def __init__(self, cluster: Cluster, user: str, command: list[str], log: Path) -> None:
        self.user = user
        self._port = free_ports(1)[0]
        kubeconfig = cluster.kubeconfig(user, "system:masters")
        door = ["--healthz-bind-address", f"{LOCALHOST}:{self._port}", "--metrics-bind-address", ""]
        self._log = log
        self._command = [*command, "--kubeconfig", str(kubeconfig), *door]
        self._file: IO[bytes] = log.open("wb")
        self.process = subprocess.Popen(self._command, stdout=self._file, stderr=self._file)

    def wait_until_ready(self) -> None:
        """Wait for a yes at /readyz. Raises BenchmarkError."""
        self.wait(lambda: self._ready() == 200, "become ready")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something of it. Raises BenchmarkError."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"{self.user} did not {what}:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.01)

    def answers(self) -> bool:
        """Whether its doors are open."""
        return self._ready() > 0

    def _ready(self) -> int:
        connection = http.client.HTTPConnection(LOCALHOST, self._port, timeout=10)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status
        except _NOBODY:
            return 0
        finally:
            connection.close()

    def memory(self, field: str = "VmRSS") -> float:
        """MiB of memory: VmRSS now, VmHWM at most so far."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
        assert found
        return int(found[1]) / 1024

    def seconds(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._file.close()


class Agent(_Program):
    """`lrp-agent`, its programs on a node of the lab, the API server on the machine's own loopback."""

    def __init__(self, cluster: Cluster, node: Node, name: str, of: str, room: Path, *flags: str) -> None:
        """of: the node's name in the cluster; name: the agent's own here, so that each starts from nothing."""
        self.pins = node.bpf / name
        self._cgroup = node.cgroup / name
        self._cgroup.mkdir()
        self._server = urlsplit(cluster.url).port
        program = str(Path(sys.executable).parent / "lrp-agent")
        roots = ["--bpf-root", str(self.pins), "--cgroup-root", str(self._cgroup)]
        doors = ["--api-socket", str(room / f"{name}.sock")]
        command = [program, "--node-name", of, *roots, *doors, *flags]
        super().__init__(cluster, f"bench-{name}", command, room / f"{name}.log")

    @property
    def frontends(self) -> list[Path]:
        """Where its map of IPv4 frontends is pinned, in a list that is empty before it is."""
        return list(self.pins.rglob("frontends4"))

    def received(self) -> float:
        """KiB that came on its connections to the API server that are open."""
        asked = ["ss", "-OHtinp", "dst", f"{LOCALHOST}:{self._server}"]
        text = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        mine = [line for line in text.splitlines() if f"pid={self.process.pid}," in line]
        return sum(int(size) for line in mine for size in re.findall(r"bytes_received:(\d+)", line)) / 1024

    def end(self) -> None:
        """End it, and remove what it left in the kernel."""
        super().end()
        if self.pins.exists():
            cleanup(self.pins, self._cgroup)


class Controller(_Program):
    """`lrp-controller`, electing itself."""

    def __init__(self, cluster: Cluster, room: Path) -> None:
        command = [sys.executable, "-m", "lrp_operator.controller", "--leader-elect", "kube-system/lrp-controller"]
        super().__init__(cluster, "bench-controller", command, room / "controller.log")


def requests_of(cluster: Cluster, user: str) -> list[Request]:
    """What a user has asked for so far; the API server writes its log a moment later."""
    time.sleep(0.5)
    with contextlib.suppress(json.JSONDecodeError):  # the last line is being written
        return cluster.requests(user)
    time.sleep(0.5)
    return cluster.requests(user)
