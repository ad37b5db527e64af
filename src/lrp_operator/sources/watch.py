"""A directory of manifests, followed live.

`Directory.read` looks at the directory and parses only what changed since it last looked. `follow` calls it whenever
the kernel reports a change, and every so often besides: for changes behind symbolic links and on file systems that
report nothing. Each reading is the whole truth, so a missed event costs time and nothing else.

What can't be read keeps its last good objects, because a read error is no reason to take redirects away: a directory
that is gone or closed keeps all, a file that can't be opened keeps its own, and a document that can't be parsed keeps
what its file said before. Only what is readably not there any more goes: a deleted file's objects, an object taken out
of a file. Whatever is kept for want of better is told as a problem.
"""

import asyncio
import logging
import os
import stat
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import watchfiles

from lrp_operator.api.objects import ClusterObject
from lrp_operator.sources.files import list_directory, read_file, unreadable
from lrp_operator.sources.manifests import ObjectKey, Problem, key_of, read_manifests

_log = logging.getLogger(__name__)

REREAD_SECONDS = 10.0
"""How often a directory is read without being told to."""

MISSING_SECONDS = 1.0
"""How often a directory is looked for that is not there, so that no event can tell of it."""

DEBOUNCE_MS = 500
"""The longest that changes are gathered; 50 ms without one end it sooner."""

SETTLED_NS = 2_000_000_000
"""A file changed this recently may change again within one tick of its file system's clock: it is parsed again."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a directory holds, by kind and name, and what of it can't be read."""

    objects: dict[ObjectKey, ClusterObject]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Changes:
    """The way from one snapshot to the next."""

    upserts: tuple[ClusterObject, ...]
    deletes: tuple[ObjectKey, ...]

    def __bool__(self) -> bool:
        return bool(self.upserts or self.deletes)


def diff_objects(old: Iterable[ClusterObject], new: Iterable[ClusterObject]) -> Changes:
    """Say what came or changed, and what went."""
    before = {key_of(obj): obj for obj in old}
    after = {key_of(obj): obj for obj in new}
    return Changes(
        upserts=tuple(obj for key, obj in after.items() if before.get(key) != obj),
        deletes=tuple(key for key in before if key not in after),
    )


@dataclass(frozen=True, slots=True)
class _File:
    """What a file said. signature: of the state that was parsed; None: parse it again at the next look."""

    signature: tuple[int, ...] | None
    objects: dict[ObjectKey, ClusterObject]
    problems: tuple[Problem, ...]


class Directory:
    """A directory and what was last read of each of its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[Path, _File] = {}

    def read(self) -> Snapshot:
        """Look at the directory. Raises nothing for what can't be read: that is a problem in the snapshot."""
        own_problems: tuple[Problem, ...] = ()
        try:
            self._look()
        except OSError as error:
            own_problems = (_kept(unreadable(self.path, error), any(file.objects for file in self._files.values())),)
        objects: dict[ObjectKey, ClusterObject] = {}
        for _, file in sorted(self._files.items()):
            objects |= file.objects
        problems = [problem for file in self._files.values() for problem in file.problems]
        return Snapshot(objects, (*own_problems, *sorted(problems)))

    def _look(self) -> None:
        """Bring the files up to date. Raises OSError if the directory can't be listed."""
        listed = list_directory(self.path)
        files = {path: self._file(path, self._files.get(path)) for path in listed}
        self._files = {path: file for path, file in files.items() if file is not None}

    def _file(self, path: Path, last: _File | None) -> _File | None:
        """Return what a file says now; None if it is not there, or no file."""
        kept = last.objects if last is not None else {}
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                return None
            signature = _signature(status)
            if last is not None and signature is not None and last.signature == signature:
                return last
            content = read_file(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            return _File(None, kept, (_kept(unreadable(path, error), bool(kept)),))
        objects, problems = read_manifests(str(path), content)
        if problems:
            missing = kept.keys() - objects.keys()
            problems = [_kept(problem, bool(missing)) for problem in problems]
            objects = kept | objects
        return _File(signature, objects, tuple(problems))


def _signature(status: os.stat_result) -> tuple[int, ...] | None:
    """Return what changes when the file does; None if it is too fresh to tell."""
    if abs(time.time_ns() - status.st_mtime_ns) < SETTLED_NS:
        return None
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev)


def _kept(problem: Problem, anything: bool) -> Problem:
    """Add to a problem that what was read before is kept."""
    return replace(problem, message=f"{problem.message}; what it said before is kept") if anything else problem


async def follow(path: Path, reread_seconds: float = REREAD_SECONDS) -> AsyncGenerator[Snapshot]:
    """Yield what a directory holds, at once and after each change, for ever. To stop, close it or cancel the wait."""
    directory = Directory(path)
    last: Snapshot | None = None
    async with aclosing(_looks(path, reread_seconds)) as looks:
        async for _ in looks:
            snapshot = await asyncio.to_thread(directory.read)
            if snapshot != last:
                last = snapshot
                yield snapshot


async def _looks(path: Path, reread_seconds: float) -> AsyncGenerator[None]:
    """Yield whenever it is time to look at the directory."""
    while True:
        identity = _identity(path)
        try:
            # A change between listing and watching would go unseen, so the watch begins before the look.
            if identity is not None:
                async with _Watch(path, reread_seconds) as watch:
                    yield
                    while _identity(path) == identity:
                        await watch.wait()
                        yield
                continue  # the path leads elsewhere by now, and the kernel reports on the old directory
        except (OSError, RuntimeError) as error:
            _log.warning("can't watch %s, so it is read every %.0f s: %s", path, MISSING_SECONDS, error)
        yield
        await asyncio.sleep(min(MISSING_SECONDS, reread_seconds))


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells one directory from another at the same path; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None


class _Watch:
    """The kernel's reports on one directory."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._stop = asyncio.Event()
        self._changes = watchfiles.awatch(
            path,
            watch_filter=None,
            recursive=False,
            debounce=DEBOUNCE_MS,
            rust_timeout=max(1, int(timeout * 1000)),
            yield_on_timeout=True,
            stop_event=self._stop,
        )

    async def __aenter__(self) -> Self:
        self._next = asyncio.ensure_future(anext(self._changes))
        await asyncio.sleep(0)  # its first step, which registers the watch
        return self

    async def wait(self) -> None:
        """Return at the next change, or when the time is up. Raises OSError if the watch can't be had."""
        await asyncio.wait([self._next])  # if this is cancelled, its thread goes on, until __aexit__ stops it
        self._next.result()
        self._next = asyncio.ensure_future(anext(self._changes))
        await asyncio.sleep(0)

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()  # its thread can't be cancelled
        await asyncio.gather(self._next, return_exceptions=True)
        await self._changes.aclose()
