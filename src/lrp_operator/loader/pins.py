"""What is pinned of a build: maps, some of which stand already; folders of programs, each whole or not at all."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lrp_operator.kernel import bpf
from lrp_operator.loader.messages import Request
from lrp_operator.loader.sources import map_names


def make_folders(request: Request) -> None:
    """Make the folders that maps are pinned in. Raises OSError."""
    for folder in request.folders.values():
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)


def map_pins(request: Request) -> dict[str, Path]:
    """Where each map is pinned, or is to be, by the name that maps.h gives it."""
    return {name: Path(request.folders[kind]) / name.lower() for name, kind in map_names(request.folders).items()}


def open_maps(request: Request, until: ExitStack) -> dict[str, bpf.Fd]:
    """Open the maps that are pinned, until a stack is unwound. Raises OSError."""
    pins = map_pins(request).items()
    return {name: until.enter_context(bpf.open_pin(path)) for name, path in pins if path.exists()}


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to pin programs in; when all is in it, it gets its name, and what had that goes. Raises OSError."""
    unfinished = Path(f"{folder}_unfinished")  # a bpffs takes no dots
    _remove(unfinished)
    unfinished.mkdir(mode=0o700)
    yield unfinished
    _remove(folder)
    unfinished.rename(folder)


def _remove(folder: Path) -> None:
    if folder.is_dir():
        for pin in folder.iterdir():
            pin.unlink()
        folder.rmdir()
