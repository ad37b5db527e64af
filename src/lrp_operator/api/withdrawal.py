"""Withdrawal: how all agents take off their nodes what they have put there, before a release is uninstalled.

    `lrp-controller withdraw` ─▶ the order, a ConfigMap, says so ─▶ every agent takes everything off its node, and says
    `withdrawn` in its NodeRedirectState ─▶ all have: the NodeRedirectStates are deleted, and the release may go

An answer names the order that it is to, by the ConfigMap's resourceVersion: what was said to an earlier one, which was
revoked, does not count. An order that is given twice stays the same one.

The order is a part of the release, so agents know it from their first moment: one that is started in the middle reads
it before it touches the kernel. It is deleted after the agents. One that says "false" again has agents begin anew.
"""

from collections.abc import Mapping

ORDER_KEY = "withdraw"
WITHDRAW = "true"


def orders_withdrawal(data: Mapping[str, str] | None) -> bool:
    """Whether a ConfigMap's data is the order to withdraw."""
    return (data or {}).get(ORDER_KEY) == WITHDRAW
