import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from lrp_operator.api.objects import ObjectMeta, Pod, Service
from lrp_operator.sources import watch
from lrp_operator.sources.watch import Directory, Snapshot, diff_objects, follow

KEPT = "; what it said before is kept"


def pods(*names: str) -> str:
    return "---\n".join(f"{{kind: Pod, metadata: {{name: {name}}}}}\n" for name in names)


def fill(directory: Path, name: str) -> None:
    directory.mkdir()
    (directory / f"{name}.yaml").write_text(pods(name))


def take_place(new: Path, old: Path) -> None:
    old.rename(old.with_name("old"))
    new.rename(old)


def names(snapshot: Snapshot) -> list[str]:
    return [obj.metadata.name for obj in snapshot.objects.values()]


def problems(snapshot: Snapshot, directory: Path) -> list[str]:
    return [str(problem).replace(str(directory), "DIR") for problem in snapshot.problems]


# --- Looking ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "manifests"
    path.mkdir()
    (path / "a.yaml").write_text(pods("a", "a2"))
    (path / "b.yaml").write_text(pods("b"))
    return path


def age(file: Path, seconds: float = 60) -> None:
    """Let a file look as if it had been written a while ago."""
    then = time.time() - seconds
    os.utime(file, (then, then))


def test_a_deleted_file_takes_its_objects_along(path: Path) -> None:
    directory = Directory(path)
    assert names(directory.read()) == ["a", "a2", "b"]
    (path / "a.yaml").unlink()
    assert directory.read() == Snapshot(
        {key: obj for key, obj in directory.read().objects.items() if key[1] == "default/b"}
    )


def test_only_files_that_changed_are_parsed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in path.iterdir():
        age(file)
    directory = Directory(path)
    first = directory.read()
    parsed = []
    read_manifests = watch.read_manifests
    monkeypatch.setattr(watch, "read_manifests", lambda file, text: parsed.append(file) or read_manifests(file, text))
    assert directory.read() == first
    assert parsed == []
    (path / "b.yaml").write_text(pods("c"))
    age(path / "b.yaml")
    assert names(directory.read()) == ["a", "a2", "c"]
    assert parsed == [str(path / "b.yaml")]


