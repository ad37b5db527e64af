"""Leadership without a server: candidates with clocks of their own around one Lease."""

from hypothesis import given
from hypothesis import strategies as st

from lrp_operator.controller.lease import Lease, LeaseMeta, LeaseSpec, LeaseTiming, Tenure

TIMING = LeaseTiming()


class Server:
    """A Lease with optimistic concurrency."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self._version = 0

    def put(self, read: Lease | None, spec: LeaseSpec) -> Lease | None:
        """What the server answers to an update of what was read; None is a conflict."""
        current = self.lease.metadata.resource_version if self.lease else None
        if current != (read.metadata.resource_version if read else None):
            return None
        self._version += 1
        self.lease = Lease(LeaseMeta("lease", "ns", str(self._version)), spec)
        return self.lease


def attempt(candidate: Tenure, server: Server, asked_at: float, answered_at: float) -> bool:
    """Read the Lease and take it if that may be; whether it was taken."""
    candidate.see(server.lease, asked_at)
    if not candidate.may_take(asked_at):
        return False
    held = server.put(candidate.lease, candidate.wanted("2026-01-01T00:00:00.000000Z"))
    if held is not None:
        candidate.hold(held, asked_at, answered_at)
    return held is not None


def test_a_free_lease_is_taken_and_kept() -> None:
    server, one, two = Server(), Tenure("one", TIMING), Tenure("two", TIMING)
    assert attempt(one, server, 0.0, 0.1)
    assert not attempt(two, server, 1.0, 1.1)
    assert one.remaining(6.9) > 0
    assert attempt(one, server, 6.0, 6.5)
    assert one.remaining(12.9) > 0  # counted from when it asked, not from when it was answered
    assert one.remaining(13.0) == 0
    assert not attempt(two, server, 10.9, 11.0)  # it has changed since
    assert server.lease is not None
    assert server.lease.spec.lease_transitions == 0


def test_a_lease_that_nobody_renews_is_taken_after_its_duration() -> None:
    server, one, two = Server(), Tenure("one", TIMING), Tenure("two", TIMING)
    attempt(one, server, 0.0, 0.1)
    assert not attempt(two, server, 3.0, 3.1)
    assert not attempt(two, server, 12.9, 12.95)
    assert attempt(two, server, 13.0, 13.1)
    assert server.lease is not None
    assert server.lease.spec.lease_transitions == 1
    one.see(server.lease, 13.2)
    assert one.remaining(13.2) == 0
    assert not one.may_take(13.2)


def test_a_released_lease_is_taken_at_once() -> None:
    server, one, two = Server(), Tenure("one", TIMING), Tenure("two", TIMING)
    attempt(one, server, 0.0, 0.1)
    attempt(two, server, 1.0, 1.1)
    server.put(server.lease, LeaseSpec(lease_duration_seconds=1, lease_transitions=0))
    assert attempt(two, server, 2.0, 2.1)


def test_a_holder_that_came_back_under_another_name_waits() -> None:
    server, one = Server(), Tenure("one", TIMING)
    attempt(one, server, 0.0, 0.1)
    assert not attempt(Tenure("one-restarted", TIMING), server, 0.5, 0.6)


def test_a_longer_duration_than_ours_is_kept() -> None:
    server, two = Server(), Tenure("two", TIMING)
    server.put(None, LeaseSpec("one", 60))
    assert not attempt(two, server, 0.0, 0.1)
    assert not attempt(two, server, 59.0, 59.1)
    assert attempt(two, server, 60.0, 60.1)


steps = st.lists(
    st.tuples(st.sampled_from(["one", "two", "three"]), st.floats(0.01, 6.0), st.floats(0.0, 3.4), st.booleans()),
    max_size=60,
)


@given(steps, st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5), st.floats(-1e5, 1e5)))
def test_there_are_never_two_leaders(
    happened: list[tuple[str, float, float, bool]], offsets: tuple[float, float, float]
) -> None:
    """Whoever tries when, however slow the server's answers are or whether they are lost, and whatever clocks say."""
    server, now = Server(), 0.0
    skew = dict(zip(("one", "two", "three"), offsets, strict=True))
    candidates = {name: Tenure(name, TIMING) for name in skew}
    for name, pause, slowness, answer_is_lost in happened:
        now += pause
        candidate, asked_at = candidates[name], now + skew[name]
        candidate.see(server.lease, asked_at)
        if candidate.may_take(asked_at):
            held = server.put(candidate.lease, candidate.wanted(""))
            if held is not None and not answer_is_lost:
                candidate.hold(held, asked_at, asked_at + slowness)
        leaders = [name for name, each in candidates.items() if each.remaining(now + skew[name]) > 0]
        assert len(leaders) <= 1
