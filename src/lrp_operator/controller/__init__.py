"""The controller: what became of every policy in the whole cluster, said in its status. Never in a redirect's way.

    kopf: "this policy changed" ─▶ read it ──┐
    informers: Services, pods, Nodes ────────┼─▶ ClusterResolver ─┐
    informer: the nodes' own reports ────────┴─▶ NodeReports ─────┴─▶ fold (pure) ─▶ writer ─▶ status, Events
                                                                                       ▲
                                                              the Lease: one of two replicas writes

The rooms, in that order:

    policies, feeds   what comes in: policies, which kopf names; informers for the rest
    world             all that is known, and the status that each policy should show
    reports, fold     what nodes say; from that and the resolver's verdict to a status (pure)
    writer, line      status by Server-Side Apply, only where it differs, at a bounded rate; namespaces take turns
    herald            Events when a verdict changes
    lease             who may write
    crds, cilium      what is to be settled before: our resources are there, and Cilium is not
    doors, metrics    health, and Prometheus
    main, run         the command line; the parts, put together
    withdraw          a command of its own: has all agents take off their nodes what they have put there
"""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
"""Cilium runs in this cluster, and redirects by itself."""
