"""Where the eBPF sources are, and what they hash to."""

import hashlib
import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def bpf_directory() -> Path:
    """Return the folder of the C sources: inside the installed package, or at the top of a checkout.

    LRP_BPF_SOURCES names another: for who changes them, and for tests of upgrades. The loader child inherits it.
    """
    if given := os.environ.get("LRP_BPF_SOURCES"):
        return Path(given)
    installed = _PACKAGE / "bpf"
    return installed if installed.is_dir() else _PACKAGE.parent.parent / "bpf"


SOURCES = ["*.c", "*.h", "include/**/*.h"]
"""What decides what programs are (patterns)."""
MAP_SOURCES = ["structs.h", "config.h", "maps.c"]
"""What decides what maps are."""
MAP_KINDS = {"TABLES": r".*", "SOCKETS": r"PLACES.|\w+_PEERS.", "FLOWS": r"FLOWS.|RECENT.|FRAGMENTS."}
"""Maps are pinned in one folder for each kind (bpf/maps.c): what the node redirects, what sockets remember, flows."""


def map_names(kinds: Iterable[str]) -> dict[str, str]:
    """Return the maps of some kinds, as maps.h spells them (FRONTENDS4 ...), with the kind of each."""
    names = re.findall(r"LRP_FD_(\w+)\)", (bpf_directory() / "maps.h").read_text())
    kind_of = {name: kind for kind, pattern in MAP_KINDS.items() for name in names if re.fullmatch(pattern, name)}
    return {name: kind for name, kind in kind_of.items() if kind in kinds}


def digest(patterns: list[str], *more: str) -> str:
    """Hash the sources that match, and further texts, into 12 hex digits: the name of what is built from them.

    They are read once in a process: what an agent was started with is what it stays with, whatever an upgrade puts in
    their place meanwhile.
    """
    return _digest(bpf_directory(), tuple(patterns), more)


@cache
def _digest(folder: Path, patterns: tuple[str, ...], more: tuple[str, ...]) -> str:
    hasher = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        hasher.update(path.name.encode() + b"\0" + path.read_bytes())
    for text in more:
        hasher.update(b"\0" + text.encode())
    return hasher.hexdigest()[:12]
