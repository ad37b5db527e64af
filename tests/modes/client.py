"""Clients that never stop asking, each in a thread of its own; run as a program in a pod (traffic.py starts it).

    client.py [{"kind": ..., "ip": ..., "port": ...}, ...]

It prints a line when everybody has had an answer; a line on standard input has each of them tell, in one line of JSON,
what it has seen. The kinds:

    tcp            a connection for each request
    stream         a connection that stays: numbered blocks go out and must come back whole
    udp            a new socket for each query
    udp-connected  the same, connected (as the C library's resolver does)
    unconnected    one socket that is used again and again
    connected      the same, connected

An answer starts with who gives it (lab.serving). Each client also looks where the answer seems to come from, and, where
it is connected, to whom it seems to be.
"""

import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

PATIENCE = 4.0  # seconds for an answer: nothing here takes as long
PAUSE = {"udp": 0.02, "udp-connected": 0.02}
USUAL_PAUSE = 0.04
BLOCK = 4000


class Client:
    """One client. names: who answered, and how often; wrong: what should not have been, and how often."""

    def __init__(self, kind: str, ip: str, port: int) -> None:
        self.kind, self.where = kind, (ip, port)
        self.family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self.answered = threading.Event()
        self.names: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.kept: socket.socket | None = None
        self.blocks = 0

    def run(self, stop: threading.Event) -> None:
        once: Callable[[], None] = getattr(self, self.kind.replace("-", "_"))
        while not stop.is_set():
            try:
                once()
                self.answered.set()
            except OSError as error:
                self.complain(type(error).__name__)
                if self.kept:
                    self.kept.close()
                    self.kept = None
            time.sleep(PAUSE.get(self.kind, USUAL_PAUSE))
        if self.kept:
            self.kept.close()

    def complain(self, what: str) -> None:
        self.wrong[what] += 1

    def made(self, kind: int) -> socket.socket:
        made = socket.socket(self.family, kind)
        made.settimeout(PATIENCE)
        return made

    def note(self, answer: bytes, query: bytes, source: Any = None, peer: Any = None) -> None:
        line, _, echo = answer.partition(b"\n")
        self.names[json.loads(line)[0]] += 1
        if echo != query:
            self.complain("another's answer")
        if source is not None and source[:2] != self.where:
            self.complain(f"answer from {source[0]}:{source[1]}")
        if peer is not None and peer[:2] != self.where:
            self.complain(f"peer {peer[0]}:{peer[1]}")

    # --- The kinds

    def tcp(self) -> None:
        with self.made(socket.SOCK_STREAM) as sock:
            sock.connect(self.where)
            peer = sock.getpeername()
            with sock.makefile("rb") as stream:
                line = stream.readline()
                query = b"q" * 500
                sock.sendall(query)
                self.note(line + stream.read(len(query)), query, peer=peer)

    def stream(self) -> None:
        if self.kept is None:
            self.kept = self.made(socket.SOCK_STREAM)
            self.kept.connect(self.where)
            line = b""
            while not line.endswith(b"\n"):
                line += self.kept.recv(1)
            self.name = json.loads(line)[0]
        self.blocks += 1
        block = self.blocks.to_bytes(4, "big") * (BLOCK // 4)
        self.kept.sendall(block)
        back = b""
        while len(back) < BLOCK:
            part = self.kept.recv(BLOCK - len(back))
            if not part:
                raise ConnectionResetError
            back += part
        if back != block:
            self.complain("bytes lost")
        self.names[self.name] += 1
        if (peer := self.kept.getpeername()[:2]) != self.where:
            self.complain(f"peer {peer[0]}:{peer[1]}")

    def udp(self) -> None:
        with self.made(socket.SOCK_DGRAM) as sock:
            self.query(sock, connected=False)

    def udp_connected(self) -> None:
        with self.made(socket.SOCK_DGRAM) as sock:
            sock.connect(self.where)
            self.query(sock, connected=True)

    def unconnected(self) -> None:
        self.kept = self.kept or self.made(socket.SOCK_DGRAM)
        self.query(self.kept, connected=False)

    def connected(self) -> None:
        if self.kept is None:
            self.kept = self.made(socket.SOCK_DGRAM)
            self.kept.connect(self.where)
        self.query(self.kept, connected=True)

    def query(self, sock: socket.socket, *, connected: bool) -> None:
        self.blocks += 1
        query = self.blocks.to_bytes(4, "big")
        if connected:
            sock.send(query)
        else:
            sock.sendto(query, self.where)
        answer, source = sock.recvfrom(4096)
        self.note(answer, query, source, sock.getpeername() if connected else None)


def main() -> None:
    os.nice(10)  # an agent that starts is to have the processor
    clients = [Client(one["kind"], one["ip"], one["port"]) for one in json.loads(sys.argv[1])]
    stop = threading.Event()
    threads = [threading.Thread(target=client.run, args=(stop,)) for client in clients]
    for thread in threads:
        thread.start()
    for client in clients:
        client.answered.wait()
    print("ready", flush=True)
    sys.stdin.readline()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps([{"names": client.names, "wrong": client.wrong} for client in clients]), flush=True)


if __name__ == "__main__":
    main()
