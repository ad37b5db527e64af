"""Others' programs on a pod's link: they work as they did without us, and never see half a translation."""

from collections.abc import Callable
from typing import Any

import pytest

from lab import Pod
from lrp_operator.datapath.model import LinkState
from lrp_operator.kernel import bpf
from lrp_operator.kernel.bpf import Place, TcxHook
from lrp_operator.kernel.tcfilter import Hook, TcFilters
from tests.datapath.attach.ground import (
    DROP,
    OK,
    OURS,
    PASS,
    Ground,
    Neighbours,
    add_filter,
    clsact_neighbour,
    delete_filter,
    filters_on,
    place_of,
    raw,
    revisions,
    statuses,
    tcx_neighbour,
    tcx_on,
    who_answers,
    without_tcx,
    works,
)
from tests.datapath.world import DNS, VIP, WEB, InNode

pytestmark = pytest.mark.privileged


def want(datapath: InNode, client: Pod) -> None:
    datapath.want_pods({"default/client": place_of(client)})
    assert datapath.flush(complete=True).problems == ()


def is_attached(datapath: InNode, client: Pod) -> bool:
    return statuses(datapath)["default/client", client.veth.name].state is LinkState.ATTACHED


def is_shadowed(datapath: InNode, client: Pod) -> str:
    """The reason, which must be among the problems, too."""
    row = statuses(datapath)["default/client", client.veth.name]
    assert row.state is LinkState.SHADOWED, row
    assert f"pod default/client: {row.message}" in datapath.status().problems
    assert client.veth.name in row.message
    assert "left alone" in row.message
    return row.message


def expect_consistency(client: Pod, neighbours: Neighbours) -> None:
    """Traffic goes on, and the neighbour sees both halves of the same connections."""
    neighbours_verdict = neighbours.counts[2]
    assert works(client)
    noted, answers, violations = neighbours.counts
    assert violations == neighbours_verdict, f"{violations} packets were no answer to what the neighbour had seen"
    assert noted
    assert answers


# --- tcx


@pytest.mark.parametrize("place", list(Place), ids=["before", "after"])
def test_a_stateful_neighbour_that_was_first(
    ground: Ground, datapath: InNode, client: Pod, neighbours: Neighbours, place: Place
) -> None:
    with tcx_neighbour(neighbours, client.veth.index, place=place):
        want(datapath, client)
        assert is_attached(datapath, client)
        expect_consistency(client, neighbours)
        assert neighbours.destinations() >= {"10.96.0.10", "fd00:96::10"}  # as without us
        assert not neighbours.destinations() & set(ground.one.addresses)
        order = ground.inside(lambda: tcx_on(client.veth.index))
        assert order[TcxHook.INGRESS][0] == "note_out"
        assert order[TcxHook.EGRESS][-1] == "check_in"


@pytest.mark.parametrize("into", list(Place), ids=["egress-before", "egress-after"])
@pytest.mark.parametrize("out", list(Place), ids=["ingress-before", "ingress-after"])
def test_a_stateful_neighbour_that_comes_later(  # noqa: PLR0917 (fixtures)
    ground: Ground, datapath: InNode, client: Pod, neighbours: Neighbours, out: Place, into: Place
) -> None:
    """Wherever it comes: where that is no right place for ours, ours moves at the next reconcile."""
    want(datapath, client)
    with neighbours.program("note_out") as note, neighbours.program("check_in") as check:
        index = client.veth.index
        ground.inside(lambda: bpf.attach_to_link(note, index, TcxHook.INGRESS, out))
        ground.inside(lambda: bpf.attach_to_link(check, index, TcxHook.EGRESS, into))
        datapath.reconcile()
        assert is_attached(datapath, client)
        expect_consistency(client, neighbours)
        order = ground.inside(lambda: tcx_on(index))
        assert sorted(order[TcxHook.INGRESS]) == sorted(["note_out", f"lrp_from_{'port' if client.bridged else 'pod'}"])
        assert sorted(order[TcxHook.EGRESS]) == ["check_in", "lrp_to_pod"]
        before = ground.inside(lambda: revisions(index))
        datapath.reconcile()
        assert ground.inside(lambda: revisions(index)) == before  # there is nothing more to do
        ground.inside(lambda: bpf.detach_from_link(note, index, TcxHook.INGRESS))
        ground.inside(lambda: bpf.detach_from_link(check, index, TcxHook.EGRESS))
    assert works(client)


