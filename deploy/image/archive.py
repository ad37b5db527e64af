"""What is in a built image: its layers, files, labels and size, read from its archive."""

import gzip
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_REGISTRY_LEVEL = 6  # what clients that push to a registry compress with, as gzip does unless told otherwise
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """An image's archive as `docker save` writes it."""

    path: Path

    @property
    def names(self) -> list[str]:
        """The names that the image has."""
        return list(self._manifest()["RepoTags"])

    @property
    def config(self) -> dict[str, Any]:
        """The image's configuration: entrypoint, user, labels ..., and `created` and `architecture` beside them."""
        with tarfile.open(self.path) as tar:
            whole: dict[str, Any] = json.load(_file(tar, self._manifest()["Config"]))
        return whole

    def compressed(self) -> int:
        """Count the bytes of the layers as a registry stores them."""
        total = 0
        for layer in self.layers():
            counter = _Counter()
            with gzip.GzipFile(fileobj=counter, mode="wb", compresslevel=_REGISTRY_LEVEL, mtime=0) as out:
                while chunk := layer.read(_CHUNK):
                    out.write(chunk)
            total += counter.count
        return total

    def layers(self) -> Iterator[IO[bytes]]:
        """Yield each layer, as a tar, from the lowest."""
        with tarfile.open(self.path) as tar:
            for name in self._manifest()["Layers"]:
                yield _file(tar, name)

    def files(self) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
        """Yield every entry of every layer, with its content if it is a file.

        The images' layers only add, so nothing is deleted again by a later one: their Dockerfiles copy onto nothing.
        """
        for layer in self.layers():
            with tarfile.open(fileobj=layer) as tar:
                for entry in tar:
                    yield entry, tar.extractfile(entry) if entry.isfile() else None

    def _manifest(self) -> dict[str, Any]:
        with tarfile.open(self.path) as tar:
            (image,) = json.load(_file(tar, "manifest.json"))
        return dict(image)


class _Counter:
    """A file that only counts what is written to it."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, data: bytes) -> int:
        self.count += len(data)
        return len(data)

    def flush(self) -> None:
        pass


def _file(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    file = tar.extractfile(name)
    assert file, f"{name} is a file"
    return file
