import json
from typing import Any

import pytest

from lrp_operator.api.objects import ObjectMeta
from lrp_operator.controller import herald
from lrp_operator.controller.herald import REPEAT_SECONDS, Herald

META = ObjectMeta("p", "ns", uid="u1")
GOOD = {"Accepted": ("True", "Accepted"), "Resolved": ("True", "Resolved"), "Degraded": ("False", "AsExpected")}


def showing(programmed: tuple[str, str], **others: tuple[str, str]) -> dict[str, Any]:
    standings = GOOD | {"Programmed": programmed} | others
    conditions = [
        {"type": kind, "status": status, "reason": reason, "message": f"{kind} is {reason}."}
        for kind, (status, reason) in standings.items()
    ]
    return {"observedGeneration": 1, "conditions": conditions}


WAITING, DONE = showing(("False", "NodesPending")), showing(("True", "Programmed"))
NO_POD = showing(("False", "NoLocalPod"))
CONFLICT = showing(("False", "Conflict"), Resolved=("False", "Conflict"), Degraded=("True", "Conflict"))


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(herald, "time", clock)
    return clock


def told(by: Herald) -> list[tuple[str, str, str]]:
    found = []
    while event := by.next():
        body = json.loads(event[1])
        assert event[0].endswith("/namespaces/ns/events")
        found.append((body["type"], body["reason"], body["note"]))
    return found


@pytest.mark.usefixtures("clock")
def test_a_verdict_is_told_when_it_changes_and_no_more() -> None:
    by = Herald("me")
    by.note(META, {}, DONE)
    assert told(by) == [("Normal", "Programmed", "Programmed is Programmed.")]
    by.note(META, DONE, DONE | {"nodesWanted": 7})
    assert told(by) == []


@pytest.mark.usefixtures("clock")
def test_a_new_controller_does_not_tell_all_over() -> None:
    by = Herald("me")
    by.note(META, DONE, DONE | {"nodesWanted": 7})
    assert told(by) == []


@pytest.mark.usefixtures("clock")
def test_what_is_wrong_is_told_first_and_what_is_on_its_way_not_at_all() -> None:
    by = Herald("me")
    by.note(META, {}, WAITING)
    assert told(by) == []
    by.note(META, WAITING, CONFLICT)
    assert told(by) == [("Warning", "Conflict", "Resolved is Conflict.")]


def test_one_that_flaps_is_told_now_and_then_with_what_it_is_then(clock: Clock) -> None:
    by = Herald("me")
    by.note(META, {}, DONE)
    assert len(told(by)) == 1
    for _ in range(20):
        by.note(META, DONE, NO_POD)
        by.note(META, NO_POD, CONFLICT)
        assert told(by) == []
        assert by.due == clock.now + REPEAT_SECONDS
    clock.now += REPEAT_SECONDS
    assert [reason for _, reason, _ in told(by)] == ["Conflict"]
    by.note(META, CONFLICT, DONE)
    by.note(META, DONE, CONFLICT)
    clock.now += REPEAT_SECONDS
    assert told(by) == []  # it is as it was


@pytest.mark.usefixtures("clock")
def test_what_is_gone_is_forgotten() -> None:
    by = Herald("me")
    by.note(META, {}, DONE)
    by.forget(set())
    assert (told(by), by.due, by._told) == ([], None, {})


@pytest.mark.usefixtures("clock")
def test_names_and_notes_at_their_limits() -> None:
    by = Herald("me" * 100)
    long = showing(("True", "Programmed"))
    long["conditions"][-1]["message"] = "\u00e9" * 1024
    by.note(ObjectMeta("x" * 229 + "." + "y" * 23, "ns", uid="u1"), {}, long)
    event = by.next()
    assert event is not None
    body = json.loads(event[1])
    assert len(body["metadata"]["name"]) <= 253
    assert ".." not in body["metadata"]["name"]
    assert len(body["note"].encode()) <= 1024
    assert len(body["reportingInstance"]) <= 128
