"""What is in the kernel outlives the agent: adoption, swaps, repairs, and the end of it all."""

import os
import shutil
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab.serving import ask_tcp
from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath.engine import Datapath, cleanup
from lrp_operator.datapath.layout import FRONTEND_ID, RUN_START, frontend_key
from lrp_operator.datapath.model import DatapathSettings
from lrp_operator.kernel import bpf
from lrp_operator.resolve.model import Delta
from tests.datapath.world import (
    DNS,
    FAR,
    TCP,
    UDP,
    VIP,
    VIP2,
    WAYS,
    WEB,
    InNode,
    World,
    address_of,
    ask,
    entry,
    exchange,
    socket_in,
)

pytestmark = pytest.mark.privileged


@pytest.fixture
def another(world: World) -> Iterator[InNode]:
    """A second agent's datapath, not open yet, on the same pins; the first one has been closed, as if killed."""
    second = InNode(world.node, world.settings)
    yield second
    second.close()
    world.datapath.close()
    world.forget()
    world.datapath.inner = Datapath(world.settings)
    world.datapath.open()
    world.datapath.flush(complete=True)


@pytest.fixture
def restored(another: InNode) -> None:
    """The shared datapath is there again when the test is over, whatever it did to the pins."""


def pins(root: Path) -> dict[str, int]:
    """What is pinned below a root, and the kernel's id of each link and map."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_dir() or "programs-" in str(path):
            continue
        with bpf.open_pin(path) as fd:
            found[str(path.relative_to(root))] = (
                bpf.link_info(fd).id if path.parent.name == "links" else bpf.map_info(fd).id
            )
    return found


def attached(cgroup: Path) -> dict[str, list[int]]:
    with bpf.Fd(os.open(cgroup, os.O_RDONLY)) as directory:
        return {
            hook.name: found
            for hook in bpf.AttachType
            if (found := bpf.attached_programs(directory.fileno(), hook, effective=False))
        }


def test_a_second_start_adopts_all(world: World, another: InNode) -> None:
    entries = [world.entry(way, UDP, world.one) for way in ("4", "6")]
    surplus = world.entry("4", UDP, world.one, vip=VIP2)
    world.program(*entries, surplus)
    world.client.ask_udp(VIP["4"], DNS)
    before = pins(world.settings.bpf_root), attached(world.node.cgroup), world.datapath.frontends()
    with socket_in(world.client, "4") as sock:
        exchange(sock, (VIP["4"], DNS))
        world.datapath.close()
        assert exchange(sock, (VIP["4"], DNS)) == ("one", (VIP["4"], DNS)), "no agent, and it goes on"
        another.open()
        assert (pins(world.settings.bpf_root), attached(world.node.cgroup), another.frontends()) == before
        assert another.status().in_force
        # What is wanted already is not written; what is not known yet is not pruned.
        another.update(Delta({e.frontend: e for e in entries}, {}, {}))
        report = another.flush(complete=False)
        assert (report.written, report.removed) == (0, 0)
        assert exchange(sock, (VIP2["4"], DNS)) == ("one", (VIP2["4"], DNS))
        report = another.flush(complete=True)
        assert (report.written, report.removed) == (0, 1)
        assert [row.frontend for row in another.frontends()] == [e.frontend for e in entries]
        assert another.hits()[entries[0].frontend].redirected == 3
        another.update(Delta({entries[0].frontend: world.entry("4", UDP, world.two)}, {}, {}))
        another.flush(complete=True)
        assert exchange(sock, (VIP["4"], DNS)) == ("two", (VIP["4"], DNS))
    generations = [row.generation for row in before[2] if row.frontend.is_ipv4]
    assert next(r.generation for r in another.frontends() if r.frontend.is_ipv4) > max(generations)


def test_sockets_of_a_backend_that_left_while_no_agent_was_there_are_ended(world: World, another: InNode) -> None:
    world.program(world.entry("4", UDP, world.one))
    with socket_in(world.client, "4") as sock:
        sock.connect((VIP["4"], DNS))
        world.datapath.close()
        another.open()
        moved = world.entry("4", UDP, world.two)
        another.update(Delta({moved.frontend: moved}, {}, {}))
        assert another.flush(complete=True).sockets_ended == 1
        with pytest.raises(ConnectionAbortedError):
            sock.recv(100)


def test_other_sizes_take_over_when_they_are_filled(world: World, another: InNode) -> None:
    world.program(world.entry("4", UDP, world.one), world.entry("4", TCP, world.one))
    old = pins(world.settings.bpf_root)
    with socket_in(world.client, "4") as sock, socket_in(world.client, "4") as connected:
        exchange(sock, (VIP["4"], DNS))
        connected.connect((VIP["4"], DNS))
        world.datapath.close()
        another.inner = Datapath(replace(world.settings, max_backends=64))
        another.open()
        status = another.status()
        assert not status.in_force
        assert "programs of an earlier start are in force" in status.message
        assert exchange(sock, (VIP["4"], DNS)) == ("one", (VIP["4"], DNS))
        another.flush(complete=False)
        assert exchange(sock, (VIP["4"], DNS)) == ("one", (VIP["4"], DNS))
        another.reconcile()
        assert old.items() <= pins(world.settings.bpf_root).items(), "still there"
        entries = [world.entry("4", UDP, world.one, world.two), world.entry("4", TCP, world.one)]
        another.update(Delta({e.frontend: e for e in entries}, {}, {}))
        another.flush(complete=True)
        assert another.status().in_force
        assert another.status().slots_max == {"ipv4": 64, "ipv6": 64}
        new = pins(world.settings.bpf_root)
        same = {name for name in new if new[name] == old.get(name)}
        assert {name.split("/")[0] for name in same} == {"links", "sockets-v1"}, "tables are new"
        assert len(list(world.settings.bpf_root.glob("tables-*"))) == 1
        # Sockets remember, and stay with their backend.
        assert {exchange(sock, (VIP["4"], DNS)) for _ in range(15)} == {("one", (VIP["4"], DNS))}
        assert ask(connected) == "one"
        assert connected.getpeername() == (VIP["4"], DNS)


@pytest.mark.usefixtures("restored")
def test_no_connect_fails_while_programs_are_swapped(world: World) -> None:
    world.program(world.entry("4", TCP, world.one))
    stop, stopped = socket.socketpair()

    def loop() -> tuple[int, set[tuple[str, tuple[str, int]]]]:
        stopped.setblocking(False)  # noqa: FBT003 (its only parameter)
        count, seen = 0, set()
        while True:
            reply = ask_tcp(VIP["4"], WEB)
            seen.add((reply.name, reply.peer))
            count += 1
            try:
                stopped.recv(1)
            except BlockingIOError:
                continue
            return count, seen

    child = world.client._fork(lambda send: send(loop()))
    try:
        world.datapath.close()
        wanted = world.entry("4", TCP, world.one)
        for settings in (
            replace(world.settings, cluster_ip=True),
            replace(world.settings, max_backends=64),
            world.settings,
        ):
            datapath = InNode(world.node, settings)
            datapath.update(Delta({wanted.frontend: wanted}, {}, {}))
            with datapath:
                assert datapath.flush(complete=True).problems == ()
                assert datapath.status().in_force
        stop.send(b".")
        count, seen = child.result(10)
    finally:
        child.end()
        stop.close()
        stopped.close()
    assert seen == {("one", (VIP["4"], WEB))}
    assert count > 100


def test_families_switched_off_later_are_detached(world: World, another: InNode) -> None:
    world.program(*(world.entry(way, UDP, world.one, vip=FAR) for way in ("4", "6")))
    world.datapath.close()
    another.inner = Datapath(replace(world.settings, ipv4=False))
    wanted = world.entry("6", UDP, world.one, vip=FAR)
    another.update(Delta({wanted.frontend: wanted}, {}, {}))
    another.open()
    another.flush(complete=True)
    assert attached(world.node.cgroup).keys() == {
        "CONNECT6",
        "SENDMSG6",
        "RECVMSG6",
        "GETPEERNAME6",
        "INET_SOCK_RELEASE",
    }
    assert [world.client.ask_udp(FAR[way], DNS).name for way in WAYS] == ["far", "one", "far"]


def maps_of(world: World) -> dict[str, bpf.Map]:
    opened = world.datapath.inner._opened
    assert opened is not None
    return opened._maps


def test_reconcile_finds_nothing_where_all_is_well(world: World) -> None:
    world.program(world.entry("4", UDP, world.one, world.two), world.entry("6", TCP))
    report = world.datapath.reconcile()
    assert (report.written, report.removed, report.problems, report.repaired) == (0, 0, (), ())


def test_reconcile_attaches_again(world: World) -> None:
    world.program(world.entry("4", TCP, world.one))
    (world.settings.bpf_root / "links/connect4").unlink()
    while "CONNECT4" in attached(world.node.cgroup):
        pass  # the kernel lets go of an unpinned link a moment later; pytest's timeout bounds this
    status = world.datapath.status()
    assert (status.in_force, status.message) == (False, "nothing of ours is attached to connect4")
    assert world.datapath.reconcile().repaired == ("connect4: attached",)
    assert world.datapath.status().in_force
    assert world.client.ask_tcp(VIP["4"], WEB).name == "one"


def test_reconcile_attaches_again_what_was_detached_behind_its_pin(world: World) -> None:
    with bpf.open_pin(world.settings.bpf_root / "links/sendmsg6") as link:
        bpf.detach_link(link)
    assert not world.datapath.status().in_force
    assert world.datapath.reconcile().repaired == ("sendmsg6: attached anew",)
    assert world.datapath.status().in_force


@pytest.mark.parametrize("how", ["deleted", "no such id", "beyond the end", "another's slots", "another's id"])
def test_reconcile_mends_entries(world: World, how: str) -> None:
    first, second = world.entry("4", UDP, world.one), world.entry("4", UDP, world.two, vip=VIP2)
    world.program(first, second)
    frontends, runs, key = maps_of(world)["frontends4"], maps_of(world)["runs"], frontend_key(first.frontend)
    own, other = (frontends.lookup(frontend_key(entry.frontend)) or b"" for entry in (first, second))
    if how == "deleted":
        frontends.delete(key)
    elif how == "beyond the end":
        runs.update(own, RUN_START.pack(0xFFFFFFFF))
    elif how == "another's slots":
        runs.update(own, runs.lookup(other) or b"")
    else:
        frontends.update(key, other if how == "another's id" else FRONTEND_ID.pack(0xFFFFFFF))
    report = world.datapath.reconcile()
    assert report.repaired == ("1 frontends had been changed by someone else",)
    assert report.written == 1
    assert world.client.ask_udp(VIP["4"], DNS).name == "one"
    assert world.client.ask_udp(VIP2["4"], DNS).name == "two"
    assert world.datapath.reconcile().repaired == ()


def test_a_packet_that_meets_anothers_run_goes_untouched_and_is_counted(world: World) -> None:
    """A value that points at another frontend's slots is never followed: the first slot tells."""
    first, second = world.entry("4", UDP, world.one, vip=FAR), world.entry("4", UDP, world.two, vip=VIP2)
    world.program(first, second)
    maps = maps_of(world)
    wrong = maps["frontends4"].lookup(frontend_key(second.frontend)) or b""
    maps["frontends4"].update(frontend_key(first.frontend), wrong)

    def nobodys() -> int:
        value = maps["counters"].lookup(struct.pack("=I", 0)) or b""
        return sum(struct.unpack("=4Q", cpu)[3] for cpu in maps["counters"].per_cpu(value))

    before = nobodys()
    assert world.client.ask_udp(FAR["4"], DNS).name == "far"
    assert nobodys() == before + 1
    world.datapath.reconcile()
    assert world.client.ask_udp(FAR["4"], DNS).name == "one"


