"""Never a wrong checksum on a translated packet, never a changed packet that was not ours: some ten thousand packets.

`python -m tests.fuzz --packets 1000000` is the same at length; it repeats an episode that a failure here names.
"""

import os
import random

import pytest

from lrp_operator.kernel.netns import in_netns
from tests.fuzz.arena import arena
from tests.fuzz.fuzzing import Report, fuzz

SEED = 20261125
_WORDS = {"begun", "moved", "direct", "request", "reply", "interjection", "error", "piece", "refused", "reset"}
_WORDS |= {"passed", "alien", "silenced"}


@pytest.mark.privileged
def test_every_packet_becomes_what_it_must() -> None:
    if os.geteuid():
        pytest.fail("this test needs root", pytrace=False)
    with arena() as (node, made):

        def both() -> list[Report]:
            return [fuzz(made, 20_000, seed) for seed in (SEED, random.SystemRandom().getrandbits(32))]

        for report in in_netns(node.netns, both):
            assert report.words.keys() >= _WORDS, report
            assert report.words["missed"] * 20 < report.words["interjection"], report
