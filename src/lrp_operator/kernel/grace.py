"""Wait until every BPF program that was running has ended (an RCU grace period).

The kernel waits for that before bpf(2) returns from a change of a map in a map, so that "userspace knows that all
programs that could be running use the new map value" (maybe_wait_bpf_programs in kernel/bpf/syscall.c, Linux 5.0; the
commit calls it a contract). So a map of maps with a single entry, which nothing reads, is set once more.

membarrier(2)'s MEMBARRIER_CMD_GLOBAL looks like the call for it, but fails on a kernel with nohz_full CPUs and returns
at once on a machine with one CPU.
"""

import struct
from functools import cache

from lrp_operator.kernel import bpf

_KEY = bytes(4)


class _Waiter:
    """The map of maps and the map in it; they live as long as the process."""

    def __init__(self) -> None:
        self._inner = bpf.Map.create(bpf.MapType.ARRAY, 4, 4, 1)
        self._outer = bpf.Map.create(bpf.MapType.ARRAY_OF_MAPS, 4, 4, 1, inner=self._inner.fd)

    def wait(self) -> None:
        self._outer.update(_KEY, struct.pack("=I", self._inner.fd.number))


@cache
def _waiter() -> _Waiter:
    return _Waiter()


def wait_for_readers() -> None:
    """Block until all BPF programs that were running have ended: some tens of milliseconds. Raises OSError."""
    _waiter().wait()
