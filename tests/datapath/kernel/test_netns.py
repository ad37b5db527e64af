import os
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import Node
from lrp_operator.kernel import netns
from lrp_operator.kernel.netns import (
    NetnsCookieUnsupportedError,
    NetnsError,
    NetnsGoneError,
    NetnsRef,
    identity,
    in_each_netns,
    in_netns,
    list_netns,
    netns_cookie,
    own_netns,
    own_netns_cookie,
)

pytestmark = pytest.mark.privileged


def test_a_cookie_is_the_namespaces_own(node: Node) -> None:
    pod = node.pod("a")
    cookies = {own_netns_cookie(), netns_cookie(node.netns), netns_cookie(pod.netns_path)}
    assert len(cookies) == 3
    assert pod.call(own_netns_cookie) == netns_cookie(pod.netns) == netns_cookie(identity(pod.netns_path))


def test_a_visit_returns_what_the_function_does_and_the_caller_stays(node: Node) -> None:
    before = own_netns()
    assert in_netns(node.netns, own_netns) == identity(node.netns) != before
    with pytest.raises(ZeroDivisionError):
        in_netns(node.netns, lambda: 1 // 0)
    assert own_netns() == before


def test_visits_at_the_same_time_do_not_mix(node: Node) -> None:
    places = [node.netns, *(node.pod(f"p{i}").netns for i in range(3))]
    expected = [netns_cookie(place) for place in places]
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda i: netns_cookie(places[i % 4]), range(200)))
        assert {future.result() for future in [pool.submit(own_netns) for _ in range(50)]} == {own_netns()}
    assert seen == expected * 50


def test_visits_leave_no_descriptor_and_no_thread(node: Node) -> None:
    netns_cookie(node.netns_path)
    descriptors, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(50):
        netns_cookie(node.netns_path)
        with pytest.raises(ValueError, match="no"):
            in_netns(node.netns_path, lambda: int("no"))
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == (descriptors, threads)


def test_a_socket_made_during_a_visit_stays_inside(node: Node) -> None:
    sock = in_netns(node.netns, lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    with sock:
        assert int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 71, 8), "little") == node.cookie


def test_each_namespace_is_listed_once_by_name_or_process(node: Node) -> None:
    pod = node.pod("a")
    pod.popen(["sleep", "60"])
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; sleep 60"], stdout=subprocess.PIPE) as nameless:
        assert nameless.stdout
        nameless.stdout.readline()
        found = list_netns().namespaces
        assert [ref == identity(pod.netns) for ref in found].count(True) == 1
        assert {identity(node.netns), own_netns(), identity(f"/proc/{nameless.pid}/ns/net")} <= set(found)
        nameless.kill()


def test_a_name_that_lost_its_mount_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "left-behind").touch()
    (tmp_path / "alive").symlink_to("/proc/self/ns/net")
    paths = [ref.path for ref in list_netns(named=[tmp_path, tmp_path / "absent"]).namespaces]
    assert str(tmp_path / "alive") in paths
    assert str(tmp_path / "left-behind") not in paths


def test_what_may_not_be_looked_at_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    real, forbidden = os.stat, f"/proc/{os.getppid()}/ns/net"

    def stat(path: str | Path) -> os.stat_result:
        if str(path) == forbidden:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(netns.os, "stat", stat)
    listing = list_netns()
    assert listing.namespaces
    assert any("Permission denied" in sentence for sentence in listing.unreadable)


def test_a_path_that_leads_elsewhere_now_is_noticed(node: Node) -> None:
    here = own_netns()
    stale = NetnsRef(here.device, here.inode + 1, here.path)
    with pytest.raises(NetnsGoneError, match="no longer leads"), stale.open():
        pass
    gone = NetnsRef(here.device, 1, "/proc/999999999/ns/net")
    with pytest.raises(NetnsGoneError, match="there is no network namespace"):
        netns_cookie(gone)
    assert in_each_netns([gone, identity(node.netns_path)], lambda ref: ref.inode) == [
        (identity(node.netns), identity(node.netns).inode)
    ]


def test_a_kernel_without_cookies_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns, "SO_NETNS_COOKIE", 9999)
    with pytest.raises(NetnsCookieUnsupportedError, match="SO_NETNS_COOKIE"):
        own_netns_cookie()


def test_without_rights_the_sentence_says_what_it_takes(node: Node) -> None:
    def try_to_enter() -> str:
        os.setuid(65534)
        with pytest.raises(NetnsError) as caught:
            netns_cookie(node.netns)
        return str(caught.value)

    assert "CAP_SYS_ADMIN" in node.call(try_to_enter)
