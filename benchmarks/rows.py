"""What is compared: the rows of the table, each a way of getting a client to a backend.

    direct          the client dials the pod's own address, and nothing is attached: what all others are compared with
    empty           programs that do nothing, on the same hooks: the price of having hooks at all
    ours-...        the product, dialling a frontend (a hit), with that many frontends programmed
    miss-...        the product, dialling an address that is no frontend
    lru, lru-miss   the field's usual scheme, rebuilt from its description (prototype/)
    iptables-..., nft-...   kube-proxy's rules, with that many Services (netfilter.py)

A row only says how its place is prepared and which address its client dials there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from benchmarks.netfilter import iptables_rules, nft_rules
from benchmarks.stage import Links, Stage
from benchmarks.topology import FRONTEND, BenchmarkError, Stand
from lab import Pod

BASE = "direct"
COUNTS = {"10": 10, "1k": 1_000, "10k": 10_000}
USUAL = "1k"
_QUICKLY_LOADED = 1_000
"""So many Services does nft load at once; the time it takes grows with their square."""


class Seat(NamedTuple):
    """Where a row's client sits, and what it dials."""

    stand: Stand
    cgroup: Path
    dials: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row. what: a line for people. netfilter: only packets meet it, so some tests do not.

    optional: measured only when asked for by name, or with --all.
    """

    name: str
    what: str
    prepare: Callable[[Stage], Seat]
    netfilter: bool = False
    optional: bool = False


def _direct(stage: Stage) -> Seat:
    return Seat(stage.stand, stage.stand.seat(BASE), stage.stand.backend.ipv4)


def _hit(name: str, frontends: int, sources: Path | None = None, **wish: bool) -> Callable[[Stage], Seat]:
    return lambda stage: Seat(stage.stand, stage.product(name, frontends, sources, **wish), FRONTEND)


def _miss(name: str, frontends: int, sources: Path | None = None, **wish: bool) -> Callable[[Stage], Seat]:
    return lambda stage: Seat(stage.stand, stage.product(name, frontends, sources, **wish), stage.stand.backend.ipv4)


def _empty(stage: Stage) -> Seat:
    return Seat(stage.stand, stage.empty("empty"), stage.stand.backend.ipv4)


def _rival(dials: str | None) -> Callable[[Stage], Seat]:
    return lambda stage: Seat(stage.stand, stage.rival("lru", COUNTS[USUAL]), dials or stage.stand.backend.ipv4)


def _iptables(count: int) -> Callable[[Stage], Seat]:
    return lambda stage: _apart(stage.netfilter(["iptables-restore"], iptables_rules, count))


def _nft(count: int) -> Callable[[Stage], Seat]:
    return lambda stage: _apart(stage.netfilter(["nft", "-f"], nft_rules, count))


def _apart(stand: Stand) -> Seat:
    return Seat(stand, stand.client.cgroup, FRONTEND)


def all_rows(also: list[Path]) -> Iterator[Row]:
    """Every row there is, in the table's order. also: other builds of the product."""
    yield Row(BASE, "nothing attached; the client dials the pod's own address", _direct)
    yield Row("empty", "programs that do nothing, on the same hooks", _empty)
    usual = COUNTS[USUAL]
    for suffix, count in COUNTS.items():
        yield Row(f"ours-{suffix}", f"a frontend among {count:,}", _hit(f"ours-{suffix}", count))
    yield Row("ours-skip", "the same, and some other pod is exempt from it", _hit("ours-skip", usual, exempt=True))
    yield Row("ours-affinity", "a Service with session affinity", _hit("ours-affinity", usual, affinity=True))
    for suffix, count in COUNTS.items():
        yield Row(f"miss-{suffix}", f"no frontend; {count:,} others are", _miss(f"ours-{suffix}", count))
    storage = ("ours-storage", usual)
    yield Row("ours-storage", "all in socket storage, no table: an older kernel", _hit(*storage, table=False))
    yield Row("miss-storage", "the same, no frontend", _miss(*storage, table=False))
    yield Row("lru", f"the usual scheme: a frontend among {usual:,}", _rival(FRONTEND))
    yield Row("lru-miss", "the usual scheme: no frontend", _rival(None))
    for suffix, count in COUNTS.items():
        yield Row(f"iptables-{suffix}", f"kube-proxy's rules, {count:,} Services", _iptables(count), netfilter=True)
    for suffix, count in COUNTS.items():
        what = f"kube-proxy's nftables rules, {count:,} Services"
        yield Row(f"nft-{suffix}", what, _nft(count), netfilter=True, optional=count > _QUICKLY_LOADED)
    for number, directory in enumerate(also, 1):
        name = "also" if len(also) == 1 else f"also{number}"
        yield Row(name, f"a frontend among {usual:,}, with {directory}", _hit(name, usual, directory))
        yield Row(f"{name}-miss", f"no frontend, with {directory}", _miss(name, usual, directory))


