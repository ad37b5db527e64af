"""What the nodes report, arranged by policy: thousands of nodes, and one changed report concerns few policies.

Most nodes say the same of a policy. Equal entries are kept once, so that memory grows with what is said, not with how
many say it.
"""

from collections.abc import Mapping

from msgspec import structs

from lrp_operator.api.nodestate import NodeReport, PolicyReport

_NOTHING: Mapping[str, PolicyReport] = {}


class NodeReports:
    """The last report of every node."""

    def __init__(self) -> None:
        self._reports: dict[str, NodeReport] = {}
        self._about: dict[str, dict[str, PolicyReport]] = {}
        self._shared: dict[PolicyReport, PolicyReport] = {}

    def report(self, node: str) -> NodeReport | None:
        """Find what a node says of itself; its policies are in `about`."""
        return self._reports.get(node)

    def about(self, policy: str) -> Mapping[str, PolicyReport]:
        """List what nodes say of a policy."""
        return self._about.get(policy, _NOTHING)

    def put(self, node: str, report: NodeReport | None) -> tuple[set[str], bool]:
        """Take in a report, new, changed, or (None) gone.

        Returns the policies of which the node says something else than before, and whether it says something else of
        itself, which concerns every policy that wants it.
        """
        entries = {entry.policy: entry for entry in report.policies} if report else {}
        old = self._reports.pop(node, None)
        changed = {entry.policy for entry in old.policies if entries.get(entry.policy) != entry} if old else set()
        changed |= {policy for policy, entry in entries.items() if self.about(policy).get(node) != entry}
        if report is not None:
            shared = tuple(self._shared.setdefault(entry, entry) for entry in entries.values())
            self._reports[node] = structs.replace(report, policies=shared)
        for policy in changed:
            self._set(policy, node, entries.get(policy))
        return changed, _of_itself(old) != _of_itself(report)

    def _set(self, policy: str, node: str, entry: PolicyReport | None) -> None:
        about = self._about.setdefault(policy, {})
        if entry is not None:
            about[node] = self._shared[entry]
        else:
            del about[node]
        if not about:
            del self._about[policy]

    def forget_unused(self) -> None:
        """Let go of entries that nobody says any more."""
        used = {entry for about in self._about.values() for entry in about.values()}
        self._shared = {entry: entry for entry in used}


def _of_itself(report: NodeReport | None) -> tuple[object, ...]:
    return (report.in_force, report.message, report.omitted_policies) if report else ()
