"""Long transfers over one TCP connection, both ways at once, whose every byte is accounted for.

Each side sends a stream of numbers of its own, at a measured pace, and hashes what it sends and what it gets. When the
client has had enough it ends its direction; the server then ends its own with a trailer that tells what it has sent and
what it got, and the client compares.

    bulk.py IP PORT...

is the client: a connection to each address. It prints a line when data flows on all of them; a line on standard input
has it end, and tell in one line of JSON how many bytes went each way, and what was wrong.
"""

import hashlib
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

CHUNK = 1 << 15
PAUSE = 0.01
PATIENCE = 30.0
_TRAILER = 2 * (8 + 32)


class Tally:
    """Bytes counted and hashed."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.sha256()

    def add(self, data: bytes) -> None:
        self.count += len(data)
        self._hash.update(data)

    def said(self) -> bytes:
        return self.count.to_bytes(8, "big") + self._hash.digest()


def _send(sock: socket.socket, tally: Tally, stop: threading.Event, seed: int) -> None:
    """Send until told to stop."""
    dice = random.Random(seed)  # noqa: S311 - no secret
    while not stop.is_set():
        data = dice.randbytes(CHUNK)
        sock.sendall(data)
        tally.add(data)
        time.sleep(PAUSE)


def serve(port: int) -> Callable[[Callable[[int], None]], None]:
    """A server for lab.Place.serve."""

    def work(ready: Callable[[int], None]) -> None:
        os.nice(10)
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        ready(port)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()

    return work


def _serve(connection: socket.socket) -> None:
    sent, got, stop = Tally(), Tally(), threading.Event()
    with connection:
        sender = threading.Thread(target=_send, args=(connection, sent, stop, 2))
        sender.start()
        while data := connection.recv(1 << 16):
            got.add(data)
        stop.set()
        sender.join()
        connection.sendall(sent.said() + got.said())


@dataclass
class Transfer:
    """One connection of the client."""

    where: tuple[str, int]
    flowing: threading.Event = field(default_factory=threading.Event)
    sent: Tally = field(default_factory=Tally)
    got: Tally = field(default_factory=Tally)
    wrong: str = ""

    def run(self, stop: threading.Event) -> None:
        try:
            with socket.create_connection(self.where, timeout=PATIENCE) as sock:
                self._run(sock, stop)
        except OSError as error:
            self.wrong = f"{type(error).__name__}: {error}"
        self.flowing.set()

    def _run(self, sock: socket.socket, stop: threading.Event) -> None:
        failed: list[OSError] = []

        def send() -> None:
            try:
                _send(sock, self.sent, stop, 1)
                sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                failed.append(error)

        sender = threading.Thread(target=send)
        sender.start()
        last = b""
        try:
            while data := sock.recv(1 << 16):
                last += data
                self.got.add(last[:-_TRAILER])
                last = last[-_TRAILER:]
                if self.got.count > 10 * CHUNK and self.sent.count > 10 * CHUNK:
                    self.flowing.set()
        finally:
            stop.set() if failed else None
            sender.join()
        if failed:
            raise failed[0]
        if last != self.got.said() + self.sent.said():
            self.wrong = f"not the bytes that were sent: {self.got.count} came, {self.sent.count} went"


def main() -> None:
    os.nice(10)  # an agent that starts is to have the processor
    transfers = [Transfer((ip, int(port))) for ip, port in zip(sys.argv[1::2], sys.argv[2::2], strict=True)]
    stop = threading.Event()
    threads = [threading.Thread(target=transfer.run, args=(stop,)) for transfer in transfers]
    for thread in threads:
        thread.start()
    for transfer in transfers:
        transfer.flowing.wait()
    print("ready", flush=True)
    sys.stdin.readline()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps([[t.sent.count, t.got.count, t.wrong] for t in transfers]), flush=True)


if __name__ == "__main__":
    main()
