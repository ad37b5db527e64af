"""Clients of DNS, each with the ways of a kind of resolver: `resolver.py KIND SERVER`. Standard library only.

A client asks all the time until it is sent a line, and gives each query one retry. It tells on standard output
(so do Client.java and client.go, in the same words; times are milliseconds since 1970):

    ready                      the first query has been answered
    TIME retried WHY           a first try went wrong
    TIME failed WHY            so did the second: the query is lost
    TIME stranger ADDRESS      a datagram came from an address that was not asked
    answered ADDRESS COUNT     at the end: who gave how many answers (an answer's A record is its server's address)
    queries COUNT              at the end
"""

import errno
import itertools
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

TIMEOUT = 0.5
PAUSE = 0.01  # between two queries
DIG_PAUSE = 0.25  # a process for each query takes far more of the machine than all else here
KEPT_FOR = 50  # queries on a kept socket, then it is made anew: one older than a redirect does not follow it
POOLED = 8
_HEADER = bytes.fromhex("0100 0001 0000 0000 0000")


def query(number: int) -> bytes:
    """A query of type A for a name that nobody has asked for."""
    label = str(number).encode()
    return (number & 0xFFFF).to_bytes(2, "big") + _HEADER + bytes([len(label)]) + label + b"\3who\4test\0\0\1\0\1"


def address_in(answer: bytes) -> str:
    """The address in an answer of answerer.py: its last four bytes."""
    if answer[7] != 1:
        raise OSError(errno.ENODATA, "an answer without an address")
    return socket.inet_ntoa(answer[-4:])


class Tally:
    """What a client tells."""

    def __init__(self) -> None:
        self._answered: Counter[str] = Counter()
        self._queries = 0

    def say(self, what: str, detail: str) -> None:
        print(int(time.time() * 1000), what, detail, flush=True)

    def answered(self, address: str) -> None:
        if not self._answered:
            print("ready", flush=True)
        self._answered[address] += 1
        self._queries += 1

    def lost(self, why: str) -> None:
        self.say("failed", why)
        self._queries += 1

    def sum_up(self) -> None:
        for address, count in self._answered.items():
            print("answered", address, count)
        print("queries", self._queries, flush=True)


def reason(error: OSError) -> str:
    """An error in a word."""
    if isinstance(error, socket.gaierror):
        return next(name for name in dir(socket) if name.startswith("EAI_") and getattr(socket, name) == error.errno)
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, DigError):
        return str(error).replace("timed out", "timeout")
    return errno.errorcode.get(error.errno or 0, repr(error))


class Client(Protocol):
    """A kind of resolver. `ask` is called again with the same number after it has raised."""

    def ask(self, number: int) -> str:
        """Ask one question; return the address in the answer. Raises OSError."""


class Kept:
    """One connected socket for many queries. A timeout leaves it as it is; an error ends it."""

    def __init__(self, server: str, tally: Tally) -> None:
        self._server = server
        self._tally = tally
        self._socket: socket.socket | None = None
        self._left = KEPT_FOR

    def ask(self, number: int) -> str:
        if self._socket is None or self._left == 0:
            self.renew()
        assert self._socket
        self._left -= 1
        try:
            self._socket.send(query(number))
            return self._receive(number)
        except TimeoutError:
            raise
        except OSError:
            self.close()
            raise

    def _receive(self, number: int) -> str:
        assert self._socket
        while True:
            answer = self._socket.recv(512)
            if answer[:2] == (number & 0xFFFF).to_bytes(2, "big"):
                return address_in(answer)

    def renew(self) -> None:
        self.close()
        self._left = KEPT_FOR
        self._socket = socket.socket(socket.AF_INET6 if ":" in self._server else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(TIMEOUT)
        self._socket.connect((self._server, 53))
        peer = self._socket.getpeername()[0]
        if peer != self._server:
            self._tally.say("stranger", peer)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class OnePerQuery(Kept):
    """A new connected socket for each query, as glibc has it."""

    def ask(self, number: int) -> str:
        self.renew()
        try:
            return super().ask(number)
        finally:
            self.close()


class Pool:
    """Kept sockets, used in turn; what goes wrong with one is asked again with a new one."""

    def __init__(self, server: str, tally: Tally) -> None:
        self._sockets = [Kept(server, tally) for _ in range(POOLED)]
        self._retrying = -1

    def ask(self, number: int) -> str:
        kept = self._sockets[number % POOLED]
        if self._retrying == number:
            kept.renew()
        self._retrying = number
        return kept.ask(number)


class Unconnected:
    """One socket that is never connected: it sees where each answer comes from, and drops a stranger's."""

    def __init__(self, server: str, tally: Tally) -> None:
        self._server = server
        self._tally = tally
        self._socket = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)

    def ask(self, number: int) -> str:
        self.send(number)
        deadline = time.monotonic() + TIMEOUT
        while True:
            found = self.receive(deadline)
            if found and found[0] == number & 0xFFFF:
                return found[1]

    def send(self, number: int) -> None:
        self._socket.sendto(query(number), (self._server, 53))

    def receive(self, deadline: float) -> tuple[int, str] | None:
        """Wait for a datagram; return the query's id and the address in the answer, or None for a stranger's."""
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        answer, source = self._socket.recvfrom(512)
        if source[0] != self._server:
            self._tally.say("stranger", source[0])
            return None
        return int.from_bytes(answer[:2], "big"), address_in(answer)


