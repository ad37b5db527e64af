"""What must become of a packet, told from its bytes: a second opinion on bpf/, which shares nothing with it.

`Model.judge` is given a packet and what the program made of it, and raises `Wrong` where that is not permitted. Where
the program is free to choose (one of several backends, another source port), any permitted choice is taken, and is then
held against it for the rest of the flow.

Checksums are not followed by differences, as the program does it, but added up anew on both sides of it: whatever a
checksum was short of before, nothing for most packets, it must be short of afterwards. Sums are taken modulo 65535,
which is what ones' complement arithmetic comes to.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

OUT, IN = 0, 1  # hooks: what the pod sends, what it is to get
PASS, DROP, REDIRECT = -1, 2, 7
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
FIN, SYN, RST, ACK = 1, 2, 4, 16
WHOLE, FIRST, LATER = "whole", "first", "later"

LOOPBACK = {4: bytes((169, 254, 42, 1)), 16: bytes.fromhex("0100 0000 0000 0001 0000 0000 0000 2a01")}
OTHER_PORTS = range(61000, 61000 + 4096)
SILENT, ENDED = 60, 10  # ticks (2^30 ns) after which a flow's port may be given to another
ASKING = 2  # ticks after a SYN in which what is about its unanswered connection is known
MOST_EXTENSIONS = 6

Address = tuple[bytes, int]  # IP, port


class Wrong(AssertionError):  # noqa: N818 (it is no error of this program)
    """The program did what it must not do."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is done with a frontend's packets. No backends: they are refused. direct: it is a backend's own address.

    exempt: links whose packets are to reach the original. original: the backends of that; None: they pass.
    """

    backends: tuple[Address, ...]
    direct: bool = False
    exempt: frozenset[int] = frozenset()
    original: tuple[Address, ...] | None = None

    def of(self, link: int) -> "Rule | None":
        """What is done with packets of a link; None: they pass."""
        if link not in self.exempt:
            return self
        return None if self.original is None else Rule(self.original)


Table = Mapping[tuple[bytes, int, int], Rule]  # by IP, port, protocol


@dataclass(frozen=True, slots=True)
class Conversation:
    """One flow. source: what the client is called towards the backend. mac: of the backend, on the client's bridge."""

    link: int
    protocol: int
    client: Address
    frontend: Address
    source: Address
    backend: Address
    bounce: bool = False
    mac: bytes = b""
    isn: int = 0

    @property
    def asking(self) -> tuple[object, ...]:
        """How its client's packets are known."""
        return (self.link, self.protocol, self.client, self.frontend)

    @property
    def answering(self) -> tuple[object, ...]:
        """How its backend's packets are known."""
        return (self.link, OUT if self.bounce else IN, self.protocol, self.backend, self.source)

    @property
    def wire(self) -> tuple[Address, Address]:
        """Its two ends, as the backend sees them."""
        return self.source, self.backend

    @property
    def is_plain(self) -> bool:
        """Whether nothing is changed."""
        return self.wire == (self.client, self.frontend)


@dataclass(slots=True)
class Leg:
    """One direction of a conversation: when it was last heard; when a SYN last asked for it; how it has ended.

    taken: the backend has said that it has another connection of these ports.
    """

    talk: Conversation
    seen: int
    syn: int = -1000
    taken: bool = False
    ends: set[str] = field(default_factory=set)

    def has_ended(self) -> bool:
        return "reset" in self.ends or {"sent", "back"} <= self.ends

    def is_alive(self, now: int) -> bool:
        return now - self.seen <= (ENDED if self.has_ended() else SILENT)

    def is_over(self, now: int) -> bool:
        """Whether it has ended, or half of it, so long ago that its port may be another's."""
        return bool(self.ends) and not self.is_alive(now)


@dataclass(slots=True)
class Packet:
    """A packet's headers. l4, end: where its layer 4 begins, and where the IP packet ends, in the frame."""

    source: bytes
    target: bytes
    protocol: int
    l4: int
    end: int
    part: str = WHOLE
    ident: int = 0
    sport: int = 0
    dport: int = 0
    flags: int = 0
    seq: int = 0
    acknowledged: int = 0

    @property
    def sender(self) -> Address:
        return self.source, self.sport

    @property
    def receiver(self) -> Address:
        return self.target, self.dport


