"""Which pods each policy selects, kept up to date without asking every policy about every pod.

A pod has tokens: its namespace, its namespace with each label's key, and with each label's key and value. A selector
has anchors: for one of its expressions, the tokens of which a pod must have at least one to be selected. So a changed
pod is shown only to policies anchored at its tokens, and a changed policy only to pods that have its anchors, however
many policies and pods there are in the namespace.
"""

from collections.abc import Set as AbstractSet

from lrp_operator.api.policy import LabelSelector, Operator
from lrp_operator.resolve.indices import MultiIndex

Token = tuple[str, ...]

_NOTHING: frozenset[str] = frozenset()


def tokens(namespace: str, labels: dict[str, str]) -> set[Token]:
    """List a pod's tokens."""
    return {(namespace,), *((namespace, key) for key in labels), *((namespace, *label) for label in labels.items())}


def anchors(namespace: str, selector: LabelSelector) -> set[Token]:
    """List the tokens of which a selected pod has at least one: those of the most particular expression."""
    choices = [e for e in selector.expressions if e.operator is Operator.IN]
    if choices:
        fewest = min(choices, key=lambda e: len(e.values))
        return {(namespace, fewest.key, value) for value in fewest.values}
    for expression in selector.expressions:
        if expression.operator is Operator.EXISTS:
            return {(namespace, expression.key)}
    return {(namespace,)}


class Selection:
    """Policies and pods by name ("namespace/name"), and who selects whom."""

    def __init__(self) -> None:
        self._policies: dict[str, tuple[str, LabelSelector]] = {}
        self._pods: dict[str, tuple[str, dict[str, str]]] = {}
        self._policies_at: MultiIndex[Token, str] = MultiIndex()
        self._pods_at: MultiIndex[Token, str] = MultiIndex()
        self._pods_of: MultiIndex[str, str] = MultiIndex()
        self._policies_of: MultiIndex[str, str] = MultiIndex()

    def pods_of(self, policy: str) -> AbstractSet[str]:
        """Name the pods that a policy selects."""
        return self._pods_of.get(policy, _NOTHING)

    def policies_of(self, pod: str) -> AbstractSet[str]:
        """Name the policies that select a pod."""
        return self._policies_of.get(pod, _NOTHING)

    def remove_policy(self, policy: str) -> None:
        """Forget a policy, if it is there."""
        if policy not in self._policies:
            return
        for token in anchors(*self._policies.pop(policy)):
            self._policies_at.discard(token, policy)
        for pod in tuple(self.pods_of(policy)):
            self._unlink(policy, pod)

    def set_policy(self, policy: str, namespace: str, selector: LabelSelector) -> None:
        """Take in a policy, new or changed."""
        self.remove_policy(policy)
        self._policies[policy] = (namespace, selector)
        for token in anchors(namespace, selector):
            self._policies_at.add(token, policy)
            for pod in self._pods_at.get(token, ()):
                self._link_if_selected(policy, pod)

    def remove_pod(self, pod: str) -> None:
        """Forget a pod, if it is there."""
        if pod not in self._pods:
            return
        for token in tokens(*self._pods.pop(pod)):
            self._pods_at.discard(token, pod)
        for policy in tuple(self.policies_of(pod)):
            self._unlink(policy, pod)

    def set_pod(self, pod: str, namespace: str, labels: dict[str, str]) -> None:
        """Take in a pod, new or changed."""
        if self._pods.get(pod) == (namespace, labels):
            return
        self.remove_pod(pod)
        self._pods[pod] = (namespace, labels)
        for token in tokens(namespace, labels):
            self._pods_at.add(token, pod)
            for policy in self._policies_at.get(token, ()):
                self._link_if_selected(policy, pod)

    def _link_if_selected(self, policy: str, pod: str) -> None:
        selector, labels = self._policies[policy][1], self._pods[pod][1]
        if selector.matches(labels):
            self._pods_of.add(policy, pod)
            self._policies_of.add(pod, policy)

    def _unlink(self, policy: str, pod: str) -> None:
        self._pods_of.discard(policy, pod)
        self._policies_of.discard(pod, policy)
