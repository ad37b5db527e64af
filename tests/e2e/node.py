"""A Kubernetes node on this machine, made of namespaces, and the world around it.

    python -m tests.e2e        builds what is missing, goes into a network namespace (the world), and there:

    with Node() as node:
        node.start()

The world has no way out of the machine. It is where the tests run, and what the node takes for the rest of the network:
its default route leads there, and what nobody has is refused. A link joins both. The node (init.py) has namespaces of
its own of every kind, a part of every cgroup hierarchy as its root, an own /run, /sys and bpffs, and a disk: a
directory. Its processes die with the process that made it, however that ends, and namespaces, mounts, links, pins and
programs with them. What then is left on the machine carries the node's name, `lrp-e2e-PID`: its directory below
/var/tmp, and empty cgroups. `sweep` removes them where the maker is dead.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from lab.naming import born
from tests.e2e import units
from tests.e2e.units import NODE, NODE_IP, NODE_IP6, WORLD_IP, WORLD_IP6

ROOMS = Path("/var/tmp")  # noqa: S108 (a disk, where /tmp may be memory; the names are our own)
PREFIX = "lrp-e2e-"
METADATA_IP = "169.254.169.254"
PATIENCE = 60.0
# What a kubelet gives its pods a share of.
CONTROLLERS = ["cpu", "cpuset", "io", "memory", "pids"]
# In version 2 no process may be where the controllers are passed on to pods' cgroups: so all of the node's are below.
OUT_OF_ROOT = 'mkdir -p "$1/init" && echo 0 > "$1/init/cgroup.procs" && shift && exec "$@"'


class NodeError(Exception):
    """The node can't be made, or does not start; the text says why."""


def make_world() -> None:
    """Furnish the network namespace that this process is in. Others' packets get an answer: there is no such host."""
    if not Path("/proc/sys/net/ipv6").exists():
        raise NodeError("the node needs a machine with IPv6, and this one's kernel has it switched off")
    _ip("link", "set", "lo", "up")
    _ip("address", "add", f"{METADATA_IP}/32", "dev", "lo")  # the cloud's metadata service, as it were
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")


class Node:
    """The node, from the machine's side. room: its directory. Made in the world, by the process that it dies with."""

    def __init__(self, cni: units.Cni = "bridge", proxy: units.ProxyMode = "iptables") -> None:
        self.name = f"{PREFIX}{os.getpid()}"
        self.room = ROOMS / self.name
        self.kubeconfig = self.room / "keys" / "admin.kubeconfig"
        self._cni, self._proxy = cni, proxy
        self._init: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Write all that the node is made of, on the machine."""
        try:
            self.room.mkdir(mode=0o755)
            (self.room / "owner").write_text(born(os.getpid()) or "")
            for name in ("log", "pids", "stopped", "disk"):
                (self.room / name).mkdir()
            (self.room / "units.json").write_text(json.dumps(units.write(self.room, self._cni, self._proxy)))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process and remove every trace. May be called twice."""
        self.end()
        remove(self.name)

    def start(self) -> None:
        """Boot it. Returns when its file systems and its link are there; what runs on it comes up by itself."""
        for file in (self.room / "pids").iterdir():
            file.unlink()
        (self.room / "up").unlink(missing_ok=True)
        procs = [os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for path in _make_cgroups(self.name)]

        def into_cgroups() -> None:
            for descriptor in procs:
                os.write(descriptor, b"0")

        command = [
            "setpriv", "--pdeathsig", "KILL", "unshare", "--cgroup", "sh", "-c", OUT_OF_ROOT, "sh",
            str(hierarchies()[-1] / self.name), "unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc",
            "--net", "--uts", "--ipc", sys.executable, str(Path(__file__).parent / "init.py"), str(self.room),
        ]  # fmt: skip
        with (self.room / "log" / "init.log").open("ab") as log:
            self._init = subprocess.Popen(
                command, preexec_fn=into_cgroups, stdin=subprocess.DEVNULL, stdout=log, stderr=log  # noqa: PLW1509
            )  # fmt: skip
        for descriptor in procs:
            os.close(descriptor)
        _until((self.room / "up").exists, self._init, f"see {self.room}/log/init.log")
        pid = _child_of(self._init.pid)
        (self.room / "pid").write_text(str(pid))
        _join(pid)

    def watch(self) -> None:
        """Boot it anew if it has gone down; called again and again by who runs it."""
        assert self._init is not None
        if self._init.poll() is not None:
            _remove_cgroups(self.name)
            self.start()

    def end(self) -> None:
        """Pull its plug."""
        if self._init is not None:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                os.kill(int((self.room / "pid").read_text()), signal.SIGKILL)
            self._init.kill()
            self._init.wait()
            self._init = None


