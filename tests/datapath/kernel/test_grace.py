import os

import pytest

from lrp_operator.kernel.grace import wait_for_readers

pytestmark = pytest.mark.privileged


def test_waiting_again_and_again_takes_no_more_descriptors() -> None:
    wait_for_readers()
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        wait_for_readers()
    assert os.listdir("/proc/self/fd") == before
