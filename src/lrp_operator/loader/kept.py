"""Files of what BCC has made: maps and programs, so that they need not be compiled again.

Compiling takes most of an agent's start, and what comes of it is the same each time. So the child keeps it, in the
directory that LRP_BUILD_CACHE names, and whoever needs the same maps and programs later (all pins are gone after a
reboot) puts them together again without a compiler (`again`).

A file is found by a hash of all that decides what is in it: the sources, the constants, who compiles and keeps them,
the kernel's release. It begins with a hash of the rest, so one that a crash has left unfinished is not used. Nobody
else may write in that directory: what is there gets into the kernel, and the verifier does not ask who wrote it.
"""

import errno
import hashlib
import math
import os
import platform
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from lrp_operator.kernel import mapshape
from lrp_operator.kernel.mapshape import MapShape
from lrp_operator.loader.messages import ProgramSet, Request
from lrp_operator.loader.sources import MAP_SOURCES, SOURCES, bpf_directory, digest

VARIABLE = "LRP_BUILD_CACHE"
FILES = 256
"""So many are kept, those that were used last."""
LIBRARIES = Path("/usr/lib")
_HASH_BYTES = hashlib.sha256().digest_size
_OTHERS_MAY_WRITE = 0o022
_OF_FLOWS = "LRP_MAX_FLOWS"
_STAYS = (errno.ENOTEMPTY, errno.EBUSY, errno.EROFS, errno.EACCES, errno.ENOENT)


class KeptMaps(Struct, frozen=True):
    """The maps of one kind, by the names that maps.h gives them."""

    shapes: dict[str, MapShape]


class KeptProgram(Struct, frozen=True):
    """A program. maps: the number of an instruction that refers to a map -> its name, in maps.h or among `own`."""

    instructions: bytes
    maps: dict[int, str]


class KeptSet(Struct, frozen=True):
    """The programs of a set, by their C functions. own: maps that nobody else uses, and that are pinned nowhere."""

    programs: dict[str, KeptProgram]
    own: dict[str, MapShape]


T = TypeVar("T", KeptMaps, KeptSet)


class Store:
    """The directory. Everything raises OSError where it can't be used."""

    def __init__(self, directory: Path) -> None:
        # One of its own, for all that is in it may be removed.
        self.directory = directory / "builds"

    @classmethod
    def given(cls) -> "Store | None":
        """What the environment names; None if it names nothing."""
        directory = os.environ.get(VARIABLE)
        return cls(Path(directory)) if directory else None

    def maps(self, request: Request, kind: str) -> KeptMaps | None:
        """The maps of a kind as a request wants them, if they were kept."""
        return self._read(_name_of_maps(request, kind), KeptMaps)

    def keep_maps(self, request: Request, kind: str, maps: KeptMaps) -> None:
        """Keep them."""
        self._write(_name_of_maps(request, kind), maps)

    def programs(self, wanted: ProgramSet) -> KeptSet | None:
        """A set of programs, if it was kept."""
        return self._read(_name_of_programs(wanted), KeptSet)

    def keep_programs(self, wanted: ProgramSet, programs: KeptSet) -> None:
        """Keep it."""
        self._write(_name_of_programs(wanted), programs)

    def forget_maps(self, request: Request) -> None:
        """Remove the maps that a request needs."""
        for kind in request.folders:
            (self.directory / _name_of_maps(request, kind)).unlink(missing_ok=True)

    def forget_programs(self, wanted: ProgramSet) -> None:
        """Remove a set of programs."""
        (self.directory / _name_of_programs(wanted)).unlink(missing_ok=True)

    def clear(self) -> list[str]:
        """Remove all of it, and the directory that was named, if nothing else is in it; what was removed."""
        removed = []
        if self.directory.is_dir():
            shutil.rmtree(self.directory)
            removed.append(f"directory {self.directory}")
        named = self.directory.parent.absolute()
        # In a container it is a mount, which can't be removed. What the node's first process sees is the directory.
        for path in (named, Path(f"/proc/1/root{named}")):
            try:
                path.rmdir()
            except OSError as error:
                if error.errno not in _STAYS:
                    raise
            else:
                removed.append(f"directory {named}")
        return removed

    def _read(self, name: str, kind: type[T]) -> T | None:
        path = self.directory / name
        if not path.exists():
            return None
        self._refuse_others()
        raw = path.read_bytes()
        if hashlib.sha256(raw[_HASH_BYTES:]).digest() != raw[:_HASH_BYTES]:
            return None
        with suppress(OSError):  # a disk that can only be read: then nothing is removed from it either
            os.utime(path)
        return msgspec.msgpack.decode(raw[_HASH_BYTES:], type=kind)

    def _write(self, name: str, kept: KeptMaps | KeptSet) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._refuse_others()
        raw = msgspec.msgpack.encode(kept)
        unfinished = self.directory / f"{name}-unfinished-{os.getpid()}"
        try:
            unfinished.write_bytes(hashlib.sha256(raw).digest() + raw)
            unfinished.rename(self.directory / name)
        finally:
            unfinished.unlink(missing_ok=True)
        for path in sorted(self.directory.iterdir(), key=_used)[:-FILES]:
            path.unlink(missing_ok=True)

    def _refuse_others(self) -> None:
        status = self.directory.lstat()
        if status.st_uid != os.geteuid() or status.st_mode & _OTHERS_MAY_WRITE:
            raise PermissionError(f"{self.directory} is to be its user's own, and nobody else's to write in")


def _used(path: Path) -> float:
    """When a file was used last; one that somebody else is just putting in its place is new."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _name_of_maps(request: Request, kind: str) -> str:
    """Other sizes make other maps, but only of the kind that has them; the others may outlive a change of them."""
    matter = {"TABLES": request.map_defines.keys() - {_OF_FLOWS}, "FLOWS": {_OF_FLOWS}, "SOCKETS": set()}[kind]
    sizes = sorted((name, value) for name, value in request.map_defines.items() if name in matter)
    return f"{kind.lower()}-{_hash(MAP_SOURCES, kind, sizes)}"


def _name_of_programs(wanted: ProgramSet) -> str:
    source = bpf_directory() / wanted.source
    functions = sorted((name, int(kind.type), int(kind.attach_type)) for name, kind in wanted.functions.items())
    return f"{source.stem}-{_hash(SOURCES, source.read_text(), functions, sorted(wanted.defines.items()))}"


def _hash(sources: list[str], *decide: object) -> str:
    kernel = (platform.machine(), platform.release(), platform.version())
    return digest(sources, repr(kernel), _makers(), *map(repr, decide))


@cache
def _makers() -> str:
    """Whoever has a part in what comes of the sources: the compiler's libraries, and these rooms."""
    compilers = sorted(path for path in LIBRARIES.glob("*/libbcc.so*") if not path.is_symlink())
    rooms = [*sorted(Path(__file__).parent.glob("*.py*")), Path(mapshape.__file__)]
    hasher = hashlib.sha256(repr([(path.name, path.stat().st_size) for path in compilers]).encode())
    for room in rooms:
        hasher.update(room.read_bytes())
    return hasher.hexdigest()
