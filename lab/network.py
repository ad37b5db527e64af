"""Several nodes on one machine, joined by a network.

    with Network() as network:
        near, far = network.node(), network.node()
        far.pod("web").serve_tcp(80, "I am web")
        print(near.pod("client", bridge=True).ask_tcp(far.pods["web"].ipv4, 80))

Each node has an uplink, `eth0`: a veth to a switch, with the node's own address on it, a default route to the
switch's router, and a route to every other node's pods, by way of that node's address. So a pod reaches a pod of
another node with its own source address, as on a cluster without overlay. The router knows the nodes and their pods,
and refuses the rest: there is still no way out of the machine. It refuses at once, with two exceptions that are the
kernel's: for an unreachable IPv4 route, each sender gets five answers in a row and then one a second; and a TCP socket
notices one over IPv6 when it tries again, after a second.

Node number N has 172.31.0.N+1, and its pods' addresses are from 10.244.2N.0/23 (routed pods from the first half,
bridged ones from the second); in IPv6 accordingly. Node 0 has the addresses of a node that is on no network.
"""

import os
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from lab import cleanup, wiring
from lab.naming import claim, new_name
from lab.node import Node, first_time, undisturbed
from lab.wiring import Hop

POD_NETWORKS = ("10.244.0.0/16", "fd00:10:244::/48")
"""What holds every node's pods, or, as kube-proxy calls it, the cluster's CIDRs."""


class Network:
    """A switch, and the nodes that are plugged into it. Those go with the network, at the latest.

    name: the switch's namespace's.
    """

    def __init__(self) -> None:
        self.name = new_name()
        self.nodes: list[Node] = []
        self._stack = ExitStack()
        self._switch = self._bridge = -1
        self._router = Hop("", (), ())

    def __enter__(self) -> Self:
        first_time()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _build(self) -> None:
        self._stack.callback(cleanup.remove_node, self.name)  # it has a node's traces, but for a cgroup
        claim(self.name)
        self._switch = wiring.create_netns(self.name, forwarding=True)
        self._stack.callback(os.close, self._switch)
        self._bridge, mac = wiring.set_up_switch(self._switch)
        self._router = Hop(mac, wiring.ROUTER, ("0.0.0.0/0", "::/0"))

    def close(self) -> None:
        """Remove the nodes and the switch. May be called twice."""
        with undisturbed():
            self._stack.close()

    def node(self) -> Node:
        """Make a node, and make it and the others known to each other. It may be closed before the others."""
        number = len(self.nodes)
        addresses = (f"172.31.0.{number + 1}", f"fd00:172:31::{number + 1:x}")
        node = self._stack.enter_context(Node(addresses, number=number, switch=self._switch))
        index, own = _known_as(node)
        wiring.add_hop(self._switch, self._bridge, own)
        wiring.add_hop(node.netns, index, self._router)
        for other in self.nodes:
            if other.netns < 0:
                continue  # closed; what goes to its pods is lost, as with any node that has died
            other_index, hop = _known_as(other)
            wiring.add_hop(other.netns, other_index, own)
            wiring.add_hop(node.netns, index, hop)
        self.nodes.append(node)
        return node


def _known_as(node: Node) -> tuple[int, Hop]:
    """The index of a node's uplink, and what others need to know of the node."""
    assert node.uplink
    return node.uplink.index, Hop(node.uplink.mac, node.addresses, node.networks)
