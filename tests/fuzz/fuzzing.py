"""The fuzzer: episodes of packets, each with flows of its own, which are generated from what came out before."""

import random
import time
from collections import Counter
from dataclasses import dataclass, field, replace

from tests.fuzz import packets
from tests.fuzz.arena import Arena, Client, clock
from tests.fuzz.model import (
    ACK,
    FIN,
    IN,
    LATER,
    LOOPBACK,
    OUT,
    REDIRECT,
    RST,
    SYN,
    TCP,
    UDP,
    Address,
    Model,
    Run,
    Wrong,
    dissect,
    total,
)
from tests.fuzz.packets import EDGES16, EDGES32, FLAGS, OFF, RIGHT, ZERO, Draft

EPISODE = 700  # packets
_PORTS = (0, 1, 53, 80, 40000, 40001, 61000, 65535)


@dataclass(slots=True)
class Report:
    """What was done. words: what became of packets. refused: those that the kernel would not take."""

    packets: int = 0
    seconds: float = 0.0
    words: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    episodes: int = 0
    cut: int = 0  # episodes that met a change of tick

    def __str__(self) -> str:
        words = ", ".join(f"{word} {count}" for word, count in self.words.most_common())
        return f"{self.packets} packets in {self.episodes} episodes, {self.seconds:.0f} s: {words}"


@dataclass(slots=True)
class Passed:
    """A packet that was translated: what may follow is made of it. client: whose link it passed."""

    client: Client
    hook: int
    before: bytes
    after: bytes
    bounced: bool


