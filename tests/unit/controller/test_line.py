from hypothesis import given
from hypothesis import strategies as st

from lrp_operator.controller.line import Line


def anything(_: str) -> bool:
    return True


def test_a_crowded_namespace_does_not_keep_others_waiting() -> None:
    line = Line()
    for index in range(1000):
        line.put(f"crowd/{index}")
    line.put("a/1")
    line.put("a/2")
    line.put("b/1")
    assert [line.take(anything) for _ in range(6)] == ["crowd/0", "a/1", "b/1", "crowd/1", "a/2", "crowd/2"]


def test_one_that_may_not_yet_be_served_keeps_nobody_waiting() -> None:
    line = Line()
    for name in ("a/1", "a/2", "b/1"):
        line.put(name)
    assert line.take(lambda name: name != "a/1") == "a/2"
    assert line.take(lambda name: name != "a/1") == "b/1"
    assert line.take(lambda name: name != "a/1") is None
    assert list(line) == ["a/1"]


names = st.sampled_from(["a/1", "a/2", "b/1", "c/1"])


@given(st.lists(st.tuples(st.sampled_from(["put", "discard", "take"]), names)))
def test_each_waits_once(steps: list[tuple[str, str]]) -> None:
    line, waiting = Line(), set[str]()
    for what, name in steps:
        if what == "put":
            line.put(name)
            waiting.add(name)
        elif what == "discard":
            line.discard(name)
            waiting.discard(name)
        else:
            taken = line.take(anything)
            assert (taken is None) == (not waiting)
            waiting.discard(taken or "")
        assert (set(line), len(line)) == (waiting, len(waiting))
        assert all(name in line for name in waiting)
