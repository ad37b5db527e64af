"""What is news: the pure half of the informer, event by event."""

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from lrp_operator.api.objects import Pod
from lrp_operator.sources.kube.resources import PODS
from lrp_operator.sources.kube.told import UNDECODABLE, Told, is_newer


def raw(name: str, version: int | str, uid: str = "u1", **more: Any) -> Raw:
    meta = {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": str(version)}
    return Raw(msgspec.json.encode({"metadata": meta, **more}))


class Reader:
    """Takes what is to be told as text: "-a" is deleted, "+a" new or changed."""

    def __init__(self) -> None:
        self.told: Told[Pod] = Told(PODS)

    def news(self) -> str:
        upserts, deletes = self.told.take()
        return " ".join([*(f"-{key[3:]}" for key in deletes), *(f"+{pod.metadata.name}" for pod in upserts)])

    def listing(self, *objects: Raw) -> str:
        self.told.begin()
        for obj in objects:
            self.told.put(obj)
        self.told.end()
        return self.news()


@pytest.fixture
def reader() -> Reader:
    reader = Reader()
    assert reader.listing(raw("a", 1), raw("b", 2)) == "+a +b"
    return reader


def test_a_listing_tells_the_difference(reader: Reader) -> None:
    assert reader.listing(raw("a", 1), raw("b", 2)) == ""
    assert reader.listing(raw("b", 3), raw("c", 4)) == "-a +b +c"
    assert reader.listing() == "-b -c"


def test_what_a_listing_did_not_name_goes_at_its_end_only(reader: Reader) -> None:
    reader.told.begin()
    reader.told.put(raw("c", 5))
    assert reader.news() == "+c"
    reader.told.begin()  # the first one was broken off
    reader.told.put(raw("b", 2))
    assert reader.news() == ""
    reader.told.end()
    assert reader.news() == "-a -c"


def test_another_uid_is_another_object(reader: Reader) -> None:
    assert reader.listing(raw("a", 9, uid="u2"), raw("b", 2)) == "-a +a"
    reader.told.put(raw("b", 10, uid="u2"))
    assert reader.news() == "-b +b"


def test_within_a_history_older_is_no_news(reader: Reader) -> None:
    reader.told.put(raw("b", 7))
    assert reader.news() == "+b"
    reader.told.put(raw("b", 7))
    reader.told.put(raw("b", 6))
    reader.told.drop(raw("b", 6))
    assert reader.news() == ""


def test_an_overtaken_event_does_not_bring_back_what_is_deleted(reader: Reader) -> None:
    reader.told.drop(raw("b", 7))
    reader.told.put(raw("b", 6))
    assert reader.news() == "-b"
    reader.told.put(raw("b", 8, uid="u2"))
    assert reader.news() == "+b"
    reader.told.drop(raw("a", 9))
    reader.told.settle()  # the server has told all up to now: nothing older comes
    reader.told.put(raw("a", 3))
    assert reader.news() == "-a +a"


def test_a_deletion_may_carry_the_last_version(reader: Reader) -> None:
    reader.told.drop(raw("b", 2))
    assert reader.news() == "-b"


def test_a_listing_is_believed_though_its_versions_are_older(reader: Reader) -> None:
    reader.told.put(raw("a", 1000))
    reader.told.drop(raw("b", 1001))
    reader.news()
    assert reader.listing(raw("a", 11), raw("b", 12)) == "+a +b"


def test_events_during_a_listing(reader: Reader) -> None:
    reader.told.begin()
    reader.told.put(raw("a", 1))
    reader.told.put(raw("a", 5))
    reader.told.put(raw("a", 4))
    reader.told.drop(raw("b", 6))
    reader.told.end()
    assert reader.news() == "-b +a"


def test_made_and_deleted_at_once(reader: Reader) -> None:
    reader.told.put(raw("c", 5))
    reader.told.drop(raw("c", 6))
    assert reader.news() == "-c"
    reader.told.drop(raw("a", 7))
    reader.told.put(raw("a", 8, uid="u2"))
    assert reader.news() == "-a +a"


def test_what_cannot_be_decoded_keeps_what_was_told(reader: Reader) -> None:
    reader.told.put(raw("a", 5, spec={"nodeName": 7}))
    reader.told.put(raw("c", 6))
    assert reader.news() == "+c"
    assert list(reader.told.unreadable.values()) == [
        "Pod ns/a can't be read: Expected `str | null`, got `int` - at `$.spec.nodeName`"
    ]
    reader.told.put(raw("a", 7))
    assert reader.news() == "+a"
    assert not reader.told.unreadable
    reader.told.put(raw("a", 8, spec=[]))
    reader.told.drop(raw("a", 9))
    assert (reader.news(), reader.told.unreadable) == ("-a", {})


@pytest.mark.parametrize(
    "text", [b"{}", b"[", b'{"spec":' + b"[" * 5000 + b"]" * 5000 + b"}"], ids=["nameless", "no JSON", "deep"]
)
def test_what_is_no_object_is_for_the_caller_to_tell(text: bytes, reader: Reader) -> None:
    with pytest.raises(UNDECODABLE):
        reader.told.put(Raw(text))
    assert reader.news() == ""


@pytest.mark.parametrize(
    ("version", "than", "newer"),
    [("10", "9", True), ("9", "10", False), ("9", "9", False), ("b", "a", True), ("a", "b", True), ("a", "a", False)],
)
def test_versions_compare_as_numbers_if_they_are_such(version: str, than: str, newer: bool) -> None:
    assert is_newer(version, than) is newer
