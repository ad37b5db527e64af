"""Policies + cluster objects -> the redirect table of one node, and a verdict for every policy.

Pure: no clock, no API, no kernel. semantics.md is the contract. An object's way through the rooms:

    views, age               what tenants wrote, made clean at the door
    selection, book          who selects whom; whose address is what: indices, so that a change finds what it concerns
    frontends, backends      which frontends a policy claims, and which pods serve each
    ownership, services      who has a frontend; what a ClusterIP without a policy has
    rations                  how many frontends a namespace may have
    verdicts, sentences      what became of each policy, and how people are told
    engine                   change tracking over all of it: Resolver, and the function resolve
    cluster                  the same for all nodes together, for the controller
    model, options           what comes out, and what is asked for
"""
