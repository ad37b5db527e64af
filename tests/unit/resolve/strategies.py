"""Clusters for property tests: a small world, so that things collide, with all in it that a tenant may get wrong.

Two namespaces, a few names of each kind, a few addresses and ports. Most of it fits together, one in fifty of every
field is garbage. An object is drawn as one number that a plain generator makes it from: that is ten times faster than
drawing each field, and a failing example still shrinks to the few objects that it takes. `clusters` draws a cluster
as it is (no two objects with one kind and name), `histories` what may happen to one.
"""

from collections.abc import Callable, Sequence
from ipaddress import ip_network
from random import Random
from typing import Any, TypeVar

from hypothesis import strategies as st

from lrp_operator.api.objects import (
    ClientIPConfig,
    ClusterObject,
    Condition,
    Container,
    ContainerPort,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    NodeAddress,
    NodeStatus,
    ObjectMeta,
    Pod,
    PodIP,
    PodSpec,
    PodStatus,
    Policy,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    SessionAffinityConfig,
)
from lrp_operator.resolve.engine import ClusterIPs, ResolveOptions
from tests.unit.resolve.builders import NODE

T = TypeVar("T")

NAMESPACES = ["a", "b"]
CLUSTER_IPS = ["10.96.0.1", "10.96.0.2", "fd00:96::1", "::ffff:10.96.0.1"]
NODE_IPS = ["192.168.0.1", "fd00:192::1"]
POLICY_IPS = ["169.254.0.1", "169.254.0.1", "169.254.0.2", "fd00:254::1", *CLUSTER_IPS, *NODE_IPS]
POD_IPS = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2", "::ffff:10.0.0.1"]
BAD_IPS = ["", "None", "10.0.0", "010.0.0.1", "10.0.0.1/32", "fe80::1%eth0", "host.example", "::ffff:999.0.0.1"]
TIMES = [None, "2024-01-01T00:00:00Z", "2024-01-01T01:00:00+01:00", "2024-01-01T00:00:00.5Z", "soon", ""]
FLAGS = [None, True, False]