def _both(stand: Stand) -> Sequence[Pod]:
    return stand.client, stand.backend


def _client(stand: Stand) -> Sequence[Pod]:
    return (stand.client,)


def _empty_links(stage: Stage) -> Seat:
    stand = stage.empty_links(_both)
    return Seat(stand, stand.client.cgroup, stand.backend.ipv4)


def _translated(
    name: str, frontends: int, sources: Path | None = None, links: Links = _both
) -> Callable[[Stage], Seat]:
    return lambda stage: _apart(stage.translating(name, frontends, sources, links))


def _untranslated(name: str, frontends: int, sources: Path | None = None) -> Callable[[Stage], Seat]:
    def prepare(stage: Stage) -> Seat:
        stand = stage.translating(name, frontends, sources, _both, miss=True)
        return Seat(stand, stand.client.cgroup, stand.backend.ipv4)

    return prepare


def packet_rows(also: list[Path]) -> Iterator[Row]:
    """The rows of the TC part: those whose packets are rewritten, in either way. Each has a node of its own."""
    yield Row(BASE, "nothing attached; the client dials the pod's own address", _direct)
    yield Row("tc-empty", "programs that do nothing, on the links of client and backend", _empty_links)
    usual = COUNTS[USUAL]
    for suffix, count in COUNTS.items():
        yield Row(f"tc-{suffix}", f"a frontend among {count:,}, programs on both links", _translated(suffix, count))
    yield Row("tc-client", "the same, programs on the client's link only", _translated("client", usual, links=_client))
    yield Row("tc-miss", f"a pod that is no backend; {usual:,} frontends are", _untranslated("miss", usual))
    yield from (row for row in all_rows([]) if row.netfilter)
    for number, directory in enumerate(also, 1):
        name = "also" if len(also) == 1 else f"also{number}"
        yield Row(name, f"a frontend among {usual:,}, with {directory}", _translated(name, usual, directory))
        yield Row(f"{name}-miss", f"no frontend, with {directory}", _untranslated(f"{name}-miss", usual, directory))


BRIDGED = (BASE, "tc-empty", f"tc-{USUAL}", "tc-miss", f"iptables-{USUAL}", f"nft-{USUAL}", "also*")
"""The TC part's rows where pods are on a bridge."""


def choose(rows: Sequence[Row], patterns: list[str], *, everything: bool) -> list[Row]:
    """Pick rows by name; patterns may have * in them. The base is always there."""
    if not patterns:
        return [row for row in rows if everything or not row.optional]
    unknown = [pattern for pattern in patterns if not any(fnmatchcase(row.name, pattern) for row in rows)]
    if unknown:
        names = ", ".join(row.name for row in rows)
        raise BenchmarkError(f"no row is named {', '.join(unknown)}; there are {names}")
    return [row for row in rows if row.name == BASE or any(fnmatchcase(row.name, pattern) for pattern in patterns)]