def number(data: bytes, at: int, size: int = 2) -> int:
    """An unsigned number in network byte order."""
    return int.from_bytes(data[at : at + size], "big")


def total(*pieces: bytes) -> int:
    """The ones' complement sum of bytes, each piece filled up to whole words."""
    return sum(int.from_bytes(piece + b"\0" * (len(piece) % 2), "big") for piece in pieces) % 65535


# --- What a packet is


def dissect(frame: bytes, *, gso: bool = False) -> Packet | None:
    """Read a frame's headers; None where it does not add up, or can't be translated honestly."""
    kind = frame[12:14]
    if kind == b"\x08\x00":
        found = _dissect4(frame, gso=gso)
    elif kind == b"\x86\xdd":
        found = _dissect6(frame, gso=gso)
    else:
        return None
    return found if found is not None and _dissect_upper(frame, found, gso=gso) else None


def _dissect4(frame: bytes, *, gso: bool) -> Packet | None:
    ip = frame[14:]
    header, length = (ip[0] & 15) * 4, number(ip, 2)
    if length == 0 and gso:
        length = len(ip)
    if ip[0] >> 4 != 4 or header < 20 or not header <= length <= len(ip) or is_source_routed(ip[20:header]):
        return None
    offset, more = number(ip, 6) & 0x1FFF, ip[6] & 0x20
    part = LATER if offset else FIRST if more else WHOLE
    return Packet(ip[12:16], ip[16:20], ip[9], 14 + header, 14 + length, part, number(ip, 4))


def is_source_routed(options: bytes) -> bool:
    """Whether IPv4 options name hops to come: the destination is not the last one."""
    at = 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        if options[at] in {0x83, 0x89}:
            return True
        if at + 1 >= len(options) or options[at + 1] < 2:
            return False
        at += options[at + 1]
    return False


def _dissect6(frame: bytes, *, gso: bool) -> Packet | None:
    ip = frame[14:]
    length = number(ip, 4)
    if length == 0 and gso:
        length = len(ip) - 40
    if ip[0] >> 4 != 6 or length > len(ip) - 40:
        return None
    found = Packet(ip[8:24], ip[24:40], ip[6], 0, 54 + length)
    at, extensions = 40, 0
    while found.protocol in {0, 43, 44, 60}:
        extensions += 1
        header = ip[at : at + 8]
        if extensions > MOST_EXTENSIONS or len(header) < 8 or found.part != WHOLE:
            return None
        if found.protocol == 43 and header[3]:
            return None
        if found.protocol == 44:
            offset = number(header, 2)
            found.part = LATER if offset >> 3 else FIRST if offset & 1 else WHOLE
            found.ident = number(header, 4, 4)
            at += 8
        else:
            at += 8 + 8 * header[1]
        found.protocol = header[0]
    if at > 40 + length:
        return None
    found.l4 = 14 + at
    return found


def _dissect_upper(frame: bytes, found: Packet, *, gso: bool) -> bool:
    """Read the layer 4 header; whether it is one that is understood."""
    room = found.end - found.l4
    if found.protocol == (ICMP if len(found.source) == 4 else ICMPV6):
        return found.part == WHOLE and room >= 8
    if found.protocol not in {TCP, UDP}:
        return False
    if found.part == LATER:
        return True
    if room < (20 if found.protocol == TCP else 8):
        return False
    upper = frame[found.l4 : found.end]
    found.sport, found.dport = number(upper, 0), number(upper, 2)
    if found.protocol == TCP:
        found.seq, found.acknowledged, found.flags = number(upper, 4, 4), number(upper, 8, 4), upper[13]
        return 20 <= (upper[12] >> 4) * 4 <= room
    length = number(upper, 4)
    return length >= 8 and (found.part != WHOLE or gso or length <= room)


def answers_syn(packet: Packet) -> bool:
    """Whether a TCP packet can be the first one that comes back: a SYN-ACK, or a reset that acknowledges a SYN."""
    kind = packet.flags & (SYN | RST | ACK)
    return kind == SYN | ACK or (kind == RST | ACK and packet.seq == 0)


@dataclass(frozen=True, slots=True)
class Quote:
    """What an ICMP error quotes: where it begins, where its addresses and its layer 4 are, and whose packet it was."""

    start: int
    addresses: int
    l4: int
    protocol: int
    sender: Address
    receiver: Address


