"""The four modes, as a chart's values spell them, and what the story tells otherwise in each."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mode:
    """values: the agent's settings. replaces: kube-proxy may go. node: the node's own programs are redirected too."""

    name: str
    values: str
    replaces: bool
    node: bool


MODES = {
    mode.name: mode
    for mode in (
        Mode(
            "replace", "kubeProxyReplacement: true\nlocalRedirectPolicies: {enabled: true}\n", replaces=True, node=True
        ),
        Mode(
            "host-only",
            "kubeProxyReplacement: true\nsocketLB: {hostNamespaceOnly: true}\nlocalRedirectPolicies: {enabled: true}\n",
            replaces=True,
            node=True,
        ),
        Mode(
            "sockets",
            "kubeProxyReplacement: false\nsocketLB: {enabled: true}\nlocalRedirectPolicies: {enabled: true}\n",
            replaces=False,
            node=True,
        ),
        Mode("tc", "kubeProxyReplacement: false\nlocalRedirectPolicies: {enabled: true}\n", replaces=False, node=False),
    )
}
USUAL = "sockets"
