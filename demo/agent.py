"""The agent of the story: started as on a real node, fed by copying files, and asked with lrpctl."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from demo import telling
from demo.modes import Mode
from demo.stage import Stage, wait
from lrp_operator.agent.apimodel import ServiceFrontend, Services, Status
from lrp_operator.cli.client import AgentError, Client
from lrp_operator.resolve.model import FrontendType

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = Path(sys.executable).parent
NODE = "worker-1"


class Agent:
    """The agent on the stage's node, with a directory of manifests."""

    def __init__(self, stage: Stage, mode: Mode) -> None:
        self._node = stage.node
        self._mode = mode
        self._config = stage.directory / "mode.yaml"
        self._manifests = stage.directory / "manifests"
        self._manifests.mkdir()
        self._log = stage.directory / "agent.log"
        self._socket = stage.directory / "agent.sock"
        self._pins = stage.node.bpf / "lrp"
        self._process: subprocess.Popen[bytes] | None = None
        client = stage.client.manifest()
        client["spec"]["nodeName"] = NODE
        (self._manifests / "client.yaml").write_text(yaml.safe_dump(client))

    def copy(self, *names: str) -> None:
        """Copy files from the examples, as they are, to where the agent looks."""
        telling.typed(NODE, f"cp {' '.join(f'examples/{name}' for name in names)} manifests/")
        for name in names:
            shutil.copy(EXAMPLES / name, self._manifests)

    def remove(self, name: str) -> None:
        """Take a manifest away."""
        telling.typed(NODE, f"rm manifests/{name}")
        (self._manifests / name).unlink()

    def start(self) -> None:
        """Start it, and wait until what it was told is in force."""
        roots = ["--cgroup-root", str(self._node.cgroup), "--bpf-root", str(self._pins)]
        options = ["--manifests", "manifests", "--node-name", NODE, "--config", "mode.yaml"]
        self._config.write_text(self._mode.values)
        telling.typed(NODE, "cat mode.yaml")
        telling.shown(self._mode.values)
        telling.typed(NODE, "export LRP_API_SOCKET=$PWD/agent.sock")
        telling.typed(NODE, f"lrp-agent {' '.join(options)} \\\n    {' '.join(roots)} \\\n    >agent.log 2>&1 &")
        with self._log.open("wb") as log:
            self._process = self._node.popen(
                [PROGRAMS / "lrp-agent", *options, *roots],
                cwd=self._manifests.parent,
                env=os.environ | {"LRP_API_SOCKET": str(self._socket)},
                stdout=log,
                stderr=log,
            )
        wait(self._is_ready, "the agent to be ready")

    def stop(self) -> None:
        """Stop it as a node's service manager does."""
        assert self._process
        telling.typed(NODE, "kill %lrp-agent")
        self._process.terminate()
        code = self._process.wait(timeout=10)
        if code:
            raise telling.NotAsToldError(f"the agent ended with exit code {code}")

    def clean_up(self) -> None:
        """Remove what it left in the kernel."""
        command = f"lrp-agent cleanup --cgroup-root {self._node.cgroup} --bpf-root {self._pins}"
        tally = " | cut -d' ' -f1,2 | uniq -c"
        telling.run(NODE, self._node, command + tally, real=["sh", "-c", f"{PROGRAMS}/{command}{tally}"])
        if self._pins.exists():
            raise telling.NotAsToldError(f"{self._pins} is still there")

    def lrpctl(self, arguments: str, *expect: str) -> str:
        """Ask it."""
        command = f"lrpctl {arguments}"
        real = ["env", f"LRP_API_SOCKET={self._socket}", str(PROGRAMS / "lrpctl"), *arguments.split()]
        return telling.run(NODE, self._node, command, real=real, expect=expect)

    def watch(self, arguments: str) -> "subprocess.Popen[str]":
        """Start `lrpctl observe` in the background, and wait until it watches."""
        telling.typed(NODE, f"lrpctl observe {arguments} &")
        process = self._node.popen(
            [PROGRAMS / "lrpctl", "observe", *arguments.split(), "--api-socket", self._socket],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        telling.shown(process.stderr.readline())
        return process

    def moved(self, frontend: str, *, redirected: bool) -> None:
        """Wait until a frontend is redirected, or no more."""

        def is_so() -> bool:
            entry = self._frontends().get(frontend)
            ours = entry is not None and entry.type == FrontendType.LOCAL_REDIRECT
            active = entry is not None and any(backend.state == "active" for backend in entry.backends)
            return (ours and active) if redirected else not ours

        wait(is_so, f"{frontend} to be {'' if redirected else 'no longer '}redirected")

    def listed(self, frontends: Sequence[str]) -> None:
        """Wait until it knows these frontends."""
        wait(lambda: self._frontends().keys() >= set(frontends), f"the agent to know {', '.join(frontends)}")

    def log(self) -> str:
        """Return what it wrote."""
        return self._log.read_text() if self._log.exists() else ""

    def _is_ready(self) -> bool:
        assert self._process
        if self._process.poll() is not None:
            raise telling.NotAsToldError(f"the agent ended with exit code {self._process.returncode}:\n{self.log()}")
        try:
            return Client(self._socket).get("status", Status).ready
        except AgentError:
            return False

    def _frontends(self) -> dict[str, ServiceFrontend]:
        return {entry.frontend: entry for entry in Client(self._socket).get("services", Services).frontends}
