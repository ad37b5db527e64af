"""The TC level of one node: pods' links, our programs on them, and their flows.

    pods (addresses) ─▶ podports (whose link is whose) ─▶ links (our programs there) ─▶ flows (swept, counted)

`sync` is level-triggered. The kernel takes its time for a link's first programs (it waits for all CPUs: 30 ms for both
hooks, measured), and a node may have hundreds of pods when its first agent starts. So attaching ends after a while, and
goes on at the next `sync` where it ended; the links that came last, whose pods are about to start, come first.

In a mode without a TC level, while flows of an earlier mode have not ended, the level is
`leaving`: programs that serve known flows only are put wherever ours are, and taken off with the last flow.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath.flows import Flow, FlowTable, stale
from lrp_operator.datapath.layout import CLIENT_BY_LINK
from lrp_operator.datapath.links import LinkPrograms, Standing, is_gone
from lrp_operator.datapath.model import LinkState, PodLinkStatus, PodPlace
from lrp_operator.datapath.podports import Found, PodPorts
from lrp_operator.kernel import bpf
from lrp_operator.kernel.netns import NetnsError
from lrp_operator.kernel.podlink import PodFinder, PodInterface
from lrp_operator.kernel.sockdiag import SockDiagError, SocketInfo, end_sockets_everywhere

log = logging.getLogger(__name__)

_FAMILIES = {4: "4", 16: "6"}
ATTACH_SECONDS = 0.5
"""So long links get their first programs, each time: a change of a policy waits no longer than that for its turn."""


class LinkLevel:
    """Keeps the programs where pods are. folder: of the flows' pins. All methods raise OSError."""

    def __init__(self, programs: Mapping[str, bpf.Fd], folder: Path, *, tcx: bool, leaving: bool) -> None:
        self.leaving = leaving
        self._folder = folder
        self._resources = ExitStack()
        self._ports = PodPorts()
        self._resources.callback(self._ports.close)
        self._links = LinkPrograms(programs, tcx=tcx)
        self._resources.callback(self._links.close)
        self._finder = PodFinder()
        self._resources.callback(self._finder.close)
        self._flows = {ip_bytes: self._open_flows(ip_bytes, digit) for ip_bytes, digit in _FAMILIES.items()}
        _lift_barriers(self._finder, self._links)
        self._found = Found({}, {})
        self._standing: dict[PodInterface, Standing] = {}
        self.waiting = 0  # links whose turn has not come
        self.starting = True  # of the pods that there were at first, not all have had their turn
        self.programs = {name.removeprefix("lrp_"): bpf.prog_info(program).id for name, program in programs.items()}

    def _open_flows(self, ip_bytes: int, digit: str) -> FlowTable:
        maps = [bpf.Map.open(self._folder / f"{name}{digit}") for name in ("flows", "recent")]
        for opened in maps:
            self._resources.callback(opened.close)
        return FlowTable(ip_bytes, *maps)

    def close(self) -> None:
        """Let go; what is attached stays."""
        self._resources.close()

    # --- Pods and their links

    def want(self, pods: Mapping[str, PodPlace]) -> None:
        """These are the node's pods that have a network of their own."""
        self._ports.want(pods)

    def who(self, pod: str) -> tuple[int, ...] | None:
        """What the kernel knows a pod by, at this level; None while its links are not found."""
        links = tuple(CLIENT_BY_LINK | link.ifindex for link, owner in self._found.links.items() if owner == pod)
        return links or None

    def name_of(self, ifindex: int) -> str | None:
        """The pod that a link is of."""
        return next((pod or None for link, pod in self._found.links.items() if link.ifindex == ifindex), None)

    @property
    def unfinished(self) -> bool:
        """Whether pods are left whose links have not been looked for."""
        return self._ports.unfinished

    def find(self) -> None:
        """Look which links are pods' now."""
        self._found = self._everywhere() if self.leaving else self._ports.find()

    def _everywhere(self) -> Found:
        """All links that have programs of ours."""
        links = [link for link in self._finder.all_links() if self._finder.may_be_a_pods(link)]
        return Found({self._finder.interface(link): "" for link in links if self._ours_on(link.index)}, {})

    def program_ids(self) -> set[int]:
        """Ids of our programs, of any build, on any link that may be a pod's."""
        found = (self._ours_on(link.index) for link in self._finder.all_links())
        return {number for numbers in found for number in numbers}

    def _ours_on(self, ifindex: int) -> set[int]:
        try:
            return self._links.ours_on(ifindex)
        except OSError as error:
            if is_gone(error):
                return set()
            raise

    def sync(self, *, everything: bool, prune: bool) -> tuple[int, int, list[str]]:
        """Attach where pods are; return how many links got programs and lost them, and what could not be done.

        everything: look at links that are all right as far as is known, too. prune: all pods are known, so programs of
        ours on other links may go. If `waiting` says so afterwards, it is to be called again at once.
        """
        wanted = self._found.links
        known = [link for link in wanted if link in self._standing]
        attached = sum(self._put(link) for link in known if everything or not self._is_done(link))
        attached += self._put_first([link for link in wanted if link not in self._standing])
        self.starting = self.starting and (self.waiting > 0 or not wanted)
        gone = self._standing.keys() - wanted.keys() if prune else set()
        there = {link.ifindex for link in wanted}  # a link may have another name or have joined a bridge: it stays
        left = sum(self._take_off(link.ifindex) for link in gone if link.ifindex not in there)
        for link in gone:
            del self._standing[link]
        if prune and everything and not self.unfinished:
            left += sum(self._take_off(link.index) for link in self._finder.all_links() if link.index not in there)
        return attached, left, self._tell()

    def _put_first(self, links: list[PodInterface]) -> int:
        """Serve links that are not known yet, until the time is up; how many got programs."""
        until, attached = time.monotonic() + ATTACH_SECONDS, 0
        self.waiting = len(links)
        for link in sorted(links, key=lambda link: -link.ifindex):
            attached += self._put(link)
            self.waiting -= 1
            if time.monotonic() > until:
                break
        return attached

    def _is_done(self, link: PodInterface) -> bool:
        standing = self._standing.get(link)
        return standing is not None and standing.state is LinkState.ATTACHED

    def _put(self, link: PodInterface) -> bool:
        try:
            standing = self._links.put(link)
        except OSError as error:
            if is_gone(error):
                self._standing.pop(link, None)
                return False
            standing = Standing(LinkState.FAILED, f"programs can't be attached to {link.ifname}: {error}")
        self._standing[link] = standing
        return standing.changed and standing.state is LinkState.ATTACHED

    def _take_off(self, ifindex: int) -> bool:
        try:
            return self._links.take_off(ifindex)
        except OSError as error:
            if is_gone(error):
                return False
            raise

    def _tell(self) -> list[str]:
        told = [
            f"pod {pod}: {standing.message}"
            for link, pod in self._found.links.items()
            if (standing := self._standing.get(link)) and standing.message and pod
        ]
        return told + [f"pod {pod} is not redirected: {why}" for pod, why in sorted(self._found.missing.items())]

    def status(self) -> tuple[PodLinkStatus, ...]:
        """How each pod's links stand."""
        waits = Standing(LinkState.WAITING, "its turn has not come yet")
        stands = [(pod, link, self._standing.get(link, waits)) for link, pod in self._found.links.items()]
        rows = [PodLinkStatus(pod, link.ifname, standing.state, standing.message) for pod, link, standing in stands]
        rows += [PodLinkStatus(pod, "", LinkState.MISSING, why) for pod, why in self._found.missing.items()]
        return tuple(sorted(rows, key=lambda row: (row.pod, row.link)))

    # --- Flows

    def sweep(self) -> None:
        """Look all pods' links up anew at the next `find`, and remove flows that are over."""
        self._ports.forget()
        links = {link.index for link in self._finder.all_links()}
        for table in self._flows.values():
            table.sweep(links)

    def flow_counts(self) -> dict[str, int]:
        """Connections that stand, by family, as of the last sweep."""
        return {f"ipv{_FAMILIES[ip_bytes]}": table.standing for ip_bytes, table in self._flows.items()}

    @property
    def max_flows(self) -> int:
        """How many connections fit, in each family."""
        return self._flows[4].max_flows

    def backends_in_use(self) -> set[L4Addr]:
        """Whom connections go to that stand."""
        flows = (flow for table in self._flows.values() for flow in table.established())
        return {flow.becomes_destination for flow in flows if not flow.is_reply}

    def has_strays(self, is_frontend: Callable[[L4Addr], bool]) -> bool:
        """Whether some connection is translated that is to no frontend (any more)."""
        return any(table.strays(is_frontend) for table in self._flows.values())

    def end_stale(self, stands: Callable[[L4Addr, L4Addr], bool]) -> tuple[int, list[str]]:
        """End TCP connections whose backend has left their frontend; how many, and what could not be done.

        The sockets of their clients are ended where this node can see them. A client in a sandbox of its own (gVisor,
        Kata) finds its connection forgotten, and is answered by whoever has the frontend's address, with a reset.
        """
        flows = [flow for table in self._flows.values() for flow in stale(table.established(), stands)]
        if not flows:
            return 0, []
        ends = {((f.source.ip, f.source.port), (f.destination.ip, f.destination.port)) for f in flows}

        def confirm(found: SocketInfo) -> bool:
            return (found.local, found.remote) in ends

        try:
            report = end_sockets_everywhere(Protocol.TCP, {remote for _, remote in ends}, confirm)
        except (SockDiagError, NetnsError) as error:
            return 0, [f"connections to backends that left could not be ended: {error}"]
        self._forget(flows)
        return report.ended, []

    def _forget(self, flows: Iterable[Flow]) -> None:
        for flow in flows:
            self._flows[len(flow.source.ip)].remove(flow)

    def leave_if_idle(self) -> bool:
        """Leaving: take the programs off once no flow is left; of many links, of some at each call.

        True: it is done, and nothing of the level is left.
        """
        if any(table.any_alive() for table in self._flows.values()):
            return False
        until = time.monotonic() + ATTACH_SECONDS
        for link in self._finder.all_links():
            if self._take_off(link.index) and time.monotonic() > until:
                return False
        shutil.rmtree(self._folder)
        log.info("the last flow of the TC level has ended: its programs are removed")
        return True


def take_off_everywhere(*, tcx: bool) -> list[str]:
    """Remove programs of ours from every link of this network namespace; the links' names. Raises OSError."""
    with closing(LinkPrograms({}, tcx=tcx)) as links, closing(PodFinder()) as finder:
        return _everywhere(finder, links.take_off)


def lift_barriers_everywhere(*, tcx: bool) -> None:
    """Open the links of pods that an agent which died in the middle of a move has left cut off. Raises OSError."""
    with closing(LinkPrograms({}, tcx=tcx)) as links, closing(PodFinder()) as finder:
        _lift_barriers(finder, links)


def _lift_barriers(finder: PodFinder, links: LinkPrograms) -> None:
    for name in _everywhere(finder, links.take_down):
        log.warning("%s was cut off by an agent that died: it is open again", name)


def _everywhere(finder: PodFinder, remove: Callable[[int], bool]) -> list[str]:
    """Remove something from every link, by its number; the names of those that had it."""
    names = []
    for link in finder.all_links():
        try:
            if remove(link.index):
                names.append(link.name)
        except OSError as error:
            if not is_gone(error):
                raise
    return names
