"""The loader child: read a Request, compile and load with BCC, pin, print a Manifest (or a Failure, exit code 1).

BCC writes the compiler's diagnostics and the verifier's log to standard error; the parent collects them.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from lrp_operator.kernel import bpf
from lrp_operator.loader.messages import Failure, Manifest, Request
from lrp_operator.loader.sources import bpf_directory, map_names

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


def _open_maps(request: Request) -> dict[str, bpf.Fd]:
    found: dict[str, bpf.Fd] = {}
    for name in map_names():
        for folder in (request.tables, request.sockets):
            path = Path(folder) / name.lower()
            if path.exists():
                found[name] = bpf.open_pin(path)
    return found


def _ensure_maps(bcc: ModuleType, request: Request) -> dict[str, bpf.Fd]:
    maps = _open_maps(request)
    if len(maps) == len(map_names()):
        return maps
    folders = {"LRP_TABLES": f'"{request.tables}/"', "LRP_SOCKETS": f'"{request.sockets}/"'}
    _compile(bcc, "maps", "maps.c", {**folders, **request.map_defines})
    maps = _open_maps(request)
    missing = [name.lower() for name in map_names() if name not in maps]
    if missing:  # BCC does not tell
        raise LoadError("maps", f"BCC did not pin {', '.join(missing)}: is {request.tables} on a bpffs?")
    return maps


def _load(request: Request) -> Manifest:
    for folder in (request.tables, request.sockets):
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    bcc = _import_bcc()
    maps = _ensure_maps(bcc, request)
    descriptors = {f"LRP_FD_{name}": fd.number for name, fd in maps.items()}
    module = _compile(bcc, "compile", request.source, {**descriptors, **request.program_defines})
    ids: dict[str, int] = {}
    sizes: dict[str, int] = {}
    unfinished = Path(f"{request.programs}_unfinished")  # a bpffs takes no dots
    _remove_folder(unfinished)
    unfinished.mkdir(mode=0o700)
    for name, attach_type in request.hooks.items():
        try:
            program_type = bpf.AttachType(attach_type).program_type
            function = module.load_func(name, program_type, attach_type=attach_type)
        except Exception as error:  # bcc raises nothing narrower
            raise LoadError("load", str(error), name) from error
        program = bpf.Fd(function.fd)
        bpf.pin(program, unfinished / name)
        ids[name] = bpf.prog_info(program).id
        sizes[name] = len(module.dump_func(name)) // 8
    unfinished.rename(request.programs)
    return Manifest(ids, sizes, getattr(bcc, "__version__", "unknown"))


def _remove_folder(folder: Path) -> None:
    if folder.is_dir():
        for pin in folder.iterdir():
            pin.unlink()
        folder.rmdir()


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
