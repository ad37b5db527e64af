"""Local redirect policies for every cluster: traffic for a Service or an address goes to the pod on the same node.

How a policy travels: `sources` reads Kubernetes objects, `resolve` turns them into this node's redirect table and a
verdict for every policy, `datapath` writes the table into eBPF maps that `loader` has put into the kernel, and `agent`
runs these in a circle. How a packet travels: `bpf/` in the source tree.
"""

__version__ = "0.1.0"  # the one place; asking the installed package for it takes a tenth of an agent's start
