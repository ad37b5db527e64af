"""Puts together what was kept of an earlier build: no compiler, a tenth of the time, and in the agent's own process.

The maps are made like the earlier ones; the programs are the same instructions, but for the maps that they refer to.
"""

import errno
import logging
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from lrp_operator.kernel import bpf, mapshape
from lrp_operator.kernel.mapshape import MapShape
from lrp_operator.loader.kept import KeptProgram, KeptSet, Store
from lrp_operator.loader.messages import Manifest, Program, ProgramSet, Request
from lrp_operator.loader.pins import make_folders, map_pins, open_maps, whole_folder
from lrp_operator.loader.sources import map_names

log = logging.getLogger(__name__)

_LOAD_64, _OF_MAP = 0x18, 1  # opcode; BPF_PSEUDO_MAP_FD in the source register (include/uapi/linux/bpf.h)
_INSTRUCTION = struct.Struct("=BBhi")
_KERNEL_NAME = 15


class _UselessError(Exception):
    """What was kept is of no use here, and never will be."""


def build(request: Request, store: Store) -> Manifest | None:
    """Make what a request says of what was kept; None if not all of it was, or that can't be done."""
    try:
        sets = [kept for wanted in request.sets if (kept := store.programs(wanted))]
        maps = [found for kind in request.folders if (found := store.maps(request, kind))]
        if not sets or len(sets) < len(request.sets) or len(maps) < len(request.folders):
            return None
        shapes = {name: shape for found in maps for name, shape in found.shapes.items()}
        return _build(request, shapes, sets, store)
    except (OSError, ValueError, LookupError, _UselessError) as error:
        log.warning("programs are compiled, for what was kept in %s can't be used: %s", store.directory, error)
        return None


def _build(request: Request, shapes: Mapping[str, MapShape], sets: list[KeptSet], store: Store) -> Manifest:
    manifest = Manifest({}, {})
    with ExitStack() as stack:
        try:
            maps = _maps(request, shapes, stack)
        except _UselessError:
            store.forget_maps(request)
            raise
        for wanted, kept in zip(request.sets, sets, strict=True):
            try:
                own = {name: stack.enter_context(_make(name, shape)) for name, shape in kept.own.items()}
                _load_set(wanted, kept, {**maps, **own}, manifest)
            except _UselessError:
                store.forget_programs(wanted)
                raise
    return manifest


def _maps(request: Request, shapes: Mapping[str, MapShape], stack: ExitStack) -> dict[str, bpf.Fd]:
    """Open the maps that are pinned, and make and pin the others."""
    make_folders(request)
    maps = open_maps(request, stack)
    for name, path in map_pins(request).items():
        if name not in maps:
            maps[name] = stack.enter_context(_make(name, shapes[name]))
            bpf.pin(maps[name], path)
    return maps


def _make(name: str, shape: MapShape) -> bpf.Fd:
    try:
        return mapshape.make(shape)
    except OSError as error:
        raise _judged(error, name) from error


def _load_set(wanted: ProgramSet, kept: KeptSet, maps: Mapping[str, bpf.Fd], manifest: Manifest) -> None:
    with whole_folder(Path(wanted.folder)) as folder:
        for name, kind in wanted.functions.items():
            code = _referring(kept.programs[name], maps)
            with _load(name, kind, code) as program:
                bpf.pin(program, folder / name)
                manifest.programs[name] = bpf.prog_info(program).id
            manifest.instructions[name] = len(code) // _INSTRUCTION.size


def _load(name: str, kind: Program, code: bytes) -> bpf.Fd:
    try:
        return bpf.load_program(bpf.ProgType(kind.type), code, kind.attach_type, name[:_KERNEL_NAME])
    except OSError as error:
        raise _judged(error, name) from error


def _judged(error: OSError, name: str) -> Exception:
    """Want of memory or rights says nothing of what was kept."""
    refused = error.errno in {errno.EINVAL, errno.EACCES}
    return _UselessError(f"the kernel refuses {name}: {error}") if refused else error


def _referring(program: KeptProgram, maps: Mapping[str, bpf.Fd]) -> bytes:
    """The program's instructions, referring to these maps."""
    code = bytearray(program.instructions)
    for number, name in program.maps.items():
        struct.pack_into("=i", code, number * _INSTRUCTION.size + 4, maps[name].number)
    return bytes(code)


# --- The other direction: what is kept of a build


def shapes_of(kind: str, maps: Mapping[str, bpf.Fd]) -> dict[str, MapShape]:
    """What is kept of the maps of a kind. Raises OSError."""
    names = map_names([kind])
    return {name: mapshape.shape_of(fd) for name, fd in maps.items() if name in names}


def kept_set(programs: Mapping[str, bytes], maps: Mapping[str, bpf.Fd]) -> KeptSet:
    """What is kept of a set of programs.

    programs: the instructions of each function; the maps in them are descriptors that are open here. maps: those of
    maps.h. Raises OSError.
    """
    names = {bpf.map_info(fd).id: name for name, fd in maps.items()}
    own: dict[str, MapShape] = {}
    kept: dict[str, KeptProgram] = {}
    for function, code in programs.items():
        references: dict[int, str] = {}
        for number, descriptor in _references(code).items():
            fd = bpf.Fd(descriptor)  # BCC's, which closes it
            known = bpf.map_info(fd).id
            if known not in names:
                names[known] = f"own {len(own)}"
                own[names[known]] = mapshape.shape_of(fd)
            references[number] = names[known]
        kept[function] = KeptProgram(code, references)
    return KeptSet(kept, own)


def _references(code: bytes) -> dict[int, int]:
    """Instructions that refer to a map: number -> descriptor."""
    return {
        number: immediate
        for number, (opcode, registers, _offset, immediate) in enumerate(_INSTRUCTION.iter_unpack(code))
        if opcode == _LOAD_64 and registers >> 4 == _OF_MAP
    }
