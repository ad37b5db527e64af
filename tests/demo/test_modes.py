"""`make demo` in every mode: it checks its own answers."""

import subprocess
import sys

import pytest

from demo.modes import MODES

pytestmark = pytest.mark.privileged


@pytest.mark.parametrize("mode", MODES)
def test_the_story_comes_out_as_told(mode: str) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "demo", "--mode", mode], capture_output=True, text=True, timeout=120, check=False
    )
    assert told.returncode == 0, told.stdout[-3000:] + told.stderr[-3000:]
    assert "Everything was as told" in told.stdout
