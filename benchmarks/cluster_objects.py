"""What the clusters of the cluster part are filled with: objects as the API server would have stored them.

They are put into etcd past the API server (`Cluster.store`), so they carry what it would have added: uids, generations,
times, and for each ClusterIP the IPAddress by which it knows that the address is taken.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import islice
from typing import Any

Manifest = dict[str, Any]
Stored = dict[str, Manifest]
"""Objects by their keys in etcd."""

NODE = "worker-1"
AT_ONCE = 100
"""So many are put into etcd in one transaction, while nobody watches them."""
PORTS_OF_DNS = [{"port": "53", "protocol": "UDP"}]
_THEN = "2026-01-01T00:00:00Z"
_LINK_LOCAL = IPv4Address("169.254.20.0")
_CLUSTER_IPS = IPv4Address("10.96.16.0")
_PODS = IPv4Address("10.128.0.0")
_KEYS = {
    "CiliumLocalRedirectPolicy": "cilium.io/ciliumlocalredirectpolicies",
    "EndpointSlice": "endpointslices",
    "IPAddress": "ipaddresses",
    "Namespace": "namespaces",
    "Node": "minions",
    "NodeRedirectState": "lrp-operator.io/noderedirectstates",
    "Pod": "pods",
    "Service": "services/specs",
}


def stored(*manifests: Manifest) -> Stored:
    """Put objects under the keys that the API server has them at."""
    return {_key(manifest): manifest for manifest in manifests}


def _key(manifest: Manifest) -> str:
    meta = manifest["metadata"]
    namespace = f"/{meta['namespace']}" if "namespace" in meta else ""
    return f"{_KEYS[manifest['kind']]}{namespace}/{meta['name']}"


def _object(api: str, kind: str, name: str, namespace: str = "", **rest: Any) -> Manifest:
    metadata: Manifest = {"name": name, "uid": str(uuid.uuid4()), "creationTimestamp": _THEN, "generation": 1}
    metadata |= rest.pop("metadata", {})
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}


# --- Objects ----------------------------------------------------------------------------------------------------------


def namespace(name: str) -> Manifest:
    """A namespace."""
    return _object("v1", "Namespace", name, spec={"finalizers": ["kubernetes"]}, status={"phase": "Active"})


def node(name: str) -> Manifest:
    """A node."""
    return _object("v1", "Node", name, metadata={"labels": {"kubernetes.io/hostname": name}}, spec={}, status={})


def pod(name: str, ip: IPv4Address, app: str, on: str = NODE, in_: str = "default") -> Manifest:
    """A ready pod."""
    ports = [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]
    container = {"name": "main", "image": "none", "ports": ports, "imagePullPolicy": "Always"}
    return _object(
        "v1",
        "Pod",
        name,
        in_,
        metadata={"labels": {"app": app}},
        spec={"nodeName": on, "containers": [container], "restartPolicy": "Always", "dnsPolicy": "ClusterFirst"},
        status={
            "phase": "Running",
            "podIP": str(ip),
            "podIPs": [{"ip": str(ip)}],
            "conditions": conditions(ready=True),
        },
    )


def conditions(*, ready: bool) -> list[Manifest]:
    """A pod's conditions."""
    return [{"type": "Ready", "status": str(ready)}]


def to_address(ip: IPv4Address | str) -> Manifest:
    """A frontend: an address, for DNS."""
    return {"addressMatcher": {"ip": str(ip), "toPorts": PORTS_OF_DNS}}


def to_service(name: str) -> Manifest:
    """A frontend: every port of a Service."""
    return {"serviceMatcher": {"serviceName": name, "namespace": "default"}}


def policy(name: str, frontend: Manifest, app: str, in_: str = "default") -> Manifest:
    """A policy that redirects to pods of an app."""
    backend = {"localEndpointSelector": {"matchLabels": {"app": app}}, "toPorts": PORTS_OF_DNS}
    spec = {"redirectFrontend": frontend, "redirectBackend": backend}
    return _object("cilium.io/v2", "CiliumLocalRedirectPolicy", name, in_, spec=spec)


def service(name: str, ip: IPv4Address) -> Manifest:
    """A Service with a ClusterIP."""
    return _object(
        "v1",
        "Service",
        name,
        "default",
        spec={
            "type": "ClusterIP",
            "clusterIP": str(ip),
            "clusterIPs": [str(ip)],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
        },
        status={"loadBalancer": {}},
    )


