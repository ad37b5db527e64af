"""An agent's life, as a process."""

import json
import signal
from pathlib import Path

import pytest

from tests.unit.agent.processes import agent, wait_until_up


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(tmp_path: Path, number: signal.Signals) -> None:
    with agent(tmp_path) as process:
        assert wait_until_up(tmp_path).ready
        process.send_signal(number)
        _, log = process.communicate(timeout=20)
        assert process.returncode == 0
    assert not (tmp_path / "agent.sock").exists()
    assert "what is in the kernel stays" in log
    for line in log.splitlines():
        assert json.loads(line)["level"] in ("info", "warning")


def test_a_second_one_says_who_is_there(tmp_path: Path) -> None:
    with agent(tmp_path) as first:
        wait_until_up(tmp_path)
        with agent(tmp_path) as second:
            _, log = second.communicate(timeout=20)
        assert second.returncode == 3
        assert f"pid {first.pid} (" in log
        assert len(log.splitlines()) == 1
        assert wait_until_up(tmp_path).pid == first.pid


def test_after_a_kill_the_next_one_takes_over(tmp_path: Path) -> None:
    with agent(tmp_path) as first:
        wait_until_up(tmp_path)
        first.kill()
        first.wait()
    with agent(tmp_path) as second:
        assert wait_until_up(tmp_path).pid == second.pid


def test_a_thread_that_hangs_does_not_keep_it(tmp_path: Path) -> None:
    with agent(tmp_path, "hang") as process:
        wait_until_up(tmp_path)
        process.terminate()
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0
    assert "leaving without it" in log


def test_a_bug_is_told_and_ends_it(tmp_path: Path) -> None:
    with agent(tmp_path, "bug") as process:
        _, log = process.communicate(timeout=20)
        assert process.returncode == 1
    told = [json.loads(line) for line in log.splitlines()]
    assert any("has a bug" in line["message"] and "KeyError" in line["trace"] for line in told)


def test_without_a_place_for_pins_it_waits_and_says_so(tmp_path: Path) -> None:
    with agent(tmp_path, "homeless") as process:
        status = wait_until_up(tmp_path, says="can't be used")
        assert (status.ready, status.pid) == (False, process.pid)
        assert f"the pins' directory {tmp_path}/mount/bpf can't be used (No such file or directory)" in status.message
        assert "mount -t bpf bpf /sys/fs/bpf" in status.message
        assert status.policies.accepted == 2
        (tmp_path / "mount").mkdir()
        wait_until_up(tmp_path, ready=True)
        process.terminate()
        _, log = process.communicate(timeout=20)
    assert log.count("can't be used") == 1
