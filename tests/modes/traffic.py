"""Clients that never stop asking, in pods and on the node, while something happens to the agent."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lab import Place
from tests.modes.ground import DNS, VERSIONS, WEB, Target

CLIENT = Path(__file__).parent / "client.py"
KINDS = ("tcp", "stream", "udp", "udp-connected", "unconnected", "connected")


@dataclass(slots=True)
class Seen:
    """What one client saw. who: where it was and whom it asked; wrong: what should not have been."""

    who: str
    kind: str
    target: str
    names: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)

    def told(self) -> list[str]:
        """What was wrong, as sentences."""
        return [f"{self.who}: {count} times {what}" for what, count in self.wrong.items()]


@contextmanager
def asking(who: Iterable[tuple[Place, Target, Sequence[str]]]) -> Iterator[list[Seen]]:
    """Have clients ask while the body runs; what is lent is filled when it is left. who: where, whom, which kinds."""
    running: list[tuple[subprocess.Popen[str], list[Seen]]] = []
    try:
        for place, target, kinds in who:
            running.append(_start(place, target, kinds))
        for process, _ in running:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        seen = [one for _, clients in running for one in clients]
        yield seen
        for process, _ in running:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        for process, clients in running:
            assert process.stdout
            for one, said in zip(clients, json.loads(process.stdout.readline()), strict=True):
                one.names, one.wrong = Counter(said["names"]), Counter(said["wrong"])
    finally:
        for process, _ in running:
            process.kill()
            process.communicate()


def _start(place: Place, target: Target, kinds: Sequence[str]) -> tuple["subprocess.Popen[str]", list[Seen]]:
    wanted, seen = [], []
    for version in VERSIONS:
        for kind in kinds:
            port = WEB if kind in {"tcp", "stream"} else DNS
            wanted.append({"kind": kind, "ip": target.ip(version), "port": port})
            where = getattr(place, "short_name", "node")
            seen.append(Seen(f"{where}: {kind}/IPv{version} to {target.name}", kind, target.name))
    command = [sys.executable, str(CLIENT), json.dumps(wanted)]
    return place.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True), seen
