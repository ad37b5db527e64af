"""`python -m tests.cluster.hurried.agent` is `lrp-agent`, hurried."""

from functools import partial
from unittest.mock import patch

from lrp_operator.agent import kube_source, run
from lrp_operator.agent.kube_source import KubernetesSource
from lrp_operator.agent.main import main
from lrp_operator.agent.report import Pace, Reporter
from lrp_operator.agent.withdraw import Withdrawal
from lrp_operator.sources.kube.backoff import Pauses
from lrp_operator.sources.kube.informer import Timing

GRACE_SECONDS = 2.0
PACE = Pace(gather=0.2, rest=1.0)
TIMING = Timing(pauses=Pauses(first=0.5, most=2.0))

with (
    patch.object(kube_source, "KubernetesSource", partial(KubernetesSource, timing=TIMING)),
    patch.object(run, "Reporter", partial(Reporter, pace=PACE)),
    patch.object(run, "Withdrawal", partial(Withdrawal, grace=GRACE_SECONDS)),
):
    main()
