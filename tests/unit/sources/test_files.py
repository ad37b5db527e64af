import io
import os
import subprocess
import threading
from pathlib import Path

import pytest

from lrp_operator.sources import files
from lrp_operator.sources.files import UnreadableInput, read_directory, read_paths


def pod(name: str) -> str:
    return f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}}}\n"


def names(*paths: object, stdin: str = "") -> list[str]:
    return [obj.metadata.name for obj in read_paths(map(str, paths), io.BytesIO(stdin.encode()))]


def complaint(*paths: object, stdin: bytes = b"") -> str:
    with pytest.raises(UnreadableInput) as caught:
        read_paths(map(str, paths), io.BytesIO(stdin))
    return str(caught.value)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "manifests"
    path.mkdir()
    (path / "b.yml").write_text(pod("b"))
    (path / "a.yaml").write_text(pod("a") + "---\n" + pod("a2"))
    (path / "c.json").write_text('{"kind": "Pod", "metadata": {"name": "c"}}')
    (path / "d.txt").write_text("{")
    (path / ".hidden.yaml").write_text("{")
    (path / "deeper").mkdir()
    (path / "deeper" / "e.yaml").write_text("{")
    (path / "dir.yaml").mkdir()
    (path / "dangling.yaml").symlink_to("nowhere")
    return path


def test_a_directory_gives_its_own_files_by_name(directory: Path) -> None:
    assert names(directory) == ["a", "a2", "b", "c"]
    objects, problems = read_directory(directory)
    assert [obj.metadata.name for obj in objects] == ["a", "a2", "b", "c"]
    assert problems == []


def test_files_directories_and_standard_input_together(directory: Path) -> None:
    assert names("-", directory / "b.yml", stdin=pod("z")) == ["z", "b"]


def test_the_last_path_wins(tmp_path: Path) -> None:
    for name, uid in (("one", "1"), ("two", "2")):
        (tmp_path / name).write_text(f"{{kind: Pod, metadata: {{name: a, uid: '{uid}'}}}}")
    (obj,) = read_paths([str(tmp_path / "two"), str(tmp_path / "one")], io.BytesIO())
    assert obj.metadata.uid == "1"


def test_a_pipe_can_be_named(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_text(pod("a")))
    writer.start()
    assert names(fifo) == ["a"]
    writer.join()


def test_what_is_not_there(tmp_path: Path) -> None:
    assert complaint("") == '"": can\'t be read: No such file or directory'
    assert complaint(tmp_path / "x") == f"{tmp_path}/x: can't be read: No such file or directory"


def test_every_problem_is_told(directory: Path) -> None:
    (directory / "a.yaml").write_text("kind: Pod\n---\n{\n")
    text = complaint(directory, "-", stdin=b"\xff")
    assert text.splitlines() == [
        f"{directory}/a.yaml, document 1, line 1: a Pod without a name (metadata.name)",
        f"{directory}/a.yaml, document 2, line 3: while parsing a flow node, did not find expected node content",
        "standard input, document 1, line 1: byte 0xff is not UTF-8",
    ]


def test_a_directory_that_can_not_be_listed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "list_directory", refuse)
    assert complaint(directory) == f"{directory}: can't be read: Permission denied"
    objects, (problem,) = read_directory(directory)
    assert objects == []
    assert str(problem) == f"{directory}: can't be read: Permission denied"


def test_a_file_that_can_not_be_opened_costs_only_itself(directory: Path) -> None:
    (directory / "loop.yaml").symlink_to("loop.yaml")
    os.mkfifo(directory / "pipe.yaml")
    objects, problems = read_directory(directory)
    assert len(objects) == 4
    assert [str(problem).removeprefix(f"{directory}/") for problem in problems] == [
        "loop.yaml: can't be read: Too many levels of symbolic links",
        "pipe.yaml: can't be read: is no regular file",
    ]


def test_a_file_beyond_all_measure(tmp_path: Path) -> None:
    with (tmp_path / "zero.yaml").open("wb") as file:
        file.truncate(1 << 40)
    assert complaint(tmp_path / "zero.yaml").endswith("can't be read: is larger than 64 MiB")
    assert complaint("/dev/zero").endswith("is larger than 64 MiB")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's eyes take root to have")
def test_a_closed_directory_through_another_users_eyes(directory: Path) -> None:
    directory.parent.chmod(0o755)
    directory.chmod(0o700)
    code = f"from os import scandir; scandir({str(directory)!r})"
    other = subprocess.run(["/usr/bin/env", "python3", "-c", code], user=65534, capture_output=True, check=False)
    assert b"PermissionError" in other.stderr
