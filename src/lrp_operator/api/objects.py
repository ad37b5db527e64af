"""Kubernetes objects as projections: only the fields that resolution reads, decoded straight from JSON or YAML.

Frozen msgspec structs: decoding checks types, unknown fields cost nothing.
An absent `namespace` is filled in by the source (`default` for files). A policy's `spec` stays untyped here, so that
wrong types in it reject that policy alone (see `lrp_operator.api.policy`).
"""

from typing import Any

from msgspec import Struct, field


class ObjectMeta(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """The part of metadata that resolution reads. Timestamps are RFC 3339 texts, as the API writes them."""

    name: str
    namespace: str = ""
    uid: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    generation: int = 0

    @property
    def key(self) -> str:
        """`namespace/name`, the name that people and messages use."""
        return f"{self.namespace}/{self.name}"


class Condition(Struct, frozen=True, gc=False):
    """A status condition, its type and status ("True", "False" or "Unknown")."""

    type: str
    status: str


class ContainerPort(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """A port that a container declares."""

    container_port: int
    name: str | None = None
    protocol: str | None = None  # None means TCP


class Container(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """A container: its ports, and for an init container whether it keeps running (restartPolicy Always)."""

    ports: list[ContainerPort] | None = None
    restart_policy: str | None = None


class PodSpec(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Where a pod runs and which ports its containers declare."""

    node_name: str | None = None
    host_network: bool | None = None
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None


class PodIP(Struct, frozen=True, gc=False):
    """One address of a pod."""

    ip: str = ""


class PodStatus(Struct, frozen=True, gc=False, omit_defaults=True):
    """A pod's addresses, conditions and phase ("Succeeded" and "Failed" are over)."""

    pod_ip: str | None = field(default=None, name="podIP")
    pod_ips: list[PodIP] | None = field(default=None, name="podIPs")
    conditions: list[Condition] | None = None
    phase: str | None = None


class Pod(Struct, frozen=True, gc=False, omit_defaults=True):
    """v1 Pod."""

    metadata: ObjectMeta
    spec: PodSpec = field(default_factory=PodSpec)
    status: PodStatus = field(default_factory=PodStatus)


class ServicePort(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """A port of a Service."""

    port: int
    name: str | None = None
    protocol: str | None = None  # None means TCP
    node_port: int | None = None


class ClientIPConfig(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """How long, in seconds, session affinity keeps a client (None: 10800)."""

    timeout_seconds: int | None = None


class SessionAffinityConfig(Struct, frozen=True, gc=False, omit_defaults=True):
    """Settings of session affinity."""

    client_ip: ClientIPConfig | None = field(default=None, name="clientIP")


class ServiceSpec(Struct, frozen=True, gc=False, omit_defaults=True):
    """What a Service offers, and at which addresses."""

    type: str | None = None  # None means ClusterIP
    cluster_ip: str | None = field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = field(default=None, name="clusterIPs")
    external_ips: list[str] | None = field(default=None, name="externalIPs")
    ports: list[ServicePort] | None = None
    session_affinity: str | None = field(default=None, name="sessionAffinity")
    session_affinity_config: SessionAffinityConfig | None = field(default=None, name="sessionAffinityConfig")
    internal_traffic_policy: str | None = field(default=None, name="internalTrafficPolicy")


class LoadBalancerIngress(Struct, frozen=True, gc=False, omit_defaults=True):
    """One address of a load balancer."""

    ip: str | None = None


class LoadBalancerStatus(Struct, frozen=True, gc=False, omit_defaults=True):
    """The addresses of a load balancer."""

    ingress: list[LoadBalancerIngress] | None = None


class ServiceStatus(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """What was given to a Service."""

    load_balancer: LoadBalancerStatus | None = None


class Service(Struct, frozen=True, gc=False, omit_defaults=True):
    """v1 Service."""

    metadata: ObjectMeta
    spec: ServiceSpec = field(default_factory=ServiceSpec)
    status: ServiceStatus = field(default_factory=ServiceStatus)


class EndpointConditions(Struct, frozen=True, gc=False, omit_defaults=True):
    """State of an endpoint; an absent `ready` means ready, an absent `serving` means as `ready` says."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Endpoint(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """One endpoint of a slice."""

    addresses: list[str]
    conditions: EndpointConditions | None = None
    node_name: str | None = None


class EndpointPort(Struct, frozen=True, gc=False, omit_defaults=True):
    """A port that all endpoints of a slice serve."""

    port: int | None = None
    name: str | None = None
    protocol: str | None = None  # None means TCP


class EndpointSlice(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """discovery.k8s.io/v1 EndpointSlice; its Service is named by the label kubernetes.io/service-name."""

    metadata: ObjectMeta
    address_type: str = "IPv4"
    endpoints: list[Endpoint] | None = None
    ports: list[EndpointPort] | None = None


class NodeAddress(Struct, frozen=True, gc=False):
    """One address of a node; types InternalIP and ExternalIP are IP addresses."""

    type: str
    address: str


class NodeStatus(Struct, frozen=True, gc=False, omit_defaults=True):
    """A node's addresses."""

    addresses: list[NodeAddress] | None = None


class Node(Struct, frozen=True, gc=False, omit_defaults=True):
    """v1 Node."""

    metadata: ObjectMeta
    status: NodeStatus = field(default_factory=NodeStatus)


class Policy(Struct, frozen=True, gc=False, omit_defaults=True):
    """cilium.io/v2 CiliumLocalRedirectPolicy, its spec as it was written."""

    metadata: ObjectMeta
    spec: Any = None


class ConfigMapMeta(ObjectMeta, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """Of a ConfigMap, its version too. Elsewhere it would make every object look changed that is written."""

    resource_version: str = ""


class ConfigMap(Struct, frozen=True, gc=False, omit_defaults=True):
    """v1 ConfigMap."""

    metadata: ConfigMapMeta
    data: dict[str, str] | None = None


ClusterObject = Policy | Service | EndpointSlice | Pod | Node
