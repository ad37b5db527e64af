"""A small cluster for the commands that ask one: what was read of it, without a cluster."""

from lrp_operator.api.nodestate import NodeReport, PolicyReport
from lrp_operator.api.objects import Node, Pod, Policy, Service
from lrp_operator.cli.loading import Loaded
from lrp_operator.cli.reader import LivePolicy
from lrp_operator.cli.survey import Live
from lrp_operator.sources.manifests import read_manifests

EVERYWHERE = "socket level for every pod and the node, kube-proxy stays"
TC_ONLY = "TC level for pods, kube-proxy stays"

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumLocalRedirectPolicy
metadata: {{name: {name}, namespace: {namespace}, uid: {name}, generation: 1, creationTimestamp: "{created}"{more}}}
spec:
  redirectFrontend: {{addressMatcher: {{ip: {ip}, toPorts: [{{port: "{port}", protocol: TCP}}]}}}}
  redirectBackend:
    localEndpointSelector: {{matchLabels: {{app: {app}}}}}
    toPorts: [{{port: "80", protocol: TCP}}]
{tail}
---
"""

CLUSTER = """
kind: Node
metadata: {name: worker-1, labels: {pool: edge}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
kind: Node
metadata: {name: worker-2}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
kind: Node
metadata: {name: worker-3}
---
kind: Node
metadata: {name: worker-4}
---
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: 10.96.0.10
  ports:
    - {name: dns, port: 53, protocol: UDP}
    - {name: dns-tcp, port: 53}
    - {name: metrics, port: 9153}
---
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: LoadBalancer, clusterIP: 10.96.61.7, externalIPs: [198.51.100.7], ports: [{port: 80, nodePort: 30080}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.7}]}}
---
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, ports: [{port: 80}]}
---
kind: CiliumLocalRedirectPolicy
metadata: {name: dns, namespace: kube-system, uid: dns, generation: 1, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  skipRedirectFromBackend: true
  redirectFrontend: {serviceMatcher: {serviceName: kube-dns, namespace: kube-system}}
  redirectBackend:
    localEndpointSelector: {matchLabels: {app: dns}}
    toPorts: [{port: "53", name: dns, protocol: UDP}, {port: "53", name: dns-tcp, protocol: TCP}]
---
"""


def policy(
    name: str,
    ip: str,
    port: int = 80,
    *,
    namespace: str = "shop",
    created: str = "2026-01-01T00:00:00Z",
    app: str = "proxy",
    annotations: str = "",
    skip: bool = False,
) -> str:
    """Write a policy with an addressMatcher."""
    more = f", annotations: {{{annotations}}}" if annotations else ""
    tail = "  skipRedirectFromBackend: true" if skip else ""
    return POLICY.format(
        name=name, ip=ip, port=port, namespace=namespace, created=created, app=app, more=more, tail=tail
    )


def for_service(name: str, service: str) -> str:
    """Write a policy with a serviceMatcher."""
    return f"""
kind: CiliumLocalRedirectPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  redirectFrontend: {{serviceMatcher: {{serviceName: {service}, namespace: shop}}}}
  redirectBackend: {{localEndpointSelector: {{}}, toPorts: [{{port: "80", protocol: TCP}}]}}
---
"""


def pod(
    name: str, node: str, ip: str, app: str, *, namespace: str = "shop", ready: bool = True, host: bool = False
) -> str:
    """Write a pod with the ports that its app has."""
    ports = {"dns": "{containerPort: 53, name: dns, protocol: UDP}, {containerPort: 53, name: dns-tcp}"}
    return f"""
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}
spec: {{nodeName: "{node}", hostNetwork: {str(host).lower()}, containers: [{{ports: [{ports.get(app, "")}]}}]}}
status: {{podIP: {ip}, conditions: [{{type: Ready, status: "{ready}"}}]}}
---
"""


ALL = (
    CLUSTER
    + policy("metadata", "169.254.169.254", annotations="lrp-operator.io/on-no-backend: drop", skip=True)
    + policy("late", "169.254.169.254", created="2026-02-01T00:00:00Z", namespace="other")
    + policy("edge", "169.254.1.1", annotations="lrp-operator.io/node-selector: pool=edge")
    + policy("taken", "198.51.100.7")
    + policy("forbidden", "8.8.8.8")
    + pod("client", "worker-1", "10.244.0.9", "client")
    + pod("client-2", "worker-2", "10.244.1.9", "client")
    + pod("client-3", "worker-3", "10.244.2.9", "client")
    + pod("client-4", "worker-4", "10.244.3.9", "client")
    + pod("host", "worker-4", "192.0.2.4", "client", host=True)
    + pod("waiting", "", "", "client")
    + pod("proxy-1", "worker-1", "10.244.0.17", "proxy")
    + pod("proxy-2", "worker-2", "10.244.1.17", "proxy", ready=False)
    + pod("proxy-4", "worker-4", "10.244.3.17", "proxy")
    + pod("dns-1", "worker-1", "10.244.0.225", "dns", namespace="kube-system")
    + pod("dns-1b", "worker-1", "10.244.0.226", "dns", namespace="kube-system")
    + pod("dns-4", "worker-4", "10.244.3.225", "dns", namespace="kube-system")
)

FORBIDDEN = {
    "observedGeneration": 1,
    "conditions": [
        {
            "type": "Accepted",
            "status": "False",
            "reason": "AddressNotAllowed",
            "message": "Not that one.",
            "lastTransitionTime": "",
        }
    ],
}


def reported(name: str, redirected: int, *, namespace: str = "shop", generation: int = 1) -> PolicyReport:
    """Write what an agent says of a policy."""
    return PolicyReport(f"{namespace}/{name}", name, generation, redirected, redirected)


REPORTS = {
    "worker-1": NodeReport(
        "1.0",
        EVERYWHERE,
        in_force=True,
        policies=(reported("metadata", 1), reported("dns", 2, namespace="kube-system")),
    ),
    "worker-2": NodeReport("1.0", EVERYWHERE, in_force=True),
    "worker-3": NodeReport("1.0", EVERYWHERE, in_force=False, message="The cgroup does not cover the pods."),
    "worker-4": NodeReport("1.0", TC_ONLY, in_force=True, policies=(reported("metadata", 1),)),
}


def loaded(text: str = ALL) -> Loaded:
    """The cluster as it was read."""
    objects, problems = read_manifests("cluster", text.encode())
    assert problems == []
    found = list(objects.values())
    statuses = {"shop/forbidden": FORBIDDEN}
    policies = {
        obj.metadata.key: LivePolicy(obj.metadata, obj.spec, statuses.get(obj.metadata.key))
        for obj in found
        if isinstance(obj, Policy)
    }
    rejected = {key: why for key, p in policies.items() if (why := p.rejection)}
    live = Live(
        policies={key: p.policy for key, p in policies.items() if key not in rejected},
        services={obj.metadata.key: obj for obj in found if isinstance(obj, Service)},
        pods={obj.metadata.key: obj for obj in found if isinstance(obj, Pod)},
        nodes={obj.metadata.name: obj for obj in found if isinstance(obj, Node)},
        reports=REPORTS,
    )
    return Loaded(live, policies, rejected, [])
