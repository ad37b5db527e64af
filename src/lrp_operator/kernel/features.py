"""What this kernel can do, asked by trying: versions lie (distributions backport), a loaded program does not.

Each probe loads a program of a few instructions and drops it again: under a millisecond for all of them.
"""

import socket
import struct
from dataclasses import dataclass

from lrp_operator.kernel import bpf

SO_NETNS_COOKIE = 71  # asm-generic/socket.h

# Helper numbers, include/uapi/linux/bpf.h.
_GET_NETNS_COOKIE, _KTIME_GET_COARSE_NS, _SET_RETVAL, _SKC_TO_MPTCP_SOCK = 122, 160, 187, 196
_LOOPBACK = 1  # its index in every network namespace


def _instruction(opcode: int, register: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", opcode, register, 0, immediate)


_EXIT_1 = _instruction(0xB7, 0, 1) + _instruction(0x95)  # r0 = 1; exit
_COMPARE_AND_SWAP = (  # *(u64 *)(r10 - 8) = 0; r0 = r1 = 0; r0 = cmpxchg_64(r10 - 8, r0, r1)  (Linux 5.12)
    struct.pack("=BBhi", 0x7A, 10, -8, 0)
    + _instruction(0xB7, 0, 0)
    + _instruction(0xB7, 1, 0)
    + struct.pack("=BBhi", 0xDB, 1 << 4 | 10, -8, 0xF1)
)
_SOCKET_OF_CONTEXT = struct.pack("=BBhi", 0x79, 1 << 4 | 1, 64, 0)  # r1 = ctx->sk, of struct bpf_sock_addr
_ARGUMENT = _instruction(0xB7, 1, -111)  # r1 = -111


@dataclass(frozen=True, slots=True)
class KernelFeatures:
    """What the probes found. hooks: attach types that take a program."""

    hooks: frozenset[bpf.AttachType]
    ring_buffer: bool
    netns_cookie_helper: bool
    netns_cookie_option: bool
    set_retval: bool
    compare_and_swap: bool
    mptcp: bool
    coarse_time: bool
    tcx: bool


def _loads(attach_type: bpf.AttachType, code: bytes) -> bool:
    try:
        bpf.load_program(attach_type.program_type, code, attach_type).close()
    except PermissionError:
        raise  # no right to load anything: that says nothing of the kernel
    except OSError:
        return False
    return True


def _call(helper: int) -> bytes:
    return _instruction(0x85, 0, helper)


def probe() -> KernelFeatures:
    """Try everything once. Raises PermissionError without the right to load programs (CAP_BPF, CAP_NET_ADMIN)."""
    connect4 = bpf.AttachType.CONNECT4
    return KernelFeatures(
        hooks=frozenset(hook for hook in bpf.AttachType if _loads(hook, _EXIT_1)),
        ring_buffer=_has_ring_buffer(),
        netns_cookie_helper=_loads(connect4, _call(_GET_NETNS_COOKIE) + _EXIT_1),
        netns_cookie_option=_has_netns_cookie_option(),
        set_retval=_loads(connect4, _ARGUMENT + _call(_SET_RETVAL) + _EXIT_1),
        compare_and_swap=_loads(connect4, _COMPARE_AND_SWAP + _EXIT_1),
        mptcp=_loads(connect4, _SOCKET_OF_CONTEXT + _call(_SKC_TO_MPTCP_SOCK) + _EXIT_1),
        coarse_time=_loads(connect4, _call(_KTIME_GET_COARSE_NS) + _EXIT_1),
        tcx=_has_tcx(),
    )


def _has_ring_buffer() -> bool:
    try:
        bpf.Map.create(bpf.MapType.RINGBUF, 0, 0, 4096).close()
    except PermissionError:
        raise
    except OSError:
        return False
    return True


def _has_tcx() -> bool:
    try:
        bpf.attached_programs(_LOOPBACK, bpf.TcxHook.INGRESS)
    except PermissionError:
        raise
    except OSError:
        return False
    return True


def _has_netns_cookie_option() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe_socket:
        try:
            probe_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError:
            return False
    return True
