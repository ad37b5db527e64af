"""The first process of the node: mounts what a node has, then is its systemd.

`python init.py STATE`, already in namespaces of its own (pid, mount, network, UTS, IPC and cgroup), whose cgroups' root
is the node's cgroup. STATE is the node's directory on the machine: `disk/` is what a reboot leaves, `units.json` says
what to run. Nothing that is mounted here is seen outside, and all of it goes with the last process inside.

A unit that ends is started again, unless there is a file `stopped/NAME`. So who may write to STATE can stop, start and
restart units without asking anybody. Only the standard library is imported: this is process 1, and should be small.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# What is written below these places is the node's own, and the machine does not see it.
COVERED = ["/etc", "/opt", "/var/lib"]
# Directories of the node's own disk, for what can't do with a cover.
KEPT = ["/etc/cni", "/opt/cni", "/var/lib/cni", "/var/lib/containerd", "/var/lib/etcd", "/var/lib/kubelet", "/var/log"]
# The kubelet sets these, and they are not of any namespace: it shall find them set, and leave the machine alone.
TUNABLES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
# Of a mount, rather than of a hierarchy of cgroups.
COMMON_OPTIONS = {"rw", "relatime", "nosuid", "nodev", "noexec"}
RESTART_AFTER = 0.5


def main() -> None:
    """Mount, then run the units for ever."""
    state = Path(sys.argv[1])
    mount_all(state)
    (state / "up").touch()
    supervise(state)


def kept_at(state: Path, place: str) -> Path:
    """Where, on the machine, the node's files below one of KEPT or COVERED are."""
    return state / "disk" / place.strip("/").replace("/", "-")


def mount_all(state: Path) -> None:
    """Make the file systems those of a node that has just booted."""
    cgroups = _cgroup_mounts()
    _mount("--make-rprivate", "/")
    # Mounts in volumes have to propagate between the node and pods.
    _mount("--make-rshared", "/")
    for place in COVERED:
        upper, work = kept_at(state, place), state / "work" / place.strip("/").replace("/", "-")
        for directory in (upper, work):
            directory.mkdir(parents=True, exist_ok=True)
        _mount("-t", "overlay", "-o", f"lowerdir={place},upperdir={upper},workdir={work}", "cover", place)
    for place in KEPT:
        kept = kept_at(state, place)
        for directory in (kept, Path(place)):
            directory.mkdir(parents=True, exist_ok=True)
        _mount("--bind", str(kept), place)
    _mount("-t", "tmpfs", "-o", "mode=755", "run", "/run")
    _mount("-t", "sysfs", "sysfs", "/sys")
    _mount("-t", "bpf", "bpf", "/sys/fs/bpf")
    if len(cgroups) > 1:  # else the one is this place itself
        _mount("-t", "tmpfs", "-o", "mode=755", "cgroups", "/sys/fs/cgroup")
    for place, kind, options in cgroups:
        Path(place).mkdir(exist_ok=True)
        _mount("-t", kind, *(["-o", options] if options else []), "cgroup", place)
    _mount("--bind", str(state / "resolv.conf"), os.path.realpath("/etc/resolv.conf"))
    for name, value in TUNABLES.items():
        as_set = state / "tunables" / name.replace("/", "-")
        as_set.parent.mkdir(exist_ok=True)
        as_set.write_text(value + "\n")
        _mount("--bind", str(as_set), f"/proc/sys/{name}")


def _cgroup_mounts() -> list[tuple[str, str, str]]:
    """The machine's cgroup file systems: place, type, and what tells a hierarchy of version 1."""
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options = line.split()[:4]
        if kind == "cgroup":
            own = [option for option in options.split(",") if option not in COMMON_OPTIONS]
            named = [option for option in own if option.startswith("name=")]
            found.append((place, kind, f"none,{named[0]}" if named else ",".join(own)))
        elif kind == "cgroup2":
            found.append((place, kind, ""))
    return found


def _mount(*args: str) -> None:
    subprocess.run(["mount", *args], check=True)


def supervise(state: Path) -> None:
    """Run the units, and reap whatever is left to process 1."""
    units: dict[str, list[str]] = json.loads((state / "units.json").read_text())
    pids: dict[int, str] = {}
    due = dict.fromkeys(units, 0.0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        for name in [name for name, when in due.items() if when <= time.monotonic()]:
            if not (state / "stopped" / name).exists():
                del due[name]
                pid = _start(units[name], state / "log" / f"{name}.log")
                pids[pid] = name
                (state / "pids" / name).write_text(str(pid))
        signal.sigtimedwait({signal.SIGCHLD}, 0.1)
        while ended := _reaped():
            if name := pids.pop(ended, ""):
                (state / "pids" / name).unlink()
                due[name] = time.monotonic() + RESTART_AFTER


def _reaped() -> int:
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return 0


def _start(command: list[str], log: Path) -> int:
    """Start a program, with its words at the end of a log."""
    words = (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    return os.posix_spawn(
        command[0],
        command,
        os.environ,
        file_actions=[nothing, words, (os.POSIX_SPAWN_DUP2, 1, 2)],
        setsid=True,
        setsigmask=[],
    )


if __name__ == "__main__":
    main()
