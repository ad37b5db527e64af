"""What a valid policy says, in the form that resolution works with.

`lrp_operator.api.crd` holds the pydantic models that the CRD is generated from and turns a `Policy` object into a
`PolicyRules`, or into a list of what is wrong with it.
"""

from dataclasses import dataclass
from enum import StrEnum

from lrp_operator.api.addresses import Protocol


@dataclass(frozen=True, slots=True)
class PolicyPort:
    """A port in a policy. name: lower-cased, empty if there is none."""

    port: int
    protocol: Protocol
    name: str = ""


@dataclass(frozen=True, slots=True)
class AddressMatcher:
    """Frontends by address. ip: 4 or 16 bytes, network order; ports: at least one."""

    ip: bytes
    ports: tuple[PolicyPort, ...]


@dataclass(frozen=True, slots=True)
class ServiceMatcher:
    """Frontends by Service, in the policy's own namespace. ports: empty means every port of the Service."""

    name: str
    namespace: str
    ports: tuple[PolicyPort, ...]


class Operator(StrEnum):
    """How a label expression compares."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class LabelExpression:
    """One requirement of a selector. values: empty for Exists and DoesNotExist."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: dict[str, str]) -> bool:
        """Whether labels meet the requirement; as in Kubernetes, NotIn holds where the key is absent."""
        value = labels.get(self.key)
        match self.operator:
            case Operator.IN:
                return value is not None and value in self.values
            case Operator.NOT_IN:
                return value is None or value not in self.values
            case Operator.EXISTS:
                return value is not None
            case Operator.DOES_NOT_EXIST:
                return value is None


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All expressions must hold; matchLabels are kept as In with one value. Without any it selects everything."""

    expressions: tuple[LabelExpression, ...] = ()

    def matches(self, labels: dict[str, str] | None) -> bool:
        """Whether an object with these labels is selected."""
        return all(expression.matches(labels or {}) for expression in self.expressions)


class OnNoBackend(StrEnum):
    """What happens to a frontend that nothing on the node can serve (annotation lrp-operator.io/on-no-backend)."""

    FALL_BACK = "fallback"  # traffic goes where it would go without the policy
    DROP = "drop"  # connects are refused


@dataclass(frozen=True, slots=True)
class PolicyRules:
    """A valid policy's meaning. node_selector: the nodes on which it applies; None for every node."""

    frontend: AddressMatcher | ServiceMatcher
    selector: LabelSelector
    backend_ports: tuple[PolicyPort, ...]
    skip_redirect_from_backend: bool = False
    on_no_backend: OnNoBackend = OnNoBackend.FALL_BACK
    node_selector: LabelSelector | None = None
