"""The loader child: read a Request, compile and load with BCC, pin, print a Manifest (or a Failure, exit code 1).

BCC writes the compiler's diagnostics and the verifier's log to standard error; the parent collects them.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from lrp_operator.kernel import bpf
from lrp_operator.loader import again
from lrp_operator.loader.kept import KeptMaps, Store
from lrp_operator.loader.messages import Failure, Manifest, Program, Request
from lrp_operator.loader.pins import make_folders, map_pins, open_maps, whole_folder
from lrp_operator.loader.sources import bpf_directory, map_names

Maps = Mapping[str, bpf.Fd]

# Where distributions put python3-bpfcc (pure ctypes, for any Python 3); a virtual environment does not look there.
_DISTRIBUTION_PACKAGES = "/usr/lib/python3/dist-packages"


class LoadError(Exception):
    """Carries the Failure to report."""

    def __init__(self, step: str, message: str, program: str = "") -> None:
        super().__init__(message)
        self.failure = Failure(step, message, program)


def _import_bcc() -> ModuleType:
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_directory() / "include")
    sys.path.append(_DISTRIBUTION_PACKAGES)
    try:
        import bcc  # noqa: PLC0415 - after the environment and the path are set
    except ImportError as error:
        raise LoadError("bcc", f"BCC is not installed ({error}): install the package python3-bpfcc") from error
    if not hasattr(bcc, "BPF"):
        raise LoadError("bcc", f"{bcc.__file__} is another package named bcc: remove it and install python3-bpfcc")
    module: ModuleType = bcc
    return module


def _compile(bcc: ModuleType, step: str, source: str, defines: Mapping[str, int | str]) -> Any:
    flags = [f"-I{bpf_directory()}", *(f"-D{name}={value}" for name, value in defines.items())]
    try:
        return bcc.BPF(text=(bpf_directory() / source).read_text(), cflags=flags)
    except Exception as error:  # bcc raises nothing narrower
        raise LoadError(step, f"{source}: {error}") from error


def _ensure_maps(bcc: ModuleType, request: Request, stack: ExitStack) -> dict[str, bpf.Fd]:
    """Have BCC make the maps that are not pinned yet."""
    wanted, maps = map_pins(request), open_maps(request, stack)
    if len(maps) == len(wanted):
        return maps
    folders = {f"LRP_{kind}": f'"{folder}/"' for kind, folder in request.folders.items()}
    _compile(bcc, "maps", "maps.c", {**folders, **request.map_defines})
    maps = open_maps(request, stack)
    missing = [name.lower() for name in wanted if name not in maps]
    if missing:  # BCC does not tell
        raise LoadError("maps", f"BCC did not pin {', '.join(missing)}: is {request.folders['TABLES']} on a bpffs?")
    return maps


def _load(request: Request) -> Manifest:
    make_folders(request)
    bcc = _import_bcc()
    with ExitStack() as stack:
        there = open_maps(request, stack)
        maps = _ensure_maps(bcc, request, stack)
        descriptors = {f"LRP_FD_{name}": fd.number for name, fd in maps.items()}
        manifest = Manifest({}, {}, bcc_version=getattr(bcc, "__version__", "unknown"))
        code: list[dict[str, bytes]] = []
        for programs in request.sets:
            module = _compile(bcc, "compile", programs.source, {**descriptors, **programs.defines})
            with whole_folder(Path(programs.folder)) as folder:
                for name, kind in programs.functions.items():
                    _load_program(module, name, kind, folder, manifest)
            code.append({name: module.dump_func(name) for name in programs.functions})
        made = {name: fd for name, fd in maps.items() if name not in there}
        return msgspec.structs.replace(manifest, not_kept=_keep(request, maps, made, code))


def _load_program(module: Any, name: str, kind: Program, folder: Path, manifest: Manifest) -> None:
    """Load one function, pin it in a folder, and enter it in the manifest."""
    try:
        function = module.load_func(name, kind.type, attach_type=kind.attach_type)
    except Exception as error:  # bcc raises nothing narrower
        raise LoadError("load", str(error), name) from error
    program = bpf.Fd(function.fd)
    bpf.pin(program, folder / name)
    manifest.programs[name] = bpf.prog_info(program).id
    manifest.instructions[name] = len(module.dump_func(name)) // 8


def _keep(request: Request, maps: Maps, made: Maps, code: list[dict[str, bytes]]) -> str:
    """Keep what was made, where there is a place for it; why that can't be, if so.

    Maps that stood already are not kept: they may have been made of something else.
    """
    store = Store.given()
    if store is None:
        return ""
    try:
        for kind in request.folders:
            if len(of_kind := again.shapes_of(kind, made)) == len(map_names([kind])):
                store.keep_maps(request, kind, KeptMaps(of_kind))
        for programs, functions in zip(request.sets, code, strict=True):
            store.keep_programs(programs, again.kept_set(functions, maps))
    except OSError as error:
        return str(error)
    return ""


def main() -> int:
    """Run once."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    try:
        answer: Manifest | Failure = _load(request)
    except LoadError as error:
        answer = error.failure
    except OSError as error:
        answer = Failure("pin", str(error))
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    return 1 if isinstance(answer, Failure) else 0


if __name__ == "__main__":
    sys.exit(main())
