"""The TC level's programs on pods' links: where they stand among others', and putting them there without a gap.

Our place is the one nearest to the node: last of all at ingress (what the pod sends), first of all at egress. So every
neighbour sees what it would see without us: the pod talks to the frontend. Where that place is not to be had, the one
nearest to the pod serves as well (first at ingress, last at egress). What must never be is a neighbour that comes
after us in both directions or before us in both: one that keeps state would see half a translation.

Programs are attached to tcx where the kernel has it. The filters of a clsact qdisc run after all of tcx, in both
directions; so on a link where somebody has such filters, ours is one of them. Where others use both, no place is
right, and the link is left alone. It is left alone too where a neighbour that comes before us ends the chain: it is
asked, by a test run on a packet like those that a pod sends first.

Level-triggered: `put` looks at what is there and changes the difference. A new build goes into the old one's place in
one step. Only where neighbours have come meanwhile and ours must move, packets of this link are dropped for the moment
between taking it off and putting it back: one that passed without translation would be answered with a reset.
"""

import errno
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from lrp_operator.datapath.model import LinkState
from lrp_operator.kernel import bpf
from lrp_operator.kernel.bpf import Place, TcxHook
from lrp_operator.kernel.podlink import PodInterface
from lrp_operator.kernel.tcfilter import Filter, Hook, TcFilters

_OURS = ("lrp_from_pod", "lrp_from_port", "lrp_to_pod")
_FIRST, _LAST = 1, 60000  # priorities of our filters; the kernel gives others 49152 and less where they name none
_LET_PASS, _REDIRECT = -1, 7
_CLSACT = {TcxHook.INGRESS: Hook.INGRESS, TcxHook.EGRESS: Hook.EGRESS}
_DROP_ALL = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)  # r0 = TC_ACT_SHOT; exit

# What a pod sends first: a TCP SYN, 10.0.0.1:40000 -> 10.96.0.1:80.
_SYN = bytes.fromhex(
    "020000000001 020000000002 0800"
    "4500002800004000400626cb 0a000001 0a600001"
    "9c40 0050 00000001 00000000 5002 faf0 0000 0000".replace(" ", "")
).ljust(60, b"\0")
_IFINDEX = 40  # its offset in struct __sk_buff


@dataclass(frozen=True, slots=True)
class Standing:
    """How a link stands. changed: something was done to it."""

    state: LinkState
    message: str = ""
    changed: bool = False


@dataclass(slots=True)
class _Attached:
    """What is on one hook of a link: program ids in tcx, filters in clsact, each in the order in which they run."""

    tcx: list[int] = field(default_factory=list)
    filters: list[Filter] = field(default_factory=list)


