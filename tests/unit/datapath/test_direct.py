"""Backends' own addresses: there as long as some frontend has them, and never in a frontend's way."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath.direct import LINGER_SECONDS, DirectFrontends, itself
from lrp_operator.datapath.tables import Content
from lrp_operator.resolve.model import FrontendEntry, FrontendType

ADDRESSES = [L4Addr(bytes((10, 0, 0, number)), 53, Protocol.UDP) for number in range(5)]

changes = st.lists(
    st.tuples(st.sampled_from(ADDRESSES), st.none() | st.lists(st.sampled_from(ADDRESSES), unique=True, max_size=3)),
    max_size=20,
)


def entry(frontend: L4Addr, backends: list[L4Addr]) -> FrontendEntry:
    return FrontendEntry(frontend, FrontendType.LOCAL_REDIRECT, "default/p", None, tuple(backends), not backends)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(changes)
def test_they_follow_from_the_entries_as_they_are(made: list[tuple[L4Addr, list[L4Addr] | None]]) -> None:
    """An address may be a frontend, a backend, or both, in any order; what is neither any more goes after a while."""
    clock = Clock()
    direct, entries = DirectFrontends(clock), dict[L4Addr, list[L4Addr]]()
    table = dict[L4Addr, Content | None]()
    for frontend, backends in made:
        if backends is None:
            entries.pop(frontend, None)
            table.pop(frontend, None)
        else:
            entries[frontend] = backends
            table[frontend] = None  # the caller's own entry
        for address, content in direct.change(frontend, None if backends is None else entry(frontend, backends)):
            assert address not in entries, "a frontend is never changed"
            table[address] = content
        assert direct.expired(set) == []
        wanted = dict.fromkeys(entries) | {one: itself(one) for one in _backends(entries) - entries.keys()}
        assert table.items() >= wanted.items()
    clock.now += LINGER_SECONDS + 1
    for address in direct.expired(set):
        assert table.pop(address) == itself(address)
    assert table == dict.fromkeys(entries) | {one: itself(one) for one in _backends(entries) - entries.keys()}


def _backends(entries: dict[L4Addr, list[L4Addr]]) -> set[L4Addr]:
    return {backend for listed in entries.values() for backend in listed}


def test_where_those_go_who_are_exempt_is_a_backend_too() -> None:
    frontend, own, theirs, _, _ = ADDRESSES
    original = FrontendEntry(frontend, FrontendType.CLUSTER_IP, None, "default/s", (theirs,))
    direct, plain = DirectFrontends(Clock()), entry(frontend, [own])
    told = dict(direct.change(frontend, structs.replace(plain, original=original)))
    assert told == {own: itself(own), theirs: itself(theirs)}
    assert dict(direct.change(frontend, plain)) == {theirs: itself(theirs)}, "it has left, and stays for a while"


def test_one_that_has_left_stays_while_connections_go_there() -> None:
    clock = Clock()
    direct = DirectFrontends(clock)
    frontend, backend, other = ADDRESSES[:3]
    list(direct.change(frontend, entry(frontend, [backend])))
    assert list(direct.change(frontend, None)) == [(backend, itself(backend))]
    clock.now += LINGER_SECONDS + 1
    assert direct.expired(lambda: {backend, other}) == []
    assert direct.expired(set) == [backend]
    assert direct.expired(set) == []


def test_what_an_earlier_agent_left_is_kept_for_a_while() -> None:
    clock = Clock()
    direct = DirectFrontends(clock)
    frontend, backend, other = ADDRESSES[:3]
    assert direct.adopt(backend)
    assert direct.adopt(other)
    list(direct.change(frontend, entry(frontend, [backend])))
    assert not direct.adopt(backend)
    clock.now += LINGER_SECONDS + 1
    assert direct.expired(set) == [other]
