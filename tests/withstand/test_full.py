"""Maps that are full, fragmented, and used again; tables as large as they get; an event ring that nobody reads."""

import random
import time
from collections.abc import Callable

import pytest

from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath.model import Hits
from lrp_operator.resolve.model import Delta, FrontendEntry
from tests.datapath.world import DNS, TCP, UDP, VIP, VIP2, WEB, InNode, World, entry
from tests.withstand.storm import Ground, size

pytestmark = pytest.mark.privileged


def numbered(number: int, backends: int, *, six: bool = False) -> FrontendEntry:
    """A frontend of many, with backends that nobody serves."""
    low = number.to_bytes(3, "big")
    front, back = (b"\xfd\x98" + bytes(11), b"\xfd\x99" + bytes(10)) if six else (b"\x0b", b"\x0c")
    ends = (back + low + bytes([i]) for i in range(backends)) if six else (back + low for _ in range(backends))
    return entry(L4Addr(front + low, 53, UDP), *(L4Addr(end, 1000 + i, UDP) for i, end in enumerate(ends)))


def test_full_and_fragmented(world: World, figures: Callable[[str], None]) -> None:
    """Random wishes for more than fits: what stands was wished for, what does not is told, and room heals it."""
    dice, refused, rounds = random.Random(2), 0, size(150, 5000)  # noqa: S311 - no secret
    wanted: dict[L4Addr, FrontendEntry] = {}
    standing: dict[L4Addr, tuple[L4Addr, ...]] = {}
    with world.instead(max_backends=24, max_frontends=9) as datapath:
        for _ in range(rounds):
            delta: dict[L4Addr, FrontendEntry | None] = {}
            for number in dice.sample(range(12), 3):
                made = numbered(number, dice.randrange(7))
                delta[made.frontend] = made if dice.random() < 0.7 else None
            wanted = {a: e for a, e in (wanted | delta).items() if e is not None}
            datapath.update(Delta(delta, {}, {}))
            problems = datapath.flush(complete=True).problems
            assert datapath.status().problems == problems
            found = {
                row.frontend: tuple(b.backend for b in row.backends if b.backend.port) for row in datapath.frontends()
            }
            told = {problem.split(": ")[0] for problem in problems}
            assert all("neighbouring slots are free" in p or "all frontend ids are in use" in p for p in problems)
            for address in found.keys() | wanted.keys():
                wish = wanted[address].backends if address in wanted else None
                if str(address) in told:
                    assert found.get(address) == standing.get(address), "what can't be written stays as it was"
                else:
                    assert found.get(address) == wish
            standing, refused = found, refused + len(told)
        small = [numbered(number, 2) for number in range(8)]
        gone: dict[L4Addr, FrontendEntry | None] = dict.fromkeys(wanted)
        datapath.update(Delta(gone | {e.frontend: e for e in small}, {}, {}))
        datapath.flush(complete=True)
        assert datapath.flush(complete=True).problems == ()
        assert [row.frontend for row in datapath.frontends()] == [e.frontend for e in small]
        assert len({row.id for row in datapath.frontends()}) == 8
    assert refused, "it never was full"
    figures(f"{rounds} rounds, {refused} entries that did not fit, each told")


def test_counters_of_an_id_that_is_used_again_start_at_zero(world: World) -> None:
    with world.instead(max_frontends=3) as datapath:
        used = set()
        for turn in range(6):
            vip = (VIP, VIP2)[turn % 2]
            wanted = world.entry("4", UDP, world.one, vip=vip)
            gone = dict.fromkeys(row.frontend for row in datapath.frontends())
            datapath.update(Delta({**gone, wanted.frontend: wanted}, {}, {}))
            assert datapath.flush(complete=True).problems == ()
            assert datapath.hits() == {wanted.frontend: Hits()}
            used.add(datapath.frontends()[0].id)
            for _ in range(3):
                assert world.client.ask_udp(vip["4"], DNS).name == "one"
            assert datapath.hits() == {wanted.frontend: Hits(redirected=3)}
        assert used <= {1, 2}


