"""What passes between the agent and its loader child: JSON on standard input and output."""

from msgspec import Struct


class Request(Struct, frozen=True):
    """What to build. All paths are on a bpffs.

    tables, sockets: folders of the maps' pins (those that exist are kept). programs: folder to pin programs in; made by
    the child, whole or not at all. source: file name in bpf/. hooks: C function -> expected attach type.
    map_defines, program_defines: preprocessor constants of bpf/maps.c and of the source.
    """

    tables: str
    sockets: str
    programs: str
    source: str
    hooks: dict[str, int]
    map_defines: dict[str, int]
    program_defines: dict[str, int]


class Manifest(Struct, frozen=True):
    """What was built. programs: C function -> kernel program id; instructions: how many each has."""

    programs: dict[str, int]
    instructions: dict[str, int]
    bcc_version: str


class Failure(Struct, frozen=True):
    """What went wrong. step: "bcc", "maps", "compile", "load" or "pin"; program: which, for "load"."""

    step: str
    message: str
    program: str = ""
