"""What a node and a pod can both do: run programs and Python functions inside, serve and ask.

Whatever runs inside has entered the namespace and the cgroup before its first line. A Python function runs in a
forked child, so it sees the caller's variables, and its result comes back pickled; what it raises is raised here.
"""

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lab import serving
from lab.forking import CallFailedError, Child
from lab.naming import NETNS
from lab.serving import Reply
from lrp_operator.kernel.netns import enter, in_netns, netns_cookie

T = TypeVar("T")
Command = Sequence[str | Path]


@dataclass(eq=False)
class Server:
    """A server in a process of its own."""

    child: Child
    port: int

    def stop(self) -> None:
        """End it, and see it gone: its port is free afterwards. May be called twice."""
        self.child.end()


@dataclass(eq=False)
class Place:
    """A namespace with a cgroup.

    name: the namespace's in /run/netns; netns: a descriptor of it, open as long as the place exists.
    """

    name: str
    netns: int
    cgroup: Path
    _started: list["subprocess.Popen[Any] | Server"] = field(default_factory=list, init=False, repr=False)

    @property
    def netns_path(self) -> Path:
        """The namespace's name as a path."""
        return NETNS / self.name

    @property
    def cookie(self) -> int:
        """The namespace's cookie."""
        return netns_cookie(self.netns)

    def popen(self, command: Command, **options: Any) -> "subprocess.Popen[Any]":
        """Start a program inside; options are those of subprocess.Popen. It is ended with the place, at the latest."""
        with self._entry() as go_inside:
            # Python's lock-laden way of forking, which preexec_fn forces, is harmless: the child makes two syscalls.
            process = subprocess.Popen(command, preexec_fn=go_inside, **options)  # noqa: PLW1509
        self._started.append(process)
        return process

    def run(
        self, command: Command, *, timeout: float = 30, check: bool = True, stdin: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program inside to its end. Its output is text in the result, or in the error if it fails."""
        # From a file: a pipe would stay open as long as any child that was forked while it was filled.
        with self._entry() as go_inside, tempfile.TemporaryFile("w+") as file:
            file.write(stdin)
            file.seek(0)
            done = subprocess.run(
                command, preexec_fn=go_inside, timeout=timeout, check=False, capture_output=True, text=True, stdin=file
            )
        if check and done.returncode:
            raise CallFailedError(
                f"{list(map(str, command))} ended with {done.returncode}: {done.stderr or done.stdout}"
            )
        return done

    def call(self, function: Callable[[], T], *, timeout: float = 30) -> T:
        """Run a Python function inside, in a forked child, and return its result. Raises TimeoutError."""
        child = self._fork(lambda send: send(function()))
        try:
            result: T = child.result(timeout)
            return result
        finally:
            child.end()

    def set(self, name: str, value: int) -> None:
        """Change one of the namespace's own settings below /proc/sys/net, such as ipv4/conf/eth0/rp_filter."""
        in_netns(self.netns, lambda: Path("/proc/sys/net", name).write_text(str(value)))

    def serve_tcp(self, port: int, text: str) -> Server:
        """Start a TCP server that greets with `text`, then echoes. It is ready when this returns. Port 0 picks one."""
        return self.serve(lambda ready: serving.serve(socket.SOCK_STREAM, port, text, ready))

    def serve_udp(self, port: int, text: str) -> Server:
        """Start a UDP server that answers with `text` and the datagram. Ready when this returns. Port 0 picks one."""
        return self.serve(lambda ready: serving.serve(socket.SOCK_DGRAM, port, text, ready))

    def serve(self, function: Callable[[Callable[[int], None]], None]) -> Server:
        """Start a server of your own: a function that serves until killed, and calls `ready(port)` once it can."""
        server = Server(self._fork(function), 0)
        self._started.append(server)
        server.port = server.child.result(timeout=10)
        return server

    def ask_tcp(self, host: str, port: int, *, timeout: float = 2.0, payload: bytes = b"") -> Reply:
        """Connect from here and return what the server says. Raises OSError as connect does."""
        return self.call(lambda: serving.ask_tcp(host, port, timeout=timeout, payload=payload), timeout=timeout + 5)

    def ask_udp(
        self, host: str, port: int, *, timeout: float = 2.0, payload: bytes = b"", connected: bool = False
    ) -> Reply:
        """Send a datagram from here and return its answer. Raises OSError as sendto and recvfrom do."""
        return self.call(
            lambda: serving.ask_udp(host, port, timeout=timeout, payload=payload, connected=connected),
            timeout=timeout + 5,
        )

    @contextlib.contextmanager
    def _entry(self) -> Iterator[Callable[[], None]]:
        """Lend what a forked child calls to go inside. Files are opened here, where an error is still an exception."""
        procs = os.open(self.cgroup / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

        def go_inside() -> None:
            os.write(procs, b"0")  # the kernel's word for "whoever writes"
            enter(self.netns)

        try:
            yield go_inside
        finally:
            os.close(procs)

    def _fork(self, function: Callable[[Callable[[Any], None]], None]) -> Child:
        with self._entry() as go_inside:

            def inside(send: Callable[[Any], None]) -> None:
                go_inside()
                function(send)

            return Child(f"a process in {self.name}", inside)

    def end_processes(self) -> None:
        """Reap what was started here; the cgroup's processes have been killed."""
        for started in self._started:
            if isinstance(started, Server):
                started.stop()
                continue
            started.kill()
            started.wait()
            for stream in (started.stdin, started.stdout, started.stderr):
                if stream:
                    stream.close()
        self._started.clear()
