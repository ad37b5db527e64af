"""Each thing that is published, written into a folder."""

import gzip
import hashlib
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import IO

from deploy.image.build import build as build_images
from deploy.release.checks import CHART
from lrp_operator import __version__
from tests.cluster.binaries import program

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
_CHUNK = 1 << 20


class ReleaseError(Exception):
    """Something could not be built; the text says why."""


def python(root: Path, target: Path) -> None:
    """Build the wheel and the source archive. Their times are hatchling's own, as in the images' wheel."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(target)]
    _run(command, root)


def images(target: Path) -> None:
    """Build the images of this machine's architecture from nothing, as compressed archives with their bills."""
    for path in build_images(no_cache=True):
        name = f"{path.name.partition('.')[0]}-{__version__}-linux-{ARCHITECTURE}"
        if path.suffix == ".tar":
            with path.open("rb") as source, (target / f"{name}.tar.gz").open("wb") as out:
                _compress(source, out, 0)
        else:
            shutil.copy(path, target / f"{name}.cdx.json")


def chart(root: Path, target: Path, created: int) -> None:
    """Package the chart. Helm notes the time of day in its archives, so they are packed again."""
    with tempfile.TemporaryDirectory() as room:
        _run([str(program("helm")), "package", str(root / CHART), "--destination", room], root)
        (packed,) = Path(room).glob("*.tgz")
        plain = io.BytesIO()
        with tarfile.open(packed) as source, tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as out:
            for entry in sorted(source, key=lambda entry: entry.name):
                entry.mtime = created
                out.addfile(entry, source.extractfile(entry))
        plain.seek(0)
        with (target / packed.name).open("wb") as file:
            _compress(plain, file, created)


def checksums(target: Path) -> None:
    """Write SHA256SUMS, for `sha256sum --check`."""
    sums = target / "SHA256SUMS"
    files = sorted(path for path in target.iterdir() if path != sums)
    sums.write_text("".join(f"{_digest(path)}  {path.name}\n" for path in files))


def _compress(source: IO[bytes], target: IO[bytes], mtime: int) -> None:
    with gzip.GzipFile(filename="", fileobj=target, mode="wb", mtime=mtime) as out:
        shutil.copyfileobj(source, out, _CHUNK)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(command: list[str], where: Path) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"`{' '.join(command)}` failed:\n{done.stdout}{done.stderr}")
