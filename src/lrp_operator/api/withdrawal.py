"""Withdrawal: how all agents take off their nodes what they have put there, before a release is uninstalled.

    `lrp-controller withdraw` ─▶ the order, a ConfigMap ─▶ every agent takes everything off its node, and says
    `withdrawn` in its NodeRedirectState ─▶ all have: the NodeRedirectStates are deleted, and the release may go

The ConfigMap says `withdraw: "false"`, until the order is given by taking that line out; who gives it by hand may write
"true" as well. Taken out, the line is nobody's. Where it is changed, whoever changed it owns it, and Helm 4, which
applies on the server's side, would not put it back by a rollback: it would tell of a conflict.

An answer names the order that it is to, by the ConfigMap's resourceVersion: what was said to an earlier one, which was
revoked, does not count. An order that is given twice stays the same one.

The order is a part of the release, so agents know it from their first moment: one that is started in the middle reads
it before it touches the kernel. It is deleted after the agents. One that says "false" again has agents begin anew.

Releases on different nodes of one cluster don't wait for each other: a report carries labels that say by which order
its agent goes.
"""

from collections.abc import Mapping

from lrp_operator.api.nodestate import GROUP

ORDER_KEY = "withdraw"
WITHDRAW = "true"


def orders_withdrawal(data: Mapping[str, str] | None) -> bool:
    """Whether a ConfigMap's data is the order to withdraw."""
    return (data or {}).get(ORDER_KEY, WITHDRAW) == WITHDRAW


def labels_of_reports(order: str) -> dict[str, str]:
    """What the reports of agents are labelled with that go by an order, "namespace/name"."""
    namespace, _, name = order.partition("/")
    return {f"{GROUP}/order-namespace": namespace, f"{GROUP}/order-name": name}
