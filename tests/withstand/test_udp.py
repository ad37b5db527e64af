"""UDP replies come from the frontend's address, whatever a socket, a process or the kernel's memory goes through."""

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from lab import Pod
from lrp_operator.api.addresses import L4Addr
from lrp_operator.datapath.model import Hits
from lrp_operator.kernel import bpf
from lrp_operator.resolve.model import FrontendEntry
from tests.datapath.world import DNS, FAR, TCP, UDP, VIP, WAYS, WEB, World, ask, exchange, socket_in
from tests.withstand.storm import FIRST, PODS, PORT, Ground, size, vip_of

pytestmark = pytest.mark.privileged

CROWDS = 8
OPTMEM = Path("/proc/sys/net/core/optmem_max")
ROOM = 4 + 64  # frontends that a socket's storage remembers: LRP_FEW_PEERS and LRP_MANY_PEERS of bpf/config.h


@pytest.fixture(scope="module")
def wide(shared_ground: Ground) -> list[int]:
    """Seventy-two frontends of one pod, which answers on a port for each."""
    shared_ground.more_servers(0, FIRST + shared_ground.frontends, 72 - shared_ground.frontends)
    return list(range(72))


def send_to(sock: socket.socket, way: str, number: int) -> None:
    host = vip_of(number, six=way == "6")
    sock.sendto(struct.pack("=I", number), (f"::ffff:{host}" if way == "mapped" else host, PORT))


def reply(sock: socket.socket) -> tuple[int, tuple[str, int]]:
    """The number of the frontend whose backend answered, and where the answer seems to come from."""
    answer, source = sock.recvfrom(100)
    _pod, port, question = struct.unpack("=3I", answer)
    assert port == FIRST + question
    return question, source[:2]


def shown(way: str, number: int) -> tuple[str, int]:
    host = vip_of(number, six=way == "6")
    return (f"::ffff:{host}" if way == "mapped" else host), PORT


@contextmanager
def no_places(root: Path) -> Iterator[None]:
    """Have every free place in the tables of sockets taken, so that socket storage is used."""
    nobody = (1 << 64) - 1
    with ExitStack() as stack:
        for path in root.glob("sockets-v*/places*"):
            table = stack.enter_context(closing(bpf.Map.open(path)))
            give(table, 0, nobody)
            stack.callback(give, table, nobody, 0)
        yield


def give(table: bpf.Map, owner: int, other: int) -> None:
    """Give the places of one owner to another: a place starts with its owner's cookie."""
    held = [key for key, place in table.items() if int.from_bytes(place[:8], "little") == owner]
    table.update_many([(key, struct.pack(f"=Q{table.info.value_size - 8}x", other)) for key in held])


@pytest.mark.parametrize("way", WAYS)
def test_one_frontend_too_many_costs_only_the_oldest_its_place(ground: Ground, way: str, wide: list[int]) -> None:
    """Replies that are read late tell who is remembered: all but the oldest of those beyond the first few."""
    ground.program(ground.entry(number, UDP, six=way == "6", pods=(0,)) for number in wide)
    with no_places(ground.settings.bpf_root), socket_in(ground.client, way) as sock:
        for number in range(ROOM):
            send_to(sock, way, number)
        assert dict(reply(sock) for _ in range(ROOM)) == {number: shown(way, number) for number in range(ROOM)}
        for number in range(ROOM + 1):
            send_to(sock, way, number)  # the last of them takes the place of the fifth
        found = dict(reply(sock) for _ in range(ROOM + 1))
        backend = ground.pods[0].ipv6 if way == "6" else ground.pods[0].ipv4
        stranger = (f"::ffff:{backend}" if way == "mapped" else backend), FIRST + 4
        assert found.pop(4) == stranger, "what is forgotten shows the pod"
        assert found == {number: shown(way, number) for number in range(ROOM + 1) if number != 4}
        # It is remembered again when it is sent to.
        send_to(sock, way, 4)
        assert reply(sock) == (4, shown(way, 4))


def test_many_sockets(ground: Ground, figures: Callable[[str], None]) -> None:
    """Socket storage is never evicted: what one socket remembers costs no other its own."""
    each = (
        size(5000, 100_000) // CROWDS
    )  # a process has room for some ten thousand descriptors, a pod for so many ports
    places = {ground.client_pod(f"crowd{number}"): "44m6"[number % 4] for number in range(CROWDS)}
    for place in places:
        place.run(["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535"])
    both = [(number, six) for number in range(ground.frontends) for six in (False, True)]
    ground.program(ground.entry(number, UDP, six=six, pods=range(PODS)) for number, six in both)
    with ground.crowd(each, places) as crowd:
        for _ in range(2):
            crowd.again()
        # Every frontend is written anew: each socket finds its backend in the new run, or another.
        started = time.monotonic()
        ground.program(ground.entry(number, UDP, six=six, pods=(0, 1)) for number, six in both)
        flush = time.monotonic() - started
        crowd.again()
    crowd.seen.check()
    assert crowd.seen.total == 3 * CROWDS * each
    figures(f"{CROWDS * each:,} sockets; a flush beside them took {flush * 1e3:.0f} ms; {crowd.seen}")


