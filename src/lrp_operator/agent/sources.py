"""Sources of objects as the circle wants them: what came, what went, and what could not be read."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

from lrp_operator.agent.parts import ObjectKey, SourceUpdate
from lrp_operator.api.objects import ClusterObject
from lrp_operator.sources.watch import Snapshot, diff_objects, follow


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
