"""`python -m tests.e2e`: a one-node cluster, and the suite against it; `up` keeps the cluster for a person to try.

    run [PYTEST'S ARGUMENTS]   bring it up, run the suite, take it down (the default)
    up                         bring it up and wait for Ctrl-C; a shell beside it: `python -m tests.e2e shell`
    shell [COMMAND]            a shell (or a command) that has the cluster's network, and KUBECONFIG set
    sweep                      remove what killed runs left

Before run and up: --cni bridge|ptp, --proxy iptables|nftables.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster import binaries
from tests.e2e import node as nodes
from tests.e2e.bringing import bring_up, built_images
from tests.e2e.node import Node, NodeError

ROOT = Path(__file__).parents[2]
IN_WORLD = "LRP_E2E_IN_WORLD"
PROGRAMS: list[binaries.Program] = [
    "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl", "helm",
    "coredns", "node-cache", "ec2-metadata-mock", "e2e-pod",
]  # fmt: skip


def main() -> int:
    """Do what is asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e", description=__doc__.splitlines()[0])
    parser.add_argument("--cni", choices=["bridge", "ptp"], default="bridge")
    parser.add_argument("--proxy", choices=["iptables", "nftables"], default="iptables")
    parser.add_argument("what", choices=["run", "up", "shell", "sweep"], nargs="?", default="run")
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    if asked.what == "shell":
        return shell(asked.rest)
    for name in nodes.sweep():
        print(f"removed {name}", file=sys.stderr)
    if asked.what == "sweep":
        return 0
    if IN_WORLD not in os.environ:
        into_world()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    started = time.monotonic()
    nodes.make_world()
    with Node(asked.cni, asked.proxy) as node:
        node.start()
        bring_up(node)
        print(f"The cluster is up after {time.monotonic() - started:.0f} s.", flush=True)
        if asked.what == "up":
            return wait(node)
        code = suite(node, asked.rest)
        print(f"make e2e took {time.monotonic() - started:.0f} s.", flush=True)
        return code


def into_world() -> None:
    """Build what is missing while there is a network, then go on in a network namespace without any."""
    for name in PROGRAMS:
        binaries.program(name)
    built_images()
    os.environ[IN_WORLD] = "1"
    command = ["unshare", "--net", sys.executable, "-m", "tests.e2e", *sys.argv[1:]]
    os.execvp(command[0], command)  # noqa: S606 (it is meant to become this process, and no shell)


def environment(room: Path) -> dict[str, str]:
    """What a command in the world needs to use the cluster: KUBECONFIG, and kubectl and helm on its PATH."""
    tools = {str(binaries.program(name).parent) for name in ("kubectl", "helm")}
    path = os.pathsep.join([*sorted(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {
        **os.environ,
        "PATH": path,
        "KUBECACHEDIR": str(room / "kubectl"),
        **{f"HELM_{kind}_HOME": str(room / "helm") for kind in ("CACHE", "CONFIG", "DATA")},
        "KUBECONFIG": str(room / "keys" / "admin.kubeconfig"),
        "LRP_E2E_NODE": str(room),
    }


def suite(node: Node, args: list[str]) -> int:
    """Run the suite; boot the node anew whenever a test has it go down."""
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "pytest"]
    command += args or ["tests/e2e", "-s", "-v"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(node.room)) as pytest:
        try:
            while (code := pytest.poll()) is None:
                node.watch()
                time.sleep(0.1)
        except BaseException:
            pytest.terminate()
            raise
    return code


def wait(node: Node) -> int:
    """Say how to use the cluster, until Ctrl-C."""
    print(
        f"""
Beside it:  python -m tests.e2e shell
Its logs:   {node.room}/log
Ctrl-C ends it and removes everything.""",
        flush=True,
    )
    try:
        while True:
            node.watch()
            time.sleep(0.1)
    except KeyboardInterrupt:
        return 0


def shell(command: list[str]) -> int:
    """Run a shell, or a command, in the world of the cluster that is up."""
    rooms = [room for room in nodes.ROOMS.glob(f"{nodes.PREFIX}*") if (room / "up").exists()]
    if len(rooms) != 1:
        print(f"{len(rooms)} clusters are up; one is needed", file=sys.stderr)
        return 1
    owner = rooms[0].name.removeprefix(nodes.PREFIX)
    inside = ["nsenter", f"--net=/proc/{owner}/ns/net", *(command or [os.environ.get("SHELL", "/bin/sh")])]
    return subprocess.run(inside, env=environment(rooms[0]), check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NodeError as error:
        sys.exit(f"python -m tests.e2e: {error}")