def read_quote(frame: bytes, packet: Packet) -> Quote | None:
    """The TCP or UDP packet that an ICMP error quotes; None where it is no error or quotes something else."""
    size, start = len(packet.source), packet.l4 + 8
    quote = frame[start : packet.end]
    if size == 4:
        if frame[packet.l4] not in {3, 4, 11, 12} or len(quote) < 20:
            return None
        if quote[0] >> 4 != 4 or quote[0] & 15 < 5 or number(quote, 6) & 0x1FFF:
            return None
        protocol, addresses, header = quote[9], 12, (quote[0] & 15) * 4
    else:
        if frame[packet.l4] not in {1, 2, 3, 4} or len(quote) < 40 or quote[0] >> 4 != 6:
            return None
        protocol, addresses, header = quote[6], 8, 40
    if protocol not in {TCP, UDP} or len(quote) < header + 8:
        return None
    sender = quote[addresses : addresses + size], number(quote, header)
    receiver = quote[addresses + size : addresses + 2 * size], number(quote, header + 2)
    return Quote(start, start + addresses, start + header, protocol, sender, receiver)


# --- What becomes of it


@dataclass(slots=True)
class Run:
    """One run of a program. bridged: as the port of a bridge. now: in ticks of 2^30 ns."""

    hook: int
    link: int
    bridged: bool
    frame: bytes
    gso: bool
    verdict: int
    out: bytes
    now: int


