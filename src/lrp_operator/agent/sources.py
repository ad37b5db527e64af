"""Where objects come from, as the command line says, and a directory of manifests as the circle wants it.

The other source is the Kubernetes API (kube_source.py).
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from lrp_operator.agent.parts import ObjectKey, SourceUpdate
from lrp_operator.api.objects import ClusterObject
from lrp_operator.sources.kube.credentials import Credentials, Kubeconfig, ServiceAccount
from lrp_operator.sources.watch import Snapshot, diff_objects, follow


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line says about where objects are."""

    manifests: Path | None = None
    kubeconfig: str | None = None
    context: str | None = None
    api_server: str = ""

    def fault(self) -> str:
        """Say, in a sentence, what is wrong with it; empty if it is one place."""
        cluster = {"--kubeconfig": self.kubeconfig, "--context": self.context, "--api-server": self.api_server}
        for flag in [flag for flag, value in cluster.items() if value and self.manifests]:
            return f"--manifests and {flag} exclude each other: objects come from one place"
        if self.context and not self.kubeconfig:
            return "--context is about a kubeconfig: give --kubeconfig FILE too"
        if not self.manifests and not self.kubeconfig and not ServiceAccount.is_here():
            return (
                "what is to be followed? Give --manifests DIR or --kubeconfig FILE; without either, the agent follows "
                "the cluster that its pod is in, and this is no pod (see lrp-agent --help)"
            )
        return ""

    def credentials(self) -> Credentials:
        """Say who we are to the API server. Raises CredentialsError."""
        if self.kubeconfig:
            return Kubeconfig(self.kubeconfig, self.context, self.api_server)
        return ServiceAccount(self.api_server)


class ManifestSource:
    """A directory of manifests, followed live. Complete as soon as the directory itself could be read once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.name = f"manifests in {directory}"

    async def changes(self) -> AsyncIterator[SourceUpdate]:
        """Tell everything there is, then every change."""
        told: dict[ObjectKey, ClusterObject] = {}
        async with aclosing(follow(self._directory)) as snapshots:
            async for snapshot in snapshots:
                changes = diff_objects(told.values(), snapshot.objects.values())
                told = snapshot.objects
                yield SourceUpdate(
                    upserts=changes.upserts,
                    deletes=changes.deletes,
                    problems=tuple(map(str, snapshot.problems)),
                    complete=self._is_complete(snapshot),
                    whole=not snapshot.problems,
                )

    def _is_complete(self, snapshot: Snapshot) -> bool:
        """Whether the directory could be listed: a problem of its own is about the directory, not a file in it."""
        return all(problem.file != str(self._directory) for problem in snapshot.problems)
