"""A withdrawal's steps, with a datapath that has no kernel: in which order, and what becomes of what fails."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from lrp_operator.agent.config import load
from lrp_operator.agent.desired import Desired
from lrp_operator.agent.lock import LockHeldError
from lrp_operator.agent.loop import Circle
from lrp_operator.agent.pods import PodNames
from lrp_operator.agent.withdraw import WITHDRAWN, Withdrawal
from lrp_operator.agent.worker import Worker
from lrp_operator.datapath.model import DatapathError
from tests.unit.agent.fakes import FakeDatapath


class Scene:
    """A circle at rest, and what a withdrawal does to it."""

    def __init__(self, *failures: Exception) -> None:
        self.datapath = FakeDatapath()
        self.done: list[str] = []
        self.failures = list(failures)
        self.worker = Worker()
        desired = Desired("n", load(None, {}, {}), PodNames("n", lambda: None))
        self.circle = Circle(desired, self.datapath, self.worker, [], hold_pins=lambda: None)

    def remove(self) -> list[str]:
        self.done.append("remove")
        if self.failures:
            raise self.failures.pop(0)
        return ["link connect4"]

    async def run(self, hold: Callable[[], None] = lambda: None) -> None:
        await Withdrawal(self.circle, hold, self.remove, grace=0.0).run()


async def test_its_steps(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    with caplog.at_level(logging.INFO):
        await scene.run()
    assert scene.datapath.calls == ["end_redirecting", "close"]
    assert scene.done == ["remove"]
    assert (scene.circle.outcome.opened, scene.circle.outcome.error) == (False, WITHDRAWN)
    assert "removed link connect4" in caplog.text


async def test_what_can_not_be_removed_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(DatapathError("not everything below /b could be removed"), OSError(16, "Device or resource busy"))
    await scene.run()
    assert scene.done == ["remove"] * 3
    assert caplog.text.count("not everything could be removed yet") == 2


async def test_where_nothing_can_be_served_on_all_goes_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene()

    def fail() -> bool:
        raise DatapathError("the loader has no memory")

    monkeypatch.setattr(scene.datapath, "end_redirecting", fail)
    await scene.run()
    assert scene.done == ["remove"]
    assert "replies to what was redirected are not served any more: the loader has no memory" in caplog.text


async def test_another_agents_pins_are_left_alone(tmp_path: Path) -> None:
    scene = Scene()

    def held() -> None:
        raise LockHeldError(f"another agent has the pins in {tmp_path}")

    with pytest.raises(LockHeldError):
        await scene.run(held)
    assert not scene.done
    assert not scene.datapath.calls