def _taken(ip: IPv4Address, by: str) -> Manifest:
    labels = {"ipaddress.kubernetes.io/ip-family": "IPv4", "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}
    parent = {"group": "", "resource": "services", "namespace": "default", "name": by}
    metadata = {"labels": labels}
    return _object("networking.k8s.io/v1", "IPAddress", str(ip), metadata=metadata, spec={"parentRef": parent})


def _slice(of: str, ips: Sequence[IPv4Address]) -> Manifest:
    endpoints = [
        {
            "addresses": [str(ip)],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": f"worker-{int(ip) % 5000}",
            "targetRef": {"kind": "Pod", "namespace": "default", "name": f"{of}-{int(ip):x}", "uid": str(uuid.uuid4())},
        }
        for ip in ips
    ]
    labels = {
        "kubernetes.io/service-name": of,
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    }
    return _object(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        f"{of}-x2c4f",
        "default",
        metadata={"labels": labels},
        addressType="IPv4",
        endpoints=endpoints,
        ports=[{"name": "http", "port": 8080, "protocol": "TCP"}],
    )


# --- Whole clusters ---------------------------------------------------------------------------------------------------


def usual_node(policies: int, pods: int) -> Stored:
    """A node with pods, and policies for link-local addresses that they serve."""
    apps = [f"app-{number}" for number in range(policies)]
    found = [node(NODE)]
    found += [pod(f"pod-{number}", _PODS + number, apps[number % policies]) for number in range(pods)]
    found += [policy(f"policy-{number}", to_address(_LINK_LOCAL + number), app) for number, app in enumerate(apps)]
    return stored(*found)


def many_services(count: int, endpoints: int) -> Iterator[Stored]:
    """Services, each with so many endpoints in a slice; some at a time."""
    numbers = iter(range(count))
    while some := list(islice(numbers, 1000)):
        found = []
        for number in some:
            name, ip = f"service-{number}", _CLUSTER_IPS + number
            backends = [_PODS + 0x10000 + number * endpoints + index for index in range(endpoints)]
            found += [_taken(ip, name), service(name, ip), _slice(name, backends)]
        yield stored(*found)


@dataclass(frozen=True)
class LargeCluster:
    """Nodes, each with a report; policies that a pod of every node serves, and policies that a few nodes serve."""

    nodes: list[Manifest]
    pods: list[Manifest]
    policies: list[Manifest]
    reports: list[Manifest]

    @property
    def namespaces(self) -> list[Manifest]:
        """The namespaces that policies are in."""
        return [namespace(name) for name in sorted({policy["metadata"]["namespace"] for policy in self.policies})]


def large_cluster(nodes: int, policies: int, *, everywhere: int, on: int) -> LargeCluster:
    """`everywhere` of the policies are served by one pod of each node, each other one by a pod on `on` nodes."""
    names = [f"worker-{number}" for number in range(nodes)]
    made = [policy(f"everywhere-{i}", to_address(_LINK_LOCAL + i), "all", "system") for i in range(everywhere)]
    at: dict[str, list[Manifest]] = {name: list(made) for name in names}
    pods = [pod(f"all-{number}", _PODS + number, "all", name, "system") for number, name in enumerate(names)]
    for number in range(everywhere, policies):
        where, app = f"team-{number % 100}", f"app-{number}"
        made.append(policy(f"policy-{number}", to_address(_LINK_LOCAL + number), app, where))
        for index in range(on):
            name = names[(number * on + index) % nodes]
            pods.append(pod(f"{app}-{index}", _PODS + nodes + number * on + index, app, name, where))
            at[name].append(made[-1])
    return LargeCluster([node(name) for name in names], pods, made, [report(name, at[name]) for name in names])


def report(name: str, policies: Sequence[Manifest]) -> Manifest:
    """What a node's agent would report: that it redirects all of them."""
    entries = [
        {
            "policy": f"{policy['metadata']['namespace']}/{policy['metadata']['name']}",
            "uid": policy["metadata"]["uid"],
            "generation": 1,
            "frontends": 1,
            "redirected": 1,
        }
        for policy in policies
    ]
    said = {"agentVersion": "1", "mode": "socket", "inForce": True, "policies": entries, "policyCount": len(entries)}
    return _object("lrp-operator.io/v1alpha1", "NodeRedirectState", name, report=said)
