"""The long form: `python -m tests.rollout --rollouts 200`, as root. Prints the table of who had to ask twice, and why.

Exit code 1 where a query was lost or an answer came from an address that was not asked.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from lab import Node
from tests.rollout.cluster import Cluster, policy
from tests.rollout.test_rollout import check, run
from tests.rollout.traffic import table


def main() -> int:
    """Roll out, tell, judge."""
    parser = argparse.ArgumentParser(prog="python -m tests.rollout", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=200, metavar="N")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the agent's and the clients' logs there")
    options = parser.parse_args()
    if options.logs:
        options.logs.mkdir(parents=True)
        return tell(options.rollouts, options.logs)
    with tempfile.TemporaryDirectory(prefix="lrp-rollout-") as directory:
        return tell(options.rollouts, Path(directory))


def tell(count: int, directory: Path) -> int:
    """Roll out so many times, and print how it went."""
    began = time.monotonic()
    with Node() as node, Cluster(node, directory) as cluster:
        cluster.write("policy", policy())
        reports, caches = run(cluster, count)
        print(f"{count} rollouts in {time.monotonic() - began:.0f} s\n{table(reports)}")
        for report in reports:
            for lost in report.failed:
                print(f"LOST by {report.client}: {lost}")
        try:
            check(cluster, reports, caches)
        except AssertionError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
