"""The front door of the datapath: what the agent asks for, in the order that keeps redirects whole.

Level-triggered: `update` notes what is wanted, `flush` writes the difference and can be called again after any failure,
`reconcile` reads the kernel back and repairs what others have broken. What is in the kernel outlives this object.

All calls come from one worker thread: some block for a moment (a grace period, the loader's child).
"""

import logging
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath import plan as plan_room
from lrp_operator.datapath import programs as programs_room
from lrp_operator.datapath.direct import DirectFrontends
from lrp_operator.datapath.ending import Ender
from lrp_operator.datapath.events import Events
from lrp_operator.datapath.layout import CONTROL_SETTLED, COUNTERS, FLAG_DIRECT, FLAG_NAMES, check_map, frontend_key
from lrp_operator.datapath.model import (
    DatapathError,
    DatapathSettings,
    DatapathStatus,
    FlushReport,
    Hits,
    KernelBackend,
    KernelFrontend,
    KernelSkip,
    PodPlace,
    RedirectEvent,
    SocketLevel,
    TcLevel,
)
from lrp_operator.datapath.place import PodLocator, check_place, why_not_covered
from lrp_operator.datapath.plan import TcBuild
from lrp_operator.datapath.programs import Programs
from lrp_operator.datapath.skips import SkipTable
from lrp_operator.datapath.tables import Changes, Content, FamilyMaps, FamilyTable, IdPool, content_of
from lrp_operator.datapath.tc import LinkLevel, lift_barriers_everywhere, take_off_everywhere
from lrp_operator.kernel import bpf, features
from lrp_operator.kernel.grace import wait_for_readers
from lrp_operator.resolve.model import Delta, FrontendEntry, SkipEntry

log = logging.getLogger(__name__)

# Readers are waited for only when this much of a table is resting; until then there is room elsewhere.
_RESTING_SHARE = 4
_READ_ALL_COUNTERS_FROM = 2000
_SECOND_LOOK = 1.0  # seconds after a backend has left
_AT_ONCE = 0.001  # seconds: whoever else waits for the worker has a turn


