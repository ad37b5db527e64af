"""Backends' own addresses: there as long as some frontend has them, and never in a frontend's way."""

from hypothesis import given
from hypothesis import strategies as st

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath.direct import DirectFrontends
from lrp_operator.datapath.layout import FLAG_DIRECT
from lrp_operator.datapath.tables import Content
from lrp_operator.resolve.model import FrontendEntry, FrontendType

ADDRESSES = [L4Addr(bytes((10, 0, 0, number)), 53, Protocol.UDP) for number in range(5)]

changes = st.lists(
    st.tuples(st.sampled_from(ADDRESSES), st.none() | st.lists(st.sampled_from(ADDRESSES), unique=True, max_size=3)),
    max_size=20,
)


def entry(frontend: L4Addr, backends: list[L4Addr]) -> FrontendEntry:
    return FrontendEntry(frontend, FrontendType.LOCAL_REDIRECT, "default/p", None, tuple(backends), not backends)


@given(changes)
def test_they_follow_from_the_entries_as_they_are(made: list[tuple[L4Addr, list[L4Addr] | None]]) -> None:
    """An address may be a frontend, a backend, or both, in any order."""
    direct, entries = DirectFrontends(), dict[L4Addr, list[L4Addr]]()
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
            if content is None:
                table.pop(address, None)
            else:
                table[address] = content
        wanted = {backend for listed in entries.values() for backend in listed} - entries.keys()
        assert table == dict.fromkeys(entries) | {one: Content((one,), FLAG_DIRECT, 0) for one in wanted}
