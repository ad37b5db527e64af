"""Taking everything of ours off this node: `lrp-agent cleanup` clears its kernel, a withdrawal its disk as well."""

import contextlib
from pathlib import Path

from lrp_operator.datapath.engine import cleanup
from lrp_operator.loader.kept import Store


def remove_all(bpf_root: Path, cgroup_root: Path) -> list[str]:
    """Detach and unpin all of it, and remove the pins' directory; what was removed. Raises DatapathError.

    The lock on the pins is the caller's to hold.
    """
    removed = cleanup(bpf_root, cgroup_root)
    with contextlib.suppress(OSError):  # not there, a mount's own root, or not empty
        bpf_root.rmdir()
        removed = [*removed, f"directory {bpf_root}"]
    return removed


def leave_nothing(bpf_root: Path, cgroup_root: Path) -> list[str]:
    """Remove what was kept for the next boot as well. Raises DatapathError, OSError."""
    removed = remove_all(bpf_root, cgroup_root)
    store = Store.given()
    return [*removed, *(store.clear() if store else [])]