class Datapath:
    """One node's datapath."""

    def __init__(self, settings: DatapathSettings) -> None:
        self.settings = settings
        self._entries: dict[L4Addr, FrontendEntry] = {}
        self._skips: dict[str, SkipEntry] = {}
        self._pods: dict[str, PodPlace] = {}
        self._opened: _Opened | None = None

    # --- Life

    def open(self) -> None:
        """Load or adopt what the settings ask for. Raises DatapathError; may be called again then."""
        self.close()
        self._opened = _Opened(self.settings)
        for address, entry in self._entries.items():
            self._opened.want(address, entry, self._skipped())
        for pod, skip in self._skips.items():
            self._opened.skips.want(pod, skip)
        self._opened.want_pods(self._pods)

    def end_redirecting(self) -> bool:
        """Redirect nothing new from now on; what was redirected is served on until `cleanup`. Whether anything is.

        Raises DatapathError; everything in force may then be so still.
        """
        self.close()
        self.settings = replace(self.settings, socket_level=SocketLevel.OFF, tc_level=TcLevel.OFF)
        if not plan_room.may_have_been_redirecting(self.settings.bpf_root):
            return False
        self.open()
        return True

    def close(self) -> None:
        """Let go; the kernel goes on redirecting."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _need(self) -> "_Opened":
        if self._opened is None:
            raise DatapathError("the datapath is not open")
        return self._opened

    # --- What is wanted

    def update(self, delta: Delta) -> None:
        """Note what resolution changed. Frontends without backends that are not refused are for display: left out."""
        before = self._skipped()
        for pod, skip in delta.skips.items():
            if skip is None:
                self._skips.pop(pod, None)
            else:
                self._skips[pod] = skip
            if self._opened is not None:
                self._opened.skips.want(pod, skip)
        for address, entry in delta.frontends.items():
            if entry is None or not (entry.backends or entry.refuse):
                self._entries.pop(address, None)
            else:
                self._entries[address] = entry
        skipped = self._skipped()
        if self._opened is not None:
            for address in delta.frontends.keys() | (before ^ skipped):
                self._opened.want(address, self._entries.get(address), skipped)

    def _skipped(self) -> set[L4Addr]:
        return {frontend for entry in self._skips.values() for frontend in entry.frontends}

    def want_pods(self, pods: Mapping[str, PodPlace]) -> None:
        """Note which pods of this node have a network of their own, by "namespace/name": for the TC level."""
        self._pods = dict(pods)
        if self._opened is not None:
            self._opened.want_pods(self._pods)

    def relocate(self) -> None:
        """Pods' links have changed: look up anew at the next flush whose is whose."""
        if self._opened is not None:
            self._opened.skips.relocate()

    # --- What is done

    def flush(self, *, complete: bool) -> FlushReport:
        """Write what differs. complete: all inputs have been seen once, so what nobody wants may go.

        Raises DatapathError if it is not open; failures of entries are in the report, and retried next time.
        """
        return self._need().flush(prune=complete)

    def reconcile(self) -> FlushReport:
        """Read the kernel back, repair links and entries. Raises DatapathError where that can't be done."""
        opened = self._need()
        repaired = opened.repair()
        report = opened.flush(prune=opened.complete)
        return msgspec.structs.replace(report, repaired=tuple(repaired))

    # --- What is

    def frontends(self) -> list[KernelFrontend]:
        """Every frontend as the maps hold it, read from the kernel. Raises DatapathError."""
        return self._need().kernel_frontends()

    def held(self, frontends: Iterable[L4Addr]) -> set[L4Addr]:
        """Those of some frontends that the kernel's maps have; only they are looked at. Raises DatapathError."""
        return self._need().held(frontends)

    def skips(self) -> list[KernelSkip]:
        """Every exemption as the maps hold it, read from the kernel. Raises DatapathError."""
        try:
            return self._need().skips.kernel_view()
        except OSError as error:
            raise DatapathError(f"the skip maps can't be read: {error}") from error

    def hits(self) -> dict[L4Addr, Hits]:
        """Counters of every programmed frontend. Raises DatapathError."""
        return self._need().hits()

    def status(self) -> DatapathStatus:
        """How things stand; also when it is not open."""
        if self._opened is None:
            return DatapathStatus(in_force=False, message="the datapath is not open")
        return self._opened.status()

    # --- Events

    def pod_of_link(self, ifindex: int) -> str | None:
        """Whose link it is, at the TC level; None if it is not known."""
        return self._opened.tc.name_of(ifindex) if self._opened is not None and self._opened.tc else None

    def watch_events(self, on: bool) -> None:
        """Turn the kernel's event ring on or off. Raises DatapathError if it is not open."""
        self._need().events.watch(on=on)

    def read_events(self) -> list[RedirectEvent]:
        """Return the events that wait. Raises DatapathError if it is not open."""
        return self._need().events.read()

    def events_fd(self) -> int:
        """Return a descriptor that is readable when events wait. Raises DatapathError if it is not open."""
        return self._need().events.fileno()


