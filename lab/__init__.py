"""A Kubernetes node made of network namespaces: what the tests, the demo and the benchmarks run on.

    with Node() as node:
        web = node.pod("web", ipv4="10.244.0.10", ipv6="fd00:10:244::10")
        client = node.pod("client", ipv4="10.244.0.11", bridge=True)
        web.serve_tcp(80, "I am web")
        print(client.ask_tcp("10.244.0.10", 80))

A `Node` is a namespace that forwards between its pods and has no way out, with a cgroup and a bpffs of its own, so
that programs attached there meet this node's processes and nobody else's. A `Pod` is a namespace behind a veth: with
routes to its addresses, or on the node's bridge. What runs on a node or in a pod runs in its namespace *and* in its
cgroup, as on a real node. A pod with any other address stands for a remote endpoint; or a `Network` joins several
nodes. `KubeProxy` writes a node's rules for Services.

    node.py      Node and Pod
    network.py   Network: several nodes
    kubeproxy.py kube-proxy's rules, for iptables or nftables
    place.py     what both can do: run, popen, call, serve, ask
    forking.py   a function in a child of its own
    wiring.py    the netlink work
    serving.py   the little servers and clients
    naming.py    names, and whose they are
    cleanup.py   what dead runs left behind: `python -m lab.cleanup`
"""

from lab.forking import CallFailedError
from lab.kubeproxy import KubeProxy, Service
from lab.network import Network
from lab.node import Node, Pod
from lab.place import Place, Server
from lab.serving import Reply

__all__ = ["CallFailedError", "KubeProxy", "Network", "Node", "Place", "Pod", "Reply", "Server", "Service"]
