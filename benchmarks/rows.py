"""What is compared: the rows of the table, each a way of getting a client to a backend.

    direct          the client dials the pod's own address, and nothing is attached: what all others are compared with
    empty           programs that do nothing, on the same hooks: the price of having hooks at all
    ours-...        the product, dialling a frontend (a hit), with that many frontends programmed
    miss-...        the product, dialling an address that is no frontend
    lru, lru-miss   the field's usual scheme, rebuilt from its description (prototype/)
    iptables-..., nft-...   kube-proxy's rules, with that many Services (netfilter.py)

A row only says how its place is prepared and which address its client dials there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from benchmarks.netfilter import iptables_rules, nft_rules
from benchmarks.stage import Stage
from benchmarks.topology import FRONTEND, BenchmarkError, Stand

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


def choose(patterns: list[str], also: list[Path], *, everything: bool) -> list[Row]:
    """Pick rows by name; patterns may have * in them. The base is always there."""
    rows = list(all_rows(also))
    if not patterns:
        return [row for row in rows if everything or not row.optional]
    unknown = [pattern for pattern in patterns if not any(fnmatchcase(row.name, pattern) for row in rows)]
    if unknown:
        names = ", ".join(row.name for row in rows)
        raise BenchmarkError(f"no row is named {', '.join(unknown)}; there are {names}")
    return [row for row in rows if row.name == BASE or any(fnmatchcase(row.name, pattern) for pattern in patterns)]