class _Opened:
    """An open datapath: maps, programs, tables. The constructor raises DatapathError."""

    def __init__(self, settings: DatapathSettings) -> None:
        self._settings = settings
        place = check_place(settings)
        try:
            self._features = features.probe()
        except PermissionError as error:
            raise DatapathError(
                "no right to load eBPF programs: run as root, or with CAP_SYS_ADMIN and CAP_NET_ADMIN"
            ) from error
        self._locator = PodLocator(place)
        wanted = plan_room.plan(settings, self._features, place.host_cookie)
        self._programs = Programs(wanted, settings.cgroup_root)
        self._direct = DirectFrontends() if wanted.tc is not TcBuild.NONE else None
        self.tc: LinkLevel | None = None
        self._resources = ExitStack()
        self._resources.callback(self._locator.close)
        self._resources.callback(self._programs.close)
        self._maps: dict[str, bpf.Map] = {}
        self._pins: dict[str, Path] = {}
        self.complete = False
        self._problems: tuple[str, ...] = ()
        self._tc_problems: list[str] = []
        self._removing = False  # a frontend is to go with the next flush
        # Where a flow is redirected, it is to a frontend. An agent before this one may have told so.
        self._flows_settled = True
        self._second_look = False
        self._looked = 0.0  # by time.monotonic()
        self._search_due = True  # an agent before this one may not have come to ending the sockets that it should have
        try:
            self._programs.load()
            self._open_maps()
            self._read_back()
            self._adopt_direct()
            self._tell_settled(holds=False)
            # What an earlier mode, or another build of tables, has in force serves on until ours are filled: see flush.
            serves = settings.socket_level is not SocketLevel.OFF or settings.tc_level is not TcLevel.OFF
            self._attach_when_filled = serves and not self._is_current()
            if not self._attach_when_filled:
                self._attach()
        except BaseException as error:
            self._resources.close()
            if isinstance(error, OSError):
                raise DatapathError(f"what is pinned below {settings.bpf_root} can't be used: {error}") from error
            raise

    def _open_maps(self) -> None:
        wanted = self._programs.wanted
        for path in (path for folder in wanted.folders.values() for path in Path(folder).iterdir()):
            if not path.is_dir():
                self._maps[path.name] = bpf.Map.open(path)
                self._resources.callback(self._maps[path.name].close)
                self._pins[path.name] = path
        for name, opened in self._maps.items():
            if name != "events":
                check_map(name, opened, self._settings.max_frontends, self._settings.max_backends)
        self._ids = IdPool(self._settings.max_frontends, self._clear_counters)
        families = [(4, "4")] * self._settings.ipv4 + [(16, "6")] * self._settings.ipv6
        self._tables = {
            ip_bytes: FamilyTable(
                ip_bytes,
                FamilyMaps(self._maps[f"frontends{digit}"], self._maps["runs"], self._maps[f"backends{digit}"]),
                self._settings.max_backends,
                self._ids,
            )
            for ip_bytes, digit in families
        }
        self.skips = SkipTable({n: self._maps[f"skip{digit}"] for n, digit in families}, self._who)
        self.events = Events(self._maps["events"], self._maps["control"])
        self._resources.callback(self.events.close)
        self._ender = Ender(self._programs.socket_folders(), tcp=self._settings.terminate_tcp)
        self._resources.callback(self._ender.close)
        if wanted.tc is not TcBuild.NONE:
            leaving = wanted.tc is TcBuild.LEAVING
            self.tc = LinkLevel(self._programs.tc_programs(), wanted.flows, tcx=self._features.tcx, leaving=leaving)
            self._resources.callback(self.tc.close)

    def _who(self, entry: SkipEntry) -> tuple[int, ...] | None:
        """What the kernel knows an exempt pod by, at the level that redirects it. Raises OSError."""
        level = self._settings.socket_level
        if level is SocketLevel.EVERYWHERE or (level is SocketLevel.HOST_ONLY and entry.host_network):
            cookie = self._locator.cookie(entry)
            return None if cookie is None else (cookie,)
        # Who is on the node's own network is not redirected at the TC level.
        return () if entry.host_network or self.tc is None else self.tc.who(entry.pod)

    def _clear_counters(self, number: int) -> None:
        counters = self._maps["counters"]
        counters.update(struct.pack("=I", number), bytes(counters.value_bytes))

    def _read_back(self) -> int:
        """Fill the mirrors from the kernel; return how many frontends differed from what was remembered."""
        self._settled = False  # a mirror that is new has forgotten which slots and ids rest
        try:
            drifted = sum(table.load() for table in self._tables.values())
            self.skips.load()
        finally:
            self._ids.rebuild(p.id for table in self._tables.values() for p in table.programmed.values())
        self._settle()
        return drifted

    def _adopt_direct(self) -> None:
        """Keep backends' own addresses for a while that an earlier agent had, for flows of theirs may stand."""
        if self._direct is None:
            return
        for table in self._tables.values():
            for address, found in table.programmed.items():
                if found.content.flags & FLAG_DIRECT and self._direct.adopt(address):
                    table.want(address, found.content)

    def _settle(self) -> None:
        """Before anything is written: let readers leave what may just have been freed, and tell them what may come.

        Raises OSError.
        """
        if self._removing:
            self._tell_settled(holds=False)
        if not self._settled:
            wait_for_readers()
            self._settled = True

    def _settle_flows(self) -> None:
        """Tell programs when no flow can be left of a frontend that was removed. Raises OSError."""
        if self._flows_settled or self._removing or not self.complete or self._attach_when_filled or self.tc is None:
            return
        wait_for_readers()  # a program that has still found the frontend may be noting its flow now
        frontends = {address for table in self._tables.values() for address in table.programmed}
        if not self.tc.has_strays(frontends.__contains__):
            self._tell_settled(holds=True)

    def _tell_settled(self, *, holds: bool) -> None:
        if holds != self._flows_settled:
            self._maps["control"].update(struct.pack("=I", CONTROL_SETTLED), struct.pack("=I", int(holds)))
        self._flows_settled = holds

    def _is_current(self) -> bool:
        """Whether nothing is attached but programs of this very build, at the levels that this mode has."""
        ids = set(self._programs.attached().values()) | (self.tc.program_ids() if self.tc else set())
        return ids <= self._programs.ids() and not self._programs.others()

    def _attach(self) -> list[str]:
        """Attach both levels: first the one that takes over, then the other, which may lose its place."""
        sockets_first = self.tc is None or self.tc.leaving
        done = self._programs.attach() if sockets_first else []
        if self.tc is not None:
            self.tc.find()
            attached, left, self._tc_problems = self.tc.sync(everything=True, prune=self.complete)
            done += [f"programs attached to {attached} links of pods"] if attached else []
            done += [f"programs removed from {left} links"] if left else []
            if (self.tc.waiting or self.tc.unfinished) and self._attach_when_filled:
                return done  # the level that is to lose its place serves those links until their turn
        if not sockets_first:
            done += self._programs.attach()
        self._programs.remove_old()
        self._attach_when_filled = False
        return done

    def want_pods(self, pods: Mapping[str, PodPlace]) -> None:
        if self.tc is not None:
            self.tc.want(pods)

    def close(self) -> None:
        self._resources.close()

    # --- Writing

    def want(self, address: L4Addr, entry: FrontendEntry | None, skipped: set[L4Addr]) -> None:
        table = self._tables.get(len(address.ip))
        if table is None:
            return  # that family is switched off
        table.want(address, None if entry is None else content_of(entry, skipped=address in skipped))
        if entry is None and address in table.programmed:
            self._removing = True
        if self._direct is None:
            return
        if self._programs.wanted.tc is TcBuild.SERVING:
            for backend, itself in self._direct.change(address, entry):
                self._tables[len(backend.ip)].want(backend, itself)
        elif entry is not None:
            self._direct.forget(address)

    def flush(self, *, prune: bool) -> FlushReport:
        self.complete = self.complete or prune
        try:
            self._settle()
        except OSError as error:
            self._problems = (f"nothing can be written while readers can't be waited for: {error}",)
            return FlushReport(problems=self._problems)
        if self.tc is not None:
            self.tc.find()
        problems = self.skips.add_missing()
        changes = [table.flush(prune=self.complete) for table in self._tables.values()]
        if any(change.problems for change in changes) and self._rest():
            changes += [table.flush(prune=self.complete) for table in self._tables.values()]
            for change in changes[: len(self._tables)]:
                change.problems.clear()  # tried again: what is left is said by the second flush
        problems += [problem for change in changes for problem in change.problems]
        self._removing = self._removing and bool(problems)  # what could not be removed yet is tried again
        attached = left = 0
        if self._attach_when_filled:
            if self.complete:
                self._attach()
        elif self.tc is not None:
            attached, left, self._tc_problems = self.tc.sync(everything=False, prune=self.complete)
        if self.complete and not self._attach_when_filled:  # the level that leaves knows pods by other names
            problems += self.skips.remove_surplus()
        ended, why_not = self._end_sockets(changes)
        ended_flows, why_not_flows = self._end_flows(changes)
        self._problems = (*problems, *self._tc_problems, *why_not, *why_not_flows)
        if any(table.slots.quarantined * _RESTING_SHARE > table.slots.size for table in self._tables.values()):
            self._rest()
        written, removed = sum(change.written for change in changes), sum(change.removed for change in changes)
        return FlushReport(
            written,
            removed,
            ended + ended_flows,
            self._problems,
            again_in=self._again_in(),
            links_attached=attached,
            links_left=left,
        )

    def _again_in(self) -> float:
        """When there is more to do, in seconds; 0: nothing."""
        if self.tc is not None and self.tc.waiting:
            return _AT_ONCE
        return _SECOND_LOOK if self._second_look or (self.tc and self.tc.unfinished) else 0.0

    def _rest(self) -> bool:
        """Wait for readers, so that what was freed may be used again. False: nothing was waiting for that."""
        if not (self._ids.resting or any(table.slots.quarantined for table in self._tables.values())):
            return False
        try:
            wait_for_readers()
        except OSError as error:
            log.warning("what was freed can't be used again yet: readers can't be waited for: %s", error)
            return False
        for table in self._tables.values():
            table.settle()
        self._ids.release()
        return True

    def _end_sockets(self, changes: list[Changes]) -> tuple[int, list[str]]:
        """End sockets whose backend has left; not before the tables are complete and in force."""
        gone = {backend for change in changes for _, backend in change.removed_backends}
        if self._ender.unreadable:
            tables = self._tables.values()
            gone -= {b for table in tables for p in table.programmed.values() for b in p.content.destinations}
            return self._ender.end_all_of(gone) if gone else (0, [])
        if self._second_look and time.monotonic() - self._looked > _SECOND_LOOK / 2:
            self._search_due, self._second_look = True, False
        # A program that read the old run may not have written yet where it sent its socket: look once more, later.
        self._second_look = self._second_look or bool(gone)
        self._search_due = self._search_due or bool(gone)
        if not self._search_due or not self.complete or self._attach_when_filled:
            return 0, []
        self._looked = time.monotonic()
        try:
            ended, problems = self._ender.end_stale(self._stands)
            for folder in self._ender.release_unused():
                self._programs.release_sockets(folder)
        except OSError as error:
            return 0, [f"what sockets remember can't be read: {error}"]
        self._search_due = bool(problems)
        return ended, problems

    def _end_flows(self, changes: list[Changes]) -> tuple[int, list[str]]:
        """Where it is asked for, end TCP connections of the TC level whose backend has left."""
        if self.tc is None or not self._settings.terminate_tcp or not any(one.removed_backends for one in changes):
            return 0, []
        try:
            return self.tc.end_stale(self._stands)
        except OSError as error:
            return 0, [f"the TC level's flows can't be read: {error}"]

    def _stands(self, frontend: L4Addr, backend: L4Addr) -> bool:
        table = self._tables.get(len(frontend.ip))
        programmed = table.programmed.get(frontend) if table else None
        return programmed is not None and backend in programmed.content.destinations

    def repair(self) -> list[str]:
        """Put links and mirrors right; return what was found wrong, as sentences. Raises DatapathError."""
        found: list[str] = []
        try:
            found += [*self._repin(), *self._programs.repin()]
            self._sweep()
            if not self._attach_when_filled:
                found += self._attach()
            drifted = self._read_back()
        except OSError as error:
            raise DatapathError(f"the kernel can't be read back: {error}") from error
        self._search_due = True
        if drifted:
            found.append(f"{drifted} frontends had been changed by someone else")
        return found

    def _sweep(self) -> None:
        """Remove flows that are over, and a level that is leaving with its last flow or socket. Raises OSError."""
        if self._programs.wanted.sockets_leaving and not self._attach_when_filled and not self._ender.any_remembered():
            self._programs.leave_sockets()
            log.info("the last socket of the socket level is closed: its programs are removed")
        if self.tc is None or self._direct is None:
            return
        self.tc.sweep()
        for address in self._direct.expired(self.tc.backends_in_use):
            self._tables[len(address.ip)].want(address, None)
        self._settle_flows()
        if self.tc.leaving and not self._attach_when_filled and self.tc.leave_if_idle():
            for name in [name for name, path in self._pins.items() if path.parent == self._programs.wanted.flows]:
                del self._pins[name]  # not to be pinned again
            self.tc = None

    def _repin(self) -> list[str]:
        missing = [name for name, path in self._pins.items() if not path.exists()]
        for name in missing:
            self._pins[name].parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            bpf.pin(self._maps[name].fd, self._pins[name])
        return [f"map {name}: its pin was missing" for name in missing]

    # --- Reading

    def kernel_frontends(self) -> list[KernelFrontend]:
        try:
            found = [item for table in self._tables.values() for item in table.read()[0].items()]
        except OSError as error:
            raise DatapathError(f"the frontends maps can't be read: {error}") from error
        return [
            KernelFrontend(
                id=p.id,
                frontend=address,
                backends=_slots(p.first, p.content),
                flags=tuple(name for flag, name in FLAG_NAMES.items() if p.content.flags & flag),
                generation=p.generation,
                original=_slots(p.first + p.content.run_length, p.content.original) if p.content.original else None,
            )
            for address, p in sorted(found, key=lambda item: item[0].sort_key)
        ]

    def held(self, frontends: Iterable[L4Addr]) -> set[L4Addr]:
        families = {ip_bytes: self._maps[f"frontends{'4' if ip_bytes == 4 else '6'}"] for ip_bytes in self._tables}
        try:
            return {
                address
                for address in frontends
                if (found := families.get(len(address.ip))) and found.lookup(frontend_key(address)) is not None
            }
        except OSError as error:
            raise DatapathError(f"the frontends maps can't be read: {error}") from error

    def hits(self) -> dict[L4Addr, Hits]:
        counters = self._maps["counters"]
        ids = {
            address: p.id
            for table in self._tables.values()
            for address, p in table.programmed.items()
            if not p.content.flags & FLAG_DIRECT
        }
        lookup: Callable[[bytes], bytes | None] = counters.lookup
        try:
            if len(ids) > _READ_ALL_COUNTERS_FROM:
                with suppress(OSError):  # before Linux 5.13 a per-CPU array can only be read one by one
                    lookup = dict(counters.items()).get
            raw = {address: lookup(struct.pack("=I", number)) or b"" for address, number in ids.items()}
        except OSError as error:
            raise DatapathError(f"the counters can't be read: {error}") from error
        return {
            address: _sum([COUNTERS.unpack(cpu) for cpu in counters.per_cpu(value)]) for address, value in raw.items()
        }

    def status(self) -> DatapathStatus:
        message = self._why_not_in_force()
        return DatapathStatus(
            in_force=not message,
            message=message,
            programs={**self._programs.attached(), **(self.tc.programs if self.tc else {})},
            features=(*plan_room.describe(self._features, self._programs.wanted.tc), self._ender.feature()),
            problems=self._problems,
            slots_used={_family(n): table.slots.used for n, table in self._tables.items()},
            slots_max={_family(n): table.slots.size for n, table in self._tables.items()},
            links=self.tc.status() if self.tc else (),
            flows=self.tc.flow_counts() if self.tc else {},
            flows_max=self.tc.max_flows if self.tc else 0,
        )

    def _why_not_in_force(self) -> str:
        hooks = self._programs.wanted.hooks
        missing = sorted({hook.name.lower() for hook in hooks} - self._programs.attached().keys())
        if missing:
            return f"nothing of ours is attached to {', '.join(missing)}"
        if self._attach_when_filled:
            return (
                "programs of an earlier start are in force until the first complete list of objects has been seen, "
                "and ours are on all pods' links"
            )
        try:
            uncovered = self._programs.missing_in(self._settings.cgroup_root)
        except OSError as error:
            return f"the cgroup {self._settings.cgroup_root} can't be asked what is attached: {error}"
        if uncovered:
            return f"our programs are not effective on {', '.join(uncovered)}"
        if self.tc is not None and self.tc.waiting and self.tc.starting:
            return "programs are being attached to the links of this node's pods, which takes some seconds at first"
        if not hooks:
            return ""
        return why_not_covered(self._settings.cgroup_root)


