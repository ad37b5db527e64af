"""The agent dies at any moment, and comes again in another build; clients that connect all the time notice nothing."""

import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from lab import Node
from lrp_operator.datapath.engine import Datapath
from lrp_operator.resolve.model import Delta
from tests.datapath.world import WAYS, socket_in
from tests.withstand.agent import STEADY, Agent, Build, copied
from tests.withstand.storm import FIRST, PORT, Ground, size, vip_of

pytestmark = pytest.mark.privileged


@pytest.fixture
def agent(_root: None, storm: Path, tmp_path: Path) -> Iterator[tuple[Ground, Agent]]:
    """A ground whose agent is not started yet; clients would find it without any redirect."""
    with Node() as node:
        ground = Ground(node, storm, frontends=12)
        found = Agent(ground, tmp_path)
        found.tell_any(random.Random(1))  # noqa: S311 - no secret
        yield ground, found
        if found.process:
            found.kill()
        ground.close()


def die_now_and_then(agent: Agent, build: Build, dice: random.Random) -> bool:
    """Start the agent, and kill it at some moment; return whether it had become ready by then."""
    agent.start(build)
    if dice.random() < 0.2:
        agent.wait_until_ready()
    time.sleep(1.2 * dice.random() ** 2)
    ready = agent.is_ready()
    agent.kill()
    return ready


def only_what_is_needed(ground: Ground, process: Agent) -> None:
    """One set of tables with one set of programs, one link to each hook."""
    root = ground.settings.bpf_root
    assert len(list(root.glob("tables-*"))) == 1
    assert len([path for path in root.glob("tables-*/programs-*") if path.is_dir()]) == 1
    assert {path.name for path in root.glob("links/*")} == process.wait_until_ready().programs.keys()


def test_killed_at_any_moment(agent: tuple[Ground, Agent], figures: Callable[[str], None]) -> None:
    ground, process = agent
    dice, build, kills, ready = random.Random(5), Build("this"), size(20, 500), 0  # noqa: S311 - no secret
    process.start(build)
    process.wait_until_ready()
    with ground.ask("tuk", pause=300) as clients, process.changing():
        process.kill()
        for _ in range(kills - 1):
            ready += die_now_and_then(process, build, dice)
        process.start(build)
        process.wait_until_ready()
    figures(f"{kills} kills, {ready} of them of a ready agent; {process.versions} changes; {clients.seen}")
    clients.seen.check()
    process.tell({number: [0, 1, 2] for number in range(ground.frontends)})
    assert process.wait_until_told().healthy
    only_what_is_needed(ground, process)


def test_swapped_under_full_load(ground: Ground, figures: Callable[[str], None]) -> None:
    """Tables and programs are replaced again and again, while clients leave no moment unwatched."""
    entries = ground.all_entries()
    ground.program(entries)
    swaps = size(3, 100)
    with ground.ask("tuk") as clients:
        for number in range(swaps):
            ground.datapath.close()
            ground.datapath.inner = Datapath(replace(ground.settings, max_backends=1000 + number % 2))
            ground.datapath.update(Delta({e.frontend: e for e in entries}, {}, {}))
            ground.datapath.open()
            assert ground.datapath.flush(complete=True).problems == ()
            assert ground.datapath.status().in_force
    figures(f"{swaps} swaps; {clients.seen}")
    clients.seen.check()


class Held:
    """UDP sockets that were opened before it all, connected and not, to the frontend whose backends stay."""

    def __init__(self, ground: Ground) -> None:
        self._resources = ExitStack()
        self._sockets: list[tuple[str, socket.socket, bool]] = []
        self.asked = 0
        for way in WAYS:
            for connected in (False, True):
                sock = self._resources.enter_context(socket_in(ground.client, way))
                sock.settimeout(20)
                if connected:
                    sock.connect(self._frontend(way))
                self._sockets.append((way, sock, connected))
        self.check()

    @staticmethod
    def _frontend(way: str) -> tuple[str, int]:
        written = vip_of(STEADY, six=way == "6")
        return (f"::ffff:{written}" if way == "mapped" else written), PORT

    def check(self) -> None:
        """See that each is answered by a backend, from the frontend's address."""
        for way, sock, connected in self._sockets:
            if connected:
                sock.send(struct.pack("=I", STEADY))
            else:
                sock.sendto(struct.pack("=I", STEADY), self._frontend(way))
            answer, source = sock.recvfrom(100)
            assert struct.unpack("=3I", answer)[1:] == (FIRST + STEADY, STEADY)
            assert source[:2] == self._frontend(way)
            if connected:
                assert sock.getpeername()[:2] == self._frontend(way)
            self.asked += 1

    def close(self) -> None:
        self._resources.close()


def test_killed_in_upgrades(agent: tuple[Ground, Agent], tmp_path: Path, figures: Callable[[str], None]) -> None:
    """Other programs on the same tables; tables of another layout; tables of another size; and back."""
    ground, process = agent
    programs, tables = copied(tmp_path / "programs", "socket.c"), copied(tmp_path / "tables", "structs.h")
    builds = [
        Build("other programs", programs),
        Build("other tables", tables),
        Build("other tables of another size", tables, max_frontends=512),
        Build("this of another size", max_frontends=512),
        Build("this"),
    ]
    dice = random.Random(9)  # noqa: S311 - no secret
    process.start(builds[-1])
    process.wait_until_ready()
    held = Held(ground)
    rounds, kills, ids = size(1, 40), 0, set()
    with ground.ask("tuk", pause=300) as clients, process.changing():
        for build in builds * rounds:
            process.kill()
            held.check()
            die_now_and_then(process, build, dice)
            held.check()
            process.start(build)
            ids |= set(process.wait_until_ready().programs.values())
            held.check()
            kills += 2
    held.check()
    held.close()
    figures(f"{len(builds) * rounds} upgrades, {kills} kills; {held.asked} on held sockets; {clients.seen}")
    clients.seen.check()
    assert len(ids) >= 8 * len(builds), "each build has programs of its own"
    only_what_is_needed(ground, process)
