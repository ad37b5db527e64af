"""A node-local DNS cache is rolled out under the eyes of every kind of resolver, and none loses a query.

`python -m tests.rollout --rollouts 200` is the long form, with the table of who had to ask twice, and why.
"""

import pytest

from tests.rollout.cluster import Cluster
from tests.rollout.rollout import Rollouts
from tests.rollout.traffic import Report, Stages, asking, resolvers, table

pytestmark = pytest.mark.privileged

ROLLOUTS = 16


def run(cluster: Cluster, count: int) -> tuple[list[Report], list[str]]:
    """Roll out so many times while all ask; return what they tell, and the addresses that caches had."""
    stages = Stages(cluster.directory / "stages.log")
    kinds, missing = resolvers()
    for reason in missing:
        print(f"left out: {reason}")
    rollouts = Rollouts(cluster, stages)
    with asking(cluster, kinds, stages) as reports:
        for _ in range(count):
            rollouts.next()
    rollouts.end()
    return reports, rollouts.addresses


def check(cluster: Cluster, reports: list[Report], caches: list[str]) -> None:
    """Nobody lost a query or met a stranger, and the caches did answer."""
    for report in reports:
        assert report.answered.keys() <= {*caches, cluster.far.ipv4}
        assert report.answered.keys() & set(caches), f"{report.client} was never answered by a cache"
    assert [(r.client, r.failed) for r in reports if r.failed] == [], "queries were lost"
    assert [(r.client, r.strangers) for r in reports if r.strangers] == [], "answers came from who was not asked"


def test_no_resolver_loses_a_query_while_the_cache_is_rolled_out(cluster: Cluster) -> None:
    reports, caches = run(cluster, ROLLOUTS)
    print(f"{ROLLOUTS} rollouts\n{table(reports)}")
    check(cluster, reports, caches)