def test_reconcile_removes_what_nobody_asked_for(world: World) -> None:
    wanted = world.entry("4", UDP, world.one)
    world.program(wanted)
    frontends = maps_of(world)["frontends4"]
    frontends.update(frontend_key(L4Addr.make("10.9.9.9", 1, TCP)), FRONTEND_ID.pack(77))
    frontends.update(bytes(6) + bytes((47, 0)), FRONTEND_ID.pack(1))
    world.datapath.reconcile()
    assert [key for key, _ in frontends.items()] == [frontend_key(wanted.frontend)]


def test_reconcile_mends_a_slot(world: World) -> None:
    world.program(world.entry("4", UDP, world.one))
    (row,) = world.datapath.frontends()
    backends, key = maps_of(world)["backends4"], struct.pack("=I", row.backends[0].slot)
    slot = bytearray(backends.lookup(key) or b"")
    slot[8:12] = socket.inet_aton(world.two.ipv4)
    backends.update(key, bytes(slot))
    assert world.client.ask_udp(VIP["4"], DNS).name == "two"
    assert world.datapath.reconcile().written == 1
    assert world.client.ask_udp(VIP["4"], DNS).name == "one"


def test_reconcile_pins_again_what_was_removed(world: World) -> None:
    world.program(world.entry("4", UDP, world.one))
    before = pins(world.settings.bpf_root)
    (tables,) = world.settings.bpf_root.glob("tables-*")
    (tables / "frontends4").unlink()
    shutil.rmtree(world.settings.bpf_root / "sockets-v1")
    assert any("map frontends4: its pin was missing" in p for p in world.datapath.reconcile().repaired)
    assert pins(world.settings.bpf_root) == before
    assert world.datapath.reconcile().repaired == ()