@pytest.mark.parametrize("way", ["4", "6", "m"])
def test_threads_on_one_socket(ground: Ground, way: str, figures: Callable[[str], None]) -> None:
    ground.program(ground.entry(n, UDP, six=way == "6", pods=range(PODS)) for n in range(ground.frontends))
    with ground.threads(8, way) as clients:
        end = time.monotonic() + size(0.5, 30)
        while time.monotonic() < end:
            time.sleep(0.05)
    clients.seen.check()
    figures(str(clients.seen))


@pytest.fixture
def poor(world: World) -> Iterator[Pod]:
    """A pod whose sockets get no memory for options, which is where socket storage is counted."""
    before = OPTMEM.read_text()

    def limit(value: str) -> None:
        OPTMEM.write_text(value)

    try:
        world.client.call(lambda: limit("10"))
        yield world.client
    finally:
        world.client.call(lambda: limit(before))
        if OPTMEM.read_text() != before:  # an older kernel has one for all namespaces
            limit(before)


@pytest.mark.parametrize("way", WAYS)
def test_no_memory_for_a_socket(world: World, poor: Pod, way: str) -> None:
    """A datagram whose reply would come from a stranger goes where it was sent; a connection is redirected even so."""
    udp, tcp = world.entry(way, UDP, world.one, vip=FAR), world.entry(way, TCP, world.one, vip=FAR)
    world.program(udp, tcp)
    with no_places(world.settings.bpf_root):
        with socket_in(poor, way) as sock:
            assert exchange(sock, (FAR[way], DNS)) == ("far", (FAR[way], DNS))
        with socket_in(poor, way) as sock:
            sock.connect((FAR[way], DNS))
            assert ask(sock) == "far"
            assert sock.getpeername()[:2] == (FAR[way], DNS)
        assert world.datapath.hits()[udp.frontend] == Hits(failed=2)
        assert poor.ask_tcp(FAR[way], WEB).name == "one"
        assert world.datapath.hits()[tcp.frontend] == Hits(redirected=1, failed=1)
        assert world.other_client.ask_udp(FAR[way], DNS).name == "one", "others have memory"


@pytest.mark.parametrize("way", WAYS)
def test_a_place_needs_no_memory(world: World, poor: Pod, way: str) -> None:
    """A socket with a place in the table is redirected whatever its memory; a second frontend is one too many."""
    first, second = world.entry(way, UDP, world.one), world.entry(way, UDP, world.two, vip=FAR)
    world.program(first, second)
    with socket_in(poor, way) as sock:
        assert exchange(sock, (VIP[way], DNS)) == ("one", (VIP[way], DNS))
        assert exchange(sock, (FAR[way], DNS)) == ("far", (FAR[way], DNS))
        assert exchange(sock, (VIP[way], DNS)) == ("one", (VIP[way], DNS))
    hits = world.datapath.hits()
    assert (hits[first.frontend], hits[second.frontend]) == (Hits(redirected=2), Hits(failed=1))


def numbered(count: int, ground: Ground, way: str, first: int) -> FrontendEntry:
    """Frontend 0 with `count` backends: ports of the first pod from `first` on."""
    one = ground.entry(0, UDP, six=way == "6", pods=(0,))
    ip = one.backends[0].ip
    return replace_backends(one, tuple(L4Addr(ip, first + i, UDP) for i in range(count)))


def replace_backends(entry: FrontendEntry, backends: tuple[L4Addr, ...]) -> FrontendEntry:
    return FrontendEntry(entry.frontend, entry.type, entry.policy, entry.service, backends)


@pytest.mark.parametrize("way", ["4", "6"])
def test_a_backend_that_moves_in_a_long_run(ground: Ground, way: str) -> None:
    """A socket finds its backend again among the first 64 (LRP_SCAN_MAX); further on it may be given another."""
    base, count = 40000, 200
    ground.more_servers(0, base, count)
    ground.program([numbered(1, ground, way, base + 100)])
    host = (vip_of(0, six=way == "6"), PORT)

    def port_that_answers(sock: socket.socket) -> int:
        sock.sendto(bytes(4), host)
        answer, source = sock.recvfrom(100)
        assert source[:2] == host
        return int(struct.unpack("=3I", answer)[1])

    with socket_in(ground.client, way) as sock:
        assert port_that_answers(sock) == base + 100
        ground.program([numbered(count, ground, way, base + 100 - 63)])  # now it is the 64th of 200: the last looked at
        assert {port_that_answers(sock) for _ in range(5)} == {base + 100}
        ground.program([numbered(100, ground, way, base + 1)])  # the 100th of 100: in the same run, but not seen
        moved = port_that_answers(sock)
        assert base + 1 <= moved <= base + 100
        assert {port_that_answers(sock) for _ in range(5)} == {moved}, "having moved it stays"
