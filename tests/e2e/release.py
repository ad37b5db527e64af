"""The chart as a person installs it, and the four modes as a person says them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.e2e.client import IPV6
from tests.e2e.node import hierarchies
from tests.e2e.terminal import Terminal
from tests.e2e.units import NODE_IP

Mode = Literal["sockets", "tc", "replace", "host-only"]

NAME, NAMESPACE = "lrp-operator", "kube-system"
CHART = "deploy/helm/lrp-operator"
MODES: dict[Mode, list[str]] = {
    "sockets": ["kubeProxyReplacement=false", "socketLB.enabled=true"],
    "tc": ["kubeProxyReplacement=false"],
    "replace": ["kubeProxyReplacement=true"],
    "host-only": ["kubeProxyReplacement=true", "socketLB.hostNamespaceOnly=true"],
}
# What policies may take: link-local addresses, as by default, and the one of the walk over IPv6.
ALLOWED = f"'localRedirectPolicies.addressMatcherCIDRs={{169.254.0.0/16,fe80::/10,{IPV6.ip}/128}}'"
# Both programs' pods.
AGENT, CONTROLLER = "daemonset/lrp-operator-agent", "deployment/lrp-operator-controller"
AGENTS = f"-n {NAMESPACE} pods -l app.kubernetes.io/component=agent"


@dataclass(frozen=True)
class Release:
    """The chart's release. Images are those that `make image` builds; nothing is pulled."""

    terminal: Terminal

    def install(self, mode: Mode, *, wait: bool = True) -> None:
        """Install it."""
        self.terminal(f"helm install {self._flags(CHART, mode)}")
        if wait:
            self.rolled_out()

    def upgrade(self, mode: Mode, *, chart: str | Path = CHART, more: Sequence[str] = (), wait: bool = True) -> None:
        """Change its mode, its version, or more of its values; returns when every node has its new agent, and it works.

        Helm alone would not wait for that: one node less than all may be without an agent, and here one is all.
        """
        self.terminal(f"helm upgrade {self._flags(chart, mode, more)}")
        if wait:
            self.rolled_out()

    def rolled_out(self) -> None:
        """Wait until all of it is there, and ready."""
        for what in (AGENT, CONTROLLER):
            self.terminal(f"kubectl -n {NAMESPACE} rollout status {what} --timeout=180s")

    def uninstall(self) -> None:
        """Take it away, with all that is in nodes' kernels."""
        self.terminal(f"helm uninstall {NAME} -n {NAMESPACE} --wait")

    def installed(self) -> bool:
        """Whether it is there."""
        return NAME in self.terminal.quietly(f"helm list -n {NAMESPACE} -q").split()

    def agent_pod(self) -> dict[str, Any]:
        """The pod of the walk's node's agent."""
        where = f"--field-selector spec.nodeName={self.terminal.node}"
        found: dict[str, Any] = self.terminal.get(f"{AGENTS} {where}")["items"][0]
        return found

    def agent(self, command: str) -> str:
        """Run a command in the agent's pod."""
        return self.terminal(
            f"kubectl -n {NAMESPACE} exec {self.agent_pod()['metadata']['name']} -c agent -- {command}"
        )

    def agent_log(self) -> str:
        """What the agent has said since it was started."""
        return self.terminal(f"kubectl -n {NAMESPACE} logs {self.agent_pod()['metadata']['name']} -c agent")

    def row(self, frontend: str) -> list[str]:
        """A frontend's line of `lrpctl service list`, in words, from the frontend on."""
        lines = [line.split() for line in self.agent("lrpctl service list").splitlines()]
        found = [line[1:] for line in lines if line[1:2] == [frontend]]
        assert len(found) == 1, f"{frontend}: {len(found)} lines"
        return found[0]

    def _flags(self, chart: str | Path, mode: Mode, more: Sequence[str] = ()) -> str:
        said = [*MODES[mode], *more, ALLOWED, "image.registry=localhost", "image.pullPolicy=Never"]
        if "LRP_E2E_NODE" in os.environ:
            said.append(f"cgroup.hostRoot={hierarchies()[-1]}")
            if "kubeProxyReplacement=true" in said:
                said += [f"k8sServiceHost={NODE_IP}", "k8sServicePort=6443"]
        sets = " ".join(f"--set {value}" for value in said)
        return f"{NAME} {chart} -n {NAMESPACE} {sets}"
