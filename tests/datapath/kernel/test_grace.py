from pathlib import Path

import pytest

from lrp_operator.kernel.grace import wait_for_readers

pytestmark = pytest.mark.privileged


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_waiting_again_and_again_takes_no_more_descriptors() -> None:
    wait_for_readers()
    before = descriptors()
    for _ in range(3):
        wait_for_readers()
    assert descriptors() == before