def test_two_neighbours_on_either_side(ground: Ground, datapath: InNode, client: Pod, neighbours: Neighbours) -> None:
    """One came before us, the other is put before everything, and both keep state."""
    index = client.veth.index
    with tcx_neighbour(neighbours, index):
        want(datapath, client)
        with tcx_neighbour(neighbours, index, "other_out", "other_in", place=Place.FIRST):
            datapath.reconcile()
            expect_consistency(client, neighbours)
            order = ground.inside(lambda: tcx_on(index))
            assert order[TcxHook.INGRESS][:2] == ["other_out", "note_out"]
            assert order[TcxHook.EGRESS][1:] == ["other_in", "check_in"]
        expect_consistency(client, neighbours)


@pytest.mark.parametrize("hook", list(TcxHook), ids=["ingress", "egress"])
def test_a_neighbour_on_one_hook_only(
    ground: Ground, datapath: InNode, client: Pod, neighbours: Neighbours, hook: TcxHook
) -> None:
    with neighbours.program("note_out") as note:
        ground.inside(lambda: bpf.attach_to_link(note, client.veth.index, hook, Place.LAST))
        want(datapath, client)
        assert works(client)
        assert neighbours.counts[0]
        ground.inside(lambda: bpf.detach_from_link(note, client.veth.index, hook))


# --- clsact


@pytest.fixture
def filtered(monkeypatch: pytest.MonkeyPatch, ground: Ground) -> Callable[[], InNode]:
    """A datapath on a kernel that has no tcx; opened by the test."""
    without_tcx(monkeypatch)
    return ground.datapath


@pytest.mark.parametrize("kernel", ["tcx", "no-tcx"])
@pytest.mark.parametrize("arrival", ["first", "later"])
@pytest.mark.parametrize("priority", [2, 49152, 59999])
def test_a_stateful_neighbours_filters(  # noqa: PLR0917 (fixtures)
    ground: Ground,
    client: Pod,
    neighbours: Neighbours,
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
    arrival: str,
    priority: int,
) -> None:
    if kernel == "no-tcx":
        without_tcx(monkeypatch)
    with ground.datapath() as datapath:
        if arrival == "later":
            want(datapath, client)
        with clsact_neighbour(ground, neighbours, client.veth.name, priority):
            if arrival == "first":
                want(datapath, client)
            else:
                datapath.reconcile()
            assert is_attached(datapath, client)
            expect_consistency(client, neighbours)
            filters = ground.inside(lambda: filters_on(client.veth.index))
            for hook, name in ((Hook.INGRESS, "note_out"), (Hook.EGRESS, "check_in")):
                (theirs,) = [one for one in filters[hook] if one.name not in OURS]
                assert theirs.priority == priority
                with neighbours.program(name) as program:
                    assert theirs.program == bpf.prog_info(program).id
        datapath.reconcile()  # to tcx again, where there is one
        assert works(client)
        assert len(ground.ours_on(client.veth.index)) == 2
        datapath.want_pods({})
        datapath.flush(complete=True)


