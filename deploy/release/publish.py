"""The images of a release, pushed: one name and tag, whatever architectures there are archives of.

buildah makes the index that has one entry for each architecture, and pushes it. It has the registry's credentials from
`buildah login` or `docker login`.
"""

import gzip
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deploy.image.tools import install, tell
from deploy.release.artefacts import ReleaseError
from lrp_operator import __version__

_ARCHIVE = re.compile(rf"(lrp-\w+)-{re.escape(__version__)}-linux-(\w+)\.tar\.gz")


def publish(folder: Path, prefix: str) -> None:
    """Push every image that the folder has archives of, as PREFIX/lrp-ROLE:VERSION. Raises ReleaseError."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _ARCHIVE.fullmatch(path.name):
            found.setdefault(match[1], []).append(path)
    if not found:
        raise ReleaseError(f"{folder} has no archives of images of version {__version__}: run `make release`")
    for name, archives in found.items():
        _publish_one(f"{prefix}/{name}:{__version__}", archives)


def _publish_one(image: str, archives: list[Path]) -> None:
    install("buildah")
    index = f"localhost/{image.rpartition('/')[2]}-index"  # a name that no image has here
    subprocess.run(["buildah", "manifest", "rm", index], capture_output=True, check=False)  # one that failed left it
    with tempfile.TemporaryDirectory() as room:
        for command in _steps(index, image, [_uncompressed(archive, Path(room)) for archive in archives]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ReleaseError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    tell(f"{image}: pushed for {len(archives)} architecture{'s' if len(archives) > 1 else ''}")


def _uncompressed(archive: Path, room: Path) -> Path:
    """Unpack what docker and containerd take as it is, but buildah doesn't."""
    with gzip.open(archive) as source, (room / archive.stem).open("wb") as target:
        shutil.copyfileobj(source, target)
    return room / archive.stem


def _steps(index: str, image: str, archives: list[Path]) -> Iterator[list[str]]:
    yield ["buildah", "manifest", "create", index]
    for archive in archives:
        yield ["buildah", "manifest", "add", index, f"docker-archive:{archive}"]
    yield ["buildah", "manifest", "push", "--all", "--rm", index, f"docker://{image}"]
