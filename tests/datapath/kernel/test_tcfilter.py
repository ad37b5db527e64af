import errno
import struct
import time
from collections.abc import Iterator

import pytest

from lab import Node, Pod
from lrp_operator.kernel import bpf
from lrp_operator.kernel.tcfilter import HANDLE, Filter, Hook, TcFilters

pytestmark = pytest.mark.privileged

PASS, DROP = -1, 2


def program(verdict: int, name: str) -> bpf.Fd:
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, verdict, 0x95, 0, 0, 0)
    return bpf.load_program(bpf.ProgType.SCHED_CLS, code, name=name)


@pytest.fixture
def filters(node: Node) -> Iterator[TcFilters]:
    filters = TcFilters(node.netns)
    yield filters
    filters.close()


@pytest.fixture
def pod(node: Node) -> Pod:
    return node.pod("a")


def is_loaded(number: int) -> bool:
    try:
        bpf.open_program(number).close()
    except FileNotFoundError:
        return False
    return True


def reaches(pod: Pod) -> bool:
    """Whether a packet of the pod's gets through to the node."""
    try:
        pod.ask_udp("172.31.0.1", 9, timeout=0.3, connected=True)
    except ConnectionRefusedError:
        return True  # the node has no such server, and says so
    except TimeoutError:
        return False
    return True


def test_a_link_without_a_clsact_has_no_filters(filters: TcFilters, pod: Pod) -> None:
    assert filters.list(pod.veth.index, Hook.INGRESS) == filters.list(pod.veth.index, Hook.EGRESS) == []
    filters.remove(pod.veth.index, Hook.INGRESS, 1)  # nothing to remove is fine


def test_a_link_that_is_gone(filters: TcFilters, pod: Pod) -> None:
    index = pod.veth.index
    pod.remove()
    assert filters.list(index, Hook.INGRESS) == []
    filters.remove(index, Hook.INGRESS, 1)
    with program(PASS, "mine") as mine, pytest.raises(OSError, match="No such device") as caught:
        filters.put(index, Hook.INGRESS, 1, mine, "mine")
    assert caught.value.errno == errno.ENODEV


def test_each_hook_is_its_own(filters: TcFilters, pod: Pod) -> None:
    index = pod.veth.index
    with program(PASS, "one") as one, program(PASS, "two") as two:
        filters.put(index, Hook.INGRESS, 5, one, "one")
        filters.put(index, Hook.EGRESS, 60000, two, "two")
        assert filters.list(index, Hook.INGRESS) == [Filter(5, HANDLE, bpf.prog_info(one).id, "one")]
        assert filters.list(index, Hook.EGRESS) == [Filter(60000, HANDLE, bpf.prog_info(two).id, "two")]
    filters.remove(index, Hook.INGRESS, 5)
    assert filters.list(index, Hook.INGRESS) == []
    assert len(filters.list(index, Hook.EGRESS)) == 1


def test_a_filter_works_and_is_replaced_in_its_place(filters: TcFilters, pod: Pod) -> None:
    index = pod.veth.index
    assert reaches(pod)
    with program(DROP, "mine") as drop, program(PASS, "mine") as let_pass:
        filters.put(index, Hook.INGRESS, 7, drop, "mine")
        assert not reaches(pod)
        filters.put(index, Hook.INGRESS, 7, let_pass, "mine")
        (only,) = filters.list(index, Hook.INGRESS)
        assert only == Filter(7, HANDLE, bpf.prog_info(let_pass).id, "mine")
    assert reaches(pod)


def test_they_are_listed_in_the_order_in_which_they_run(node: Node, filters: TcFilters, pod: Pod) -> None:
    index, device = pod.veth.index, pod.veth.name
    with program(PASS, "late") as late, program(PASS, "early") as early:
        filters.put(index, Hook.INGRESS, 65535, late, "late")
        filters.put(index, Hook.INGRESS, 1, early, "early")
    match = ["u32", "match", "ip", "dst", "192.0.2.1/32", "flowid", "1:1"]
    node.run(["tc", "filter", "add", "dev", device, "ingress", "prio", "300", "protocol", "all", *match])
    found = filters.list(index, Hook.INGRESS)
    assert [one.priority for one in found] == sorted(one.priority for one in found)
    assert [one.name for one in found if one.program] == ["early", "late"]
    assert {one.name for one in found if not one.program} == {"u32"}
    assert {one.priority for one in found if not one.program} == {300}


def test_others_filters_stay(node: Node, filters: TcFilters, pod: Pod) -> None:
    """Also one of the same priority, with another handle; and the clsact, whoever added it."""
    index, device = pod.veth.index, pod.veth.name
    pin = node.bpf / "theirs"
    with program(PASS, "theirs") as theirs, program(PASS, "mine") as mine:
        bpf.pin(theirs, pin)
        node.run(["tc", "qdisc", "add", "dev", device, "clsact"])
        add = ["tc", "filter", "add", "dev", device, "ingress", "prio", "7", "handle", "2", "bpf", "da"]
        node.run([*add, "object-pinned", str(pin)])
        before = filters.list(index, Hook.INGRESS)
        filters.put(index, Hook.INGRESS, 7, mine, "mine")
        assert len(filters.list(index, Hook.INGRESS)) == 2
        filters.remove(index, Hook.INGRESS, 7)
        assert filters.list(index, Hook.INGRESS) == before
        filters.remove(index, Hook.INGRESS, 7)
        assert filters.list(index, Hook.INGRESS) == before
    assert "clsact" in node.run(["tc", "qdisc", "show", "dev", device]).stdout


def test_an_ingress_qdisc_is_told_from_a_clsact(node: Node, filters: TcFilters, pod: Pod) -> None:
    """It stands in the same place; a filter for the clsact's egress would run at ingress."""
    index, device = pod.veth.index, pod.veth.name
    node.run(["tc", "qdisc", "add", "dev", device, "ingress"])
    with program(DROP, "mine") as mine, pytest.raises(OSError, match=r"xists|xclusiv"):
        filters.put(index, Hook.EGRESS, 1, mine, "mine")
    assert "mine" not in node.run(["tc", "filter", "show", "dev", device, "ingress"]).stdout
    assert reaches(pod)


def test_a_filter_goes_with_its_link_and_lets_its_program_go(filters: TcFilters, pod: Pod) -> None:
    with program(PASS, "mine") as mine:
        number = bpf.prog_info(mine).id
        filters.put(pod.veth.index, Hook.INGRESS, 1, mine, "mine")
    bpf.open_program(number).close()
    pod.remove()
    deadline = time.monotonic() + 10
    while is_loaded(number):
        assert time.monotonic() < deadline