@pytest.mark.parametrize(
    ("ingress", "egress"), [(1, 0), (0, 1), (65535, 0), (0, 65535), (1, 65535), (65535, 1), (1, 2), (65534, 65535)]
)
def test_filters_at_the_ends_of_the_range(  # noqa: PLR0917 (fixtures)
    ground: Ground,
    filtered: Callable[[], InNode],
    client: Pod,
    neighbours: Neighbours,
    ingress: int,
    egress: int,
) -> None:
    """0: none there. Where no place is right for both, the link is left alone; theirs stay as they are in any case."""
    device, index = client.veth.name, client.veth.index
    theirs = [(hook, p) for hook, p in (("ingress", ingress), ("egress", egress)) if p]
    for hook, priority in theirs:
        add_filter(
            ground, device, hook, priority, neighbours.folder / ("note_out" if hook == "ingress" else "check_in")
        )
    before = ground.inside(lambda: filters_on(index))
    alone = not (ingress and egress)
    with filtered() as datapath:
        datapath.want_pods({"default/client": place_of(client)})
        datapath.flush(complete=True)
        if alone and egress:
            neighbours.forget()
        state = statuses(datapath)["default/client", device].state
        now = ground.inside(lambda: filters_on(index))
        assert {h: [f for f in fs if f.name not in OURS] for h, fs in now.items()} == before
        if alone and not egress:  # a firewall that is asked on its own, at egress, lets no question pass
            assert state is LinkState.ATTACHED
        if state is LinkState.SHADOWED:
            assert is_shadowed(datapath, client)
            assert ground.ours_on(index) == []
            assert (alone and egress) or who_answers(client) == ("untranslated", "untranslated")
        elif not (alone and egress):  # one that only looks at answers has seen no question
            expect = neighbours.counts[2]
            assert works(client)
            assert neighbours.counts[2] == expect
        datapath.want_pods({})
        datapath.flush(complete=True)
    assert ground.inside(lambda: filters_on(index)) == before


def test_two_neighbours_filters_on_either_side(
    ground: Ground, technology: str, datapath: InNode, client: Pod, neighbours: Neighbours
) -> None:
    assert technology
    device = client.veth.name
    for hook, name in (("ingress", "other_out"), ("egress", "other_in")):
        add_filter(ground, device, hook, 40000, neighbours.folder / name)
    with clsact_neighbour(ground, neighbours, device, 3):
        want(datapath, client)
        expect_consistency(client, neighbours)


NOTHING_MATCHES = ["u32", "match", "ip", "dst", "192.0.2.1/32", "flowid", "1:1"]
ALL_MATCH = ["u32", "match", "u32", "0", "0", "flowid", "1:1"]


@pytest.mark.parametrize("priority", ["1", "7", "49152", "65535"])
def test_filters_of_another_kind(ground: Ground, technology: str, datapath: InNode, client: Pod, priority: str) -> None:
    """Theirs match some packets and end the chain for these; all others are ours."""
    assert technology
    device = client.veth.name
    ground.tc("qdisc", "add", "dev", device, "clsact")
    ground.tc("filter", "add", "dev", device, "ingress", "prio", priority, "protocol", "all", *NOTHING_MATCHES)
    before = ground.tc("filter", "show", "dev", device, "ingress")
    want(datapath, client)
    assert is_attached(datapath, client)
    assert works(client)
    shown = ground.tc("filter", "show", "dev", device, "ingress")
    assert all(line in shown for line in before.splitlines())
    datapath.want_pods({})
    datapath.flush(complete=True)
    assert ground.tc("filter", "show", "dev", device, "ingress") == before


@pytest.mark.parametrize("hook", ["ingress", "egress"])
def test_a_filter_of_another_kind_that_takes_everything(
    ground: Ground, technology: str, datapath: InNode, client: Pod, hook: str
) -> None:
    """It can't be asked what it does. So either it comes after ours, or people are told."""
    assert technology
    device = client.veth.name
    ground.tc("qdisc", "add", "dev", device, "clsact")
    ground.tc("filter", "add", "dev", device, hook, "prio", "7", "protocol", "all", *ALL_MATCH)
    datapath.want_pods({"default/client": place_of(client)})
    datapath.flush(complete=True)
    if is_attached(datapath, client):
        assert works(client)
    else:
        assert "u32" in is_shadowed(datapath, client)
        assert who_answers(client) == ("untranslated", "untranslated")


