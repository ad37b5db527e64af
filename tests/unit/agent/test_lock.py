"""One agent on a node's pins."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrp_operator.agent.lock import LockHeldError, PinsLock

HOLDER = """
import sys
from pathlib import Path
from lrp_operator.agent.lock import PinsLock
lock = PinsLock.take(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "bpf"
    root.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", root], check=True)
    yield root
    subprocess.run(["umount", root], check=True)


def hold_in_another_process(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(root)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def check_one_holder(root: Path) -> None:
    with hold_in_another_process(root) as holder:
        with pytest.raises(LockHeldError) as raised:
            PinsLock.take(root)
        assert f"pid {holder.pid} ({sys.executable} -c" in str(raised.value)
        assert str(root) in str(raised.value)
        holder.kill()
    PinsLock.take(root).release()
    PinsLock.take(root).release()


def test_a_second_process_is_refused_and_told_who_holds(tmp_path: Path) -> None:
    check_one_holder(tmp_path)


@pytest.mark.privileged
def test_the_same_on_a_bpf_file_system(bpffs: Path) -> None:
    check_one_holder(bpffs)


def test_other_pins_are_another_lock(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = PinsLock.take(tmp_path / "one"), PinsLock.take(tmp_path / "two")
    one.release()
    two.release()


def test_no_directory_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PinsLock.take(tmp_path / "none")