def _join(pid: int) -> None:
    """Lay the link between the world, where we are, and the node."""
    with contextlib.suppress(NodeError):  # the last boot's, if it is still there: its other end is just going
        _ip("link", "delete", "node0")
    _ip("link", "add", "node0", "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    _ip("address", "add", f"{WORLD_IP}/24", "dev", "node0")
    _ip("address", "add", f"{WORLD_IP6}/64", "dev", "node0", "nodad")
    _ip("link", "set", "node0", "up")
    inside = ["nsenter", "--net", "--uts", "--target", str(pid)]
    for command in (
        ["hostname", NODE],
        ["ip", "link", "set", "lo", "up"],
        ["ip", "address", "add", f"{NODE_IP}/24", "dev", "eth0"],
        ["ip", "address", "add", f"{NODE_IP6}/64", "dev", "eth0", "nodad"],
        ["ip", "link", "set", "eth0", "up"],
        ["ip", "route", "add", "default", "via", WORLD_IP],
        ["ip", "route", "add", "default", "via", WORLD_IP6],
        ["sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"],
    ):
        _run([*inside, *command])


def hierarchies() -> list[Path]:
    """Where the machine has its cgroups: version 1's hierarchies, if it has any, and then version 2.

    Raises NodeError where no node can be made of them.
    """
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = {kind: [Path(place) for _, place, k, *_ in mounts if k == kind] for kind in ("cgroup", "cgroup2")}
    if not found["cgroup2"]:
        raise NodeError("the node needs a machine with cgroup v2, alone or beside v1: no file system of it is mounted")
    unified = found["cgroup2"][0]
    there = (unified / "cgroup.controllers").read_text().split()
    if not found["cgroup"] and (missing := [name for name in CONTROLLERS if name not in there]):
        raise NodeError(f"the node needs all controllers of cgroup v2, and {unified} lacks {', '.join(missing)}")
    return [*found["cgroup"], unified]


def _make_cgroups(name: str) -> list[Path]:
    *old, unified = hierarchies()
    if not old:
        (unified / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in CONTROLLERS))
    paths = [place / name for place in (*old, unified)]
    for path in paths:
        path.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):  # a new cgroup has neither, and then no process may enter
            if (path / setting).exists():
                (path / setting).write_text((path.parent / setting).read_text())
    return paths


def _remove_cgroups(name: str) -> None:
    """Remove the node's cgroups, whose processes are ending."""
    for place in hierarchies():
        for directory, _, _ in os.walk(place / name, topdown=False):
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    Path(directory).rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise NodeError(f"{directory} can't be removed: {error}") from error
                    time.sleep(0.02)


def remove(name: str) -> None:
    """Remove what a node leaves on the machine when its processes have ended."""
    _remove_cgroups(name)
    if (ROOMS / name).exists():
        shutil.rmtree(ROOMS / name)


def sweep() -> list[str]:
    """Remove every node whose maker is dead. Returns their names."""
    seen = {path.name for place in (ROOMS, *hierarchies()) for path in place.glob(f"{PREFIX}*")}
    dead = sorted(name for name in seen if not _is_owned(name))
    for name in dead:
        remove(name)
    return dead


def _is_owned(name: str) -> bool:
    pid = name.removeprefix(PREFIX)
    owner = ROOMS / name / "owner"
    alive = born(int(pid)) if pid.isdecimal() else None
    return alive is not None and (not owner.exists() or owner.read_text() in {alive, ""})


def _until(ready: Any, process: "subprocess.Popen[bytes]", words: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise NodeError(f"the node does not boot: {words}")
        time.sleep(0.02)


def _child_of(pid: int) -> int:
    """The only child of a process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def _ip(*args: str) -> None:
    _run(["ip", *args])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NodeError(f"{' '.join(command)}: {done.stderr.strip()}")
