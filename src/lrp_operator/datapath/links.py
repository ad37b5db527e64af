"""The TC level's programs on pods' links: where they stand among others', and putting them there without a gap.

What must never be is a neighbour that comes after us in both directions or before us in both: one that keeps state
would see half a translation. So ours stands on the node's side of all neighbours (last at ingress, which is what the
pod sends; first at egress), where each sees what it would see without us; or else on the pod's side of all of them.
A neighbour that is before us and ends the chain would keep packets from us: it is asked, by a test run on a packet like
those that a pod sends first. Filters of other kinds than eBPF can't be asked; they come after us where that may be.

Programs are attached to tcx where the kernel has it. The filters of a clsact qdisc run after all of tcx, in both
directions; so where somebody has filters on both hooks, ours is one of them. Of all places that there are (`_Place`),
the first is taken that is right; where none is, the link is left alone, without being touched.

Level-triggered: `put` looks at what is there and changes the difference. A new build goes into the old one's place in
one step. Only where neighbours have come meanwhile and ours must move, packets of this link are dropped for the moment:
a program that drops them goes into our old place, ours to the new one, and then the first away. A packet that passed
without translation would be answered with a reset. An agent that dies in that moment leaves the barrier: `take_down`.
"""

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from lrp_operator.datapath.model import LinkState
from lrp_operator.kernel import bpf
from lrp_operator.kernel.bpf import TcxHook
from lrp_operator.kernel.podlink import PodInterface
from lrp_operator.kernel.tcfilter import Filter, Hook, TcFilters

_OURS = ("lrp_from_pod", "lrp_from_port", "lrp_to_pod")
_BARRIER = "lrp_moving"
_FIRST, _LAST = 1, 0xFFFF  # priorities of our filters
_DROP, _LET_PASS = 2, 0xFFFFFFFF  # TC_ACT_SHOT, TC_ACT_UNSPEC
_CLSACT = {TcxHook.INGRESS: Hook.INGRESS, TcxHook.EGRESS: Hook.EGRESS}
_DROP_ALL = struct.pack("=BBhiBBhi", 0xB7, 0, 0, _DROP, 0x95, 0, 0, 0)  # r0 = TC_ACT_SHOT; exit

# What a pod sends first: a TCP SYN, 192.0.2.1:40000 -> 192.0.2.2:80. Nobody's addresses: a neighbour may remember it.
_SYN = bytes.fromhex(
    "020000000001 020000000002 0800"
    "45000028000040004006b6cb c0000201 c0000202"
    "9c40 0050 00000001 00000000 5002 faf0 0000 0000".replace(" ", "")
).ljust(60, b"\0")
_IFINDEX = 40  # its offset in struct __sk_buff


@dataclass(frozen=True, slots=True)
class Standing:
    """How a link stands. changed: something was done to it."""

    state: LinkState
    message: str = ""
    changed: bool = False


@dataclass(frozen=True, slots=True)
class _Neighbour:
    """Somebody else's program or filter. program: 0 where it is no eBPF."""

    program: int
    name: str


@dataclass(slots=True)
class _Attached:
    """What is on one hook of a link: program ids in tcx, filters in clsact, each in the order in which they run."""

    tcx: list[int] = field(default_factory=list)
    filters: list[Filter] = field(default_factory=list)
    occupied: bool = False  # where the clsact would be is an ingress qdisc, which has no egress


@dataclass(frozen=True, slots=True)
class _Place:
    """Where ours may stand. node_side: last at ingress and first at egress; else the other way round."""

    tcx: bool
    node_side: bool

    def is_first(self, hook: TcxHook) -> bool:
        """Whether ours runs first on a hook, of its technology; else last."""
        return (hook is TcxHook.EGRESS) is self.node_side

    def priority(self, hook: TcxHook) -> int:
        """Of our filter."""
        return _FIRST if self.is_first(hook) else _LAST


_PLACES = [_Place(tcx, node_side) for tcx in (True, False) for node_side in (True, False)]


