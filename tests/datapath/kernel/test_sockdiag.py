import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

import pytest

from lab import Node, Pod
from lrp_operator.kernel import sockdiag
from lrp_operator.kernel.netlink import Message, NetlinkSocket
from lrp_operator.kernel.netns import identity, in_netns
from lrp_operator.kernel.sockdiag import (
    DestroyUnsupportedError,
    SockDiagError,
    SocketInfo,
    end_sockets,
    end_sockets_everywhere,
)

pytestmark = pytest.mark.privileged

UDP, TCP = socket.IPPROTO_UDP, socket.IPPROTO_TCP
SO_COOKIE = 57
V4, V6 = "10.244.0.99", "fd00:10:244::99"  # addresses of a backend; UDP needs nobody there
MAPPED = f"::ffff:{V4}"


@pytest.fixture
def pod(node: Node) -> Pod:
    return node.pod("client")


@contextmanager
def udp(pod: Pod, *remotes: tuple[str, int]) -> Iterator[list[socket.socket]]:
    """UDP sockets in a pod, each connected to one remote."""

    def connect(host: str, port: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((host, port))
        return sock

    with ExitStack() as stack:
        yield [stack.enter_context(in_netns(pod.netns, lambda r=remote: connect(*r))) for remote in remotes]


def remote(host: str, port: int) -> tuple[bytes, int]:
    return ip_address(host).packed, port


def is_ended(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED


def end_in(pod: Pod, protocol: int, *remotes: tuple[bytes, int], **options: Callable[[SocketInfo], bool]) -> int:
    return in_netns(pod.netns, lambda: end_sockets(protocol, remotes, **options))


def test_udp_sockets_connected_to_a_backend_are_ended_and_no_others(pod: Pod) -> None:
    ours = ((V4, 53), (MAPPED, 53), (V6, 53), (V6, 54))
    others = ((V4, 54), ("10.244.0.98", 53), ("fd00:10:244::98", 53), (f"{MAPPED[:-1]}8", 53))
    with udp(pod, *ours, *others) as sockets:
        assert end_in(pod, UDP, remote(V4, 53), remote(V6, 53), remote(V6, 54)) == len(ours)
        assert [is_ended(sock) for sock in sockets] == [True] * len(ours) + [False] * len(others)


def test_an_unconnected_socket_is_left_alone(pod: Pod) -> None:
    with in_netns(pod.netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.sendto(b"", (V4, 53))
        assert end_in(pod, UDP, remote(V4, 53)) == 0
        assert not is_ended(sock)


def test_who_waits_for_an_answer_wakes_up(pod: Pod) -> None:
    with udp(pod, (V4, 53)) as (sock,):
        woken: list[OSError] = []

        def wait() -> None:
            try:
                sock.recv(1)
            except OSError as error:
                woken.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        assert end_in(pod, UDP, remote(V4, 53)) == 1
        thread.join(5)
        assert [error.errno for error in woken] == [errno.ECONNABORTED]


def test_tcp_connections_are_ended_and_listeners_stay(node: Node, pod: Pod) -> None:
    server = node.pod("server")
    server.serve_tcp(80, "server")
    server.serve_tcp(81, "other")
    ends = [(server.ipv4, 80), (server.ipv6, 80), (f"::ffff:{server.ipv4}", 80), (server.ipv4, 81)]
    with ExitStack() as stack:
        sockets = [stack.enter_context(in_netns(pod.netns, lambda e=e: socket.create_connection(e, 2))) for e in ends]
        assert end_in(pod, UDP, remote(server.ipv4, 80)) == 0
        assert end_in(pod, TCP, remote(server.ipv4, 80), remote(server.ipv6, 80)) == 3
        assert [is_ended(sock) for sock in sockets] == [True, True, True, False]
        assert end_in(pod, TCP, remote(server.ipv4, 80)) == 0  # not those again
    assert pod.ask_tcp(server.ipv4, 80).name == "server"


def test_a_connection_in_time_wait_is_left_alone(node: Node, pod: Pod) -> None:
    server = node.pod("server")
    server.serve_tcp(80, "server")
    pod.ask_tcp(server.ipv4, 80)
    deadline = time.monotonic() + 5
    while not pod.run(["ss", "-Htn", "state", "time-wait"]).stdout:
        assert time.monotonic() < deadline
    assert end_in(pod, TCP, remote(server.ipv4, 80)) == 0
    assert pod.run(["ss", "-Htn", "state", "time-wait"]).stdout


def test_confirm_is_told_whose_socket_it_is_and_may_spare_it(pod: Pod) -> None:
    with udp(pod, (V4, 53), (MAPPED, 53)) as (plain, mapped):
        seen: list[SocketInfo] = []

        def only_mapped(info: SocketInfo) -> bool:
            seen.append(info)
            return info.family == socket.AF_INET6

        assert end_in(pod, UDP, remote(V4, 53), confirm=only_mapped) == 1
        assert (is_ended(plain), is_ended(mapped)) == (False, True)
        info = next(info for info in seen if info.family == socket.AF_INET)
        assert info.cookie == int.from_bytes(plain.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")
        assert info.local == remote(*plain.getsockname())
        assert info.netns == identity(pod.netns)
        assert {info.remote for info in seen} == {remote(V4, 53)}


def test_everywhere_means_every_namespace_given(node: Node, pod: Pod) -> None:
    other, third = node.pod("other"), node.pod("third")
    with udp(pod, (V4, 53)) as (a,), udp(other, (V4, 53)) as (b,), udp(third, (V4, 53)) as (c,):
        places = [identity(pod.netns_path), identity(other.netns_path)]
        assert end_sockets_everywhere(UDP, [remote(V4, 53)], namespaces=places).ended == 2
        assert [is_ended(sock) for sock in (a, b, c)] == [True, True, False]
        # All of this machine's: others may work here, so only what is this test's own is asked for.
        mine = identity(third.netns)
        assert end_sockets_everywhere(UDP, [remote(V4, 53)], confirm=lambda info: info.netns == mine).ended == 1
        assert is_ended(c)


def test_many_remotes_are_filtered_here(pod: Pod) -> None:
    with udp(pod, (V4, 53), (V6, 53), (V4, 5000)) as sockets:
        remotes = [remote(host, port) for port in range(1, 2000) for host in (V4, V6)]
        assert end_in(pod, UDP, *remotes) == 2
        assert [is_ended(sock) for sock in sockets] == [True, True, False]


@pytest.mark.parametrize("number", [1, 2, 63, 64])
def test_the_kernels_filter_lets_each_remote_pass_and_nothing_else(
    pod: Pod, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every condition's jumps must land: the first's, those of one in the middle, and the last's."""
    dumped: list[int] = []
    real = NetlinkSocket.dump

    def dump(self: NetlinkSocket, kind: int, body: bytes) -> list[Message]:
        answers = real(self, kind, body)
        dumped.append(len(answers))
        return answers

    monkeypatch.setattr(NetlinkSocket, "dump", dump)
    remotes = [remote((V4, V6)[i % 2], 1000 + i) for i in range(number)]
    wanted = [((V4, V6)[i % 2], 1000 + i) for i in sorted({0, number // 2, number - 1})]
    with udp(pod, *wanted, (V4, 999)) as sockets:
        assert end_in(pod, UDP, *remotes) == len(wanted)
        assert sum(dumped) == len(wanted)
        assert [is_ended(sock) for sock in sockets] == [True] * len(wanted) + [False]


@pytest.mark.parametrize("host", [V4, V6])
def test_sockets_that_share_both_addresses_are_all_ended(pod: Pod, host: str) -> None:
    own = pod.ipv6 if ":" in host else pod.ipv4

    def twin() -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((own, 4000))
        sock.connect((host, 53))
        return sock

    with ExitStack() as stack:
        sockets = [stack.enter_context(in_netns(pod.netns, twin)) for _ in range(3)]
        assert end_in(pod, UDP, remote(host, 53)) == 3
        assert all(is_ended(sock) for sock in sockets)


def test_a_socket_that_closes_meanwhile_is_not_counted(pod: Pod) -> None:
    with udp(pod, (V4, 53), (V4, 53)) as (closing, staying):
        cookie = int.from_bytes(closing.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")

        def close(info: SocketInfo) -> bool:
            if info.cookie == cookie:
                closing.close()
            return True

        assert end_in(pod, UDP, remote(V4, 53), confirm=close) == 1
        assert is_ended(staying)


def test_thousands_of_sockets(pod: Pod) -> None:
    with udp(pod, *[(V4, 53)] * 500, *[(V4, 54)] * 100) as sockets:
        assert end_in(pod, UDP, remote(V4, 53)) == 500
        assert sum(map(is_ended, sockets)) == 500


def test_nothing_to_end_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockdiag, "NetlinkSocket", None)
    assert end_sockets(UDP, []) == end_sockets_everywhere(UDP, []).ended == 0


def test_a_kernel_that_cannot_end_sockets_is_a_typed_error(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NetlinkSocket, "requests", lambda _self, _kind, bodies: [errno.EOPNOTSUPP] * len(bodies))
    with udp(pod, (V4, 53)), pytest.raises(DestroyUnsupportedError, match="INET_DIAG_DESTROY"):
        end_in(pod, UDP, remote(V4, 53))


def test_without_rights_the_sentence_says_what_it_takes(pod: Pod) -> None:
    def unprivileged() -> str:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((V4, 53))
        os.setuid(65534)
        with pytest.raises(SockDiagError) as caught:
            end_sockets(UDP, [remote(V4, 53)])
        assert not select.select([sock], [], [], 0)[0]
        return str(caught.value)

    assert "CAP_NET_ADMIN" in pod.call(unprivileged)
