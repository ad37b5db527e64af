"""Taking everything of ours out of this node's kernel: `lrp-agent cleanup`, and the end of a withdrawal."""

import contextlib
from pathlib import Path

from lrp_operator.datapath.engine import cleanup


def remove_all(bpf_root: Path, cgroup_root: Path) -> list[str]:
    """Detach and unpin all of it, and remove the pins' directory; what was removed. Raises DatapathError.

    The lock on the pins is the caller's to hold.
    """
    removed = cleanup(bpf_root, cgroup_root)
    with contextlib.suppress(OSError):  # not there, a mount's own root, or not empty
        bpf_root.rmdir()
        removed = [*removed, f"directory {bpf_root}"]
    return removed
