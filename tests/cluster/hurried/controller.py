"""`python -m tests.cluster.hurried.controller` is `lrp-controller`, hurried."""

from functools import partial
from unittest.mock import patch

from lrp_operator.controller import run, writer
from lrp_operator.controller.lease import Elector, LeaseTiming
from lrp_operator.controller.main import main

LEASE = LeaseTiming(duration=5, give_up=3.5, renew=1.0)
RETRY_SECONDS = 2.0

with (
    patch.object(run, "Elector", partial(Elector, timing=LEASE)),
    patch.object(writer, "RETRY_SECONDS", RETRY_SECONDS),
):
    main()