class Model:
    """A node's table and its flows. neighbours: by IP, the hardware addresses of the way there: the node's, the pod's.

    room: how many entries of established connections fit in each family (by bytes of an address).
    """

    def __init__(self, table: Table, neighbours: Mapping[bytes, tuple[bytes, bytes]], room: Mapping[int, int]) -> None:
        self.table = table
        self.neighbours = neighbours
        self.room = dict(room)
        self.astray = 0
        self.asked: dict[tuple[object, ...], Leg] = {}  # new and short: the client's side
        self.owed: dict[tuple[object, ...], Leg] = {}  # and the backend's
        self.open: dict[tuple[object, ...], Leg] = {}  # TCP connections that were answered
        self.open_back: dict[tuple[object, ...], Leg] = {}
        self.pieces: dict[tuple[object, ...], tuple[bytes, bytes, bool, bytes]] = {}

    def legs(self) -> Iterable[Leg]:
        for table in (self.asked, self.owed, self.open, self.open_back):
            yield from table.values()

    def judge(self, run: Run) -> str:
        """Say in one word what became of a packet, or raise Wrong. The flows are then as the program's should be."""
        packet = dissect(run.frame, gso=run.gso)
        if packet is None:
            return self._untouched(run, "alien")
        if packet.protocol not in {TCP, UDP}:
            return self._error(run, packet)
        if packet.part == LATER:
            return self._piece(run, packet)
        if packet.protocol == UDP:
            back = run.hook == IN or packet.target == LOOPBACK[len(packet.target)]
            return self._answer(run, packet) if back else self._to_frontend(run, packet)
        if answers_syn(packet):
            return self._answer(run, packet)
        if run.hook == OUT and packet.flags & (SYN | RST | ACK) == SYN:
            return self._to_frontend(run, packet)
        if run.hook == IN and packet.flags & SYN:
            return self._passes(run, packet)
        return self._established(run, packet)

    # --- Beginning

    def _to_frontend(self, run: Run, packet: Packet) -> str:
        known = self.table.get((*packet.receiver, packet.protocol))
        rule = known.of(run.link) if known else None
        key = (run.link, packet.protocol, packet.sender, packet.receiver)
        if rule is None:
            return self._goes_elsewhere(run, packet, key)
        if not rule.backends:
            return self._refused(run, packet)
        leg = self.asked.get(key)
        if leg and "reset" in leg.ends and leg.talk.isn == packet.seq:
            return self._goes_elsewhere(run, packet, key)
        if leg and not leg.taken and self._keeps(leg, packet, rule, run):
            for one in (leg, self.owed.get(leg.talk.answering)):
                if one and one.talk.asking == leg.talk.asking:
                    one.syn = run.now
            return self._forward(run, packet, leg.talk)
        return self._begins(run, packet, rule)

    def _goes_elsewhere(self, run: Run, packet: Packet, key: tuple[object, ...]) -> str:
        """What passes untouched begins something that is none of ours: an earlier connection of its name is over."""
        if packet.protocol == TCP:
            self.open.pop(key, None)
        return self._passes(run, packet)

    def _keeps(self, leg: Leg, packet: Packet, rule: Rule, run: Run) -> bool:
        now = run.now
        if leg.talk.backend not in rule.backends:
            return False
        if leg.talk.isn != packet.seq if packet.protocol == TCP else not leg.is_alive(now):
            return False
        if leg.seen == now:
            return True
        if run.bridged and not rule.direct and not leg.talk.bounce:
            leg.talk = replace(leg.talk, mac=self._way(run, packet, leg.talk.backend[0]))
        back = self.owed.get(leg.talk.answering)
        if back is None:
            self.owed[leg.talk.answering] = Leg(leg.talk, now)
        elif back.talk.asking != leg.talk.asking:
            return False
        else:
            back.seen = now
        leg.seen = now
        return True

    def _begins(self, run: Run, packet: Packet, rule: Rule) -> str:
        if len(run.out) != len(run.frame):
            raise Wrong(f"{len(run.frame)} bytes became {len(run.out)}")
        size = len(packet.source)
        at = 30 if size == 4 else 38
        backend = run.out[at : at + size], number(run.out, packet.l4 + 2)
        if backend not in rule.backends:
            raise Wrong(f"it was sent to {backend}, of {rule.backends}")
        bounce = backend[0] == packet.source and not rule.direct
        mac = self._way(run, packet, backend[0]) if run.bridged and not rule.direct and not bounce else b""
        name = LOOPBACK[size] if bounce else packet.source

        def talk_from(port: int) -> Conversation:
            ends = (packet.sender, packet.receiver, (name, port), backend)
            return Conversation(run.link, packet.protocol, *ends, bounce=bounce, mac=mac, isn=packet.seq)

        talk, word = talk_from(packet.sport), "begun"
        if self._is_taken(talk, run.now):
            port = number(run.out, packet.l4)
            talk, word = talk_from(port), "moved"
            if port not in OTHER_PORTS or self._is_taken(talk, run.now):
                raise Wrong(f"its source port is taken, and {port} can't be had instead")
        self.asked[talk.asking] = Leg(talk, run.now, run.now)
        self.owed[talk.answering] = Leg(talk, run.now, run.now)
        return self._forward(run, packet, talk, "direct" if talk.is_plain else word)

    def _way(self, run: Run, packet: Packet, backend: bytes) -> bytes:
        """The hardware address of a backend on the client's bridge, or nothing.

        The kernel may not find it: from where nobody is; or, once in a great while, for no reason. (Neighbours are in
        one hash for all namespaces, and who looks while it grows may miss one.)
        """
        near, mac = self.neighbours.get(backend, (b"", b""))
        if run.frame[:6] != near:
            return b""
        if run.out[:6] != run.frame[:6]:
            return mac
        self.astray += packet.source in self.neighbours
        if self.astray > 1:
            raise Wrong("it was not sent along the bridge")
        return b""

    def _is_taken(self, talk: Conversation, now: int) -> bool:
        leg = self.owed.get(talk.answering)
        if leg and (leg.taken or leg.talk.asking != talk.asking) and leg.is_alive(now):
            return True
        leg = self.open_back.get(talk.answering)
        return bool(leg and leg.talk.asking != talk.asking and not leg.is_over(now))

    def _forward(self, run: Run, packet: Packet, talk: Conversation, word: str = "request") -> str:
        return self._translated(run, packet, talk.source, talk.backend, bounce=talk.bounce, mac=talk.mac, word=word)

    def _backward(self, run: Run, packet: Packet, talk: Conversation) -> str:
        return self._translated(run, packet, talk.frontend, talk.client, bounce=talk.bounce, mac=b"", word="reply")

    # --- Going on

    def _answer(self, run: Run, packet: Packet) -> str:
        leg = self.owed.get((run.link, run.hook, packet.protocol, packet.sender, packet.receiver))
        if leg is None or leg.taken or not leg.is_alive(run.now):
            return self._passes(run, packet)
        if "reset" in leg.ends:
            return self._dropped(run, "given up")
        leg.seen = run.now
        if packet.protocol == TCP and packet.flags & SYN and not self._establishes(leg, run.now):
            return self._dropped(run, "given up" if "reset" in leg.ends else "strange")
        return self._backward(run, packet, leg.talk)

    def _establishes(self, back: Leg, now: int) -> bool:
        """Whether a SYN-ACK answers the client's last SYN, and there is room for the connection."""
        talk = back.talk
        leg = self.asked.get(talk.asking)
        if leg is None or leg.talk.wire != talk.wire:
            return False
        leg.seen = now
        size = len(talk.client[0])
        if talk.asking not in self.open:
            if self._free(size) < 1:
                return self._give_up(leg, back)
            self.open[talk.asking] = Leg(leg.talk, now)
        if talk.answering not in self.open_back and self._free(size) < 1:
            del self.open[talk.asking]
            return self._give_up(leg, back)
        self.open[talk.asking] = Leg(leg.talk, now)
        self.open_back[talk.answering] = Leg(talk, now)
        return True

    def _give_up(self, leg: Leg, back: Leg) -> bool:
        leg.ends.add("reset")
        back.ends.add("reset")
        return False

    def _free(self, size: int) -> int:
        used = sum(len(leg.talk.client[0]) == size for table in (self.open, self.open_back) for leg in table.values())
        return self.room[size] - used

    def _established(self, run: Run, packet: Packet) -> str:
        ends = packet.sender, packet.receiver
        leg = self.open.get((run.link, packet.protocol, *ends)) if run.hook == OUT else None
        is_reply = leg is None
        leg = leg or self.open_back.get((run.link, run.hook, packet.protocol, *ends))
        if (leg is None or leg.is_over(run.now)) and (word := self._interjects(run, packet)):
            return word
        if leg is None:
            return self._passes(run, packet)
        if packet.flags & (FIN | RST):
            mark = "reset" if packet.flags & RST else "back" if is_reply else "sent"
            leg.ends.add(mark)
            other = self.open.get(leg.talk.asking) if is_reply else self.open_back.get(leg.talk.answering)
            if other and (other.talk.asking, other.talk.wire) == (leg.talk.asking, leg.talk.wire):
                other.ends.add(mark)
        leg.seen = run.now
        return self._backward(run, packet, leg.talk) if is_reply else self._forward(run, packet, leg.talk)

    def _interjects(self, run: Run, packet: Packet) -> str:
        """What is said between a SYN and its answer. The program may miss it where many ask, and know it long after.

        Empty: it is nothing of the kind.
        """
        ends = packet.sender, packet.receiver
        asks = self.asked.get((run.link, packet.protocol, *ends)) if run.hook == OUT else None
        owed = None if asks else self.owed.get((run.link, run.hook, packet.protocol, *ends))
        leg = asks or owed
        if leg is None or "reset" in leg.ends or not leg.is_alive(run.now) or leg.talk.is_plain:
            return ""
        if not (self._is_silenced(leg, packet) if asks else self._tells_of_another(leg, packet)):
            return ""
        if run.verdict == PASS and run.out == run.frame:
            self._passes(run, packet)
            return "missed" if run.now - leg.syn <= ASKING else "passed"
        if asks:
            return self._dropped(run, "silenced")
        leg.taken = self.asked[leg.talk.asking].taken = True
        self._backward(run, packet, leg.talk)
        return "interjection"

    @staticmethod
    def _is_silenced(leg: Leg, packet: Packet) -> bool:
        return leg.taken and bool(packet.flags & RST)

    def _tells_of_another(self, leg: Leg, packet: Packet) -> bool:
        """Whether the backend says that it has another connection: it acknowledges what was not sent just now."""
        first = self.asked.get(leg.talk.asking)
        bare = packet.flags & (FIN | RST | ACK) == ACK
        ours = (packet.acknowledged - first.talk.isn - 1) % 2**32 <= 0xFFFF if first else False
        return bare and not leg.taken and first is not None and first.talk.wire == leg.talk.wire and not ours

    def _piece(self, run: Run, packet: Packet) -> str:
        fate = self.pieces.get(self._datagram(run, packet))
        if fate is None:
            return self._untouched(run)
        source, target, bounce, mac = fate
        return self._translated(run, packet, (source, 0), (target, 0), bounce=bounce, mac=mac, word="piece")

    def _datagram(self, run: Run, packet: Packet) -> tuple[object, ...]:
        return (run.link, run.hook, packet.protocol, packet.source, packet.target, packet.ident)

    # --- Errors

    def _error(self, run: Run, packet: Packet) -> str:
        size, frame = len(packet.source), run.frame
        quote = read_quote(frame, packet)
        found = self._of_quoted(run, quote) if quote else None
        if quote is None or packet.target != quote.sender[0] or found is None or found[0].is_plain:
            return self._untouched(run)
        talk, asks = found
        # The quoted packet as whoever gets the error knows it.
        sender, receiver = (talk.backend, talk.source) if asks else (talk.client, talk.frontend)
        want, at = bytearray(frame), quote.l4
        want[quote.addresses : quote.addresses + 2 * size] = sender[0] + receiver[0]
        want[at : at + 4] = sender[1].to_bytes(2, "big") + receiver[1].to_bytes(2, "big")
        outer = 26 if size == 4 else 22
        if packet.source == quote.receiver[0]:
            want[outer : outer + size] = receiver[0]
        if packet.target == quote.sender[0]:
            want[outer + size : outer + 2 * size] = sender[0]
        sums = [(packet.l4 + 2, packet.l4, packet.end, size == 16)]
        if size == 4:
            sums += [(24, 14, 14 + (frame[14] & 15) * 4, False), (quote.start + 10, quote.start, at, False)]
        self._quoted_sum(run, packet, quote, want)
        self._sent(run, want, sums, bounce=talk.bounce, mac=talk.mac if asks else b"")
        return "error"

    @staticmethod
    def _quoted_sum(run: Run, packet: Packet, quote: Quote, want: bytearray) -> None:
        """The quoted layer 4 checksum, if the quote goes so far."""
        at = quote.l4 + (16 if quote.protocol == TCP else 6)
        if at + 2 > packet.end or (quote.protocol == UDP and not number(run.frame, at)):
            return

        def short(data: bytes) -> int:
            # Of what it covers, all that changes is the addresses and the ports.
            addresses = data[quote.addresses : quote.addresses + 2 * len(packet.source)]
            return total(addresses, data[quote.l4 : quote.l4 + 4], data[at : at + 2])

        want[at : at + 2] = run.out[at : at + 2]
        if short(run.out) != short(run.frame):
            raise Wrong("the quoted checksum")
        if quote.protocol == UDP and not number(run.out, at):
            raise Wrong("a quoted datagram lost its checksum")

    def _of_quoted(self, run: Run, quote: Quote) -> tuple[Conversation, bool] | None:
        """The conversation of a packet that went the other way; True: it went to the client."""
        asking = (run.link, quote.protocol, quote.receiver, quote.sender)
        answering = (run.link, run.hook, quote.protocol, quote.receiver, quote.sender)
        for asked, owed in ((self.open, self.open_back), (self.asked, self.owed)):
            if run.hook == OUT and (leg := asked.get(asking)):
                return leg.talk, True
            if leg := owed.get(answering):
                return None if leg.taken else (leg.talk, False)
        return None

    # --- Checking what came out

    def _passes(self, run: Run, packet: Packet) -> str:
        """Nothing is done with it; nor will be with the rest of it."""
        if packet.part == FIRST:
            self.pieces.pop(self._datagram(run, packet), None)
        return self._untouched(run)

    def _untouched(self, run: Run, word: str = "passed") -> str:
        if run.out != run.frame:
            raise Wrong("a packet was changed that is none of ours")
        if run.verdict != PASS:
            raise Wrong(f"verdict {run.verdict} for a packet that is none of ours")
        return word

    def _dropped(self, run: Run, word: str) -> str:
        if run.verdict != DROP:
            raise Wrong(f"verdict {run.verdict} for a packet that is to be dropped")
        return word

    def _translated(
        self, run: Run, packet: Packet, source: Address, target: Address, *, bounce: bool, mac: bytes, word: str
    ) -> str:
        if packet.part != LATER and (source, target) == (packet.sender, packet.receiver):
            return self._passes(run, packet) and word
        if packet.part == FIRST:
            self.pieces[self._datagram(run, packet)] = (source[0], target[0], bounce, mac)
        size, frame = len(packet.source), run.frame
        want = bytearray(frame)
        at = 26 if size == 4 else 22
        want[at : at + 2 * size] = source[0] + target[0]
        sums = [(24, 14, 14 + (frame[14] & 15) * 4, False)] if size == 4 else []
        if packet.part != LATER:
            want[packet.l4 : packet.l4 + 4] = source[1].to_bytes(2, "big") + target[1].to_bytes(2, "big")
            check = packet.l4 + (16 if packet.protocol == TCP else 6)
            if packet.protocol == TCP or number(frame, check):
                sums.append((check, packet.l4, packet.end, True))
                if packet.protocol == UDP and not number(run.out, check):
                    raise Wrong("a datagram lost its checksum")
        self._sent(run, want, sums, bounce=bounce, mac=mac)
        return word

    def _sent(
        self, run: Run, want: bytearray, sums: list[tuple[int, int, int, bool]], *, bounce: bool, mac: bytes
    ) -> None:
        """Compare with what came out. sums: checksums: where each lies, and what it covers (True: addresses, too)."""
        frame, out = run.frame, run.out
        if len(out) != len(frame):
            raise Wrong(f"{len(frame)} bytes became {len(out)}")
        if bounce:
            want[:12] = frame[6:12] + frame[:6]
        elif mac:
            want[:6] = mac
        for at, *_ in sums:
            want[at : at + 2] = out[at : at + 2]
        if want != out:
            where = [at for at in range(len(out)) if want[at] != out[at]]
            raise Wrong(f"bytes {where} differ from what they must be: {bytes(want).hex()}")
        for at, start, end, addresses in sums:
            before, after = (self._short(data, start, end, addresses=addresses) for data in (frame, out))
            if before != after:
                raise Wrong(f"the checksum at {at} was {before} short and is {after} short")
            if at - start != 6 and number(out, at) == 0xFFFF != number(frame, at):
                # Both zeros are right, but who computes a checksum anew gets 0 (only UDP's is 0xffff then).
                raise Wrong(f"the checksum at {at} is the other zero")
        if run.verdict != (REDIRECT if bounce else PASS):
            raise Wrong(f"verdict {run.verdict}")

    @staticmethod
    def _short(data: bytes, start: int, end: int, *, addresses: bool) -> int:
        # Of the pseudo-header the addresses will do: the rest is the same on both sides.
        pseudo = data[22:54] if data[12:14] == b"\x86\xdd" else data[26:34]
        return total(pseudo if addresses else b"", data[start:end])

    # --- Refusals

    def _refused(self, run: Run, packet: Packet) -> str:
        if packet.protocol == TCP:
            return self._reset(run, packet)
        size, frame = len(packet.source), run.frame
        header = 20 if size == 4 else 40
        if packet.part != WHOLE or packet.l4 != 14 + header:
            return self._dropped(run, "refused in silence")
        quote = frame[14 : 14 + header + 8]
        kind = bytes((3, 3) if size == 4 else (1, 4))
        if size == 4:
            ip = bytes((0x45, 0, 0, 20 + 8 + len(quote), 0, 0, 0, 0, 64, ICMP, 0, 0)) + packet.target + packet.source
            ip = ip[:10] + (-total(ip) % 65535).to_bytes(2, "big") + ip[12:]
            covered = total(kind, quote)
        else:
            ip = bytes((0x60, 0, 0, 0, 0, 8 + len(quote), ICMPV6, 64)) + packet.target + packet.source
            covered = total(kind, quote, ip[8:], (8 + len(quote)).to_bytes(4, "big"), bytes((0, ICMPV6)))
        icmp = kind + (-covered % 65535).to_bytes(2, "big") + bytes(4)
        want = frame[6:12] + frame[:6] + frame[12:14] + ip + icmp + quote
        if run.out != want:
            raise Wrong(f"the refusal must be {want.hex()}")
        if run.verdict != REDIRECT:
            raise Wrong(f"verdict {run.verdict} for a refusal")
        return "refused"

    def _reset(self, run: Run, packet: Packet) -> str:
        want, size, l4 = bytearray(run.frame), len(packet.source), packet.l4
        at = 26 if size == 4 else 22
        want[at : at + 2 * size] = packet.target + packet.source
        want[l4 : l4 + 4] = run.frame[l4 + 2 : l4 + 4] + run.frame[l4 : l4 + 2]
        want[l4 + 4 : l4 + 12] = bytes(4) + ((packet.seq + 1) & 0xFFFFFFFF).to_bytes(4, "big")
        want[l4 + 12 : l4 + 16] = bytes((run.frame[l4 + 12] & 0xF0, RST | ACK, 0, 0))
        self._sent(run, want, [(l4 + 16, l4, packet.end, True)], bounce=True, mac=b"")
        return "reset"
