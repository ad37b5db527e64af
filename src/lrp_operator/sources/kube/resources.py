"""The kinds of objects that can be followed: where the API has them, and as what they are decoded."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from msgspec import Struct

from lrp_operator.api.objects import ConfigMap, EndpointSlice, Node, Pod, Policy, Service

T = TypeVar("T", bound=Struct)


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """A kind of object. prefix: of its API group and version; plural: its name in paths; type: what is kept of it."""

    prefix: str
    plural: str
    kind: str
    type: type[T]

    def path(self, namespace: str | None = None) -> str:
        """Where its objects are: of one namespace, or all there are."""
        middle = f"/namespaces/{namespace}" if namespace else ""
        return f"{self.prefix}{middle}/{self.plural}"


POLICIES = Resource("/apis/cilium.io/v2", "ciliumlocalredirectpolicies", "CiliumLocalRedirectPolicy", Policy)
SERVICES = Resource("/api/v1", "services", "Service", Service)
SLICES = Resource("/apis/discovery.k8s.io/v1", "endpointslices", "EndpointSlice", EndpointSlice)
PODS = Resource("/api/v1", "pods", "Pod", Pod)
NODES = Resource("/api/v1", "nodes", "Node", Node)
CONFIG_MAPS = Resource("/api/v1", "configmaps", "ConfigMap", ConfigMap)
