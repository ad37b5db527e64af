"""The agent and the controller as they are, but for pauses in which nothing happens that a test looks at.

    python -m tests.cluster.hurried agent --kubeconfig ...
    python -m tests.cluster.hurried controller --kubeconfig ...

Their parts take other timing as arguments; here they are given some. What is about a pause itself, such as an agent
that is killed in it, starts the programs themselves.
"""

import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

from lrp_operator.agent import kube_source
from lrp_operator.agent import main as agent
from lrp_operator.agent import run as agent_run
from lrp_operator.agent.report import Pace, Reporter
from lrp_operator.agent.withdraw import Withdrawal
from lrp_operator.controller import main as controller
from lrp_operator.controller import run as controller_run
from lrp_operator.controller import writer
from lrp_operator.controller.lease import Elector, LeaseTiming
from lrp_operator.sources.kube.backoff import Pauses
from lrp_operator.sources.kube.informer import Timing

ROOT = Path(__file__).parents[2]
"""Where they are to be started."""
AGENT = (sys.executable, "-m", "tests.cluster.hurried", "agent")
CONTROLLER = (sys.executable, "-m", "tests.cluster.hurried", "controller")

SOURCE = Timing(pauses=Pauses(first=0.5, most=2.0))
GRACE_SECONDS = 2.0
PACE = Pace(gather=0.2, rest=1.0)
LEASE = LeaseTiming(duration=5, give_up=3.5, renew=1.0)
RETRY_SECONDS = 2.0


def run_agent() -> None:
    """Be `lrp-agent`."""
    with (
        patch.object(kube_source, "KubernetesSource", partial(kube_source.KubernetesSource, timing=SOURCE)),
        patch.object(agent_run, "Withdrawal", partial(Withdrawal, grace=GRACE_SECONDS)),
        patch.object(agent_run, "Reporter", partial(Reporter, pace=PACE)),
    ):
        agent.main()


def run_controller() -> None:
    """Be `lrp-controller`."""
    with (
        patch.object(controller_run, "Elector", partial(Elector, timing=LEASE)),
        patch.object(writer, "RETRY_SECONDS", RETRY_SECONDS),
    ):
        controller.main()


if __name__ == "__main__":
    {"agent": run_agent, "controller": run_controller}[sys.argv.pop(1)]()
