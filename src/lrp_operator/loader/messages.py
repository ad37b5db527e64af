"""What passes between the agent and its loader child: JSON on standard input and output."""

from msgspec import Struct


class Program(Struct, frozen=True):
    """A C function that is to be a program. type, attach_type: bpf(2)'s numbers for what it is and where it may go."""

    type: int
    attach_type: int = 0


class ProgramSet(Struct, frozen=True):
    """Programs that are compiled from one file of bpf/ and pinned in one folder, all of them or none.

    functions: C function -> what it is. defines: preprocessor constants.
    """

    source: str
    folder: str
    functions: dict[str, Program]
    defines: dict[str, int]


class Request(Struct, frozen=True):
    """What to build. All paths are on a bpffs.

    folders: kind of maps (`sources.MAP_KINDS`) -> folder of their pins; what is pinned there already is kept, and a
    kind without a folder is not made. map_defines: preprocessor constants of bpf/maps.c.
    """

    folders: dict[str, str]
    map_defines: dict[str, int]
    sets: list[ProgramSet]


class Manifest(Struct, frozen=True):
    """What was built. programs: C function -> kernel program id; instructions: how many each has.

    bcc_version: of who compiled it; empty if it was put together from what was kept. not_kept: why this was not.
    """

    programs: dict[str, int]
    instructions: dict[str, int]
    bcc_version: str = ""
    not_kept: str = ""


class Failure(Struct, frozen=True):
    """What went wrong. step: "bcc", "maps", "compile", "load" or "pin"; program: which, for "load"."""

    step: str
    message: str
    program: str = ""
