"""creationTimestamps compare as instants, and what is none makes the youngest."""

import pytest

from lrp_operator.resolve.age import Age


@pytest.mark.parametrize(
    ("older", "younger"),
    [
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:01Z"),
        ("2024-01-01T00:00:00.45Z", "2024-01-01T00:00:00.5Z"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00.000000001Z"),
        ("2024-01-01T01:00:00+02:00", "2024-01-01T00:00:00Z"),
        ("2024-01-01T09:00:00Z", "2024-01-01T02:00:00-08:00"),
        ("1969-12-31T23:59:59.9Z", "1970-01-01T00:00:00Z"),
        ("0001-01-01T00:00:00+23:59", "0001-01-01T00:00:00Z"),
        ("9999-12-31T23:59:59-23:59", None),
    ],
)
def test_the_older(older: str, younger: str | None) -> None:
    assert Age.of(older) < Age.of(younger)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2024-05-01T00:00:00Z", "2024-05-01T02:00:00+02:00"),
        ("2024-05-01T00:00:00Z", "2024-05-01t00:00:00.000z"),
        ("2024-05-01T00:00:00.5Z", "2024-05-01T00:00:00.50Z"),
        ("2024-05-01T00:00:00Z", "2024-04-30 16:00:00-08:00"),
    ],
)
def test_equally_old(one: str, other: str) -> None:
    assert Age.of(one) == Age.of(other)


@pytest.mark.parametrize(
    "text",
    [
        None, "", "yesterday", "2024-05-01", "2024-05-01T00:00:00", "2024-13-01T00:00:00Z", "2024-02-30T00:00:00Z",
        "2024-05-01T25:00:00Z", "2024-05-01T00:00:00+25:00", "20240501T000000Z", " 2024-05-01T00:00:00Z", "1714521600",
        "2024-05-01T00:00:00Z\n", "\uff12024-05-01T00:00:00Z", "0000-01-01T00:00:00Z",
    ],
)  # fmt: skip
def test_what_is_no_timestamp_makes_the_youngest(text: str | None) -> None:
    assert Age.of(text) == Age.of(None) > Age.of("9999-12-31T23:59:59Z")
