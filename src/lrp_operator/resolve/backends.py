"""Which pods serve a claimed frontend, and if none does, why.

The pods given here are all those that the policy selects on this node; semantics.md, sections 3 and 4, say which of
them serve, and section 7 which reason comes first.
"""

from collections.abc import Sequence

from lrp_operator.api.addresses import L4Addr
from lrp_operator.resolve.frontends import Claim
from lrp_operator.resolve.model import FrontendReason
from lrp_operator.resolve.views import PodView, Port


def backends_of(claim: Claim, pods: Sequence[PodView]) -> tuple[L4Addr, ...]:
    """Find what serves a frontend, in output order: addresses of its family on ports of its protocol, each once."""
    length = len(claim.frontend.ip)
    found = {
        L4Addr(ip, target.number, target.protocol)
        for target in claim.targets
        for pod in pods
        if pod.can_serve and declares(pod, target)
        for ip in pod.ips
        if len(ip) == length
    }
    return tuple(sorted(found, key=lambda backend: backend.sort_key))


def declares(pod: PodView, target: Port) -> bool:
    """Whether a pod has a container port that is the target; one that declares no ports has any, but none by name."""
    if target.name:
        return target in pod.ports
    if not pod.declares_ports:
        return True
    return any(port.number == target.number and port.protocol == target.protocol for port in pod.ports)


def reason_for_none(pods: Sequence[PodView]) -> FrontendReason:
    """Say why a frontend has no backend, given all pods that its policy selects."""
    if not pods:
        return FrontendReason.NO_LOCAL_POD
    if not any(pod.can_serve for pod in pods):
        return FrontendReason.NO_READY_POD
    return FrontendReason.NO_MATCHING_PORT
