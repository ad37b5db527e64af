"""Foreign hands: what others change behind the agent's back is found and mended, or told, at the next reconcile."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lrp_operator.kernel import bpf
from tests.datapath.world import TCP, UDP
from tests.withstand.storm import PODS, Ground, size

pytestmark = pytest.mark.privileged

HOOKS = ("connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6")
MULTI = 2  # BPF_F_ALLOW_MULTI
PROCEED = bytes.fromhex("b7000000010000009500000000000000")  # r0 = 1; exit


@pytest.fixture
def filled(ground: Ground) -> Ground:
    ground.datapath.reconcile()
    ground.program(ground.all_entries())
    return ground


def works(ground: Ground) -> None:
    """Have clients ask a little, of every kind; see that all is well."""
    with ground.ask("tuk") as clients:
        ground.node.run(["sleep", "0.1"])
    clients.seen.check()


def settled(ground: Ground) -> None:
    """Nothing is left to be mended, and redirects work."""
    report = ground.datapath.reconcile()
    assert (report.written, report.removed, report.problems, report.repaired) == (0, 0, (), ())
    status = ground.datapath.status()
    assert (status.in_force, status.problems) == (True, ())
    works(ground)


def maps(ground: Ground) -> dict[str, bpf.Map]:
    found: dict[str, bpf.Map] = ground.datapath.inner._need()._maps
    return found


def test_entries_and_slots_written_over(filled: Ground, figures: Callable[[str], None]) -> None:
    """Any entries are deleted, swapped, or filled with noise, and any slots too; then all is as it was."""
    dice, opened = random.Random(11), maps(filled)  # noqa: S311 - no secret
    runs = opened["runs"]
    before = [(row.frontend, tuple(b.backend for b in row.backends)) for row in filled.datapath.frontends()]
    rounds, found = size(10, 200), 0
    for _ in range(rounds):
        for digit in "46":
            frontends, backends = opened[f"frontends{digit}"], opened[f"backends{digit}"]
            held = list(frontends.items())
            dice.shuffle(held)
            for (key, value), (_, other) in zip(held[:10], held[10:20], strict=True):
                if (what := dice.randrange(6)) == 0:
                    frontends.delete(key)
                elif what == 1:
                    frontends.update(key, other)
                elif what == 2:
                    frontends.update(key, dice.randbytes(len(value)))
                elif what == 3:
                    frontends.update(dice.randbytes(len(key)), value)
                elif what == 4:
                    runs.update(value, dice.randbytes(runs.info.value_size))
                else:
                    start = runs.lookup(value)
                    assert start is not None
                    backends.update(start, dice.randbytes(backends.info.value_size))
        report = filled.datapath.reconcile()
        assert report.problems == ()
        assert "frontends had been changed by someone else" in " ".join(report.repaired)
        found += report.written + report.removed
        assert [(r.frontend, tuple(b.backend for b in r.backends)) for r in filled.datapath.frontends()] == before
    settled(filled)
    figures(f"{rounds} rounds of 20 foreign writes; {found} entries written anew or removed")


PINS = (
    "tables-*/frontends4",
    "tables-*/backends6",
    "tables-*/counters",
    "sockets-v*/few_peers4",
    "sockets-v*/many_peers6",
)


@pytest.mark.parametrize(
    "what", [*PINS, "tables-*/programs-*/lrp_connect4", "tables-*/programs-*", "sockets-v*", "tables-*"]
)
def test_a_pin_is_removed(filled: Ground, what: str) -> None:
    (path,) = filled.settings.bpf_root.glob(what)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    works(filled)
    report = filled.datapath.reconcile()
    assert report.problems == ()
    assert any("pin was missing" in sentence for sentence in report.repaired), report
    assert path.exists()
    settled(filled)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_link_is_detached_or_loses_its_pin(filled: Ground, hook: str) -> None:
    pin = filled.settings.bpf_root / "links" / hook
    with bpf.open_pin(pin) as link:
        bpf.detach_link(link)
    status = filled.datapath.status()
    assert (status.in_force, status.message) == (False, f"nothing of ours is attached to {hook}")
    assert filled.datapath.reconcile().repaired == (f"{hook}: attached anew",)
    with bpf.open_pin(pin):  # so that the link lives on while its pin is gone
        pin.unlink()
        assert not filled.datapath.status().in_force
        assert filled.datapath.reconcile().repaired == (f"{hook}: attached",)
    settled(filled)


def test_all_links_are_removed(filled: Ground) -> None:
    before = filled.datapath.status().programs
    shutil.rmtree(filled.settings.bpf_root / "links")
    report = filled.datapath.reconcile()
    assert sorted(report.repaired) == sorted(f"{hook}: attached" for hook in before)
    assert filled.datapath.status().programs == before
    settled(filled)


@contextmanager
def neighbour(cgroup: Path, hook: str) -> Iterator[int]:
    """Another's program on one of our hooks, which lets everything pass; its id."""
    kind = bpf.AttachType[hook.upper()]
    with (
        bpf.load_program(bpf.ProgType.CGROUP_SOCK_ADDR, PROCEED, kind) as program,
        bpf.Fd(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)) as directory,
        bpf.link_to_cgroup(program, directory.number, kind) as link,
    ):
        yield bpf.prog_info(program).id
        bpf.detach_link(link)


@pytest.mark.parametrize("where", ["beside", "below"])
def test_another_program_is_attached_to_our_hooks(filled: Ground, where: str) -> None:
    """It changes nothing, and our coming and going leaves it alone: before ours, behind ours, on a pod's own cgroup."""
    cgroup = {"beside": filled.node.cgroup, "below": filled.client.cgroup}[where]
    with neighbour(cgroup, "connect4") as behind, neighbour(cgroup, "recvmsg6") as also:
        settled(filled)
        for hook in ("connect4", "recvmsg6"):
            with bpf.open_pin(filled.settings.bpf_root / "links" / hook) as link:
                bpf.detach_link(link)
        report = filled.datapath.reconcile()  # now ours stand behind the others
        assert sorted(report.repaired) == ["connect4: attached anew", "recvmsg6: attached anew"]
        settled(filled)
        with bpf.Fd(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)) as directory:
            for hook, number in (("CONNECT4", behind), ("RECVMSG6", also)):
                attached = bpf.attached_programs(directory.number, bpf.AttachType[hook], effective=True)
                assert number in attached
    settled(filled)


def test_frontends_are_shared_out_anew(filled: Ground) -> None:
    """Changes of our own and of others, mixed: what is wanted wins."""
    opened = maps(filled)
    wanted = [
        filled.entry(n, p, six=six, pods=(n % PODS,))
        for n in range(filled.frontends)
        for p in (TCP, UDP)
        for six in (False, True)
    ]
    for key, _ in list(opened["frontends4"].items())[::2]:
        opened["frontends4"].delete(key)
    filled.program(wanted)
    filled.datapath.reconcile()
    assert {row.frontend: [b.backend for b in row.backends] for row in filled.datapath.frontends()} == {
        e.frontend: list(e.backends) for e in wanted
    }
    settled(filled)
