"""Files of what BCC has made: maps and programs, so that they need not be compiled again.

Compiling takes most of an agent's start, and what comes of it is the same each time. So the child keeps it, in the
directory that LRP_BUILD_CACHE names, and whoever needs the same maps and programs later (all pins are gone after a
reboot) puts them together again without a compiler (`again`).

A file is found by a hash of all that decides what is in it: the sources, the constants, the kernel's release. It begins
with a hash of the rest, so one that a crash has left unfinished is not used. Nobody else may write in that directory:
what is there gets into the kernel, and the verifier does not ask whether it is what we wrote.
"""

import errno
import hashlib
import os
import platform
import shutil
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from lrp_operator.kernel.mapshape import MapShape
from lrp_operator.loader.messages import ProgramSet, Request
from lrp_operator.loader.sources import MAP_SOURCES, SOURCES, bpf_directory, digest

VARIABLE = "LRP_BUILD_CACHE"
FILES = 256
"""So many are kept, those that were used last."""
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
        # One of its own: a volume that a kubelet makes can be written to by everyone.
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

    def forget(self, wanted: ProgramSet) -> None:
        """Remove a set of programs."""
        (self.directory / _name_of_programs(wanted)).unlink(missing_ok=True)

    def clear(self) -> list[str]:
        """Remove all of it, and the directory that was named, if nothing else is in it; what was removed."""
        if not self.directory.is_dir():
            return []
        shutil.rmtree(self.directory)
        named = self.directory.parent.absolute()
        # In a container it is a mount, which can't be removed. What the node's first process sees is the directory.
        for path in (named, Path(f"/proc/1/root{named}")):
            try:
                path.rmdir()
            except OSError as error:
                if error.errno not in _STAYS:
                    raise
            else:
                return [f"directory {named}"]
        return [f"directory {self.directory}"]

    def _read(self, name: str, kind: type[T]) -> T | None:
        path = self.directory / name
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        self._refuse_others()
        if hashlib.sha256(raw[_HASH_BYTES:]).digest() != raw[:_HASH_BYTES]:
            return None
        os.utime(path)
        return msgspec.msgpack.decode(raw[_HASH_BYTES:], type=kind)

    def _write(self, name: str, kept: KeptMaps | KeptSet) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._refuse_others()
        raw = msgspec.msgpack.encode(kept)
        unfinished = self.directory / f"{name}-unfinished-{os.getpid()}"
        unfinished.write_bytes(hashlib.sha256(raw).digest() + raw)
        unfinished.rename(self.directory / name)
        for path in sorted(self.directory.iterdir(), key=lambda path: path.stat().st_mtime)[:-FILES]:
            path.unlink()

    def _refuse_others(self) -> None:
        status = self.directory.stat()
        if status.st_uid != os.geteuid() or status.st_mode & _OTHERS_MAY_WRITE:
            raise PermissionError(f"{self.directory} is to be its user's own, and nobody else's to write in")


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
    return digest(sources, repr(kernel), *map(repr, decide))