def test_a_fresh_file_is_parsed_again_though_nothing_seems_to_have_changed(path: Path) -> None:
    directory = Directory(path)
    directory.read()
    status = (path / "b.yaml").stat()
    (path / "b.yaml").write_text(pods("c"))
    os.utime(path / "b.yaml", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert names(directory.read()) == ["a", "a2", "c"]


def test_an_unreadable_file_keeps_what_it_said(path: Path) -> None:
    directory = Directory(path)
    directory.read()
    (path / "a.yaml").unlink()
    (path / "a.yaml").symlink_to("a.yaml")
    snapshot = directory.read()
    assert names(snapshot) == ["a", "a2", "b"]
    assert problems(snapshot, path) == ["DIR/a.yaml: can't be read: Too many levels of symbolic links" + KEPT]
    (path / "a.yaml").unlink()
    (path / "a.yaml").write_text(pods("a3"))
    assert directory.read() == Directory(path).read()


def test_an_unreadable_document_keeps_what_its_file_said(path: Path) -> None:
    directory = Directory(path)
    directory.read()
    (path / "a.yaml").write_text("{kind: Pod, metadata: {name: a, uid: new}}\n---\n{kind: Pod, metadata: {na\n")
    for _ in range(2):
        snapshot = directory.read()
        assert names(snapshot) == ["a", "a2", "b"]
        assert snapshot.objects[Pod, "default/a"].metadata.uid == "new"
        (problem,) = problems(snapshot, path)
        assert problem.startswith("DIR/a.yaml, document 2, line 3: while parsing")
        assert problem.endswith(KEPT)
    (path / "a.yaml").write_text(pods("a"))
    assert directory.read() == Directory(path).read()


def test_what_never_was_read_is_not_said_to_be_kept(path: Path) -> None:
    directory = Directory(path)
    (path / "c.yaml").write_text("{")
    assert problems(directory.read(), path) == [
        "DIR/c.yaml, document 1, line 1: while parsing a flow node, did not find expected node content"
    ]


@pytest.mark.parametrize("replacement", ["nothing", "a file"])
def test_a_lost_directory_keeps_all(path: Path, replacement: str) -> None:
    directory = Directory(path)
    directory.read()
    shutil.rmtree(path)
    if replacement == "a file":
        path.write_text(pods("x"))
    snapshot = directory.read()
    assert names(snapshot) == ["a", "a2", "b"]
    why = "No such file or directory" if replacement == "nothing" else "Not a directory"
    assert problems(snapshot, path) == [f"DIR: can't be read: {why}{KEPT}"]
    path.unlink(missing_ok=True)
    path.mkdir()
    assert directory.read() == Snapshot({})


def test_a_file_that_vanishes_between_listing_and_reading_is_no_problem(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = watch.list_directory(path)
    monkeypatch.setattr(watch, "list_directory", lambda _: [*listed, path / "gone.yaml"])
    assert Directory(path).read().problems == ()


def test_the_last_file_wins(path: Path) -> None:
    (path / "b.yaml").write_text("{kind: Pod, metadata: {name: a, uid: '2'}}")
    assert Directory(path).read().objects[Pod, "default/a"].metadata.uid == "2"


def test_differences() -> None:
    a, b, c = (Pod(ObjectMeta(name)) for name in "abc")
    new_b, service = Pod(ObjectMeta("b", uid="2")), Service(ObjectMeta("a"))
    changes = diff_objects([a, b, c], [new_b, service, c])
    assert changes.upserts == (new_b, service)
    assert changes.deletes == ((Pod, "/a"),)
    assert changes
    assert not diff_objects([a, b], [b, Pod(ObjectMeta("a"))])


# --- Following --------------------------------------------------------------------------------------------------------


class Follower:
    """What `follow` yields, with a way to wait for what should come of it."""

    def __init__(self, snapshots: AsyncIterator[Snapshot]) -> None:
        self._snapshots = snapshots

    async def until(self, holds: Callable[[Snapshot], bool], seconds: float = 20) -> Snapshot:
        async with asyncio.timeout(seconds):
            async for snapshot in self._snapshots:
                if holds(snapshot):
                    return snapshot
        raise AssertionError("it ended")

    async def names(self, *expected: str, seconds: float = 20) -> Snapshot:
        return await self.until(lambda snapshot: names(snapshot) == [*expected], seconds)


async def test_every_change_is_followed(path: Path) -> None:
    async with aclosing(follow(path, reread_seconds=3600)) as snapshots:
        follower = Follower(snapshots)
        await follower.names("a", "a2", "b")
        (path / "c.yaml").write_text(pods("c"))
        await follower.names("a", "a2", "b", "c")
        (path / "a.yaml").write_text(pods("a"))
        await follower.names("a", "b", "c")
        (path / "b.yaml").rename(path / "b.txt")
        await follower.names("a", "c")
        (path / "c.yaml").write_text("{")
        await follower.until(lambda snapshot: len(snapshot.problems) == 1)
        (path / "c.yaml").unlink()
        await follower.until(lambda snapshot: names(snapshot) == ["a"] and not snapshot.problems)


async def test_a_directory_that_goes_and_comes(path: Path) -> None:
    async with aclosing(follow(path, reread_seconds=3600)) as snapshots:
        follower = Follower(snapshots)
        await follower.names("a", "a2", "b")
        shutil.rmtree(path)
        await follower.until(lambda snapshot: "No such file" in str(snapshot.problems))
        fill(path, "c")
        await follower.names("c")
        (path / "d.yaml").write_text(pods("d"))  # the new directory is watched, not only read
        await follower.names("c", "d")


async def test_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    async with aclosing(follow(tmp_path / "later", reread_seconds=3600)) as snapshots:
        follower = Follower(snapshots)
        snapshot = await follower.names()
        assert problems(snapshot, tmp_path) == ["DIR/later: can't be read: No such file or directory"]
        (tmp_path / "later").mkdir()
        await follower.until(lambda snapshot: not snapshot.problems)


async def test_a_directory_that_another_one_takes_the_place_of(path: Path) -> None:
    async with aclosing(follow(path, reread_seconds=0.2)) as snapshots:
        follower = Follower(snapshots)
        await follower.names("a", "a2", "b")
        fill(path.with_name("other"), "c")
        take_place(path.with_name("other"), path)
        await follower.names("c")
        (path / "d.yaml").write_text(pods("d"))
        await follower.names("c", "d")


async def test_a_config_map_is_swapped_whole(tmp_path: Path) -> None:
    path = tmp_path / "mounted"

    def publish(version: str) -> None:
        (path / f"..{version}").mkdir(parents=True)
        (path / f"..{version}" / "a.yaml").write_text(pods(version))
        (path / "..data_tmp").symlink_to(f"..{version}")
        (path / "..data_tmp").rename(path / "..data")

    publish("one")
    (path / "a.yaml").symlink_to("..data/a.yaml")
    async with aclosing(follow(path, reread_seconds=3600)) as snapshots:
        follower = Follower(snapshots)
        await follower.names("one")
        publish("two")
        await follower.names("two")


async def test_a_change_behind_a_symbolic_link_is_seen_in_time(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(pods("c"))
    (path / "c.yaml").symlink_to(tmp_path / "elsewhere")
    async with aclosing(follow(path, reread_seconds=0.2)) as snapshots:
        follower = Follower(snapshots)
        await follower.names("a", "a2", "b", "c")
        (tmp_path / "elsewhere").write_text(pods("d"))
        await follower.names("a", "a2", "b", "d")


async def test_without_watches_it_is_read_every_so_often(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("watchfiles.main.RustNotify", refuse)
    async with aclosing(follow(path, reread_seconds=0.1)) as snapshots:
        follower = Follower(snapshots)
        await follower.names("a", "a2", "b")
        (path / "b.yaml").unlink()
        await follower.names("a", "a2")


async def test_following_ends_at_once_when_cancelled(path: Path) -> None:
    seen = asyncio.Event()

    async def run() -> None:
        async for _ in follow(path, reread_seconds=3600):
            seen.set()

    task = asyncio.create_task(run())
    await seen.wait()
    await asyncio.sleep(0.1)
    start = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - start < 5
