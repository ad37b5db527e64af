"""Clients that ask all the time, each in a pod of its own, and what they have told when it is over.

`resolvers()` is every kind that this machine has the programs for; `PLAIN` are the few that every kind is made of. A
client's pod has an /etc/resolv.conf of its own, in a mount namespace, as containers do.
"""

import bisect
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from lab import Pod
from tests.rollout.cluster import VIP, VIP6, Cluster, wait

CLIENTS = Path(__file__).parent / "clients"
CACHE = Path.home() / ".cache" / "lrp-operator" / "rollout-clients"
# The C library's and Go's timeout is a whole number of seconds. One attempt: the client's own retry is to be seen.
RESOLV_CONF = "nameserver {server}\noptions timeout:1 attempts:1 ndots:1\n"
_GO = ("go", "/usr/local/go/bin/go")
_OFFLINE = {"GOPROXY": "off", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
# Go and Java give errors as sentences.
_ERRNO = {os.strerror(number).lower(): name for number, name in errno.errorcode.items()}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of client. server: whom it asks; forwarder: a dnsmasq in its pod asks on its behalf."""

    name: str
    command: tuple[str, ...]
    server: str = VIP
    forwarder: bool = False


@dataclass(slots=True)
class Report:
    """What one client has told. retried: why -> how often; answered: by whom -> how often."""

    client: str
    queries: int = 0
    retried: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    strangers: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)


class Stages:
    """What was going on when."""

    def __init__(self, log: Path | None = None) -> None:
        self._log = log
        self._names = ["before"]
        self._times = [0.0]

    def enter(self, name: str) -> None:
        """From now on, this is going on."""
        self._names.append(name)
        self._times.append(time.time())
        if self._log:
            with self._log.open("a") as log:
                print(int(time.time() * 1000), name, file=log)

    def at(self, when: float) -> str:
        """What was going on at a time in seconds since 1970."""
        return self._names[bisect.bisect(self._times, when) - 1]


def _python(name: str, kind: str, server: str = VIP, **more: bool) -> Kind:
    return Kind(name, (sys.executable, str(CLIENTS / "resolver.py"), kind), server, **more)


PLAIN = (
    _python("a socket per query", "one-per-query"),
    _python("a kept connected socket", "kept"),
    _python("a pool of kept sockets", "pool"),
    _python("an unconnected socket", "unconnected"),
)


def resolvers() -> tuple[list[Kind], list[str]]:
    """Every kind that can be had here, and why others can't."""
    kinds = [
        *PLAIN,
        _python("a kept connected socket, IPv6", "kept", VIP6),
        _python("an unconnected socket, IPv6", "unconnected", VIP6),
        _python("an unconnected socket, 8 in flight", "many-in-flight"),
        _python("glibc getaddrinfo", "glibc"),
        _python("dig", "dig"),
        _python("dig over TCP", "dig-tcp"),
        # A second try from another port is no second try to dnsmasq: it waits on for the answer to the first.
        _python("dnsmasq in front", "kept", "127.0.0.1", forwarder=True),
    ]
    missing = []
    go = next(filter(None, map(shutil.which, _GO)), None)
    if go:
        kinds.append(Kind("Go net.Resolver", (str(_built(CLIENTS / "client.go", [go, "build", "-o"])),)))
    else:
        missing.append("the Go client: there is no Go here")
    javac = shutil.which("javac")
    if javac:
        classes = str(_built(CLIENTS / "Client.java", [javac, "-d"]))
        java = ("java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx32m", "-cp", classes)
        kinds += [Kind("Java JNDI", (*java, "Client", "jndi")), Kind("Java DatagramSocket", (*java, "Client", "kept"))]
    else:
        missing.append("the Java clients: there is no JDK here")
    return kinds, missing


def _built(source: Path, compiler: list[str]) -> Path:
    """A client as its compiler made it, once for each version of its source."""
    result = CACHE / f"{source.stem}-{sha256(source.read_bytes()).hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            new = CACHE / "new"
            subprocess.run([*compiler, new, source], check=True, timeout=120, env=os.environ | _OFFLINE)
            new.rename(result)
    return result


@dataclass(slots=True)
class _Running:
    kind: Kind
    pod: Pod
    process: "subprocess.Popen[str]"
    log: Path

    def is_answered(self) -> bool:
        """Whether it has had its first answer."""
        return "ready\n" in self.log.read_text()


@contextmanager
def asking(cluster: Cluster, kinds: Sequence[Kind], stages: Stages | None = None) -> Iterator[list[Report]]:
    """Have clients ask while the body runs. What is lent is filled when it is left, in the order of the kinds.

    The body begins when each client has had an answer.
    """
    reports = [Report(kind.name) for kind in kinds]
    running = []
    try:
        for number, kind in enumerate(kinds):
            running.append(_start(cluster, number, kind))
        for client in running:
            wait(client.is_answered, f"an answer to {client.kind.name}")
        yield reports
        for client, report in zip(running, reports, strict=True):
            client.process.communicate("\n", timeout=30)  # its sign to tell the rest and end
            assert client.process.returncode == 0, f"{client.kind.name}: {client.log.read_text()}"
            _read(client.log.read_text(), report, stages or Stages())
    finally:
        for client in running:
            client.pod.remove()


def _start(cluster: Cluster, number: int, kind: Kind) -> _Running:
    name = f"client-{number}"
    pod = cluster.node.pod(name)
    log, resolv_conf = cluster.directory / f"{name}.log", cluster.directory / f"{name}.resolv.conf"
    resolv_conf.write_text(RESOLV_CONF.format(server=kind.server))
    if kind.forwarder:
        _forward(pod, to=VIP)
    mounted = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', str(resolv_conf)]
    with log.open("wb") as output:
        process = pod.popen(
            [*mounted, *kind.command, kind.server], stdin=subprocess.PIPE, stdout=output, stderr=output, text=True
        )
    return _Running(kind, pod, process, log)


def _forward(pod: Pod, *, to: str) -> None:
    """Start a dnsmasq that keeps nothing and asks `to` for everything."""
    own = ["--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file=", "--cache-size=0"]
    pod.popen(
        ["dnsmasq", "--keep-in-foreground", *own, "--port=53", f"--server={to}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _read(log: str, report: Report, stages: Stages) -> None:
    """Fill a report from a client's lines (clients/resolver.py says what they mean)."""
    for line in log.splitlines():
        match line.split(maxsplit=2):
            case ["ready"]:
                pass
            case ["queries", count]:
                report.queries = int(count)
            case ["answered", address, count]:
                report.answered[address] += int(count)
            case [_, "retried", why]:
                report.retried[_ERRNO.get(why.lower(), why)] += 1
            case [when, "failed", why]:
                report.failed.append(f"{why} ({stages.at(int(when) / 1000)})")
            case [_, "stranger", address]:
                report.strangers[address] += 1
            case _:
                raise AssertionError(f"{report.client} said {line!r}:\n{log[-2000:]}")


def table(reports: Sequence[Report]) -> str:
    """All that the clients have told, for people."""
    rows = [["client", "queries", "retried", "failed", "strangers", "why"]]
    for r in reports:
        whys = ", ".join(f"{count} {why}" for why, count in r.retried.most_common())
        counts = (r.queries, r.retried.total(), len(r.failed), r.strangers.total())
        rows.append([r.client, *map(str, counts), whys or "-"])
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 5)), row[5]]) for row in rows
    )