def test_an_agent_starts_on_a_large_table(world: World, figures: Callable[[str], None]) -> None:
    """All is adopted as it stands: nothing is written again, and one change is one write."""
    number = size(20_000, 65_000) // 2
    many = [numbered(n, 3, six=six) for n in range(number) for six in (False, True)]
    served = world.entry("4", UDP, world.one)
    wanted: dict[L4Addr, FrontendEntry | None] = {e.frontend: e for e in (*many, served)}
    with world.instead(max_frontends=65_536, max_backends=131_072) as first:
        first.update(Delta(wanted, {}, {}))
        started = time.monotonic()
        assert first.flush(complete=True).written == len(wanted)
        written = time.monotonic() - started
        before = first.frontends()
        assert world.client.ask_udp(VIP["4"], DNS).name == "one"
        first.close()

        second = InNode(world.node, first.inner.settings)
        second.update(Delta(wanted, {}, {}))
        started = time.monotonic()
        second.open()
        opened = time.monotonic() - started
        report = second.flush(complete=True)
        whole = time.monotonic() - started
        assert (report.written, report.removed, report.problems) == (0, 0, ())
        assert second.frontends() == before
        assert second.hits()[served.frontend] == Hits(redirected=1)
        moved = world.entry("4", UDP, world.two)
        second.update(Delta({moved.frontend: moved}, {}, {}))
        started = time.monotonic()
        assert second.flush(complete=True).written == 1
        one = time.monotonic() - started
        assert world.client.ask_udp(VIP["4"], DNS).name == "two"
        assert second.reconcile().repaired == ()
        second.close()
    figures(
        f"{len(wanted):,} frontends with 3 backends written in {written:.2f} s, adopted in {opened:.2f} s"
        f" ({whole:.2f} s with the first pass); then one change in {one * 1e3:.1f} ms"
    )


def test_session_affinity_ends_with_its_timeout(world: World) -> None:
    """A client keeps its backend while it comes back in time; afterwards the choice is free."""
    ports = [L4Addr.make(world.one.ipv4, 30_000 + i, TCP) for i in range(16)]
    server = world.one.popen(["python3", "-c", _MANY_PORTS], stdout=-1)
    assert server.stdout
    assert server.stdout.readline() == b"ready\n"
    vip = L4Addr.make(VIP["4"], WEB, TCP)

    def port() -> int:
        return int(world.client.ask_tcp(VIP["4"], WEB).name)

    with world.instead(cluster_ip=True) as datapath:

        def program(seconds: int) -> None:
            wanted = entry(vip, *ports, affinity_seconds=seconds)
            datapath.update(Delta({vip: wanted}, {}, {}))
            assert datapath.flush(complete=True).problems == ()

        program(600)
        kept = port()
        assert {port() for _ in range(20)} == {kept}
        program(1)
        # The chance to be given the same of sixteen again and again is soon nothing.
        chosen = []
        for _ in range(12):
            time.sleep(1.05)
            chosen.append(port())
            if chosen[-1] != kept:
                break
        assert chosen[-1] != kept
        program(600)
        assert {port() for _ in range(20)} == {chosen[-1]}
    server.kill()


_MANY_PORTS = """
import json, selectors, socket
selector = selectors.DefaultSelector()
for i in range(16):
    selector.register(socket.create_server(("0.0.0.0", 30000 + i)), selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        connection, client = key.fileobj.accept()
        connection.send(json.dumps([str(key.fileobj.getsockname()[1]), *client]).encode() + b"\\n")
        connection.close()
"""


def test_a_ring_that_nobody_reads(ground: Ground, figures: Callable[[str], None]) -> None:
    """It fills up and events are lost, never redirects; once it is read, events come again."""
    ground.program(ground.all_entries())
    ground.datapath.watch_events(on=True)
    try:
        with ground.ask("tuk") as clients:
            while sum(found.redirected for found in ground.datapath.hits().values()) < 8000:
                time.sleep(0.02)
        clients.seen.check()
        lost = clients.seen.total - len(ground.datapath.read_events())
        assert lost > 0, "the ring was never full"
        ground.datapath.read_events()
        with ground.ask("t", "4") as later:
            time.sleep(0.02)
        later.seen.check()
        events = ground.datapath.read_events()
        assert {(e.hook, e.action) for e in events} == {("connect", "redirected")}
        assert {e.frontend.port for e in events} == {7000}
    finally:
        ground.datapath.watch_events(on=False)
    figures(f"{lost:,} events lost, {len(events):,} afterwards; {clients.seen}")