@pytest.mark.parametrize(
    "what", ["tables-*/frontends4", "tables-*/backends6", "sockets-v1", "tables-*", "tables-*/programs-*"]
)
def test_a_start_after_pins_were_removed_builds_what_is_missing(world: World, another: InNode, what: str) -> None:
    wanted = world.entry("4", UDP, world.one)
    world.program(wanted)
    world.datapath.close()
    (path,) = world.settings.bpf_root.glob(what)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    another.update(Delta({wanted.frontend: wanted}, {}, {}))
    another.open()
    assert another.flush(complete=True).problems == ()
    assert another.status().in_force
    assert world.client.ask_udp(VIP["4"], DNS).name == "one"
    assert another.reconcile().repaired == ()


def test_looking_does_not_cut_a_rest_short(world: World) -> None:
    """Freed slots rest until readers have left, also when someone lists the frontends meanwhile."""
    world.datapath.reconcile()
    world.program(world.entry("4", UDP, world.one))
    world.program(world.entry("4", UDP, world.two))
    used = world.datapath.status().slots_used
    assert used["ipv4"] == 2, "one in use, one that rests"
    world.datapath.frontends()
    assert world.datapath.status().slots_used == used


def test_a_full_table_is_said_and_heals(world: World) -> None:
    with world.instead(max_backends=4) as datapath:
        big = entry(L4Addr.make(VIP["4"], DNS, UDP), *(address_of(world.one, "4", port, UDP) for port in (53, 54, 55)))
        also = world.entry("4", UDP, world.two, world.three, vip=VIP2)
        small = world.entry("4", TCP, world.one)
        datapath.update(Delta({e.frontend: e for e in (big, also, small)}, {}, {}))
        (problem,) = datapath.flush(complete=True).problems
        assert problem.startswith(f"{also.frontend}: no 2 neighbouring slots are free")
        assert problem.endswith("raise the maximum of backends")
        assert datapath.status().problems == (problem,)
        assert world.client.ask_tcp(VIP["4"], WEB).name == "one"
        datapath.update(Delta({big.frontend: None}, {}, {}))
        assert datapath.flush(complete=True).problems == ()
        assert world.client.ask_udp(VIP2["4"], DNS).name in {"two", "three"}
        assert datapath.status().problems == ()


@pytest.mark.usefixtures("restored")
def test_cleanup_leaves_nothing(world: World) -> None:
    world.program(world.entry("4", UDP, world.one, vip=FAR))
    assert len(attached(world.node.cgroup)) == 9
    removed = cleanup(world.settings.bpf_root, world.settings.cgroup_root)
    assert attached(world.node.cgroup) == {}
    assert list(world.settings.bpf_root.iterdir()) == []
    assert {"link connect4", "pin sockets-v1/few_peers4"} <= set(removed)
    assert world.client.ask_udp(FAR["4"], DNS).name == "far"
    assert cleanup(world.settings.bpf_root, world.settings.cgroup_root) == []
    assert cleanup(world.settings.bpf_root / "never", world.settings.cgroup_root) == []


def test_another_cgroup(world: World, another: InNode) -> None:
    world.program(world.entry("4", UDP, world.one, vip=FAR))
    world.datapath.close()
    another.inner = Datapath(DatapathSettings(world.settings.bpf_root, world.client.cgroup))
    another.open()
    assert another.status().in_force
    assert attached(world.node.cgroup) == {}
    assert world.client.ask_udp(FAR["4"], DNS).name == "one"
    assert world.other_client.ask_udp(FAR["4"], DNS).name == "far"
