"""What a guest tells the host: one JSON object a line."""

from enum import StrEnum

import msgspec
from msgspec import Struct

ITS_END = "its end"  # the subject of a row that says that a check did not come to it


class Verdict(StrEnum):
    """What became of one thing that was tried.

    lacks: this kernel can't, or not wholly, and the product goes on as the README tells; no failure.
    """

    WORKS = "works"
    LACKS = "lacks"
    FAILS = "fails"


class Kernel(Struct, frozen=True, tag=True):
    """The first word: which kernel runs. release: as `uname -r`; version: the distribution's, such as 6.1.192-2."""

    release: str
    version: str


class Row(Struct, frozen=True, tag=True):
    """One thing that was tried. check: which check's; subject: what, unique there.

    told: what is amiss, or what it was like, for people. instructions: of each program that was loaded, how many the
    verifier went through (0 where the kernel does not tell).
    """

    check: str
    subject: str
    verdict: Verdict
    told: str = ""
    instructions: dict[str, int] = {}


class End(Struct, frozen=True, tag=True):
    """The last word of a guest: every check was run to its end or given up."""


Said = Kernel | Row | End
encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Said)


def decode(line: bytes | str) -> Said:
    """Read one line. Raises msgspec.DecodeError."""
    said: Said = _decoder.decode(line)
    return said
