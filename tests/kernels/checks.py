"""What is tried on each kernel: functions that run inside the guest and yield rows. CHECKS has them by name.

A new check is a function here (or in a module of its own) and a line in CHECKS; the table gets a column of its own.
It runs as root on a machine that is thrown away afterwards, with cgroup v2, a bpffs and this project, and no network
but the namespaces that it makes (`lab`).
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from lrp_operator.datapath.engine import Datapath
from lrp_operator.datapath.model import DatapathError, DatapathSettings, DatapathStatus, SocketLevel, TcLevel
from lrp_operator.kernel import bpf, features
from lrp_operator.loader import run as loader
from tests.kernels import smoke_socket, smoke_tc
from tests.kernels.rows import Row, Verdict

Check = Callable[[], Iterable[Row]]

_CGROUPS, _PINS = Path("/sys/fs/cgroup"), Path("/sys/fs/bpf/lrp")
_VERIFIED_AT = 216  # offset of verified_insns in struct bpf_prog_info (Linux 5.16), include/uapi/linux/bpf.h

_STANDING = DatapathSettings(_PINS, _CGROUPS)
_REPLACED = replace(_STANDING, cluster_ip=True)
_HOST_ONLY = "hostNamespaceOnly"
# One after the other on the same pins, as on a node whose settings change; those whose tables are alike together.
MODES = {
    "socket level": _STANDING,
    "IPv4 only": replace(_STANDING, ipv6=False),
    "IPv6 only": replace(_STANDING, ipv4=False),
    "TC level": replace(_STANDING, socket_level=SocketLevel.OFF, tc_level=TcLevel.PODS),
    "kube-proxy replaced": _REPLACED,
    _HOST_ONLY: replace(_REPLACED, socket_level=SocketLevel.HOST_ONLY, tc_level=TcLevel.PODS),
}

loader._TIMEOUT_SECONDS = 500  # a compiler under emulation, on a machine with other work


def features_found() -> Iterator[Row]:
    """What the product can't do without; what it can is told by the next check."""
    found = features.probe()
    for hook in bpf.AttachType:
        here = hook in found.hooks or hook is bpf.AttachType.INET_SOCK_RELEASE
        yield Row("features", f"cgroup hook {hook.name.lower()}", Verdict.WORKS if here else Verdict.FAILS)
    yield Row("features", "BPF ring buffer", Verdict.WORKS if found.ring_buffer else Verdict.FAILS)


def modes_load() -> Iterator[Row]:
    """Load and attach every program in every mode, as the agent does, and read what the datapath says of itself."""
    told: set[str] = set()
    for name, settings in MODES.items():
        row, status = _load(name, settings)
        yield row
        for feature in status.features:
            if feature.name not in told:
                told.add(feature.name)
                verdict = Verdict.WORKS if feature.available else Verdict.LACKS
                yield Row("features", feature.name, verdict, feature.consequence)


def _load(name: str, settings: DatapathSettings) -> tuple[Row, DatapathStatus]:
    datapath, started = Datapath(settings), time.monotonic()
    try:
        datapath.open()
        problems = datapath.flush(complete=True).problems
    except DatapathError as error:
        return Row("load", name, _verdict_of(name, error), str(error)), datapath.status()
    took, status, instructions = time.monotonic() - started, datapath.status(), _verified(settings.bpf_root)
    datapath.close()
    if problems or not status.in_force:
        return Row("load", name, Verdict.FAILS, " ".join((status.message, *problems))), status
    return Row("load", name, Verdict.WORKS, f"{len(instructions)} programs, {took:.0f} s", instructions), status


def _verdict_of(name: str, error: DatapathError) -> Verdict:
    """One mode may be refused, on a kernel that can't, with a sentence that names the setting."""
    found = features.probe()
    may_be = name == _HOST_ONLY and not (found.netns_cookie_helper and found.netns_cookie_option)
    return Verdict.LACKS if may_be and f"socketLB.{_HOST_ONLY} needs" in str(error) else Verdict.FAILS


def _verified(root: Path) -> dict[str, int]:
    """How many instructions the verifier went through for each pinned program; 0 where the kernel does not tell."""
    counts: dict[str, int] = {}
    for path in sorted(path for path in root.rglob("*") if not path.is_dir()):
        with bpf.open_pin(path) as pinned:
            if Path(f"/proc/self/fd/{pinned.number}").readlink().name.endswith("bpf-prog"):
                raw = bpf._info(pinned, _VERIFIED_AT + 8)
                counts[path.name] = int.from_bytes(raw[_VERIFIED_AT : _VERIFIED_AT + 4], "little")
    return counts


CHECKS: dict[str, Check] = {
    "features": features_found,
    "load": modes_load,
    "socket": smoke_socket.check,
    "tc": smoke_tc.check,
}
