import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lrp_operator.kernel import bpf
from lrp_operator.kernel.sockstorage import SocketStorage, StorageUnreadableError
from tests.datapath.world import World, socket_in

pytestmark = pytest.mark.privileged

SO_COOKIE = 57


def cookie(sock: socket.socket) -> int:
    return struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]


@dataclass
class Storage:
    """A storage map (the datapath's own: such a map needs BTF), and a reader of it."""

    map: bpf.Map
    reader: SocketStorage

    def remember(self, sock: socket.socket, text: bytes) -> bytes:
        """Give a socket an entry; user space names the socket by its descriptor."""
        value = text.ljust(self.map.info.value_size, b"\0")
        self.map.update(struct.pack("=i", sock.fileno()), value)
        return value


@pytest.fixture(params=["few_peers4", "many_peers6"])
def storage(world: World, request: pytest.FixtureRequest) -> Iterator[Storage]:
    opened = bpf.Map.open(next(world.settings.bpf_root.glob("sockets-v*")) / request.param)
    reader = SocketStorage(opened)
    yield Storage(opened, reader)
    reader.close()
    opened.close()


def test_every_socket_with_an_entry_is_seen_in_whatever_namespace(world: World, storage: Storage) -> None:
    with socket_in(world.client, "4") as one, socket_in(world.other_client, "6") as two, socket_in(world.one, "4"):
        wanted = {cookie(one): storage.remember(one, b"first"), cookie(two): storage.remember(two, b"second")}

        assert dict(storage.reader.items()) == wanted
        assert storage.reader.any()


def test_an_entry_goes_with_its_socket(world: World, storage: Storage) -> None:
    with socket_in(world.client, "4") as sock:
        storage.remember(sock, b"x")
        assert storage.reader.any()
    assert list(storage.reader.items()) == []
    assert not storage.reader.any()


def test_more_entries_than_one_read_takes(storage: Storage) -> None:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(700)]
        wanted = {cookie(sock): storage.remember(sock, str(n).encode()) for n, sock in enumerate(socks)}

        found = list(storage.reader.items())

    assert len(found) == len(wanted)
    assert dict(found) == wanted


def test_a_map_of_another_type_is_refused_in_a_sentence() -> None:
    with (
        contextlib.closing(bpf.Map.create(bpf.MapType.ARRAY, 4, 8, 1)) as array,
        pytest.raises(StorageUnreadableError, match="can't list what sockets remember"),
    ):
        SocketStorage(array)