@pytest.mark.parametrize("filters", [NOTHING_MATCHES, [*ALL_MATCH[:5], "action", "mirred", "egress", "redirect"]])
def test_an_ingress_qdisc_is_no_clsact(
    ground: Ground, technology: str, datapath: InNode, client: Pod, filters: list[str]
) -> None:
    """The CNI's bandwidth plugin puts one on pods' links, with a filter that sends all that pods send to an ifb.

    It has the clsact's handle, takes filters for the clsact's egress, and runs them at ingress.
    """
    assert technology
    device = client.veth.name
    if "redirect" in filters:
        ground.node.run(["ip", "link", "add", "bwp", "type", "ifb"])
        ground.node.run(["ip", "link", "set", "bwp", "up"])
        filters = [*filters, "dev", "bwp"]
    try:
        ground.tc("qdisc", "add", "dev", device, "ingress")
        ground.tc("filter", "add", "dev", device, "parent", "ffff:", "protocol", "all", *filters)
        before = ground.tc("filter", "show", "dev", device, "parent", "ffff:")
        datapath.want_pods({"default/client": place_of(client)})
        datapath.flush(complete=True)
        if is_attached(datapath, client):
            assert works(client)
        else:
            is_shadowed(datapath, client)
            assert who_answers(client) == ("untranslated", "untranslated")
        if technology == "tcx":
            assert is_attached(datapath, client)  # tcx runs before these filters, and they are on one hook only
        assert ground.tc("filter", "show", "dev", device, "parent", "ffff:") == before
        datapath.want_pods({})
        datapath.flush(complete=True)
    finally:
        ground.node.run(["ip", "link", "del", "bwp"], check=False)


# --- Where there is no right place


@pytest.mark.parametrize("verdict", [OK, DROP], ids=["ok", "drop"])
def test_a_neighbour_that_ends_the_chain_on_both_hooks(  # noqa: PLR0917 (fixtures)
    ground: Ground, technology: str, datapath: InNode, client: Pod, neighbours: Neighbours, verdict: int
) -> None:
    index, device = client.veth.index, client.veth.name
    neighbours.let_pass_by(verdict)
    if technology == "tcx":
        with tcx_neighbour(neighbours, index):
            before = ground.inside(lambda: tcx_on(index))
            datapath.want_pods({"default/client": place_of(client)})
            report = datapath.flush(complete=True)
            assert report.links_attached == 0
            reason = is_shadowed(datapath, client)
            assert "note_out" in reason or "check_in" in reason
            assert ground.inside(lambda: tcx_on(index)) == before
    else:
        with clsact_neighbour(ground, neighbours, device, 9):
            theirs = ground.inside(lambda: filters_on(index))
            datapath.want_pods({"default/client": place_of(client)})
            datapath.flush(complete=True)
            reason = is_shadowed(datapath, client)
            assert "note_out" in reason or "check_in" in reason
            assert ground.inside(lambda: filters_on(index)) == theirs
            if verdict == OK:
                assert who_answers(client) == ("untranslated", "untranslated")
    report = datapath.flush(complete=True)
    assert (report.links_attached, report.problems) == (1, ())
    assert works(client)


def test_a_link_is_left_alone_for_good_and_not_for_a_moment(
    ground: Ground, datapath: InNode, client: Pod, neighbours: Neighbours
) -> None:
    """A pass comes with every change on the node: putting ours there and away each time is not leaving it alone."""
    neighbours.let_pass_by(OK)
    index = client.veth.index
    with tcx_neighbour(neighbours, index):
        before = ground.inside(lambda: revisions(index))
        datapath.want_pods({"default/client": place_of(client)})
        for _ in range(5):
            datapath.flush(complete=True)
        datapath.reconcile()
        is_shadowed(datapath, client)
        assert ground.inside(lambda: revisions(index)) == before


def test_a_neighbour_that_ends_the_chain_comes_later_and_goes(
    ground: Ground, attached: InNode, technology: str, client: Pod, neighbours: Neighbours
) -> None:
    neighbours.let_pass_by(OK)
    index = client.veth.index
    if technology == "tcx":
        with tcx_neighbour(neighbours, index):
            attached.reconcile()
            is_shadowed(attached, client)
            assert ground.ours_on(index) == []
            assert who_answers(client) == ("untranslated", "untranslated")
    else:
        with clsact_neighbour(ground, neighbours, client.veth.name, 30000):
            attached.reconcile()
            is_shadowed(attached, client)
            assert ground.ours_on(index) == []
            assert who_answers(client) == ("untranslated", "untranslated")
    assert attached.flush(complete=True).links_attached == 1
    assert works(client)
    assert attached.status().problems == ()


