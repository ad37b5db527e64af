import os
import select
import struct
from collections.abc import Iterator

import pytest

from lrp_operator.kernel import bpf
from lrp_operator.kernel.ringbuf import RingBuffer, committed

pytestmark = pytest.mark.privileged

SIZE = 4096  # the smallest ring there is
RECORD = 256  # a record's content in most tests; with its header, 264 bytes: no divisor of the ring
FRAME = 264

# eBPF, by hand: (opcode, registers dst | src << 4, offset, immediate)
LOAD_BYTES, RINGBUF_OUTPUT, RINGBUF_RESERVE, RINGBUF_DISCARD = 26, 130, 131, 133
MOV_IMM, MOV_REG, ADD_IMM, CALL, EXIT, JEQ_IMM, STORE_ZERO = 0xB7, 0xBF, 0x07, 0x85, 0x95, 0x15, 0x7A


def ins(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", code, dst | src << 4, off, imm)


def load_map(register: int, ring: bpf.Map) -> bytes:
    return ins(0x18, register, 1, imm=ring.fd.number) + ins(0)


def output(ring: bpf.Map, size: int) -> bpf.Fd:
    """A program that copies `size` bytes of its packet into the ring and returns what the helper did."""
    room = (size + 7) & ~7
    code = b""
    for at in range(0, room, 8):
        code += ins(STORE_ZERO, 10, off=-room + at)  # the verifier wants the stack written before it is handed out
    code += ins(MOV_IMM, 2) + ins(MOV_REG, 3, 10) + ins(ADD_IMM, 3, imm=-room) + ins(MOV_IMM, 4, imm=size)
    code += ins(CALL, imm=LOAD_BYTES)
    code += load_map(1, ring) + ins(MOV_REG, 2, 10) + ins(ADD_IMM, 2, imm=-room)
    code += ins(MOV_IMM, 3, imm=size) + ins(MOV_IMM, 4) + ins(CALL, imm=RINGBUF_OUTPUT) + ins(EXIT)
    return bpf.load_program(bpf.ProgType.SCHED_CLS, code)


def discard(ring: bpf.Map) -> bpf.Fd:
    """A program that reserves a record and gives it back."""
    code = load_map(1, ring) + ins(MOV_IMM, 2, imm=RECORD) + ins(MOV_IMM, 3) + ins(CALL, imm=RINGBUF_RESERVE)
    code += ins(JEQ_IMM, 0, off=3) + ins(MOV_REG, 1) + ins(MOV_IMM, 2) + ins(CALL, imm=RINGBUF_DISCARD)
    return bpf.load_program(bpf.ProgType.SCHED_CLS, code + ins(MOV_IMM) + ins(EXIT))


class Ring:
    """A ring with its reader and its writer."""

    def __init__(self) -> None:
        self.map = bpf.Map.create(bpf.MapType.RINGBUF, 0, 0, SIZE)
        self.reader = RingBuffer(self.map.fd.number)
        self.writers: dict[int, bpf.Fd] = {}

    def write(self, content: bytes) -> bool:
        """Write a record; False if the ring is full."""
        writer = self.writers.setdefault(len(content), bpf.Fd(-1))
        if writer.number < 0:
            writer = self.writers[len(content)] = output(self.map, len(content))
        return bpf.run_packet(writer, content.ljust(64, b"\0")).value == 0

    def close(self) -> None:
        self.reader.close()
        for writer in self.writers.values():
            writer.close()
        self.map.close()


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring()
    yield ring
    ring.close()


def content(number: int, size: int = RECORD) -> bytes:
    return struct.pack("=I", number) * (size // 4)


def is_readable(ring: Ring) -> bool:
    return bool(select.select([ring.reader], [], [], 0)[0])


def test_records_come_in_order_and_whole(ring: Ring) -> None:
    assert ring.reader.read() == []
    written = [content(1, 8), content(2, 24), content(3), content(4, 100)]
    assert all(map(ring.write, written))
    assert ring.reader.read() == written
    assert ring.reader.read() == []


def test_it_wraps_around_for_many_rounds(ring: Ring) -> None:
    split = 0
    for number in range(500):
        start = number * FRAME % SIZE
        split += start < SIZE < start + FRAME
        assert ring.write(content(number))
        assert ring.reader.read() == [content(number)]
    assert split > 10  # records did lie across the end


def test_a_full_ring_refuses_and_goes_on_once_it_is_read(ring: Ring) -> None:
    written = []
    while ring.write(content(len(written))):
        written.append(content(len(written)))
    assert len(written) == (SIZE - 1) // FRAME
    assert ring.reader.read() == written
    assert ring.write(content(99))
    assert ring.reader.read() == [content(99)]


def test_what_was_discarded_is_passed_over(ring: Ring) -> None:
    thrown_away = discard(ring.map)
    with thrown_away:
        assert ring.write(content(1))
        bpf.run_packet(thrown_away, bytes(64))
        assert ring.write(content(2))
        bpf.run_packet(thrown_away, bytes(64))
    assert ring.reader.read() == [content(1), content(2)]
    assert ring.reader.read() == []
    assert not is_readable(ring)  # the space of what was discarded has been given back too


def test_it_is_readable_while_records_wait(ring: Ring) -> None:
    with select.epoll() as epoll:
        epoll.register(ring.reader, select.EPOLLIN)
        assert epoll.poll(0) == []
        for number in range(3):
            ring.write(content(number))
            assert epoll.poll(1) == [(ring.reader.fileno(), select.EPOLLIN)]
            assert ring.reader.read()
            assert epoll.poll(0) == []


def test_a_second_reader_goes_on_where_the_first_left_off(ring: Ring) -> None:
    for number in range(20):
        ring.write(content(number))
        ring.reader.read()
    ring.write(content(77))
    ring.reader.close()
    ring.reader = RingBuffer(ring.map.fd.number)
    assert ring.reader.read() == [content(77)]


def test_closing_unmaps_and_leaves_the_map(ring: Ring) -> None:
    ring.reader.close()
    ring.reader.close()
    with open("/proc/self/maps") as maps:  # noqa: PTH123 (Path has no iteration over lines)
        assert not [line for line in maps if "bpf-map" in line]
    os.fstat(ring.map.fd.number)


def test_a_record_that_is_being_written_stops_the_reader() -> None:
    """The kernel never leaves one so for long: here its memory is played."""
    busy, discarded = 1 << 31, 1 << 30
    words = [0] * 16
    words[0], words[4], words[8] = 8, discarded | 8, busy | 8  # each takes 16 bytes, of a ring of 64
    headers = memoryview(struct.pack("=16I", *words)).cast("I")
    assert list(committed(headers, 64, 64 + 48, 64)) == [(80, (8, 8)), (96, None)]
    assert list(committed(headers, 96, 112, 64)) == []
    assert list(committed(headers, 64, 64, 64)) == []
