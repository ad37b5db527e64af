"""Taking everything of ours off this node: `lrp-agent cleanup` clears its kernel, a withdrawal its disk as well."""

import errno
import logging
from pathlib import Path

from lrp_operator.datapath.engine import cleanup
from lrp_operator.datapath.model import DatapathError
from lrp_operator.loader.kept import Store

log = logging.getLogger(__name__)

_MAY_STAY = {errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY}
"""Why the pins' directory may stay: it is not there, is a mount's own root, or has somebody else's pins."""


def remove_all(bpf_root: Path, cgroup_root: Path) -> list[str]:
    """Detach and unpin all of it, and remove the pins' directory; what was removed. Raises DatapathError.

    The lock on the pins is the caller's to hold.
    """
    removed = cleanup(bpf_root, cgroup_root)
    try:
        bpf_root.resolve().rmdir()
    except OSError as error:
        if error.errno in _MAY_STAY:
            return removed
        raise DatapathError(f"the pins' directory {bpf_root} can't be removed: {error.strerror}") from error
    return [*removed, f"directory {bpf_root}"]


def leave_nothing(bpf_root: Path, cgroup_root: Path) -> list[str]:
    """Remove what was kept for the next boot as well, or tell why it stays: it does nothing. Raises DatapathError."""
    removed = remove_all(bpf_root, cgroup_root)
    if store := Store.given():
        try:
            removed += store.clear()
        except OSError as error:
            log.warning("%s stays on this node's disk: %s", store.directory, error)
    return removed