class LinkPrograms:
    """Puts programs on links. programs: by C function. tcx: the kernel has it. All methods raise OSError."""

    def __init__(self, programs: Mapping[str, bpf.Fd], *, tcx: bool) -> None:
        self._programs = programs
        self._ids = {name: bpf.prog_info(program).id for name, program in programs.items()}
        self._tcx = tcx
        self._filters = TcFilters()
        self._names: dict[int, str] = {}  # of programs by id; an id is never used again

    def close(self) -> None:
        """Let go of netlink; what is attached stays."""
        self._filters.close()

    def put(self, link: PodInterface) -> Standing:
        """Have our programs on a link, in a place that is right for its neighbours."""
        wanted = {TcxHook.EGRESS: "lrp_to_pod", TcxHook.INGRESS: "lrp_from_port" if link.bridged else "lrp_from_pod"}
        there = {hook: self._look(link.ifindex, hook) for hook in TcxHook}
        place = self._choose(there, link.ifindex)
        if isinstance(place, str):
            return Standing(LinkState.SHADOWED, f"{link.ifname} is left alone: {place}", self.take_off(link.ifindex))
        return Standing(LinkState.ATTACHED, changed=self._put(link.ifindex, wanted, there, place))

    def neighbours(self, ifindex: int) -> tuple[list[str], str]:
        """Name others' programs and filters on a link; and say why no place beside them is right, if none is."""
        there = {hook: self._look(ifindex, hook) for hook in TcxHook}
        programs, filters = self._names_of_others(there)
        place = self._choose(there, ifindex)
        return sorted({*programs, *filters}), place if isinstance(place, str) else ""

    def _choose(self, there: Mapping[TcxHook, _Attached], ifindex: int) -> _Place | str:
        """The place for ours, or why there is none."""
        rights = [place for place in _PLACES if self._is_right(place, there)]
        if not rights:
            return self._why_nowhere(there)
        # Stay where it is right; and rather before filters that can't be asked.
        rights.sort(key=lambda place: (self._unasked(place, there), not self._stands(place, there)))
        enders: set[str] = set()
        for place in rights:
            enders = self._enders(place, there, ifindex)
            if not enders:
                return place
        return f"{', '.join(sorted(enders))} lets packets pass without asking those that come after it"

    def take_off(self, ifindex: int) -> bool:
        """Remove our programs from a link, requests first; whether there were any."""
        taken = [self._take_off(ifindex, hook) for hook in (TcxHook.INGRESS, TcxHook.EGRESS)]
        return any(taken)

    def take_down(self, ifindex: int) -> bool:
        """Remove a barrier that somebody who died left on a link; whether there was one."""
        lifted = [self._lift(ifindex, hook) for hook in TcxHook]
        return any(lifted)

    def ours_on(self, ifindex: int) -> set[int]:
        """Ids of our programs, of any build, on a link."""
        there = [self._look(ifindex, hook) for hook in TcxHook]
        filters = {found.program for one in there for found in self._our_filters(one)}
        return filters | {number for one in there for number in self._our_programs(one)}

    # --- Looking

    def _look(self, ifindex: int, hook: TcxHook) -> _Attached:
        tcx = bpf.attached_programs(ifindex, hook) if self._tcx else []
        filters = self._filters.list(ifindex, _CLSACT[hook])
        occupied = bool(filters) and not self._filters.has_clsact(ifindex)
        # An ingress qdisc answers for either hook with the filters of its one.
        return _Attached(tcx, [] if occupied and hook is TcxHook.EGRESS else filters, occupied)

    def _name(self, number: int) -> str:
        if number not in self._names:
            try:
                with bpf.open_program(number) as program:
                    self._names[number] = bpf.prog_info(program).name
            except FileNotFoundError:
                return f"program {number}"  # it has gone meanwhile
        return self._names[number] or f"program {number}"

    def _is_ours(self, number: int) -> bool:
        return number in self._ids.values() or self._name(number) in (*_OURS, _BARRIER)

    def _our_programs(self, there: _Attached) -> list[int]:
        return [number for number in there.tcx if self._is_ours(number)]

    def _our_filters(self, there: _Attached) -> list[Filter]:
        return [one for one in there.filters if one.program and self._is_ours(one.program)]

    def _others(self, there: _Attached) -> tuple[list[_Neighbour], list[tuple[int, _Neighbour]]]:
        """Others' programs in tcx, and their filters with their priorities."""
        programs = [_Neighbour(number, self._name(number)) for number in there.tcx if not self._is_ours(number)]
        filters = [
            (one.priority, _Neighbour(one.program, one.name))
            for one in there.filters
            if not one.program or not self._is_ours(one.program)
        ]
        return programs, filters

    def _names_of_others(self, there: Mapping[TcxHook, _Attached]) -> tuple[list[str], list[str]]:
        """Names of others' programs in tcx, and of their filters, on both hooks."""
        programs = [one.name for hook in TcxHook for one in self._others(there[hook])[0]]
        filters = [one.name for hook in TcxHook for _, one in self._others(there[hook])[1]]
        return programs, filters

    # --- Choosing

    def _around(self, place: _Place, hook: TcxHook, there: _Attached) -> tuple[list[_Neighbour], list[_Neighbour]]:
        """Who comes before ours on a hook, and who after it, if ours is in a place."""
        programs, filters = self._others(there)
        only_filters = [one for _, one in filters]
        if place.tcx:
            return ([], programs + only_filters) if place.is_first(hook) else (programs, only_filters)
        return (programs, only_filters) if place.is_first(hook) else (programs + only_filters, [])

    def _is_right(self, place: _Place, there: Mapping[TcxHook, _Attached]) -> bool:
        """Whether a place is to be had, and is on the same side of all others."""
        if place.tcx and not self._tcx:
            return False
        if not place.tcx and not self._has_room(place, there):
            return False
        before_in, after_in = self._around(place, TcxHook.INGRESS, there[TcxHook.INGRESS])
        before_out, after_out = self._around(place, TcxHook.EGRESS, there[TcxHook.EGRESS])
        return not (after_in or before_out) or not (before_in or after_out)

    def _has_room(self, place: _Place, there: Mapping[TcxHook, _Attached]) -> bool:
        """Whether filters of ours can run before, or after, all others' filters."""
        for hook in TcxHook:
            taken = [priority for priority, _ in self._others(there[hook])[1]]
            if any(p <= _FIRST if place.is_first(hook) else p >= _LAST for p in taken):
                return False
        return not any(one.occupied for one in there.values())

    def _why_nowhere(self, there: Mapping[TcxHook, _Attached]) -> str:
        programs, filters = self._names_of_others(there)
        if any(one.occupied for one in there.values()):
            return f"an ingress qdisc with filters ({', '.join(sorted(set(filters)))}) is where our clsact would be"
        if programs and filters:
            names = ", ".join(sorted({*programs, *filters}))
            return f"others use both tcx and clsact there ({names}), so no place of ours is right"
        return "the priorities of others' filters leave no place that is right for all of them"

    def _enders(self, place: _Place, there: Mapping[TcxHook, _Attached], ifindex: int) -> set[str]:
        """Who comes before ours and ends the chain."""
        before = [one for hook in TcxHook for one in self._around(place, hook, there[hook])[0]]
        return {
            f"{one.name} (program {one.program})"
            for one in before
            if one.program and not self._lets_pass(one.program, ifindex)
        }

    def _unasked(self, place: _Place, there: Mapping[TcxHook, _Attached]) -> int:
        """How many come before ours that can't be asked."""
        return sum(not one.program for hook in TcxHook for one in self._around(place, hook, there[hook])[0])

    def _lets_pass(self, number: int, ifindex: int) -> bool:
        """Ask a program. What one that drops this packet does with others is not known: it counts as one that ends."""
        context = bytearray(192)
        struct.pack_into("=I", context, _IFINDEX, ifindex)
        try:
            with bpf.open_program(number) as program:
                value = bpf.run_packet(program, _SYN, context=bytes(context)).value
        except OSError:
            return True  # it can't be asked, or is gone: no reason to leave the link alone
        return value == _LET_PASS

    def _stands(self, place: _Place, there: Mapping[TcxHook, _Attached]) -> bool:
        """Whether ours is there: one program, or filter, on each hook, and nothing else of ours."""
        return all(self._stands_on(place, hook, there[hook]) for hook in TcxHook)

    def _stands_on(self, place: _Place, hook: TcxHook, there: _Attached) -> bool:
        programs, filters = self._our_programs(there), self._our_filters(there)
        if not place.tcx:
            return not programs and [one.priority for one in filters] == [place.priority(hook)]
        if filters or len(programs) != 1:
            return False
        return there.tcx.index(programs[0]) == (0 if place.is_first(hook) else len(there.tcx) - 1)

    # --- Putting

    def _put(
        self, ifindex: int, wanted: Mapping[TcxHook, str], there: Mapping[TcxHook, _Attached], place: _Place
    ) -> bool:
        """Have ours in a place; whether anything was done."""
        if self._stands(place, there):
            replaced = [self._replace(ifindex, hook, name, there[hook]) for hook, name in wanted.items()]
            return any(replaced)
        if not any(self._our_programs(one) or self._our_filters(one) for one in there.values()):
            for hook, name in wanted.items():  # replies first
                self._attach(ifindex, hook, place, name)
            return True
        self._move(ifindex, wanted, there, place)
        return True

    def _replace(self, ifindex: int, hook: TcxHook, name: str, there: _Attached) -> bool:
        """Swap a program of ours for this build's, in its place; whether that was needed."""
        for number in self._our_programs(there):
            if number == self._ids[name]:
                return False
            with bpf.open_program(number) as old:
                bpf.replace_on_link(self._programs[name], old, ifindex, hook)
        for one in self._our_filters(there):
            if one.program == self._ids[name]:
                return False
            self._filters.put(ifindex, _CLSACT[hook], one.priority, self._programs[name], name)
        return True

    def _attach(self, ifindex: int, hook: TcxHook, place: _Place, name: str) -> None:
        if place.tcx:
            where = bpf.Place.FIRST if place.is_first(hook) else bpf.Place.LAST
            bpf.attach_to_link(self._programs[name], ifindex, hook, where)
        else:
            self._filters.put(ifindex, _CLSACT[hook], place.priority(hook), self._programs[name], name)

    def _move(
        self, ifindex: int, wanted: Mapping[TcxHook, str], there: Mapping[TcxHook, _Attached], place: _Place
    ) -> None:
        """Bring ours to another place. Meanwhile its old one drops what comes by, so nothing passes untranslated."""
        with bpf.load_program(bpf.ProgType.SCHED_CLS, _DROP_ALL, name=_BARRIER) as barrier:
            try:
                for hook in TcxHook:
                    self._bar(ifindex, hook, there[hook], barrier)
                for hook, name in wanted.items():
                    self._attach(ifindex, hook, place, name)
            finally:
                for hook in TcxHook:
                    self._lift(ifindex, hook)

    def _bar(self, ifindex: int, hook: TcxHook, there: _Attached, barrier: bpf.Fd) -> None:
        programs = self._our_programs(there)
        for number in programs[1:]:
            self._detach(number, ifindex, hook)
        for number in programs[:1]:
            with bpf.open_program(number) as old:
                bpf.replace_on_link(barrier, old, ifindex, hook)
        for one in self._our_filters(there):
            self._filters.put(ifindex, _CLSACT[hook], one.priority, barrier, _BARRIER)

    def _lift(self, ifindex: int, hook: TcxHook) -> bool:
        """Remove all barriers of a hook; whether there were any."""
        there = self._look(ifindex, hook)
        programs = [number for number in there.tcx if self._name(number) == _BARRIER]
        filters = [one for one in there.filters if one.program and self._name(one.program) == _BARRIER]
        for number in programs:
            self._detach(number, ifindex, hook)
        for one in filters:
            self._filters.remove(ifindex, _CLSACT[hook], one.priority)
        return bool(programs or filters)

    def _detach(self, number: int, ifindex: int, hook: TcxHook) -> None:
        with bpf.open_program(number) as program:
            bpf.detach_from_link(program, ifindex, hook)

    def _take_off(self, ifindex: int, hook: TcxHook) -> bool:
        there = self._look(ifindex, hook)
        for number in self._our_programs(there):
            self._detach(number, ifindex, hook)
        for one in self._our_filters(there):
            self._filters.remove(ifindex, _CLSACT[hook], one.priority)
        return bool(self._our_programs(there) or self._our_filters(there))


def is_gone(error: OSError) -> bool:
    """Whether an error says that a link is not there any more."""
    return error.errno in {errno.ENODEV, errno.ENOENT}
