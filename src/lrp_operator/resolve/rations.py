"""How many frontends the policies of one namespace may have together: localRedirectPolicies.maxFrontendsPerNamespace.

Policies are let in from the oldest on, then by name. One that asks for more than is left is shut out as a whole, and
takes nothing from those after it. So a newcomer never pushes out what was there, and every node decides the same.
"""

from msgspec import Struct

from lrp_operator.resolve.age import Age


class Shortage(Struct, frozen=True, gc=False):
    """Why a policy is shut out: its namespace may have `limit` frontends, and the policies before it have `taken`."""

    limit: int
    taken: int
    asked: int


class Rations:
    """Who asks for how many frontends, by policy ("namespace/name"), and who is shut out. limit 0: nobody is."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._asked: dict[str, dict[str, tuple[Age, int]]] = {}  # by namespace and policy
        self._short: dict[str, Shortage] = {}
        self._touched: set[str] = set()

    def ask(self, policy: str, age: Age, frontends: int) -> None:
        """Take in what a policy asks for; 0 for one that asks for nothing, or is no more."""
        namespace = policy.partition("/")[0]
        asking = self._asked.setdefault(namespace, {})
        before = asking.pop(policy, None)
        if frontends:
            asking[policy] = (age, frontends)
        if not asking:
            del self._asked[namespace]
        if self._limit and before != (asking.get(policy)):
            self._touched.add(namespace)

    def shortage(self, policy: str) -> Shortage | None:
        """Say why a policy is shut out, if it is."""
        return self._short.get(policy)

    def changed(self) -> set[str]:
        """Let policies in anew where it matters, and name those for which that changed anything."""
        changed: set[str] = set()
        for namespace in self._touched:
            prefix = f"{namespace}/"
            old = {policy: short for policy, short in self._short.items() if policy.startswith(prefix)}
            new = self._shut_out(self._asked.get(namespace, {}))
            changed |= {policy for policy in old.keys() | new.keys() if old.get(policy) != new.get(policy)}
            for policy in old:
                del self._short[policy]
            self._short.update(new)
        self._touched.clear()
        return changed

    def _shut_out(self, asking: dict[str, tuple[Age, int]]) -> dict[str, Shortage]:
        taken, short = 0, {}
        for policy, (_, asked) in sorted(asking.items(), key=lambda item: (item[1][0], item[0])):
            if taken + asked > self._limit:
                short[policy] = Shortage(self._limit, taken, asked)
            else:
                taken += asked
        return short
