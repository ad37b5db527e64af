import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import CallFailedError, Node, Reply, cleanup
from lab.naming import NETNS, STATE, is_owned
from lrp_operator.kernel.cgroup import cgroup_of, find_root
from lrp_operator.kernel.netns import identity, own_netns

pytestmark = pytest.mark.privileged

SCRIPT = """
import sys, time
from lab import Node
with Node() as node:
    pod = node.pod("a")
    pod.serve_tcp(80, "a")
    pod.popen(["sleep", "300"])
    print(node.name, flush=True)
    time.sleep(60)
"""


def traces(name: str) -> list[str]:
    """All that carries a node's name on this machine."""
    found = [path for place in (STATE, NETNS, find_root().path) for path in place.glob(f"{name}*")]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [*map(str, found), *(line for line in mounts if f"/{name}" in line)]


@pytest.fixture
def run() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process with a node of its own; (process, its node's name)."""
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process, process.stdout.readline().strip()
        process.kill()
    cleanup.sweep()


def test_servers_tell_who_they_are_and_whom_they_see(node: Node) -> None:
    web, client, bridged = node.pod("web"), node.pod("client"), node.pod("bridged", bridge=True)
    for pod in (web, bridged):
        pod.serve_tcp(80, pod.short_name)
        pod.serve_udp(53, pod.short_name)
        for asker in (client, node.pod(f"{pod.short_name}-2", bridge=True)):
            for host, own in ((pod.ipv4, asker.ipv4), (pod.ipv6, asker.ipv6)):
                for reply in (
                    asker.ask_tcp(host, 80, payload=b"payload"),
                    asker.ask_udp(host, 53, payload=b"payload"),
                    asker.ask_udp(host, 53, payload=b"payload", connected=True),
                ):
                    assert (reply.name, reply.peer[0], reply.echo) == (pod.short_name, host, b"payload")
                    assert reply.seen[0] == own


def test_the_node_itself_serves_and_asks(node: Node) -> None:
    pod = node.pod("a")
    port = node.serve_tcp(0, "the node").port
    for address in node.addresses:
        assert pod.ask_tcp(address, port).name == "the node"
    pod.serve_udp(53, "a")
    assert node.ask_udp(pod.ipv4, 53).name == "a"


def test_there_is_no_way_out(node: Node) -> None:
    pod = node.pod("a")
    links = node.run(["ip", "-o", "link"]).stdout.splitlines()
    assert [line.split(": ")[1].split("@")[0] for line in links] == ["lo", "veth-a"]
    assert "default" not in node.run(["ip", "route"]).stdout.replace("unreachable default", "")
    for place in (node, pod):
        with pytest.raises(OSError, match="No route to host"):
            place.ask_tcp("192.0.2.1", 80)


def test_pods_may_have_several_addresses_of_their_own_choice(node: Node) -> None:
    remote = node.pod("remote", ipv4=["192.0.2.10", "192.0.2.11"], ipv6="2001:db8::10")
    remote.serve_tcp(80, "remote")
    client = node.pod("client", ipv4="10.1.0.2", labels={"app": "client"})
    assert client.addresses == ("10.1.0.2",)
    assert {client.ask_tcp(host, 80).name for host in ("192.0.2.10", "192.0.2.11")} == {"remote"}
    assert node.ask_tcp("2001:db8::10", 80).name == "remote"
    manifest = client.manifest(ports=[("dns", 53, "UDP")])
    assert manifest["metadata"]["labels"] == {"app": "client"}
    assert manifest["status"]["podIPs"] == [{"ip": "10.1.0.2"}]


def test_what_runs_inside_is_in_the_namespace_and_the_cgroup(node: Node) -> None:
    pod = node.pod("a")
    root = find_root().path
    for place in (node, pod):
        netns, cgroup = place.call(lambda: (own_netns(), cgroup_of()))
        assert netns == identity(place.netns)
        assert root / str(cgroup).lstrip("/") == place.cgroup
        inode = place.run(["stat", "-L", "-c", "%i", "/proc/self/ns/net"]).stdout
        assert int(inode) == netns.inode
        assert place.run(["tail", "-n1", "/proc/self/cgroup"]).stdout.strip() == f"0::{cgroup}"
    assert own_netns() not in {identity(node.netns), identity(pod.netns)}


def test_a_call_returns_raises_dies_and_takes_too_long(node: Node) -> None:
    pod = node.pod("a")
    here = {"seen": "from outside"}
    assert pod.call(lambda: here | {"pid": os.getpid() != os.getppid()}) == {"seen": "from outside", "pid": True}
    assert len(pod.call(lambda: bytes(1_000_000))) == 1_000_000
    with pytest.raises(ConnectionRefusedError) as refused:
        pod.ask_tcp(pod.ipv4, 9)
    assert "in ask_tcp" in refused.value.__notes__[0]
    with pytest.raises(CallFailedError, match="exit code 3"):
        pod.call(lambda: os._exit(3))
    with pytest.raises(CallFailedError, match="Unportable"):
        pod.call(lambda: (_ for _ in ()).throw(Unportable(1, 2)))
    with pytest.raises(TimeoutError, match=r"within 0.1 s"):
        pod.call(lambda: time.sleep(60), timeout=0.1)


class Unportable(Exception):  # noqa: N818 (a test's own)
    def __init__(self, first: int, second: int) -> None:
        super().__init__(first + second)


def test_calls_may_run_at_the_same_time_and_beside_an_event_loop(node: Node) -> None:
    pod = node.pod("a")
    pod.serve_udp(53, "a")

    async def many() -> list[Reply]:
        return await asyncio.gather(*(asyncio.to_thread(pod.ask_udp, pod.ipv4, 53) for _ in range(20)))

    assert {reply.name for reply in asyncio.run(many())} == {"a"}


def test_a_program_that_fails_says_so(node: Node) -> None:
    with pytest.raises(CallFailedError, match="does not exist"):
        node.run(["ip", "link", "show", "nothing"])
    assert node.run(["false"], check=False).returncode == 1


def test_a_port_that_is_taken_is_an_error(node: Node) -> None:
    first = node.serve_tcp(80, "first")
    with pytest.raises(OSError, match="Address already in use"):
        node.serve_tcp(80, "second")
    first.stop()
    node.serve_tcp(80, "second")
    assert node.ask_tcp("127.0.0.1", 80).name == "second"


def test_a_bpffs_of_its_own(node: Node) -> None:
    assert node.run(["stat", "-f", "-c", "%T", str(node.bpf)]).stdout.strip() == "bpf_fs"
    assert {path.name for path in node.bpf.iterdir()} <= {"maps.debug", "progs.debug"}  # the kernel's own


def test_a_pod_goes_and_comes_back_with_its_name_and_address(node: Node) -> None:
    pod = node.pod("a", ipv4="10.3.0.1")
    process = pod.popen(["sleep", "60"])
    cookie = pod.cookie
    pod.remove()
    pod.remove()
    assert process.returncode == -signal.SIGKILL
    assert not pod.netns_path.exists()
    assert not pod.cgroup.exists()
    again = node.pod("a", ipv4="10.3.0.1")
    assert again.cookie != cookie
    with pytest.raises(ValueError, match="already"):
        node.pod("a")


def test_a_node_that_is_left_leaves_nothing() -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with contextlib.suppress(ZeroDivisionError), Node() as node:
        pod = node.pod("a")
        pod.serve_tcp(80, "a")
        process = pod.popen(["sleep", "60"], stdout=subprocess.PIPE)
        stray = int(pod.run(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"]).stdout)
        assert len(traces(node.name)) >= 6
        _ = 1 // 0
    assert process.returncode == -signal.SIGKILL
    assert traces(node.name) == []
    assert not Path(f"/proc/{stray}/ns/net").exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_a_pod_that_can_not_be_made_leaves_nothing(node: Node) -> None:
    node.pod("a")
    before = traces(node.name)
    with pytest.raises(ValueError, match="not-an-address"):
        node.pod("b", ipv4="not-an-address")
    assert traces(node.name) == before
    node.pod("b")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_clean_up(run: tuple[subprocess.Popen[str], str], number: int) -> None:
    process, name = run
    assert traces(name)
    process.send_signal(number)
    process.wait(10)
    assert traces(name) == []


def test_what_a_killed_run_left_is_swept_and_what_lives_is_not(
    node: Node, run: tuple[subprocess.Popen[str], str]
) -> None:
    process, name = run
    assert is_owned(name)
    assert name not in cleanup.sweep()
    process.kill()
    process.wait(10)
    assert traces(name)
    assert not is_owned(name)
    assert (
        name in subprocess.run([sys.executable, "-m", "lab.cleanup"], check=True, capture_output=True, text=True).stderr
    )
    assert traces(name) == []
    assert node.run(["true"]).returncode == 0


def test_a_process_number_that_came_again_is_not_the_owner(node: Node) -> None:
    assert is_owned(node.name)
    (STATE / node.name / "owner").write_text("1")
    assert not is_owned(node.name)


def test_it_is_quick() -> None:
    """A node with three pods took 30 ms where this was measured."""
    started = time.perf_counter()
    with Node() as node:
        for name in ("a", "b", "c"):
            node.pod(name)
        built = time.perf_counter() - started
    gone = time.perf_counter() - started - built
    print(f"built in {built * 1e3:.0f} ms, gone in {gone * 1e3:.0f} ms")
    assert built < 0.5


def test_a_server_answers_many_clients_at_once(node: Node) -> None:
    pod = node.pod("a")
    pod.serve_tcp(80, "a")

    def many() -> int:
        sockets = [socket.create_connection((pod.ipv4, 80), 2) for _ in range(100)]
        return sum(sock.recv(100).startswith(b'["a"') for sock in sockets)

    assert pod.call(many) == 100
