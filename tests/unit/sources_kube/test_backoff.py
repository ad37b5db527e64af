"""Pauses grow, have full jitter, and never undercut what the server asks for."""

import pytest

from lrp_operator.sources.kube import backoff
from lrp_operator.sources.kube.backoff import Backoff, Pauses


@pytest.fixture(autouse=True)
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest pause that jitter allows."""
    monkeypatch.setattr(backoff.random, "uniform", lambda least, most: most if least == 0 else pytest.fail("no jitter"))


def test_pauses_grow_and_begin_anew() -> None:
    tries = Backoff(Pauses(first=0.5, most=3))
    assert [tries.failed() for _ in range(5)] == [0.5, 1, 2, 3, 3]
    assert tries.calm == 3
    tries.succeeded()
    assert (tries.calm, tries.failed()) == (0.5, 0.5)


def test_what_the_server_asks_comes_first() -> None:
    tries = Backoff(Pauses(first=0.5, most=3))
    assert [tries.failed(asked=10), tries.failed()] == [10.5, 1]
