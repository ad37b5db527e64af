"""Manifest files, read once: what `lrpctl resolve -f` takes, and a directory as the agent reads it.

A path is a file, a directory (its own .yaml, .yml and .json files, nothing further down), or `-` for standard input.
The last object of one kind and name wins, over all paths in their order. `read_paths` is strict: anything unreadable
raises. `read_directory` is tolerant: what can't be read is told, and the rest counts.
"""

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from lrp_operator.api.objects import ClusterObject
from lrp_operator.sources import manifests
from lrp_operator.sources.manifests import ObjectKey, Problem

SUFFIXES = (".yaml", ".yml", ".json")

MAX_SIZE = 64 << 20
"""More than any cluster's policies and Services; a limit so that a wrong path does not fill the memory."""


class UnreadableInput(Exception):  # noqa: N818 -- what it is about is the input
    """Input can't be read; `problems` says why, with file, document and line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def read_paths(
    paths: Iterable[str], stdin: BinaryIO, namespace: str = manifests.DEFAULT_NAMESPACE
) -> list[ClusterObject]:
    """Read files, directories, or `-`. Raises UnreadableInput if anything can't be read, with all that can't.

    namespace: of objects that do not name theirs.
    """
    objects: dict[ObjectKey, ClusterObject] = {}
    problems: list[Problem] = []
    for path in paths:
        if path == "-":
            found, faults = _read_stdin(stdin, namespace)
        elif path and _is_directory(Path(path)):
            found, faults = _read_directory(Path(path), namespace)
        else:
            found, faults = _read_named(path, namespace)
        objects |= found
        problems += faults
    if problems:
        raise UnreadableInput(problems)
    return list(objects.values())


def read_directory(path: Path) -> tuple[list[ClusterObject], list[Problem]]:
    """Read a directory, and tell what can't be read of it. A file that vanishes meanwhile was not there."""
    objects, problems = _read_directory(path)
    return list(objects.values()), problems


def list_directory(path: Path) -> list[Path]:
    """Return a directory's manifest files, by name. Those with a dot first are editors' and ConfigMaps' own."""
    return sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES and not entry.name.startswith("."))


def read_file(path: Path) -> bytes:
    """Return the content of a file in a directory. Raises OSError, also if it is a FIFO, which could wait for ever."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        return _limited(file)


def unreadable(path: Path | str, error: OSError) -> Problem:
    """Say that a file or directory can't be read."""
    return Problem(str(path), 0, 0, f"can't be read: {error.strerror or error}")


Contents = tuple[dict[ObjectKey, ClusterObject], list[Problem]]


def _read_directory(path: Path, namespace: str = manifests.DEFAULT_NAMESPACE) -> Contents:
    objects: dict[ObjectKey, ClusterObject] = {}
    problems: list[Problem] = []
    try:
        files = [file for file in list_directory(path) if not _is_directory(file)]
    except OSError as error:
        return {}, [unreadable(path, error)]
    for file in files:
        try:
            content = read_file(file)
        except FileNotFoundError:
            continue  # it vanished meanwhile
        except OSError as error:
            problems.append(unreadable(file, error))
            continue
        found, faults = manifests.read_manifests(str(file), content, namespace)
        objects |= found
        problems += faults
    return objects, problems


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False  # reading it will say why


def _read_named(path: str, namespace: str) -> Contents:
    """Read a file that someone named: it may as well be the pipe of a `<(command)`."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- Path("") would be the working directory
            content = _limited(file)
    except OSError as error:
        return {}, [unreadable(path or '""', error)]
    return manifests.read_manifests(path, content, namespace)


def _read_stdin(stdin: BinaryIO, namespace: str) -> Contents:
    name = "standard input"
    try:
        content = _limited(stdin)
    except OSError as error:
        return {}, [unreadable(name, error)]
    return manifests.read_manifests(name, content, namespace)


def _limited(file: BinaryIO) -> bytes:
    content = file.read(MAX_SIZE + 1)
    if len(content) > MAX_SIZE:
        raise OSError(errno.EFBIG, f"is larger than {MAX_SIZE >> 20} MiB")
    return content
