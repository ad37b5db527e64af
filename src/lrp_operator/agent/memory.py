"""Memory that the C library would keep for later.

glibc gives each thread an arena of its own (eight for each CPU) and returns little of what was freed. An agent has few
threads, which take turns, and its first pass needs more than all that follow: one arena is enough, and after that pass,
and now and then, what is free goes back to the node.
"""

import ctypes

_M_ARENA_MAX = -8  # malloc.h

_libc = ctypes.CDLL(None)


def use_one_arena() -> None:
    """Have all threads allocate from one arena; call it before there are any. Without glibc, nothing happens."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return free memory to the node: some milliseconds. Without glibc, nothing happens."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
