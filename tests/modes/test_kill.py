"""The agent dies, is upgraded and resizes its tables while pods are redirected at their links: nobody notices.

Long transfers go both ways with every byte accounted for, connections are made all the time, and queries are sent from
sockets of every kind, by pods of both shapes. Where the mode redirects the node's own sockets, the node asks, too.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab import Place
from lrp_operator.loader.sources import bpf_directory
from tests.modes import bulk
from tests.modes.ground import BULK, SHAPES, VERSIONS, WEB, Ground, Shape, Target, policy, service_of, wait
from tests.modes.modes import HOST_ONLY, TC_ONLY, Mode
from tests.modes.traffic import KINDS, Seen, asking

pytestmark = pytest.mark.privileged

LONG = bool(os.environ.get("LRP_LONG"))
KILLS = 20 if LONG else 5  # a third of them of an agent that is ready, at least
UPGRADES = 5 if LONG else 1
SMALL, LARGER = ("--bpf-lb-map-max", "512"), ("--bpf-lb-map-max", "1024")


def bulk_of(shape: Shape) -> Target:
    """An address outside of the cluster, that nobody has: long transfers are redirected from it."""
    number = SHAPES.index(shape) + 1
    return Target(f"bulk-{shape}", f"192.0.2.1{number}", f"2001:db8::1{number}")


def redirect(ground: Ground) -> None:
    """To the first backend of each shape."""
    ground.kube_proxy("iptables")
    for shape in SHAPES:
        labels = {"shape": shape, "number": "1"}
        ground.write(f"p-{shape}", *policy(f"p-{shape}", service_of(shape), labels))
        long = policy(f"bulk-{shape}", bulk_of(shape), labels, protocols=("TCP",))
        for one in long:
            one["spec"]["redirectBackend"]["toPorts"][0]["port"] = str(BULK)
        ground.write(f"bulk-{shape}", *long)
        ground.backends[shape][0].serve(bulk.serve(BULK))


def other_sources(folder: Path) -> Path:
    """A copy of our eBPF sources with another constant."""
    shutil.copytree(bpf_directory(), folder)
    config = folder / "config.h"
    text, number = re.subn(r"#define LRP_LOOKUP_TRIES \d+", "#define LRP_LOOKUP_TRIES 5", config.read_text())
    assert number == 1
    config.write_text(text)
    return folder


@contextmanager
def transferring(ground: Ground, told: list[str], wrong: list[str]) -> Iterator[None]:
    """Transfer from clients of both shapes while the body runs; told and wrong take what became of it."""
    running: dict[Shape, subprocess.Popen[str]] = {}
    try:
        for shape in SHAPES:
            where = [word for version in VERSIONS for word in (bulk_of(shape).ip(version), str(WEB))]
            command = [sys.executable, bulk.__file__, *where]
            running[shape] = ground.clients[shape].popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        for process in running.values():
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        yield
        for shape, process in running.items():
            found = json.loads(process.communicate("\n", timeout=60)[0])
            for version, (sent, got, what) in zip(VERSIONS, found, strict=True):
                wrong += [f"{shape}, transfer over IPv{version}: {what}"] if what else []
                told.append(f"{shape}/IPv{version} {sent >> 20} + {got >> 20} MiB")
    finally:
        for process in running.values():
            process.kill()
            process.communicate()


def everybody(ground: Ground, mode: Mode) -> Iterator[tuple[Place, Target, Sequence[str]]]:
    """Who asks whom, and how."""
    for shape in SHAPES:
        yield ground.clients[shape], service_of(shape), KINDS
    if mode.node_is_redirected:
        yield ground.node, service_of("bridged"), KINDS


def complaints(seen: Sequence[Seen]) -> list[str]:
    """What was not as it should be."""
    found = [line for one in seen for line in one.told()]
    for one in seen:
        right = one.target.replace("web-", "") + "-1"
        found += [f"{one.who}: {count} answers by {name}" for name, count in one.names.items() if name != right]
    return found


@contextmanager
def load(ground: Ground, mode: Mode, figures: list[str], what: str) -> Iterator[None]:
    """Have everybody ask and transfer while the body runs, and see that nobody noticed."""
    told: list[str] = []
    wrong: list[str] = []
    with transferring(ground, told, wrong), asking(everybody(ground, mode)) as seen:
        yield
        time.sleep(0.5)
    wrong += complaints(seen)
    total = sum(one.names.total() for one in seen)
    figures.append(f"{mode}: {what}: {total} answers; {', '.join(told)}; {len(wrong)} complaints")
    assert not wrong, "\n".join(wrong)


def tc_programs(ground: Ground) -> set[int]:
    """Ids of the TC level's programs that this agent has in force."""
    programs = ground.status().programs
    return {programs[name] for name in ("from_pod", "from_port", "to_pod")}


def only_what_is_needed(ground: Ground) -> None:
    """One set of tables, of programs, and of flows."""
    root = ground.node.bpf / "lrp"
    for pattern in ("tables-*", "tables-*/tc-*", "flows-*"):
        assert len(list(root.glob(pattern))) == 1, pattern


def changes(mode: Mode, sources: Path) -> list[tuple[str, list[tuple[Sequence[str], dict[str, str]]]]]:
    """What else is started than before, there and back: in one mode each by itself, in the other, at once."""
    other = {"LRP_BPF_SOURCES": str(sources)}
    if mode is HOST_ONLY and not LONG:
        return [("upgrades with tables of another size", [(LARGER, other), (SMALL, {})])]
    return [
        ("upgrades", [(SMALL, other), (SMALL, {})] * UPGRADES),
        ("tables of another size", [(LARGER, {}), (SMALL, {})] * UPGRADES),
    ]


@pytest.fixture(params=[TC_ONLY, HOST_ONLY], ids=lambda mode: str(mode).replace(" ", "-"))
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


@pytest.mark.timeout(900)
def test_killed_upgraded_and_resized(ground: Ground, mode: Mode, tmp_path: Path, figures: list[str]) -> None:
    dice = random.Random(3)  # noqa: S311 - no secret
    redirect(ground)
    ground.started(mode, *SMALL)
    first = tc_programs(ground)
    ready = 0
    with load(ground, mode, figures, f"{KILLS} kills"):
        for number in range(KILLS):
            ground.kill()
            ground.start(mode, *SMALL)
            if number % 3:
                time.sleep(2 * dice.random())
            else:
                wait(ground.is_ready, "the agent to be ready", ground.log)
            ready += ground.is_ready()
        ground.kill()
        ground.started(mode, *SMALL)
    figures.append(f"{mode}: {ready} of {KILLS} kills were of a ready agent")
    assert tc_programs(ground) == first, "the programs are found again, not made anew"

    ids = first
    for what, builds in changes(mode, other_sources(tmp_path / "other")):
        with load(ground, mode, figures, f"{what}, {len(builds)} times, some killed in between"):
            for number, (size, env) in enumerate(builds):
                ground.kill()
                if number % 3 == 0:
                    ground.start(mode, *size, env=env)
                    time.sleep(4 * dice.random())
                    ground.kill()
                ground.started(mode, *size, env=env)
                assert not tc_programs(ground) & ids
                ids |= tc_programs(ground)
    only_what_is_needed(ground)
