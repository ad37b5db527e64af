"""What is built twice is the same, and is what its users take."""

import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from deploy.release import artefacts
from lrp_operator import __version__
from tests.cluster.binaries import program

ROOT = Path(__file__).parents[2]
CREATED = 1_700_000_000


@pytest.fixture
def twice(tmp_path: Path) -> list[Path]:
    """Two folders to build into."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    return folders


def test_the_wheel_and_the_source_are_the_same_again(twice: list[Path]) -> None:
    for folder in twice:
        artefacts.python(ROOT, folder)
    _same(twice, [f"lrp_operator-{__version__}-py3-none-any.whl", f"lrp_operator-{__version__}.tar.gz"])


@pytest.mark.cluster  # helm is built as the cluster's programs are
def test_the_chart_is_the_same_again_and_helm_takes_it(twice: list[Path]) -> None:
    for folder in twice:
        artefacts.chart(ROOT, folder, CREATED)
        time.sleep(1.1)  # helm writes down the second
    name = f"lrp-operator-{__version__}.tgz"
    _same(twice, [name])
    with tarfile.open(twice[0] / name) as packed:
        assert {entry.mtime for entry in packed} == {CREATED}
    shown = subprocess.run(
        [program("helm"), "show", "chart", twice[0] / name], capture_output=True, text=True, check=True
    )
    assert f"appVersion: {__version__}\n" in shown.stdout


def test_checksums_are_what_sha256sum_checks(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    (tmp_path / "b").write_text("two")
    artefacts.checksums(tmp_path)
    artefacts.checksums(tmp_path)  # not of itself
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    told = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert told.stdout == "a: OK\nb: OK\n"
    (tmp_path / "b").write_text("three")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode


def _same(folders: list[Path], names: list[str]) -> None:
    assert [sorted(path.name for path in folder.iterdir()) for folder in folders] == [names, names]
    for name in names:
        one, two = ((folder / name).read_bytes() for folder in folders)
        assert one == two, name
