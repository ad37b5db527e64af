"""Reading a BPF ring buffer (BPF_MAP_TYPE_RINGBUF) through its shared memory.

The kernel lays out, for a ring of `size` bytes (a power of two):

    page 0          the consumer's position, ours to write
    page 1          the producer's position
    page 2 ...      the data, mapped twice in a row, so that a record that runs over the end can be read in one piece

Positions only grow; a position modulo `size` is a place in the data. A record is an 8-byte header (4 of them the
length, whose two highest bits say "busy: being written" and "discarded") and the content, padded to 8 bytes. A producer
moves its position when it reserves, and clears the busy bit when it commits: so a busy record stops the reader, who
comes again.

The order of memory operations matters, as the kernel writes while we read, on another CPU:

    1. the producer's position, before any header: below it, headers are of this round and not of the one before;
    2. a header, before its content: without the busy bit, the content is complete;
    3. all content, before the consumer's position is written: from then on the kernel overwrites it.

x86 keeps loads in order and stores after earlier loads, arm64 keeps neither, and Python has no fences. A lock has:
what stands before its release is done before it, what stands after its acquisition is done after it. One pair does not
order a load before it against one after it, as both may move in between; two pairs do. `_fence` is that.

When a ring is full, the kernel's side gets an error and must count what it loses: nothing here can see it.
"""

import mmap
import threading
from collections.abc import Iterator

from lrp_operator.kernel import bpf

_PAGE = mmap.PAGESIZE
_HEADER = 8
_BUSY = 1 << 31
_DISCARDED = 1 << 30
_LENGTH = _DISCARDED - 1

Record = tuple[int, int]
"""Where a record's content begins in the data, and its length."""


class RingBuffer:
    """The one reader of a ring. The map's descriptor stays the caller's, who closes it after this.

    It is readable (select, epoll, asyncio's add_reader) while records wait.
    """

    def __init__(self, map_fd: int) -> None:
        self._fd = map_fd
        self._size = bpf.map_info(bpf.Fd(map_fd)).max_entries
        self._fence_lock = threading.Lock()
        self._consumer = mmap.mmap(map_fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        try:
            length = _PAGE + 2 * self._size
            self._producer = mmap.mmap(map_fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=_PAGE)
        except BaseException:
            self._consumer.close()
            raise
        # Views of machine words: each element is loaded and stored whole, as a slice of bytes need not be.
        self._consumed = memoryview(self._consumer).cast("Q")
        self._produced = memoryview(self._producer)[:8].cast("Q")
        self._data = memoryview(self._producer)[_PAGE:]
        self._headers = self._data.cast("I")

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._fd

    def read(self) -> list[bytes]:
        """Take every record that is complete, at most one ring full: [] if there is none.

        Records before one that is still being written are taken, those after it wait for the next time.
        """
        start = self._consumed[0]
        end = self._produced[0]
        if start == end:
            return []
        self._fence()
        records: list[Record] = []
        for position, record in committed(self._headers, start, end, self._size):
            start = position
            if record is not None:
                records.append(record)
        self._fence()
        taken = [bytes(self._data[place : place + length]) for place, length in records]
        self._fence()
        self._consumed[0] = start
        return taken

    def close(self) -> None:
        """Unmap the ring. May be called twice."""
        for view in (self._headers, self._data, self._produced, self._consumed):
            view.release()
        self._producer.close()
        self._consumer.close()

    def _fence(self) -> None:
        with self._fence_lock:
            pass
        with self._fence_lock:
            pass


def committed(headers: memoryview, start: int, end: int, size: int) -> Iterator[tuple[int, Record | None]]:
    """Walk complete records: the position after each, and the record, or None if it was discarded.

    headers: the data, seen as 32-bit words.
    """
    while start < end:
        place = start % size
        header = headers[place // 4]
        if header & _BUSY:
            return
        length = header & _LENGTH
        start += (_HEADER + length + 7) & ~7
        yield start, None if header & _DISCARDED else (place + _HEADER, length)
