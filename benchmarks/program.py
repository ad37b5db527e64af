"""A child process that programs the real datapath for a row, and leaves; what is pinned stays.

It is a process of its own so that one run can hold several builds of the product side by side: which build it is, is
decided by where `lrp_operator` is imported from (rows.py sets PYTHONPATH). It reads a `Wish` from standard input.
"""

import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from benchmarks.crowd import crowd, under_test
from lrp_operator.datapath.engine import Datapath
from lrp_operator.datapath.model import DatapathSettings
from lrp_operator.kernel import bpf, features
from lrp_operator.resolve.model import Delta, SkipEntry


class Wish(msgspec.Struct, frozen=True):
    """What to program.

    bpf_root, cgroup: see DatapathSettings. backend: IPv4 address of the pod that serves the frontend under test.
    frontends: how many in all. affinity: clients keep their backend. exempt: IPv4 address of a pod that is exempt.
    table: sockets are remembered in the table of sockets; else, as on an older kernel, in socket storage alone.
    """

    bpf_root: str
    cgroup: str
    backend: str
    frontends: int
    affinity: bool = False
    exempt: str | None = None
    table: bool = True


def delta_of(wish: Wish) -> Delta:
    """The wish as the agent would hand it to the datapath."""
    tested = under_test(wish.backend, affinity=wish.affinity)
    entries = [*tested, *crowd(wish.frontends - len(tested))]
    skips: dict[str, SkipEntry | None] = {}
    if wish.exempt is not None:
        address = bytes(map(int, wish.exempt.split(".")))
        skips["default/exempt"] = SkipEntry(
            "default/exempt", "1", (address,), host_network=False, frontends=tuple(e.frontend for e in tested)
        )
    return Delta({entry.frontend: entry for entry in entries}, {}, skips)


def main() -> None:
    """Program it, and see that it worked."""
    wish = msgspec.json.decode(sys.stdin.buffer.read(), type=Wish)
    if not wish.table:
        found = features.probe()
        older = replace(found, hooks=found.hooks - {bpf.AttachType.INET_SOCK_RELEASE})
        features.probe = lambda: older
    datapath = Datapath(
        DatapathSettings(
            Path(wish.bpf_root), Path(wish.cgroup), cluster_ip=wish.affinity, max_frontends=16384, max_backends=65536
        )
    )
    datapath.open()
    datapath.update(delta_of(wish))
    report = datapath.flush(complete=True)
    status = datapath.status()
    datapath.close()
    if report.problems or not status.in_force or report.written != wish.frontends:
        sys.exit(f"the datapath is not as wished: {report} {status.message}")


if __name__ == "__main__":
    main()