class World:
    """Makes objects out of one source of chance."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def one(self, *choices: T) -> T:
        return self._random.choice(choices)

    def flag(self) -> bool:
        return self._random.random() < 0.5

    def often(self, likely: T, *others: T) -> T:
        """Take the first in three of four cases."""
        return likely if self._random.random() < 0.75 else self.one(*others)

    def or_garbage(self, good: T, *garbage: Any) -> T:
        """Take the first in forty-nine of fifty cases."""
        return good if self._random.random() < 0.98 else self._random.choice(garbage)  # type: ignore[no-any-return]

    def some(self, make: Callable[[], T], least: int = 0, most: int = 3) -> list[T]:
        return [make() for _ in range(self._random.randint(least, most))]

    def ip(self, choices: Sequence[str]) -> str:
        return self.or_garbage(self.one(*choices), *BAD_IPS)

    def number(self) -> int:
        return self.or_garbage(self.one(1, 2), 0, -1, 65536, 1 << 70)

    def protocol(self) -> str:
        return self.or_garbage(self.one("TCP", "UDP"), "SCTP", None, "", "tcp", "bogus")

    def name(self) -> str | None:
        return self.or_garbage(self.one("x", "y"), None, "", "Y")

    def meta(self, prefix: str, labels: dict[str, str] | None, **fields: Any) -> ObjectMeta:
        name, namespace = f"{prefix}{self.one(1, 2, 3, 4)}", self.often("a", "b")
        created = self.one(*TIMES)
        uid, generation = self.one("", "u1", "u2"), self.one(0, 1)
        return ObjectMeta(name, namespace, uid, labels, None, created, generation=generation, **fields)

    def policy(self) -> Policy:
        meta = self.meta("p", None)
        annotations = {"lrp-operator.io/on-no-backend": self.or_garbage(self.one("drop", "fallback"), "maybe")}
        written = ObjectMeta(
            meta.name,
            meta.namespace,
            annotations=self.often(None, annotations),  # type: ignore[arg-type]
            creation_timestamp=meta.creation_timestamp,
            generation=meta.generation,
        )
        return Policy(written, self.or_garbage(self.spec(meta.namespace), None, [], 1, {"redirectFrontend": {}}))

    def spec(self, namespace: str) -> dict[str, Any]:
        by_service = self.flag()
        frontend_ports = self.some(self.policy_port, least=0 if by_service else 1)
        backend_ports = self.some(self.policy_port, least=1)
        if len(frontend_ports) == 1:
            backend_ports[0]["protocol"] = self.or_garbage(frontend_ports[0]["protocol"], "TCP")
        by_name = {"serviceName": self.often("s1", "s2", "s3"), "namespace": self.or_garbage(namespace, "b")}
        by_address = {"ip": self.ip(POLICY_IPS)}
        matcher = (by_name if by_service else by_address) | {"toPorts": frontend_ports}
        return {
            "redirectFrontend": {"serviceMatcher" if by_service else "addressMatcher": matcher},
            "redirectBackend": {"localEndpointSelector": self.selector(), "toPorts": backend_ports},
            "skipRedirectFromBackend": self.flag(),
        }

    def policy_port(self) -> dict[str, Any]:
        return {
            "port": self.or_garbage(self.one("1", "2"), "0", "01", 1),
            "protocol": self.or_garbage(self.one("TCP", "UDP"), "SCTP"),
            "name": self.or_garbage(self.one("x", "y"), "", "Y", "?"),
        }

    def selector(self) -> dict[str, Any]:
        expression = self.one(
            {"key": "k", "operator": "In", "values": ["1", "2"]},
            {"key": "k", "operator": "NotIn", "values": ["1"]},
            {"key": "l", "operator": "Exists"},
            {"key": "l", "operator": "DoesNotExist"},
        )
        return self.one({}, {"matchLabels": {"k": "1"}}, {"matchLabels": {"k": "1"}, "matchExpressions": [expression]})

    def labels(self) -> dict[str, str] | None:
        return self.often({"k": "1"}, None, {"k": "2"}, {"k": "1", "l": "1"}, {"l": "2"})

    def pod(self) -> Pod:
        deleted = self.often(None, "2024-06-01T00:00:00Z")  # type: ignore[arg-type]
        containers = self.one(None, self.some(self.container), self.some(self.container))
        spec = PodSpec(
            self.often(NODE, "n2", "", None), self.often(None, *FLAGS), containers, self.some(self.container, most=1)
        )  # type: ignore[arg-type]
        ips = self.one(None, self.some(lambda: PodIP(self.ip(POD_IPS))))
        ready = self.often(("Ready", "True"), ("Ready", "False"), ("Ready", "Unknown"), ("Other", "True"))
        status = PodStatus(self.or_garbage(self.ip(POD_IPS), None), ips, [Condition(*ready)])
        return Pod(self.meta("x", self.labels(), deletion_timestamp=deleted), spec, status)

    def container(self) -> Container:
        ports = self.some(lambda: ContainerPort(self.number(), self.name(), self.protocol()))
        return Container(ports, self.one(None, "Always"))

    def service(self) -> Service:
        proxy = {"service.kubernetes.io/service-proxy-name": "other"}
        affinity = SessionAffinityConfig(ClientIPConfig(self.one(None, 0, 60, 1 << 40)))
        spec = ServiceSpec(
            type=self.or_garbage(self.one(None, "ClusterIP", "NodePort"), "ExternalName"),
            cluster_ip=self.ip(CLUSTER_IPS),
            cluster_ips=self.one(None, self.some(lambda: self.ip(CLUSTER_IPS))),
            external_ips=self.often(None, ["169.254.0.1"], [self.ip(POLICY_IPS)]),  # type: ignore[arg-type]
            ports=self.one(None, self.some(self.service_port, least=1), self.some(self.service_port, least=1)),
            session_affinity=self.one(None, "None", "ClientIP"),
            session_affinity_config=self.one(None, affinity),
            internal_traffic_policy=self.one(None, "Cluster", "Local"),
        )
        balancer = LoadBalancerStatus([LoadBalancerIngress(self.ip(POLICY_IPS))])
        status = ServiceStatus(self.often(None, balancer))  # type: ignore[arg-type]
        return Service(self.meta("s", self.or_garbage(None, proxy)), spec, status)

    def service_port(self) -> ServicePort:
        return ServicePort(self.number(), self.name(), self.protocol(), self.one(None, self.number()))

    def endpoint_slice(self) -> EndpointSlice:
        labels = {"kubernetes.io/service-name": self.often("s1", "s2", "s3")}
        ports = self.some(lambda: EndpointPort(self.or_garbage(self.number(), None), self.name(), self.protocol()), 1)
        return EndpointSlice(
            self.meta("e", self.or_garbage(labels, None, {})),
            self.or_garbage(self.one("IPv4", "IPv6"), "FQDN"),
            self.or_garbage(self.some(self.endpoint), None),
            self.or_garbage(ports, None),
        )

    def endpoint(self) -> Endpoint:
        conditions = EndpointConditions(self.one(*FLAGS), self.one(*FLAGS), self.one(*FLAGS))
        addresses = self.some(lambda: self.ip(POD_IPS), least=0, most=2)
        return Endpoint(addresses, self.or_garbage(conditions, None), self.one(NODE, "n2", None))

    def node(self) -> Node:
        addresses = self.some(lambda: NodeAddress(self.one("InternalIP", "ExternalIP", "Hostname"), self.ip(NODE_IPS)))
        return Node(ObjectMeta(self.often(NODE, "n2")), NodeStatus(self.or_garbage(addresses, None)))


def make_object(seed: int) -> ClusterObject:
    world = World(Random(seed))  # noqa: S311 -- chance, not secrecy
    makers: list[Callable[[], ClusterObject]] = [
        *[world.policy] * 4,
        *[world.pod] * 4,
        *[world.service] * 3,
        *[world.endpoint_slice] * 4,
        world.node,
    ]
    return world.one(*makers)()


def make_deletion(seed: int) -> tuple[type[ClusterObject], str]:
    return identity(make_object(seed))


def identity(obj: ClusterObject) -> tuple[type[ClusterObject], str]:
    return type(obj), obj.metadata.key


RESOLVE = "resolve"

seeds = st.integers(0, (1 << 32) - 1)
cluster_objects = seeds.map(make_object)
clusters = st.lists(cluster_objects, unique_by=identity, min_size=10, max_size=40)
histories = st.lists(
    st.one_of(cluster_objects, cluster_objects, seeds.map(make_deletion), st.just(RESOLVE)), min_size=20, max_size=60
)
options = st.builds(
    ResolveOptions,
    st.sampled_from([(), (), (), (ip_network("169.254.0.0/31"),)]),
    st.sampled_from(list(ClusterIPs)),
)