def _slots(first: int, run: Content) -> tuple[KernelBackend, ...]:
    return tuple(KernelBackend(first + i, backend) for i, backend in enumerate(run.backends))


def _family(ip_bytes: int) -> str:
    return "ipv4" if ip_bytes == 4 else "ipv6"


def _sum(rows: list[tuple[int, ...]]) -> Hits:
    return Hits(*(sum(column) for column in zip(*rows, strict=True))) if rows else Hits()


def lift_barriers() -> None:
    """Open pods' links that an agent which died has left cut off (see `links`); nothing else is touched.

    Opening the datapath does that too; this is for who may not open it yet. Raises DatapathError.
    """
    try:
        lift_barriers_everywhere(tcx=features.probe().tcx)
    except OSError as error:
        raise DatapathError(f"pods that an agent which died has cut off may stay so: {error}") from error


def cleanup(bpf_root: Path, cgroup_root: Path) -> list[str]:
    """Remove every trace of this node's datapath; return what was removed. Raises DatapathError."""
    del cgroup_root  # links know their cgroup; everything else is below the bpf root, or on pods' links
    try:
        tcx = features.probe().tcx
        removed = [f"programs on {link}" for link in take_off_everywhere(tcx=tcx)]
        return [*removed, *programs_room.cleanup(bpf_root)]
    except OSError as error:
        raise DatapathError(f"not everything below {bpf_root} could be removed: {error}") from error