class Episode:
    """Flows from nothing, and packets of all kinds through them."""

    def __init__(self, arena: Arena, seed: int) -> None:
        self.arena = arena
        self.pick = random.Random(seed)  # noqa: S311
        self.passed: list[Passed] = []
        self.waiting: list[tuple[Client, int, bytes]] = []  # pieces yet to be sent
        arena.clear()
        if arena.changed:
            arena.change(None)
        if self.pick.random() < 0.05:
            arena.fill(self.pick.choice((4, 16)), self.pick.choice((0, 1, 2, 7, 30)))
        self.model: Model = arena.model()
        keys = sorted(arena.table)  # all that is ever a frontend: some may not be for a while
        self.frontends = {size: [key for key in keys if len(key[0]) == size] for size in (4, 16)}
        self.clients, self.ports = arena.clients, _PORTS
        if self.pick.random() < 0.25:  # few flows, which go far and get in each other's way
            self.clients, self.ports = [self.pick.choice(arena.clients)], self.pick.sample(_PORTS, 2)
            for size, known in self.frontends.items():
                wide = [key for key in known if len(arena.table[key].backends) > 1]
                self.frontends[size] = [*self.pick.sample(known, 2), *wide]

    def run(self, count: int, report: Report) -> None:
        """Send so many packets; fewer where the tick changes, for then nobody knows what the program saw."""
        report.episodes += 1
        for number in range(count):
            if self.pick.random() < 0.004:
                self.arena.age(self.model, self.pick.choice((1, 1, 5, 11, 40, 61, 100)))
            if self.pick.random() < 0.0005:
                self.arena.change(self.pick)
                self.model.table = self.arena.table
            client, hook, frame = self._next()
            if not self._send(client, hook, frame, report, number):
                report.cut += 1
                return
        self.arena.compare(self.model)

    def _send(self, client: Client, hook: int, frame: bytes, report: Report, number: int) -> bool:
        size, kind = len(frame), frame[12:14]
        if size < (34 if kind == b"\x08\0" else 54 if kind == b"\x86\xdd" else 15) or size > packets.LONGEST:
            report.refused += 1
            return True
        gso = self.pick.choice((0,) * 15 + (8,))
        program = client.program if hook == OUT else "lrp_to_pod"
        before = clock()
        verdict, out = self.arena.run(program, client.link, frame, gso)
        now = clock()
        report.packets += 1
        if now != before:
            return False
        run = Run(hook, client.link, program == "lrp_from_port", frame, bool(gso), verdict, out, now)
        try:
            word = self.model.judge(run)
        except Wrong as wrong:
            text = f"packet {number}: {program} on link {client.link}, gso {gso}: {wrong}"
            raise Wrong(f"{text}\n in: {frame.hex()}\nout: {out.hex()} ({verdict})") from None
        report.words[word] += 1
        if word in {"begun", "moved", "request", "reply", "direct", "error", "piece"}:
            self._note(Passed(client, hook, frame, out, verdict == REDIRECT))
        return True

    def _note(self, passed: Passed) -> None:
        del self.passed[: len(self.passed) - 59]
        self.passed.append(passed)

    def _base(self) -> Passed:
        """A packet to go on from: often one of the last, so that flows get far."""
        return self.pick.choice(self.passed if self.pick.random() < 0.5 else self.passed[-5:])

    # --- What is sent

    def _next(self) -> tuple[Client, int, bytes]:
        pick = self.pick
        if self.waiting and pick.random() < 0.5:
            return self.waiting.pop(pick.randrange(len(self.waiting)) if pick.random() < 0.3 else 0)
        kind = pick.random()
        if not self.passed or kind < 0.33:
            client, hook, frame = self._opening()
        elif kind < 0.55:
            client, hook, frame = self._following()
        elif kind < 0.7:
            client, hook, frame = self._remembered()
        elif kind < 0.9:
            client, hook, frame = self._error()
        elif kind < 0.93:
            client, hook, frame = self._again()
        elif kind < 0.97:
            client, hook, frame = self._stranger()
        else:
            client, hook = pick.choice(self.arena.clients), pick.choice((OUT, IN))
            kinds = (b"\x08\0", b"\x86\xdd", b"\x08\x06", pick.randbytes(2))
            frame = pick.randbytes(12) + pick.choice(kinds) + pick.randbytes(pick.randint(20, 200))
        if pick.random() < 0.2:
            for _ in range(pick.choice((1, 1, 1, 2, 4))):
                frame = packets.spoil(pick, frame) if len(frame) > 20 else frame
        return client, hook, frame

    def _opening(self) -> tuple[Client, int, bytes]:
        """To a frontend, to a backend itself, or nearly to one of them."""
        pick = self.pick
        client = pick.choice(self.clients)
        size = pick.choice((4, 16))
        ip, port, protocol = pick.choice(self.frontends[size])
        if pick.random() < 0.05:
            port = pick.choice(EDGES16)
        if pick.random() < 0.02:
            ip = LOOPBACK[size]
        source = client.ips[size]
        if pick.random() < 0.05:
            source = pick.choice((ip, bytes(size), b"\xff" * size, pick.randbytes(size)))
        draft = Draft((source, pick.choice(self.ports)), (ip, port), protocol, macs=self._macs(client))
        draft.flags = SYN if pick.random() < 0.7 else pick.choice(FLAGS)
        draft.seq = pick.choice((7, 7, 8, *EDGES32))
        return self._dressed(client, OUT, draft)

    def _following(self) -> tuple[Client, int, bytes]:
        """More of a flow: from the same side, or what answers it."""
        pick = self.pick
        base = self._base()
        same = pick.random() < 0.4
        read = dissect(base.before if same else base.after)
        if read is None or read.protocol not in {TCP, UDP}:
            return self._opening()
        ends = (read.sender, read.receiver) if same else (read.receiver, read.sender)
        hook = base.hook if same or base.bounced else 1 - base.hook
        draft = Draft(*ends, read.protocol, macs=self._macs(base.client))
        if same:
            draft.flags = pick.choice((read.flags & 0x3F, ACK, ACK | 8, FIN | ACK, RST, *FLAGS))
            draft.seq = pick.choice((read.seq, read.seq, read.seq + 1, *EDGES32)) & 0xFFFFFFFF
        else:
            answer = SYN | ACK if read.flags & SYN else ACK
            draft.flags = pick.choice((answer, answer, answer, answer, RST | ACK, FIN | ACK, RST, *FLAGS))
            draft.seq = pick.choice((0, 0, 1000, *EDGES32))
            draft.acknowledged = (read.seq + 1) & 0xFFFFFFFF
        return self._dressed(base.client, hook, draft)

    def _remembered(self) -> tuple[Client, int, bytes]:
        """More of a flow that the model knows, from either side; of TCP what makes and ends connections."""
        pick, model = self.pick, self.model
        tables = [table for table in (model.asked, model.owed, model.open, model.open_back) if table]
        if not tables:
            return self._opening()
        table = pick.choice(tables)
        legs = list(table.values())
        taken = [leg for leg in model.asked.values() if leg.taken]
        if taken and pick.random() < 0.5:
            table, legs = model.asked, taken
        leg = pick.choice(legs)
        talk = leg.talk
        asks = table is model.asked or table is model.open
        client = next(client for client in self.arena.clients if client.link == talk.link)
        ends = (talk.client, talk.frontend) if asks else (talk.backend, talk.source)
        draft = Draft(*ends, talk.protocol, macs=self._macs(client))
        if asks:
            draft.flags = pick.choice((RST, RST, SYN, ACK) if leg.taken else (SYN, SYN, ACK, FIN | ACK, RST))
            draft.seq = pick.choice((talk.isn, talk.isn + 1, 7, 8)) & 0xFFFFFFFF
        else:
            draft.flags, draft.seq = (
                pick.choice((SYN | ACK, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK)),
                pick.choice((0, 9)),
            )
        return self._dressed(client, OUT if asks or talk.bounce else IN, draft)

    def _dressed(self, client: Client, hook: int, draft: Draft) -> tuple[Client, int, bytes]:
        """With whatever may be around it, and in pieces sometimes."""
        pick = self.pick
        sizes = (0, 0, 1, 2, 7, 8, 33, 100, pick.randrange(1400))
        draft.payload = pick.choice((bytes, lambda n: b"\xff" * n, pick.randbytes))(pick.choice(sizes))
        draft.check = pick.choices((RIGHT, ZERO, OFF), (10, 4 if draft.protocol == UDP else 1, 2))[0]
        draft.ip_check = pick.choices((RIGHT, OFF), (20, 1))[0]
        draft.tos, draft.ttl = pick.choice((0, 0, 0xFF, 0x10)), pick.choice((64, 64, 1, 0, 255))
        draft.ident = pick.choice((0, 1, 2, 3, 0xFFFF))
        if len(draft.source[0]) == 16:
            draft.ident = pick.choice((draft.ident, draft.ident << 16, 0xFFFFFFFF))
        if draft.protocol == TCP and pick.random() < 0.3:
            draft.tcp_options = pick.randbytes(4 * pick.randint(1, 10))
        odd = pick.random()
        if odd < 0.1 and len(draft.source[0]) == 4:
            draft.options = packets.options4(pick)
        elif odd < 0.15 and len(draft.source[0]) == 16:
            draft.extensions = [packets.extension(pick) for _ in range(pick.choice((1, 1, 2, 3, 5, 6, 7, 8)))]
            if pick.random() < 0.6:
                draft.extensions = [one for one in draft.extensions if one[0] in {0, 60}]
        if pick.random() < 0.1:
            return self._in_pieces(client, hook, draft)
        if hook == OUT and odd > 0.98 and draft.protocol == UDP:
            # A checksum that comes out as zero, sometimes: all that is left is the port.
            draft.payload = pick.randrange(65536).to_bytes(2, "big")
        whole = packets.frame(draft)
        if odd > 0.95:
            whole += bytes(max(0, 60 - len(whole)))
        return client, hook, whole[: packets.LONGEST]

    def _in_pieces(self, client: Client, hook: int, draft: Draft) -> tuple[Client, int, bytes]:
        pick = self.pick
        pieces = packets.fragments(draft, [pick.choice((1, 2, 3, 5, 12)) for _ in range(pick.randint(1, 3))])
        if len(draft.source[0]) == 16 and pick.random() < 0.2:
            last = (60, b"\0" + bytes(6))  # behind the fragment header, in the piece itself
            body = packets.upper(draft)
            header = b"\0" + (1).to_bytes(2, "big") + draft.ident.to_bytes(4, "big")
            with_more = replace(draft, extensions=[*draft.extensions, (44, header), last])
            pieces[0] = packets.frame(with_more, body[: max(24, len(body) // 16 * 8)])
        if pick.random() < 0.2:
            pick.shuffle(pieces)
        self.waiting += [(client, hook, piece) for piece in pieces[1:]][: 40 - len(self.waiting)]
        return client, hook, pieces[0]

    def _error(self) -> tuple[Client, int, bytes]:
        """An ICMP error about a packet that went on."""
        pick = self.pick
        base = self._base()
        quote, size = base.after[14:], 4 if base.after[12] == 8 else 16
        if size == 16:
            source, target, header = quote[8:24], quote[24:40], 40
        else:
            source, target, header = quote[12:16], quote[16:20], (quote[0] & 15) * 4
        cut = pick.choice((header + 8, header + 8, header + 20, 548, 1232, header + pick.randrange(30), len(quote)))
        quote = quote[:cut] if pick.random() < 0.9 else quote[:cut].ljust(128, b"\0")
        if pick.random() < 0.05:
            quote = packets.spoil(pick, bytes(14) + quote)[14:] if quote else quote
        sender = target if pick.random() < 0.6 else pick.choice((b"\x0a\x01\x02\x03" * (size // 4), source))
        receiver = source if pick.random() < 0.95 else pick.choice((target, pick.randbytes(size)))
        if size == 4:
            kind = pick.choice((3, 3, 3, 4, 11, 12, 5, 0, 8, pick.randrange(256)))
        else:
            kind = pick.choice((1, 2, 2, 3, 4, 0, 128, 137, pick.randrange(256)))
        draft = Draft((sender, 0), (receiver, 0), 0, macs=self._macs(base.client))
        draft.check = pick.choices((RIGHT, ZERO, OFF), (10, 1, 1))[0]
        if pick.random() < 0.08:
            if size == 4:
                draft.options = packets.options4(pick)
            else:
                draft.extensions = [packets.extension(pick) for _ in range(pick.randint(1, 3))]
        hook = base.hook if base.bounced else 1 - base.hook
        if pick.random() < 0.03:
            hook = 1 - hook
        if pick.random() < 0.1:
            quote = to_zero(base, quote, 14)
        whole = packets.error(draft, kind, pick.choice((0, 1, 3, 4, 255)), quote)
        if pick.random() < 0.15:
            whole += pick.randbytes(pick.choice((2, 12, 46)))  # behind the packet's end
        return base.client, hook, whole[: packets.LONGEST]

    def _again(self) -> tuple[Client, int, bytes]:
        """A packet as it was, or as it went on, through any hook of any link."""
        base = self._base()
        client = base.client if self.pick.random() < 0.7 else self.pick.choice(self.arena.clients)
        if self.pick.random() < 0.3:
            return base.client, base.hook, to_zero(base, base.before, 0)
        return client, self.pick.choice((OUT, IN)), self.pick.choice((base.before, base.after))

    def _stranger(self) -> tuple[Client, int, bytes]:
        """Between addresses and ports that are nobody's, or mixed up."""
        pick = self.pick
        client, size = pick.choice(self.arena.clients), pick.choice((4, 16))
        known = [client.ips[size], LOOPBACK[size], *(key[0] for key in self.frontends[size])]

        def anyone() -> Address:
            ip = pick.choice(known) if pick.random() < 0.7 else pick.randbytes(size)
            return ip, pick.choice((*_PORTS, *EDGES16, pick.randrange(65536)))

        protocol = pick.choice((TCP, UDP, UDP, 1, 58, 132, 47, 51, pick.randrange(256)))
        draft = Draft(anyone(), anyone(), protocol, macs=self._macs(client), flags=pick.choice(FLAGS))
        return self._dressed(client, pick.choice((OUT, IN)), draft)

    def _macs(self, client: Client) -> bytes:
        return self.pick.choice(client.macs)


def to_zero(base: Passed, packet: bytes, start: int) -> bytes:
    """Give a packet the checksum that becomes zero where `base`'s addresses and ports become what they became.

    packet: one of `base`'s, from byte `start` of the frame on. An error about it undoes what was done to it.
    """
    read = dissect(base.before)
    if read is None or read.protocol not in {TCP, UDP} or read.part == LATER:
        return packet
    before, after = (
        total(data[22:54] if len(read.source) == 16 else data[26:34], data[read.l4 : read.l4 + 4])
        for data in (base.before, base.after)
    )
    check = (before - after if start else after - before) % 65535
    at = read.l4 + (16 if read.protocol == TCP else 6) - start
    return packet[:at] + check.to_bytes(2, "big") + packet[at + 2 :] if at + 2 <= len(packet) else packet


def fuzz(arena: Arena, count: int, seed: int, tell: float = 0.0) -> Report:
    """Send so many packets; to be called in the node's namespace. tell: seconds between lines of progress; 0: none.

    Raises Wrong, with what repeats it: each episode has a seed of its own.
    """
    seeds, report, began = random.Random(seed), Report(), time.monotonic()  # noqa: S311
    told = began
    while report.packets < count:
        number = seeds.getrandbits(48)
        try:
            Episode(arena, number).run(min(EPISODE, count - report.packets + report.refused), report)
        except Wrong as wrong:
            raise Wrong(f"seed {seed}, episode {number}: {wrong}") from None
        report.seconds = time.monotonic() - began
        if tell and time.monotonic() - told > tell:
            told = time.monotonic()
            print(report, flush=True)
    return report
