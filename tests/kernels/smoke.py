"""What the smoke checks share: a node, trials on it, a row for each.

A trial returns nothing where all is as it should be, a sentence where this kernel can't and the README says so, and
raises where it fails. The tests in tests/datapath try far more, on one kernel.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

from lab import CallFailedError, Node, cleanup
from tests.kernels.rows import Row, Verdict

PATIENCE = 15.0  # seconds for one answer: emulation is slow


@contextmanager
def node() -> Iterator[Node]:
    """A node that is left where it is, with its processes ended, for the machine goes, too.

    (The lab removes one in good order, and sweeps up what it finds, with cgroup.kill, which came with Linux 5.14.)
    """
    made = Node()
    with patch.object(cleanup, "sweep", list):
        made.__enter__()  # there is no exit
    try:
        yield made
    finally:
        for place in (*made.pods.values(), made):
            place.end_processes()


def tried(check: str, subject: str, trial: Callable[[], str]) -> Row:
    """Do a trial; tell what became of it."""
    try:
        lack = trial()
    except (AssertionError, OSError, CallFailedError) as error:
        return Row(check, subject, Verdict.FAILS, f"{type(error).__name__}: {error}")
    return Row(check, subject, Verdict.LACKS if lack else Verdict.WORKS, lack)


def same(found: object, wanted: object) -> None:
    """See that it is what it should be. Raises AssertionError."""
    assert found == wanted, f"{found} instead of {wanted}"
