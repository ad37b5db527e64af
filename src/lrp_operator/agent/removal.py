"""Taking everything of ours off this node: `lrp-agent cleanup` clears its kernel, a withdrawal its disk as well."""

import errno
from pathlib import Path

from lrp_operator.datapath.engine import cleanup
from lrp_operator.datapath.model import DatapathError
from lrp_operator.loader.kept import Store

_MAY_STAY = {errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY}
"""Why the pins' directory may not be removed: it is not there, is a mount's own root, or has somebody else's pins."""


def remove_all(bpf_root: Path, cgroup_root: Path) -> list[str]:
    """Detach and unpin all of it, and remove the pins' directory; what was removed. Raises DatapathError.

    The lock on the pins is the caller's to hold.
    """
    removed = cleanup(bpf_root, cgroup_root)
    try:
        bpf_root.rmdir()
    except OSError as error:
        if error.errno in _MAY_STAY:
            return removed
        raise DatapathError(f"the pins' directory {bpf_root} can't be removed: {error.strerror}") from error
    return [*removed, f"directory {bpf_root}"]


def leave_nothing(bpf_root: Path, cgroup_root: Path) -> list[str]:
    """Remove what was kept for the next boot as well. Raises DatapathError, OSError."""
    removed = remove_all(bpf_root, cgroup_root)
    store = Store.given()
    return [*removed, *(store.clear() if store else [])]
