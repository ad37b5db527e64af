"""A child process that programs the real datapath for a row, and leaves; what is pinned stays.

It is a process of its own so that one run can hold several builds of the product side by side: which build it is, is
decided by where `lrp_operator` is imported from (rows.py sets PYTHONPATH). It reads a `Wish` from standard input.
"""

import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from benchmarks.crowd import crowd, mirrors, under_test
from lrp_operator.datapath import model
from lrp_operator.datapath.engine import Datapath
from lrp_operator.datapath.model import DatapathSettings
from lrp_operator.kernel import bpf, features
from lrp_operator.resolve.model import Delta, SkipEntry

_FRONTENDS = 16384


class Wish(msgspec.Struct, frozen=True):
    """What to program.

    bpf_root, cgroup: see DatapathSettings. backend: IPv4 address of the pod that serves the frontend under test.
    frontends: how many in all. affinity: clients keep their backend. exempt: IPv4 address of a pod that is exempt.
    table: sockets are remembered in the table of sockets; else, as on an older kernel, in socket storage alone.
    tc: packets are redirected rather than sockets. pods: whose links are to have the programs then, by name, with their
    IPv4 addresses. mirrors: frontends that are each other's backend are under test, and there are `frontends` of each
    family besides.
    """

    bpf_root: str
    cgroup: str
    backend: str
    frontends: int
    affinity: bool = False
    exempt: str | None = None
    table: bool = True
    tc: bool = False
    pods: dict[str, str] = {}
    mirrors: bool = False


def delta_of(wish: Wish) -> Delta:
    """The wish as the agent would hand it to the datapath."""
    if wish.mirrors:
        entries = [*mirrors(), *(entry for version in (4, 6) for entry in crowd(wish.frontends, version))]
        return Delta({entry.frontend: entry for entry in entries}, {}, {})
    tested = under_test(wish.backend, affinity=wish.affinity)
    entries = [*tested, *crowd(wish.frontends - len(tested))]
    skips: dict[str, SkipEntry | None] = {}
    if wish.exempt is not None:
        address = _packed(wish.exempt)
        skips["default/exempt"] = SkipEntry(
            "default/exempt", "1", (address,), host_network=False, frontends=tuple(e.frontend for e in tested)
        )
    return Delta({entry.frontend: entry for entry in entries}, {}, skips)


def _packed(address: str) -> bytes:
    return bytes(map(int, address.split(".")))


def settings_of(wish: Wish) -> DatapathSettings:
    """What the datapath is to be built for."""
    root, cgroup = Path(wish.bpf_root), Path(wish.cgroup)
    if not wish.tc:
        return DatapathSettings(
            root, cgroup, cluster_ip=wish.affinity, max_frontends=_FRONTENDS, max_backends=4 * _FRONTENDS
        )
    # Backends are frontends too there. A build from before the TC level has not the names, and is not asked for them.
    return DatapathSettings(
        root,
        cgroup,
        model.SocketLevel.OFF,
        model.TcLevel.PODS,
        max_frontends=8 * _FRONTENDS,
        max_backends=8 * _FRONTENDS,
    )


def _is_whole(wish: Wish, written: int, wanted: int, status: model.DatapathStatus) -> bool:
    """Whether everything is there. At the TC level backends' own addresses are written too."""
    if not wish.tc:
        return written == wanted
    attached = sum(link.state is model.LinkState.ATTACHED for link in status.links)
    return written >= wanted and attached == len(wish.pods)


def main() -> None:
    """Program it, and see that it worked."""
    wish = msgspec.json.decode(sys.stdin.buffer.read(), type=Wish)
    if not wish.table:
        found = features.probe()
        older = replace(found, hooks=found.hooks - {bpf.AttachType.INET_SOCK_RELEASE})
        features.probe = lambda: older
    datapath = Datapath(settings_of(wish))
    datapath.open()
    wanted = delta_of(wish)
    datapath.update(wanted)
    if wish.tc:
        datapath.want_pods({f"default/{name}": model.PodPlace(name, (_packed(ip),)) for name, ip in wish.pods.items()})
    report = datapath.flush(complete=True)
    datapath.reconcile()  # as an agent does now and then: programs learn that no frontend was removed lately
    status = datapath.status()
    datapath.close()
    if report.problems or not status.in_force or not _is_whole(wish, report.written, len(wanted.frontends), status):
        sys.exit(f"the datapath is not as wished: {report} {status.message}")


if __name__ == "__main__":
    main()
