"""The node agent: wires sources -> resolve -> datapath in a circle, and tells people what it is doing.

`main` reads the command line and `config` the settings; `lock` sees that a node has one agent; `run` puts the parts
together and takes them apart on a signal. `loop` is the circle: what changed goes through `desired` (the resolver) to
the datapath, in the one thread of `worker`. `server` answers on a unix socket in the words of `apimodel`, and serves
health and metrics. Objects come from a directory (`sources`) or the Kubernetes API (`kube_source`; which Services it
takes is for `kube_services` to say), which also gets the node's `report`. On the cluster's order `withdraw` takes
everything off the node (`removal`). Killing the agent at any point leaves every redirect working: the kernel has all
that it needs.
"""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_HELD = 3  # another agent has the pins or the socket