@pytest.mark.parametrize("hook", list(TcxHook), ids=["ingress", "egress"])
def test_a_neighbour_that_ends_the_chain_on_one_hook_has_a_place_after_ours(
    ground: Ground, technology: str, datapath: InNode, client: Pod, hook: TcxHook
) -> None:
    """There is a place that is right: before it on its hook, which is the pod's side, or the node's, of everybody."""
    index = client.veth.index
    with raw(OK) as program:
        if technology == "tcx":
            ground.inside(lambda: bpf.attach_to_link(program, index, hook, Place.LAST))
        else:
            pin = ground.node.bpf / "terminal"
            bpf.pin(program, pin)
            add_filter(ground, client.veth.name, hook.name.lower(), 9, pin)
            pin.unlink()
        want(datapath, client)
        assert works(client)
        if technology == "tcx":
            ground.inside(lambda: bpf.detach_from_link(program, index, hook))
        else:
            delete_filter(ground, client.veth.name, hook.name.lower(), 9)


def test_a_neighbour_that_changes_its_mind(datapath: InNode, client: Pod, neighbours: Neighbours) -> None:
    """What a program does may hang on its maps: it is asked anew now and then."""
    neighbours.let_pass_by(OK)
    with tcx_neighbour(neighbours, client.veth.index):
        datapath.want_pods({"default/client": place_of(client)})
        datapath.flush(complete=True)
        is_shadowed(datapath, client)
        neighbours.let_pass_by(PASS)
        datapath.reconcile()
        assert is_attached(datapath, client)
        expect_consistency(client, neighbours)
        neighbours.let_pass_by(OK)
        datapath.reconcile()
        is_shadowed(datapath, client)


def test_a_neighbour_is_not_told_of_packets_that_never_were(
    datapath: InNode, client: Pod, neighbours: Neighbours
) -> None:
    """Asking runs the neighbour's program on a made-up packet: what it then remembers should be nobody's."""
    with tcx_neighbour(neighbours, client.veth.index):
        want(datapath, client)
        print("noted while nothing was sent:", neighbours.counts, neighbours.destinations())
        assert neighbours.counts[2] == 0


def test_neighbours_of_both_technologies(ground: Ground, datapath: InNode, client: Pod, neighbours: Neighbours) -> None:
    index, device = client.veth.index, client.veth.name
    with tcx_neighbour(neighbours, index), clsact_neighbour(ground, neighbours, device, 30000):
        datapath.want_pods({"default/client": place_of(client)})
        datapath.flush(complete=True)
        assert "both tcx and clsact" in is_shadowed(datapath, client)
        assert ground.ours_on(index) == []
        assert who_answers(client) == ("untranslated", "untranslated")
    assert datapath.flush(complete=True).problems == ()
    assert works(client)


def test_the_second_technology_comes_later(
    ground: Ground, datapath: InNode, client: Pod, neighbours: Neighbours
) -> None:
    index, device = client.veth.index, client.veth.name
    with tcx_neighbour(neighbours, index):
        want(datapath, client)
        with clsact_neighbour(ground, neighbours, device, 30000):
            datapath.reconcile()
            is_shadowed(datapath, client)
            assert ground.ours_on(index) == []
        datapath.flush(complete=True)
        expect_consistency(client, neighbours)


# --- Moving


