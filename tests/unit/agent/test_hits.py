"""When was a frontend last used, as far as counters tell?"""

from datetime import UTC, datetime, timedelta

from lrp_operator.agent.hits import HitBook
from lrp_operator.datapath.model import Hits
from tests.unit.agent.fakes import frontend

A, B = frontend("10.0.0.1:80/TCP"), frontend("10.0.0.2:80/TCP")
T0 = datetime(2024, 1, 1, tzinfo=UTC)
T1, T2 = T0 + timedelta(seconds=2), T0 + timedelta(seconds=4)


def test_counters_from_before_say_that_and_not_when() -> None:
    book = HitBook()
    book.look({A: Hits(redirected=5), B: Hits()}, T0)
    assert [book.uses[f][1:] for f in (A, B)] == [(None, True), (None, False)]
    book.look({A: Hits(redirected=5), B: Hits()}, T1)
    assert [book.uses[f][1:] for f in (A, B)] == [(None, True), (None, False)]


def test_growth_is_a_use_now() -> None:
    book = HitBook()
    book.look({A: Hits(redirected=5)}, T0)
    book.look({A: Hits(redirected=6)}, T1)
    book.look({A: Hits(redirected=6)}, T2)
    assert book.uses[A] == (Hits(redirected=6), T1, False)


def test_a_refusal_is_a_use_and_an_exempt_pods_connect_is_none() -> None:
    book = HitBook()
    book.look({A: Hits(), B: Hits()}, T0)
    book.look({A: Hits(refused=1), B: Hits(skipped=1, failed=1)}, T1)
    assert (book.uses[A].last, book.uses[B].last) == (T1, None)


def test_a_frontend_that_comes_later_or_counts_anew_was_used_since() -> None:
    book = HitBook()
    book.look({B: Hits(redirected=9)}, T0)
    book.look({A: Hits(redirected=1), B: Hits(redirected=2)}, T1)
    assert (book.uses[A].last, book.uses[B].last) == (T1, T1)
    book.look({A: Hits()}, T2)
    assert book.uses == {A: (Hits(), None, False)}
