"""An hour's changes in a moment: nothing grows, neither in the agent's process nor in the kernel."""

import gc
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lab import Node
from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath.engine import Datapath, cleanup
from lrp_operator.datapath.model import DatapathSettings
from lrp_operator.resolve.model import Delta, FrontendEntry
from tests.datapath.world import TCP, UDP, entry
from tests.withstand.agent import Agent, Build
from tests.withstand.storm import Ground, size

pytestmark = pytest.mark.privileged

RSS_MAY_GROW = 3 << 20  # what allocators keep for themselves
BLOCKS_MAY_GROW = 1000  # caches of Python's own; one object kept for each change would be more


@dataclass(frozen=True)
class Holdings:
    """What a process and the kernel hold for a table."""

    rss: int
    blocks: int
    descriptors: int
    pins: int
    entries: dict[str, int]
    slots: dict[str, int]
    resting_ids: int
    free_ids: int

    def check(self, before: "Holdings") -> None:
        """See that it is what it was, memory apart, which may only have grown a little."""
        assert replace(self, rss=0, blocks=0) == replace(before, rss=0, blocks=0)
        assert self.rss - before.rss < RSS_MAY_GROW
        assert self.blocks - before.blocks < BLOCKS_MAY_GROW

    def __sub__(self, before: "Holdings") -> str:
        memory = f"memory {(self.rss - before.rss) / 1024:+.0f} KiB, to {self.rss / (1 << 20):.1f} MiB"
        return f"{memory}; Python's blocks {self.blocks - before.blocks:+,}"


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    """How many are open, at the least of a few looks: an agent takes a moment to hang up on who asked it."""
    looks = []
    for _ in range(5):
        looks.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))
        time.sleep(0.05)
    return min(looks)


def pins(root: Path) -> int:
    return sum(not path.is_dir() for path in root.rglob("*"))


def measure(datapath: Datapath) -> Holdings:
    opened = datapath._need()
    opened._rest()
    gc.collect()
    hashes = [name for name in opened._maps if name.startswith(("frontends", "skip"))]
    return Holdings(
        rss(os.getpid()),
        sys.getallocatedblocks(),
        descriptors(os.getpid()),
        pins(datapath.settings.bpf_root),
        {name: len(list(opened._maps[name].items())) for name in hashes},
        datapath.status().slots_used,
        opened._ids.resting,
        len(opened._ids._free),
    )


def some_entry(dice: random.Random, number: int) -> FrontendEntry:
    six, protocol = bool(number & 1), (TCP, UDP)[number >> 1 & 1]
    front, back = ("fd00:98::", "fd00:99::") if six else ("10.98.0.", "10.99.0.")
    shown = f"{number:x}" if six else str(number)
    hosts = dice.sample(range(1, 9), dice.randrange(5))
    backends = [L4Addr.make(f"{back}{host}", 1000 + number, protocol) for host in hosts]
    return entry(L4Addr.make(f"{front}{shown}", 53, protocol), *backends)


def steady() -> dict[L4Addr, FrontendEntry]:
    dice = random.Random(0)  # noqa: S311 - no secret
    return {made.frontend: made for made in (some_entry(dice, number) for number in range(100))}


def churn(datapath: Datapath, dice: random.Random, changes: int, *, reconciling: bool = True) -> int:
    """Change entries, a few with each flush, and reconcile at times; return how many were written."""
    done = flushes = 0
    while done < changes:
        delta: dict[L4Addr, FrontendEntry | None] = {}
        for number in dice.sample(range(250), dice.randint(1, 20)):
            made = some_entry(dice, number)
            delta[made.frontend] = made if dice.random() < 0.75 else None
        datapath.update(Delta(delta, {}, {}))
        report = datapath.flush(complete=True)
        assert report.problems == ()
        done += report.written + report.removed
        flushes += 1
        if reconciling and flushes % 100 == 0:
            report = datapath.reconcile()
            assert (report.problems, report.repaired) == ((), ())
    return done


def back_to_steady(datapath: Datapath) -> None:
    wanted = steady()
    gone = dict.fromkeys(row.frontend for row in datapath.frontends())
    datapath.update(Delta({**gone, **wanted}, {}, {}))
    assert datapath.flush(complete=True).problems == ()


def an_hour(settings: DatapathSettings, changes: int) -> tuple[int, Holdings, Holdings]:
    """In a process of its own: warm up, measure, churn, measure."""
    dice, datapath = random.Random(4), Datapath(settings)  # noqa: S311 - no secret
    datapath.open()
    churn(datapath, dice, 2000)
    back_to_steady(datapath)
    before = measure(datapath)
    done = churn(datapath, dice, changes // 2)
    done += churn(datapath, dice, changes // 2, reconciling=False)  # which would make up for what is lost in between
    back_to_steady(datapath)
    after = measure(datapath)
    datapath.close()
    return done, before, after


def test_an_hour_of_changes(node: Node, figures: Callable[[str], None]) -> None:
    settings = DatapathSettings(node.bpf / "lrp", node.cgroup, max_frontends=300, max_backends=1500)
    try:
        done, before, after = node.call(lambda: an_hour(settings, size(5000, 100_000)), timeout=3600)
        after.check(before)
        assert sum(after.entries.values()) == len(steady())
    finally:
        cleanup(settings.bpf_root, settings.cgroup_root)
    figures(f"{done:,} changes: {after - before}; {after.descriptors} descriptors, {after.pins} pins, as before")


@pytest.fixture
def agent(_root: None, storm: Path, tmp_path: Path) -> Iterator[tuple[Ground, Agent]]:
    with Node() as node:
        ground = Ground(node, storm, frontends=12)
        found = Agent(ground, tmp_path)
        found.tell_any(random.Random(1))  # noqa: S311 - no secret
        found.start(Build("this"))
        yield ground, found
        found.kill()
        ground.close()


def test_changes_through_an_agent(agent: tuple[Ground, Agent], figures: Callable[[str], None]) -> None:
    """The whole way: files that change, resolution, the kernel, and requests for status meanwhile."""
    ground, process = agent
    everything = {number: [0, 1, 2] for number in range(ground.frontends)}
    dice = random.Random(6)  # noqa: S311 - no secret

    def turns(number: int) -> None:
        for _ in range(number):
            process.tell_any(dice)
            process.wait_until_told()
        process.tell(everything)
        process.wait_until_told()

    process.wait_until_ready()
    assert process.process
    pid, root = process.process.pid, ground.settings.bpf_root
    turns(size(6, 200))
    before = rss(pid), descriptors(pid), pins(root)
    turns(size(12, 2000))
    after = rss(pid), descriptors(pid), pins(root)
    assert process.wait_until_ready().healthy
    assert after[1:] == before[1:]
    assert after[0] - before[0] < RSS_MAY_GROW
    memory = f"memory {(after[0] - before[0]) / 1024:+.0f} KiB, to {after[0] / (1 << 20):.1f} MiB"
    figures(
        f"{size(12, 2000)} files of {4 * ground.frontends} frontends: {memory}; {after[1]} descriptors, {after[2]} pins"
    )
