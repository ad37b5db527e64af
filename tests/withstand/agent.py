"""A real agent on a storm's ground: fed by a directory of manifests, killed without warning, run from other builds."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lrp_operator
from lrp_operator.agent.apimodel import Services, Status
from lrp_operator.cli.client import AgentError, Client
from lrp_operator.loader.sources import bpf_directory
from tests.datapath.world import TCP, UDP
from tests.withstand.storm import FIRST, PODS, PORT, Ground, vip_of

STEADY = 0  # this frontend keeps its backends, whatever else changes
PATIENCE = 90.0


@dataclass(frozen=True)
class Build:
    """An installation of the agent, and how large it makes its tables. package: a folder to import it from."""

    name: str
    package: Path | None = None
    max_frontends: int = 4096


def copied(folder: Path, changed: str) -> Path:
    """Install a copy of the package, laid out as a wheel is, in which one C source is another (and means the same)."""
    package = folder / "lrp_operator"
    shutil.copytree(Path(lrp_operator.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    if not (package / "bpf").exists():
        shutil.copytree(bpf_directory(), package / "bpf")
    source = package / "bpf" / changed
    source.write_text(source.read_text() + "\n/* another build */\n")
    return folder


class Agent:
    """The agent of a node, and the directory that it follows."""

    def __init__(self, ground: Ground, folder: Path) -> None:
        self._ground, self._folder = ground, folder
        self._manifests = folder / "manifests"
        self._manifests.mkdir()
        self._socket = folder / "agent.sock"
        self.log = folder / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.versions = 0
        self.backends: dict[int, list[int]] = {}
        self._write(
            "policies.json", [policy for number in range(ground.frontends) for policy in self._policies(number)]
        )

    # --- Its life

    def start(self, build: Build) -> None:
        """Start it; it is not waited for."""
        settings = self._ground.settings
        command = [
            *(sys.executable, "-c", "import sys; from lrp_operator.agent.main import main; sys.exit(main())"),
            *("--manifests", str(self._manifests), "--node-name", self._ground.node.name, "--bpf-lb-sock", "true"),
            *("--bpf-root", str(settings.bpf_root), "--cgroup-root", str(settings.cgroup_root)),
            *("--bpf-lb-map-max", str(build.max_frontends)),
        ]
        paths = {"PYTHONPATH": str(build.package)} if build.package else {}
        environment = os.environ | {"LRP_API_SOCKET": str(self._socket)} | paths
        with self.log.open("ab") as log:
            self.process = self._ground.node.popen(
                command, cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """Kill -9 it; a loader's child of its own lives on, as on a node."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def status(self) -> Status | None:
        """What it says of itself; None if it does not answer."""
        try:
            return Client(self._socket).get("status", Status)
        except AgentError:
            return None

    def is_ready(self) -> bool:
        """Whether this process is, not one that was before."""
        assert self.process
        status = self.status()
        return status is not None and status.pid == self.process.pid and status.ready

    def wait_until_ready(self) -> Status:
        """Wait until it has written all that it was told, and return its status then."""
        deadline = time.monotonic() + PATIENCE
        while not self.is_ready():
            assert self.process
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.02)
        status = self.status()
        assert status
        return status

    def wait_until_told(self) -> Status:
        """Wait until the backends that it was told last stand in the kernel."""
        deadline = time.monotonic() + PATIENCE
        while not self._knows():
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.02)
        return self.wait_until_ready()

    def _knows(self) -> bool:
        try:
            found = Client(self._socket).get("services", Services).frontends
        except AgentError:
            return False
        active = {f.frontend: {b.backend for b in f.backends if b.state == "active"} for f in found}
        return all(
            active.get(str(wanted.frontend)) == {str(backend) for backend in wanted.backends}
            for number, pods in self.backends.items()
            for six in (False, True)
            for protocol in (TCP, UDP)
            for wanted in [self._ground.entry(number, protocol, six=six, pods=pods)]
        )

    # --- What it is told

    def tell(self, backends: dict[int, list[int]]) -> None:
        """Have pods be the backends of frontends: number -> pods. In one step, so that no frontend is without any."""
        pods = []
        for index, pod in enumerate(self._ground.pods):
            manifest = pod.manifest()
            manifest["metadata"]["labels"] = {
                f"f{number}": "yes" for number, chosen in backends.items() if index in chosen
            }
            pods.append(manifest)
        self.backends = backends
        self._write("pods.json", pods)
        self.versions += 1

    def tell_any(self, dice: random.Random) -> None:
        """Give every frontend but the steady one some backends."""
        numbers = range(self._ground.frontends)
        self.tell({n: sorted(dice.sample(range(PODS), dice.randint(1, PODS))) for n in numbers} | {STEADY: [0, 1, 2]})

    @contextmanager
    def changing(self, pause: float = 0.1) -> Iterator[None]:
        """Let pods come and go all the time, until the block ends."""
        stop, dice = threading.Event(), random.Random(3)  # noqa: S311 - no secret

        def work() -> None:
            while not stop.wait(pause * dice.random() * 2):
                self.tell_any(dice)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _write(self, name: str, objects: list[dict[str, Any]]) -> None:
        unfinished = self._folder / name
        unfinished.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        unfinished.rename(self._manifests / name)

    def _policies(self, number: int) -> Iterator[dict[str, Any]]:
        for six in (False, True):
            for protocol in ("TCP", "UDP"):
                frontend = {
                    "ip": vip_of(number, six=six),
                    "toPorts": [{"port": str(PORT), "protocol": protocol}],
                }
                backend = {
                    "localEndpointSelector": {"matchLabels": {f"f{number}": "yes"}},
                    "toPorts": [{"port": str(FIRST + number), "protocol": protocol}],
                }
                yield {
                    "apiVersion": "cilium.io/v2",
                    "kind": "CiliumLocalRedirectPolicy",
                    "metadata": {"name": f"f{number}-{protocol.lower()}-{6 if six else 4}", "namespace": "default"},
                    "spec": {"redirectFrontend": {"addressMatcher": frontend}, "redirectBackend": backend},
                }