class LinkPrograms:
    """Puts programs on links. programs: by C function. tcx: the kernel has it. All methods raise OSError."""

    def __init__(self, programs: Mapping[str, bpf.Fd], *, tcx: bool) -> None:
        self._programs = programs
        self._ids = {name: bpf.prog_info(program).id for name, program in programs.items()}
        self._tcx = tcx
        self._filters = TcFilters()
        self._names: dict[int, str] = {}  # of programs by id; an id is never used again
        self._passes: dict[int, bool] = {}  # by id: whether it lets a pod's packets go on to the next

    def close(self) -> None:
        """Let go of netlink; what is attached stays."""
        self._filters.close()

    def put(self, link: PodInterface) -> Standing:
        """Have our programs on a link, in a place that is right for its neighbours."""
        wanted = {TcxHook.EGRESS: "lrp_to_pod", TcxHook.INGRESS: "lrp_from_port" if link.bridged else "lrp_from_pod"}
        there = {hook: self._look(link.ifindex, hook) for hook in TcxHook}
        filters = [one for attached in there.values() for one in self._foreign_filters(attached)]
        programs = [number for attached in there.values() for number in self._foreign_programs(attached)]
        if filters and programs:
            names = ", ".join(sorted({one.name for one in filters} | {self._name(number) for number in programs}))
            return self._leave(link, f"others use both tcx and clsact there ({names}), so no place of ours is right")
        use_tcx = self._tcx and not filters
        standing = self._put_tcx(link, wanted, there) if use_tcx else self._put_clsact(link, wanted, there)
        if standing.state is LinkState.ATTACHED and (shadow := self._shadow(link.ifindex)):
            return self._leave(link, f"{shadow} lets packets pass without asking those that come after it")
        return standing

    def take_off(self, ifindex: int) -> bool:
        """Remove our programs from a link, requests first; whether there were any."""
        taken = [self._take_off(ifindex, hook) for hook in (TcxHook.INGRESS, TcxHook.EGRESS)]
        return any(taken)

    def ours_on(self, ifindex: int) -> set[int]:
        """Ids of our programs, of any build, on a link."""
        there = [self._look(ifindex, hook) for hook in TcxHook]
        filters = {found.program for one in there for found in self._our_filters(one)}
        return filters | {number for one in there for number in self._our_programs(one)}

    # --- Looking

    def _look(self, ifindex: int, hook: TcxHook) -> _Attached:
        tcx = bpf.attached_programs(ifindex, hook) if self._tcx else []
        return _Attached(tcx, self._filters.list(ifindex, _CLSACT[hook]))

    def _name(self, number: int) -> str:
        if number not in self._names:
            try:
                with bpf.open_program(number) as program:
                    self._names[number] = bpf.prog_info(program).name
            except FileNotFoundError:
                return f"program {number}"  # it has gone meanwhile
        return self._names[number] or f"program {number}"

    def _is_ours(self, number: int) -> bool:
        return number in self._ids.values() or self._name(number) in _OURS

    def _our_programs(self, there: _Attached) -> list[int]:
        return [number for number in there.tcx if self._is_ours(number)]

    def _foreign_programs(self, there: _Attached) -> list[int]:
        return [number for number in there.tcx if not self._is_ours(number)]

    def _our_filters(self, there: _Attached) -> list[Filter]:
        return [one for one in there.filters if one.program and self._is_ours(one.program)]

    def _foreign_filters(self, there: _Attached) -> list[Filter]:
        return [one for one in there.filters if not one.program or not self._is_ours(one.program)]

    def _shadow(self, ifindex: int) -> str:
        """Name whoever comes before us and ends the chain; empty if nobody does."""
        for hook in TcxHook:
            there = self._look(ifindex, hook)
            chain = [*there.tcx, *(one.program for one in there.filters if one.program)]
            for number in chain:
                if self._is_ours(number):
                    break
                if not self._lets_pass(number, ifindex):
                    return f"{self._name(number)} (program {number})"
        return ""

    def _lets_pass(self, number: int, ifindex: int) -> bool:
        if number not in self._passes:
            context = bytearray(192)
            struct.pack_into("=I", context, _IFINDEX, ifindex)
            try:
                with bpf.open_program(number) as program:
                    value = bpf.run_packet(program, _SYN, context=bytes(context)).value
            except OSError:
                return True  # it can't be asked, or is gone: no reason to leave the link alone
            self._passes[number] = value == _LET_PASS & 0xFFFFFFFF
        return self._passes[number]

    # --- Putting

    def _put_tcx(
        self, link: PodInterface, wanted: Mapping[TcxHook, str], there: Mapping[TcxHook, _Attached]
    ) -> Standing:
        changed = False
        if self._is_right(there) and not any(self._our_filters(one) for one in there.values()):
            for hook, name in wanted.items():
                changed |= self._replace(link.ifindex, hook, name, self._our_programs(there[hook]))
            return Standing(LinkState.ATTACHED, changed=changed)
        moving = any(self._our_programs(one) or self._our_filters(one) for one in there.values())
        with self._closed(link.ifindex, needed=moving):
            self.take_off(link.ifindex)
            for hook, name in wanted.items():  # replies first
                place = Place.FIRST if hook is TcxHook.EGRESS else Place.LAST
                bpf.attach_to_link(self._programs[name], link.ifindex, hook, place)
        return Standing(LinkState.ATTACHED, changed=True)

    def _is_right(self, there: Mapping[TcxHook, _Attached]) -> bool:
        """Whether one program of ours stands on each hook, on opposite sides of all others."""
        places = []
        for hook in (TcxHook.INGRESS, TcxHook.EGRESS):
            ours = self._our_programs(there[hook])
            if len(ours) != 1:
                return False
            at, last = there[hook].tcx.index(ours[0]), len(there[hook].tcx) - 1
            places.append((at == 0, at == last))
        (ingress_first, ingress_last), (egress_first, egress_last) = places
        return (ingress_last and egress_first) or (ingress_first and egress_last)

    def _replace(self, ifindex: int, hook: TcxHook, name: str, ours: list[int]) -> bool:
        """Swap a program of ours for this build's; whether that was needed."""
        if ours == [self._ids[name]]:
            return False
        with bpf.open_program(ours[0]) as old:
            bpf.replace_on_link(self._programs[name], old, ifindex, hook)
        return True

    def _put_clsact(
        self, link: PodInterface, wanted: Mapping[TcxHook, str], there: Mapping[TcxHook, _Attached]
    ) -> Standing:
        priorities = self._priorities(there)
        if priorities is None:
            return self._leave(link, "the priorities of others' filters leave no place that is right for all of them")
        wrong = [
            hook
            for hook in TcxHook
            if self._our_programs(there[hook])
            or any(one.priority != priorities[hook] for one in self._our_filters(there[hook]))
        ]
        if wrong:
            self.take_off(link.ifindex)
        changed = bool(wrong)
        for hook, name in wanted.items():
            ours = [] if wrong else self._our_filters(there[hook])
            if [one.program for one in ours] != [self._ids[name]]:
                self._filters.put(link.ifindex, _CLSACT[hook], priorities[hook], self._programs[name], name)
                changed = True
        return Standing(LinkState.ATTACHED, changed=changed)

    def _priorities(self, there: Mapping[TcxHook, _Attached]) -> dict[TcxHook, int] | None:
        """Priorities that set us on opposite sides of all others; None if there are none."""
        taken = {hook: [one.priority for one in self._foreign_filters(there[hook])] for hook in TcxHook}
        for before, after in ((TcxHook.EGRESS, TcxHook.INGRESS), (TcxHook.INGRESS, TcxHook.EGRESS)):
            if min(taken[before], default=_LAST) > _FIRST and max(taken[after], default=_FIRST) < _LAST:
                return {before: _FIRST, after: _LAST}
        return None

    def _leave(self, link: PodInterface, why: str) -> Standing:
        return Standing(LinkState.SHADOWED, f"{link.ifname} is left alone: {why}", self.take_off(link.ifindex))

    def _take_off(self, ifindex: int, hook: TcxHook) -> bool:
        there = self._look(ifindex, hook)
        for number in self._our_programs(there):
            with bpf.open_program(number) as program:
                bpf.detach_from_link(program, ifindex, hook)
        for one in self._our_filters(there):
            self._filters.remove(ifindex, _CLSACT[hook], one.priority)
        return bool(self._our_programs(there) or self._our_filters(there))

    @contextmanager
    def _closed(self, ifindex: int, *, needed: bool) -> Iterator[None]:
        """Drop what a link carries for a moment."""
        if not needed:
            yield
            return
        with bpf.load_program(bpf.ProgType.SCHED_CLS, _DROP_ALL, name="lrp_moving") as barrier:
            for hook in TcxHook:
                bpf.attach_to_link(barrier, ifindex, hook, Place.FIRST)
            try:
                yield
            finally:
                for hook in TcxHook:
                    bpf.detach_from_link(barrier, ifindex, hook)


def is_gone(error: OSError) -> bool:
    """Whether an error says that a link is not there any more."""
    return error.errno in {errno.ENODEV, errno.ENOENT}
