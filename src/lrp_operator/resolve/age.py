"""How old an object is: creationTimestamps compared as instants, whatever their spelling.

`2024-05-01T02:00:00+02:00` and `2024-05-01T00:00:00.0Z` are one instant. A timestamp that is absent, or none that
RFC 3339 knows, makes the youngest.
"""

import re
from datetime import UTC, datetime, timedelta

from msgspec import Struct

_RFC3339 = re.compile(r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d+))?(?:[Zz]|([+-]\d{2}:\d{2}))", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Age(Struct, frozen=True, order=True, gc=False):
    """An instant of creation; the smaller is the older.

    fraction: the digits after the second, without trailing zeros, so that they compare as texts.
    """

    unknown: bool = True
    seconds: int = 0
    fraction: str = ""

    @classmethod
    def of(cls, timestamp: str | None) -> "Age":
        """Read a creationTimestamp."""
        written = _RFC3339.fullmatch(timestamp or "")
        if written is None:
            return cls()
        date, time, fraction, offset = written.groups()
        try:
            instant = datetime.fromisoformat(f"{date}T{time}{offset or '+00:00'}")
        except ValueError:
            return cls()
        seconds = (instant - _EPOCH) // timedelta(seconds=1)
        return cls(unknown=False, seconds=seconds, fraction=(fraction or "").rstrip("0"))
