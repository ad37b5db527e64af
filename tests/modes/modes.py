"""The four modes, written as users write them, and what each of them is meant to do."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mode:
    """One mode. text: a file of settings; deprecated: what the agent says of how it is written.

    node_is_redirected: whether the node's own sockets are; replaces: whether ClusterIPs are balanced by us.
    at_links: whether pods are redirected at their links.
    """

    name: str
    text: str
    node_is_redirected: bool
    replaces: bool
    at_links: bool
    deprecated: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


REPLACED = Mode(
    "replaced",
    "kubeProxyReplacement: true\nlocalRedirectPolicies:\n  enabled: true\n",
    node_is_redirected=True,
    replaces=True,
    at_links=False,
)
HOST_ONLY = Mode(
    "host only",
    "kubeProxyReplacement: strict\nsocketLB:\n  hostNamespaceOnly: true\nlocalRedirectPolicy: true\n",
    node_is_redirected=True,
    replaces=True,
    at_links=True,
    deprecated=("kubeProxyReplacement: strict is deprecated", "localRedirectPolicy is deprecated"),
)
SOCKETS = Mode(
    "sockets",
    "kubeProxyReplacement: false\nsocketLB:\n  enabled: true\nlocalRedirectPolicy: true\n",
    node_is_redirected=True,
    replaces=False,
    at_links=False,
    deprecated=("localRedirectPolicy is deprecated",),
)
TC_ONLY = Mode(
    "tc only",
    "kubeProxyReplacement: disabled\nlocalRedirectPolicy: true\n",
    node_is_redirected=False,
    replaces=False,
    at_links=True,
    deprecated=("kubeProxyReplacement: disabled is deprecated", "localRedirectPolicy is deprecated"),
)
MODES = (REPLACED, HOST_ONLY, SOCKETS, TC_ONLY)
