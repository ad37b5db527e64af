"""The long form: `python -m tests.fuzz --packets 1000000`, as root. Prints what became of the packets.

Exit code 1 where a packet was not treated as it must be; what is printed then repeats it (`--episode`).
"""

import argparse
import random
import sys

from lrp_operator.kernel.netns import in_netns
from tests.fuzz.arena import Arena, arena
from tests.fuzz.fuzzing import EPISODE, Episode, Report, fuzz
from tests.fuzz.model import Wrong


def main() -> int:
    """Fuzz, tell, judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--packets", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--episode", type=int, metavar="SEED", help="only this episode, of those that a run has told")
    options = parser.parse_args()
    with arena() as (node, made):
        try:
            print(in_netns(node.netns, lambda: run(made, options)))
        except Wrong as wrong:
            print(f"WRONG: {wrong}")
            return 1
    return 0


def run(made: Arena, options: argparse.Namespace) -> Report:
    """What was asked for, in the node's namespace."""
    if options.episode is None:
        print(f"seed {options.seed}", flush=True)
        return fuzz(made, options.packets, options.seed, tell=10)
    report = Report()
    Episode(made, options.episode).run(EPISODE, report)
    return report


if __name__ == "__main__":
    sys.exit(main())
