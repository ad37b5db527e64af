"""A whole agent with a fake datapath, for tests that need a process: `python -m ...agent_process DIR [WORD ...]`.

DIR holds the pins' directory and the socket. Words: "hang" makes a datapath that hangs when it is closed, "bug" an
exception that nobody expects, "weak" programs that are not in force, "homeless" pins in a directory that is not there.
"""

import sys
import threading
from pathlib import Path

from lrp_operator.agent.config import load
from lrp_operator.agent.doors import Doors
from lrp_operator.agent.logs import LogFormat, set_up
from lrp_operator.agent.parts import SourceUpdate
from lrp_operator.agent.run import Parts, run
from lrp_operator.datapath.model import DatapathSettings, FlushReport
from tests.unit.agent.fakes import (
    FakeDatapath,
    FakeLinks,
    GivenSource,
    address_policy,
    endpoints,
    event,
    pod,
    policy,
    service,
)


class Odd(FakeDatapath):
    """A datapath in which things happen that should not, and redirects whenever the ring is turned on."""

    def close(self) -> None:
        if "hang" in sys.argv:
            threading.Event().wait()
        super().close()

    def flush(self, *, complete: bool) -> FlushReport:
        if "bug" in sys.argv and complete:
            raise KeyError("bug")
        return super().flush(complete=complete)

    def watch_events(self, on: bool) -> None:
        super().watch_events(on)
        if on:
            tcp = event("10.96.0.10:53/TCP", "10.244.0.225:53/TCP", hook="connect", netns_cookie=5, command="curl")
            self.happen(event(), tcp, event())


def make(settings: DatapathSettings) -> FakeDatapath:
    datapath = Odd(settings)
    if "weak" in sys.argv:
        datapath.in_force, datapath.message = False, "the cgroup does not cover the pods"
    return datapath


def main() -> None:
    root = Path(sys.argv[1])
    pins = root / "mount/bpf" if "homeless" in sys.argv else root / "bpf"
    set_up(LogFormat.JSON)
    skipping = policy(skipRedirectFromBackend=True)
    objects = (
        *(service(), endpoints("10.244.1.51", "10.244.1.68"), skipping, pod()),
        *(address_policy("meta", "169.254.169.254"), address_policy("broken", "no address")),
    )
    parts = Parts(
        node="n1",
        loaded=load(None, {}, {}),
        bpf_root=pins,
        cgroup_root=Path("/cgroup"),
        doors=Doors(root / "agent.sock"),
        sources=[GivenSource(SourceUpdate(upserts=objects))],
        make_datapath=make,
        open_links=FakeLinks,
    )
    sys.exit(run(parts))


if __name__ == "__main__":
    main()