class Glibc:
    """The C library's resolver: both families at once, on one connected socket; /etc/resolv.conf names the server."""

    def __init__(self, _server: str, _tally: Tally) -> None:
        pass

    def ask(self, number: int) -> str:
        return str(socket.getaddrinfo(f"{number}.who.test.", None, type=socket.SOCK_DGRAM)[0][4][0])


class DigError(OSError):
    """dig had no answer; the text is its reason."""


class Dig:
    """A process for each query."""

    OPTIONS: tuple[str, ...] = ()

    def __init__(self, server: str, _tally: Tally) -> None:
        self._command = ["dig", f"@{server}", "+short", "+tries=1", "+time=1", *self.OPTIONS]

    def ask(self, number: int) -> str:
        done = subprocess.run([*self._command, f"{number}.who.test."], capture_output=True, text=True, check=False)
        if done.returncode:
            # ";; communications error to 10.96.0.10#53: timed out"
            raise DigError(done.stdout.partition("communications error to ")[2].partition(": ")[2].split("\n")[0])
        return done.stdout.strip()


class DigTcp(Dig):
    """The same over TCP."""

    OPTIONS = ("+tcp",)


KINDS: dict[str, Callable[[str, Tally], Client]] = {
    "one-per-query": OnePerQuery,
    "kept": Kept,
    "pool": Pool,
    "unconnected": Unconnected,
    "glibc": Glibc,
    "dig": Dig,
    "dig-tcp": DigTcp,
}


def ask_one_by_one(client: Client, tally: Tally, ended: threading.Event) -> None:
    for number in itertools.count():
        try:
            tally.answered(client.ask(number))
        except OSError as first:
            tally.say("retried", reason(first))
            try:
                tally.answered(client.ask(number))
            except OSError as second:
                tally.lost(f"{reason(first)},{reason(second)}")
        if ended.wait(DIG_PAUSE if isinstance(client, Dig) else PAUSE):
            return


def ask_many(client: Unconnected, tally: Tally, ended: threading.Event) -> None:
    """Always have several queries on the way on one socket, as a forwarder has."""
    numbers = itertools.count()
    waiting: dict[int, tuple[float, bool]] = {}  # id -> until when, and whether it is the second try
    while not ended.is_set():
        while len(waiting) < POOLED:
            number = next(numbers) & 0xFFFF
            client.send(number)
            waiting[number] = (time.monotonic() + TIMEOUT, False)
        try:
            found = client.receive(min(deadline for deadline, _ in waiting.values()))
        except TimeoutError:
            _give_up(client, tally, waiting)
            continue
        if found and waiting.pop(found[0], None):
            tally.answered(found[1])
            time.sleep(PAUSE / POOLED)


def _give_up(client: Unconnected, tally: Tally, waiting: dict[int, tuple[float, bool]]) -> None:
    """Ask again what was not answered in time, or count it as lost."""
    now = time.monotonic()
    for number in [number for number, (deadline, _) in waiting.items() if deadline <= now]:
        _, again = waiting.pop(number)
        if again:
            tally.lost("timeout,timeout")
            continue
        tally.say("retried", "timeout")
        client.send(number)
        waiting[number] = (now + TIMEOUT, True)


def main(kind: str, server: str) -> None:
    ended = threading.Event()

    def listen() -> None:
        sys.stdin.read(1)
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    tally = Tally()
    if kind == "many-in-flight":
        ask_many(Unconnected(server, tally), tally, ended)
    else:
        ask_one_by_one(KINDS[kind](server, tally), tally, ended)
    tally.sum_up()


if __name__ == "__main__":
    main(*sys.argv[1:])
