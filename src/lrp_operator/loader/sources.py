"""Where the eBPF sources are, and what they hash to."""

import hashlib
import os
import re
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


def map_names() -> list[str]:
    """Return every map that maps.h knows, as it spells them: FRONTENDS4 ..."""
    return re.findall(r"LRP_FD_(\w+)\)", (bpf_directory() / "maps.h").read_text())


def digest(patterns: list[str], *more: str) -> str:
    """Hash the sources that match, and further texts, into 12 hex digits: the name of what is built from them."""
    hasher = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in bpf_directory().glob(pattern)}):
        hasher.update(path.name.encode() + b"\0" + path.read_bytes())
    for text in more:
        hasher.update(b"\0" + text.encode())
    return hasher.hexdigest()[:12]
