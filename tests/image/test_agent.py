"""The agent as its image has it, on a node: its BCC compiles and loads the programs, and a connection is redirected."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lab import Node
from tests.image.root import Root

pytestmark = pytest.mark.privileged

EXAMPLES = Path(__file__).parents[2] / "examples"
FRONTEND = ("169.254.169.254", 8080)


def test_it_redirects_and_lrpctl_beside_it_tells(agent: Root, node: Node, tmp_path: Path) -> None:
    client, proxy = node.pod("client"), node.pod("proxy", labels={"app": "proxy"})
    proxy.serve_tcp(80, "the proxy")
    manifests, run = tmp_path / "manifests", tmp_path / "run"
    manifests.mkdir()
    run.mkdir()
    (manifests / "policy.yaml").write_text((EXAMPLES / "lrp-addr.yaml").read_text())
    (manifests / "pods.yaml").write_text(yaml.safe_dump_all([client.manifest(), proxy.manifest()]))
    mounts = {manifests: "run/manifests", run: "run/lrp-operator", node.cgroup: "run/cgroup", node.bpf: "run/bpf"}
    roots = ["--bpf-root", "/run/bpf/lrp", "--cgroup-root", "/run/cgroup"]
    allowed = ["--lrp-address-matcher-cidrs", "169.254.0.0/16"]
    options = ["--manifests", "/run/manifests", "--node-name", node.name, *allowed]

    log = tmp_path / "log"
    with log.open("w") as out:
        command = agent.command("lrp-agent", *options, *roots, mounts=mounts)
        started = node.popen(command, stdout=out, stderr=out)
    try:
        wanted = [("169.254.169.254:8080/TCP", "LocalRedirect", f"{proxy.ipv4}:80/TCP")]
        _wait(lambda: _service_list(agent, mounts) == wanted, started, log)
        reply = client.ask_tcp(*FRONTEND, timeout=10)
        assert (reply.name, reply.peer) == ("the proxy", FRONTEND)
    finally:
        started.terminate()
        started.wait(timeout=30)
        cleaned = node.run(agent.command("lrp-agent", "cleanup", *roots, mounts=mounts))
    assert cleaned.returncode == 0, cleaned.stderr
    with pytest.raises(OSError, match=r"refused|No route|timed out"):
        client.ask_tcp(*FRONTEND)


def _service_list(agent: Root, mounts: dict[Path, str]) -> list[tuple[str, str, str]]:
    """What `lrpctl service list` of the image says; nothing as long as the agent does not answer."""
    command = agent.command("lrpctl", "service", "list", "-o", "json", mounts=mounts)
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if told.returncode:
        return []
    return [
        (found["frontend"], found["type"], backend["backend"])
        for found in json.loads(told.stdout)["frontends"]
        for backend in found["backends"]
    ]


def _wait(done: Callable[[], bool], started: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 90
    while not done():
        assert started.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)
