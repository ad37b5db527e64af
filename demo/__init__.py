"""The demonstration, `make demo`: real servers, a real agent and real clients in a node made of network namespaces.

It tells what it does as it goes: each command as a person would type it, with the output that it really had. It checks
that output too, and ends with exit code 1 where something is not as told.

    __main__.py   the story
    stage.py      the node, its pods, their servers, and kube-proxy's rules
    agent.py      the agent, its manifests, and waiting for it
    telling.py    how commands are run, shown and checked
"""
