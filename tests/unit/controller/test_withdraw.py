"""Which nodes a withdrawal waits for, and what it says of them."""

import pytest

from lrp_operator.api.nodestate import NodeRedirectState, NodeReport
from lrp_operator.api.objects import Condition, ObjectMeta, Pod, PodSpec, PodStatus
from lrp_operator.controller.withdraw import waited_for

ORDER = "7"


def state(node: str, withdrawn: str | None = None) -> NodeRedirectState:
    report = NodeReport("1", "m", in_force=not withdrawn, withdrawn=withdrawn)
    return NodeRedirectState(ObjectMeta(node), report)


def agent(node: str, phase: str = "Running", *, ready: bool = True) -> Pod:
    conditions = [Condition("Ready", str(ready and phase == "Running"))]
    status = PodStatus(phase=phase, conditions=conditions)
    return Pod(ObjectMeta(f"agent-{node}", "kube-system"), PodSpec(node_name=node), status)


@pytest.mark.parametrize(
    ("states", "pods", "waits"),
    [
        ([], [], {}),
        ([state("a", ORDER)], [agent("a")], {}),
        ([state("a", ORDER)], [], {}),
        # It heeded one that was revoked, and has not reported since.
        ([state("a", "5")], [agent("a")], {"a": "its agent has not withdrawn (pod agent-a, Running)"}),
        ([state("a")], [agent("a")], {"a": "its agent has not withdrawn (pod agent-a, Running)"}),
        ([state("a")], [agent("a", "Pending")], {"a": "its agent has not withdrawn (pod agent-a, Pending)"}),
        ([state("a")], [agent("b", "Pending")], {"a": "no agent is there to withdraw"}),
        ([], [agent("a")], {"a": "its agent has not reported anything (pod agent-a)"}),
        ([], [agent("a", "Pending")], {}),  # it has never been there
        ([], [agent("a", ready=False)], {}),  # it fails again and again, and its report was deleted by hand
        ([state("a")], [agent("a", ready=False)], {"a": "its agent has not withdrawn (pod agent-a, Running)"}),
        ([NodeRedirectState(ObjectMeta("a"))], [], {"a": "no agent is there to withdraw"}),
    ],
)
def test_who_is_waited_for(states: list[NodeRedirectState], pods: list[Pod], waits: dict[str, str]) -> None:
    assert waited_for(states, pods, ORDER) == waits


def test_where_the_order_has_gone_any_answer_counts() -> None:
    assert waited_for([state("a", "5")], [], "") == {}
