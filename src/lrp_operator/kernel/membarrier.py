"""membarrier(2): wait until every reader that was in the kernel has left it.

MEMBARRIER_CMD_GLOBAL waits for an RCU grace period (man 2 membarrier), and BPF programs run inside RCU read sections:
when it returns, no program is still using what was unlinked from a map before the call. It takes a while.
"""

import ctypes
import os
import platform

_SYSCALL_NUMBER = {"x86_64": 324, "aarch64": 283}
_CMD_GLOBAL = 1
_libc = ctypes.CDLL(None, use_errno=True)


def wait_for_readers() -> None:
    """Block until all BPF programs that were running have ended. Raises OSError (ENOSYS without CONFIG_MEMBARRIER)."""
    if _libc.syscall(_SYSCALL_NUMBER[platform.machine()], _CMD_GLOBAL, 0, 0) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"membarrier: {os.strerror(code)}")
