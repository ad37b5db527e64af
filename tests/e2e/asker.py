"""The client that never stops: a pod that asks by new sockets, many times a second, and counts what is lost."""

import json
from dataclasses import dataclass

from tests.e2e import pods
from tests.e2e.client import cluster_dns, my_service, ways
from tests.e2e.terminal import Terminal, eventually

POD = "asker"


@dataclass(frozen=True)
class Seen:
    """What became of one target's requests.

    by: answers, and how often each came. slow: how many took more than half a second. slowest: seconds. waited: seconds
    from the first request to the first answer.
    """

    ok: int
    failed: int
    by: dict[str, int]
    errors: list[str]
    slow: int
    slowest: float
    waited: float


@dataclass(frozen=True)
class Asker:
    """The pod, from outside."""

    terminal: Terminal

    def ask(self, targets: dict[str, str]) -> None:
        """Ask these, by one that does so already, if it has lost nothing so far. targets: URLs by a name."""
        command = self.terminal.quietly(
            f"kubectl get pod {POD} --ignore-not-found -o jsonpath='{{.spec.containers[0].command}}'"
        )
        is_asking = command == json.dumps(_command(targets), separators=(",", ":"))
        if not is_asking or any(seen.failed for seen in self.seen().values()):
            self.start(targets)

    def start(self, targets: dict[str, str]) -> None:
        """Start it anew, and see that each target answers. targets: URLs by a name."""
        self.terminal.quietly(f"kubectl delete pod {POD} --now --ignore-not-found")
        self.terminal.apply(pods.pod(POD, "client", {}, command=_command(targets)))
        self.terminal(f"kubectl wait pod/{POD} --for=condition=Ready --timeout=60s")
        eventually(lambda: all(seen.ok for seen in self.seen().values()))

    def ask_services(self) -> None:
        """Ask what is to be answered whatever happens to policies, if it does not yet."""
        if self.terminal.quietly(f"kubectl get pod {POD} --ignore-not-found"):
            return
        dns = f"dns://{cluster_dns(self.terminal)}:53/kubernetes.default.svc.cluster.local"
        services = {way.service: my_service(self.terminal, way) for way in ways(self.terminal)}
        self.start({**services, "cluster DNS": dns})

    def seen(self) -> dict[str, Seen]:
        """What it has seen so far, by target."""
        told = json.loads(self.terminal.quietly(f"kubectl exec {POD} -- /e2e-pod report"))
        return {name: Seen(**seen) for name, seen in told.items()}

    def nothing_lost(self) -> None:
        """Tell how many were answered; fail if one was not."""
        if lost := [f"{name}: {error}" for name, of in self.tell().items() for error in of.errors]:
            raise AssertionError("the endless client was not answered:\n" + "\n".join(lost))

    def tell(self) -> dict[str, Seen]:
        """Tell how many were answered, and by whom. Returns what it told."""
        seen = self.seen()
        for name, of in seen.items():
            answers = ", ".join(f"{count} by {answer!r}" for answer, count in of.by.items())
            self.terminal.say(f"endless client, {name}: {of.failed} of {of.ok + of.failed} failed, "
                              f"{of.slow} slow, slowest {of.slowest * 1000:.0f} ms; {answers}")  # fmt: skip
        return seen


def _command(targets: dict[str, str]) -> list[str]:
    return ["/e2e-pod", "ask", *(f"{name}={url}" for name, url in targets.items())]
