"""What becomes of the pins' directory when all that is ours has gone."""

import errno
import os
from pathlib import Path

import pytest

from lrp_operator.agent import removal
from lrp_operator.datapath.model import DatapathError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for the directory; what is in the kernel goes without a kernel."""
    monkeypatch.setattr(removal, "cleanup", lambda *_: ["link connect4"])
    return tmp_path / "lrp"


def test_it_goes_too(root: Path) -> None:
    root.mkdir()
    assert removal.remove_all(root, root) == ["link connect4", f"directory {root}"]
    assert not root.exists()


def test_a_link_may_lead_to_it(root: Path, tmp_path: Path) -> None:
    root.mkdir()
    link = tmp_path / "link"
    link.symlink_to(root)
    assert removal.remove_all(link, link) == ["link connect4", f"directory {link}"]
    assert not root.exists()


def test_it_may_not_be_there(root: Path) -> None:
    assert removal.remove_all(root, root) == ["link connect4"]


def test_it_stays_where_somebody_else_has_pins(root: Path) -> None:
    (root / "theirs").mkdir(parents=True)
    assert removal.remove_all(root, root) == ["link connect4"]
    assert (root / "theirs").exists()


def test_it_stays_where_it_is_a_mounts_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(path: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)

    monkeypatch.setattr(Path, "rmdir", busy)
    assert removal.remove_all(root, root) == ["link connect4"]


def test_whatever_else_keeps_it_is_told(root: Path) -> None:
    root.write_text("")
    with pytest.raises(DatapathError, match=f"the pins' directory {root} can't be removed: Not a directory"):
        removal.remove_all(root, root)