@pytest.mark.parametrize("move", ["tcx", "to-filters", "filters"])
def test_nothing_passes_untranslated_while_ours_moves(  # noqa: C901 (one story, each kind of move)
    ground: Ground,
    client: Pod,
    neighbours: Neighbours,
    monkeypatch: pytest.MonkeyPatch,
    move: str,
) -> None:
    """A packet at each step of the move: it is translated, or lost, but never answered by somebody else."""
    if move == "filters":
        without_tcx(monkeypatch)
    seen: list[tuple[str, tuple[str, int]]] = []
    index, device = client.veth.index, client.veth.name

    def probe() -> None:
        for ask in (
            lambda: client.ask_udp(VIP["4"], DNS, timeout=0.1),
            lambda: client.ask_tcp(VIP["4"], WEB, timeout=0.1),
        ):
            try:
                reply = ask()
                seen.append((reply.name, reply.peer))
            except TimeoutError:
                seen.append(("lost", ("", 0)))
            except OSError as error:
                seen.append((type(error).__name__, ("", 0)))

    def around(real: Callable[..., None]) -> Callable[..., None]:
        def step(*args: Any) -> None:
            probe()
            real(*args)
            probe()

        return step

    with ground.datapath() as datapath, neighbours.program("note_out") as note:
        want(datapath, client)
        assert works(client)
        if move == "tcx":
            for hook in TcxHook:
                ground.inside(lambda hook=hook: bpf.attach_to_link(note, index, hook, Place.LAST))
        elif move == "to-filters":
            for hook in ("ingress", "egress"):
                add_filter(ground, device, hook, 9, neighbours.folder / "note_out")
        else:
            # After ours at ingress, where ours is last: the other place is right, and ours moves.
            add_filter(ground, device, "ingress", 65535, neighbours.folder / "note_out")
        with monkeypatch.context() as patch:
            for owner, name in (
                (bpf, "attach_to_link"),
                (bpf, "replace_on_link"),
                (bpf, "detach_from_link"),
                (TcFilters, "put"),
                (TcFilters, "remove"),
            ):
                patch.setattr(owner, name, around(getattr(owner, name)))
            datapath.reconcile()
        assert seen, "ours did not move"
        assert set(seen) <= {("one", (VIP["4"], DNS)), ("one", (VIP["4"], WEB)), ("lost", ("", 0))}
        assert is_attached(datapath, client)
        assert works(client)
        datapath.want_pods({})
        datapath.flush(complete=True)
        assert "lrp_moving" not in str(ground.inside(lambda: (tcx_on(index), filters_on(index))))


def test_an_agent_that_died_while_ours_moved(ground: Ground, client: Pod) -> None:
    """What drops a link's packets for that moment must not stay: the pod would be cut off, for good."""
    index = client.veth.index
    with raw(DROP, "lrp_moving") as left:
        for hook in TcxHook:
            ground.inside(lambda hook=hook: bpf.attach_to_link(left, index, hook, Place.FIRST))
    with ground.datapath() as datapath:
        want(datapath, client)
        assert works(client)
        datapath.want_pods({})
        datapath.flush(complete=True)


def test_what_is_left_of_a_move_goes_with_the_pods_absence(ground: Ground, client: Pod) -> None:
    index = client.veth.index
    with raw(DROP, "lrp_moving") as left:
        for hook in TcxHook:
            ground.inside(lambda hook=hook: bpf.attach_to_link(left, index, hook, Place.FIRST))
    with ground.datapath() as datapath:
        datapath.flush(complete=True)
        datapath.reconcile()
        assert ground.inside(lambda: tcx_on(index)) == {hook: [] for hook in TcxHook}


def test_a_move_that_can_not_begin(
    ground: Ground, datapath: InNode, client: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second hook takes no more programs, say: the first one's barrier must not stay."""
    index = client.veth.index
    want(datapath, client)
    real = bpf.attach_to_link
    with raw(PASS) as neighbour:
        for hook in TcxHook:
            ground.inside(lambda hook=hook: real(neighbour, index, hook, Place.LAST))

        def refuse(program: bpf.Fd, ifindex: int, hook: TcxHook, place: Place) -> None:
            if hook is TcxHook.EGRESS:
                raise OSError(34, "no room")
            real(program, ifindex, hook, place)

        monkeypatch.setattr(bpf, "attach_to_link", refuse)
        datapath.reconcile()
        assert statuses(datapath)["default/client", client.veth.name].state is LinkState.FAILED
        monkeypatch.undo()
        assert "lrp_moving" not in str(ground.inside(lambda: tcx_on(index)))
        datapath.flush(complete=True)
        assert is_attached(datapath, client)
        assert works(client)
        for hook in TcxHook:
            ground.inside(lambda hook=hook: bpf.detach_from_link(neighbour, index, hook))
