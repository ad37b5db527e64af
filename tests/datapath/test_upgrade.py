"""An agent with other eBPF programs takes over: no socket notices, whatever the new ones remember and how."""

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrp_operator.datapath.engine import Datapath
from lrp_operator.kernel import bpf
from lrp_operator.loader.sources import bpf_directory
from lrp_operator.resolve.model import FrontendEntry
from tests.datapath.world import DNS, TCP, UDP, VIP, VIP2, WAYS, WEB, InNode, World, ask, exchange, socket_in

pytestmark = [pytest.mark.privileged, pytest.mark.usefixtures("vacant")]


def other_sources(folder: Path, **changes: int) -> Path:
    """A copy of our eBPF sources with other constants."""
    shutil.copytree(bpf_directory(), folder)
    config = folder / "config.h"
    text = config.read_text()
    for name, value in changes.items():
        text, number = re.subn(rf"#define {name} \d+", f"#define {name} {value}", text)
        assert number == 1
    config.write_text(text + "/* another build */\n")
    return folder


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    return {
        "programs": other_sources(tmp_path / "a", LRP_LOOKUP_TRIES=5),
        "sockets": other_sources(tmp_path / "b", LRP_SOCKETS_VERSION=2, LRP_FEW_PEERS=6),
        "sockets again": other_sources(tmp_path / "c", LRP_SOCKETS_VERSION=3, LRP_FEW_PEERS=2),
        "back": bpf_directory(),
    }


@pytest.fixture
def agents(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator["Agents"]:
    """A chain of agents, each killed and followed by the next, in place of the shared datapath."""
    world.program()
    chain = Agents(world, monkeypatch)
    world.datapath.close()
    yield chain
    chain.stop()
    monkeypatch.undo()
    world.forget()
    world.datapath.inner = Datapath(world.settings)
    world.datapath.open()
    world.datapath.flush(complete=True)


class Agents:
    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self._patch = monkeypatch
        self._running: InNode | None = None

    def start(self, sources: Path, *entries: FrontendEntry) -> InNode:
        """The agent before is gone without a word; the next one has these sources and wants these entries."""
        self.stop()
        self._patch.setenv("LRP_BPF_SOURCES", str(sources))
        self._running = InNode(self.world.node, self.world.settings)
        self._running.open()
        self.world.program(*entries, datapath=self._running)
        return self._running

    def stop(self) -> None:
        if self._running is not None:
            self._running.close()


class Clients:
    """Sockets of every kind to two frontends, held open."""

    def __init__(self, world: World, stack: contextlib.ExitStack, way: str) -> None:
        self.way = way
        self.connected = stack.enter_context(socket_in(world.client, way))
        self.unconnected = stack.enter_context(socket_in(world.client, way))
        self.stream = stack.enter_context(socket_in(world.client, way, socket.SOCK_STREAM))
        self.connected.connect((VIP[way], DNS))
        self.stream.connect((VIP[way], WEB))
        self.stream.recv(100)
        self.send()
        self.receive()

    def send(self) -> None:
        """Let the answers wait in the sockets: the next agent's programs show where they come from."""
        self.connected.send(b"?")
        for vip in (VIP, VIP2):
            self.unconnected.sendto(b"?", (vip[self.way], DNS))

    def receive(self) -> None:
        assert self.connected.recvfrom(65536)[1][:2] == (VIP[self.way], DNS)
        sources = {self.unconnected.recvfrom(65536)[1][:2] for _ in range(2)}
        assert sources == {(VIP[self.way], DNS), (VIP2[self.way], DNS)}
        assert self.connected.getpeername()[:2] == (VIP[self.way], DNS)
        assert self.stream.getpeername()[:2] == (VIP[self.way], WEB)


def wanted(world: World) -> list[FrontendEntry]:
    entries = []
    for way in ("4", "6"):
        entries += [world.entry(way, UDP, world.one), world.entry(way, UDP, world.two, vip=VIP2)]
        entries.append(world.entry(way, TCP, world.one))
    return entries


def recvmsg_programs(world: World) -> int:
    with bpf.Fd(os.open(world.node.cgroup, os.O_RDONLY)) as cgroup:
        return len(bpf.attached_programs(cgroup.fileno(), bpf.AttachType.RECVMSG4, effective=False))


@pytest.mark.parametrize("steps", [["programs"], ["sockets"], ["sockets", "sockets again"], ["sockets", "back"]])
def test_sockets_from_before_go_on(world: World, agents: Agents, sources: dict[str, Path], steps: list[str]) -> None:
    entries = wanted(world)
    agents.start(bpf_directory(), *entries)
    with contextlib.ExitStack() as stack:
        clients = [Clients(world, stack, way) for way in WAYS]
        for step in steps:
            for client in clients:
                client.send()
            agents.start(sources[step], *entries)
            for client in clients:
                client.receive()
        clients += [Clients(world, stack, way) for way in WAYS]
        for client in clients:
            client.send()
            client.receive()


def test_old_programs_stay_as_long_as_their_sockets(world: World, agents: Agents, sources: dict[str, Path]) -> None:
    entries = wanted(world)
    agents.start(bpf_directory(), *entries)
    with contextlib.ExitStack() as stack:
        Clients(world, stack, "4")
        agent = agents.start(sources["sockets"], *entries)
        agent.reconcile()
        assert recvmsg_programs(world) == 2
        assert {path.name for path in world.settings.bpf_root.glob("sockets-*")} == {"sockets-v1", "sockets-v2"}
    assert agent.reconcile().problems == ()
    assert recvmsg_programs(world) == 1
    assert {path.name for path in world.settings.bpf_root.glob("sockets-*")} == {"sockets-v2"}
    assert not list((world.settings.bpf_root / "links").glob("*_sockets-*"))


def test_a_backend_that_leaves_ends_sockets_from_before(world: World, agents: Agents, sources: dict[str, Path]) -> None:
    agents.start(bpf_directory(), world.entry("4", UDP, world.one))
    with socket_in(world.client, "4") as sock, socket_in(world.client, "4") as another:
        sock.connect((VIP["4"], DNS))
        agent = agents.start(sources["sockets"], world.entry("4", UDP, world.one))
        another.connect((VIP["4"], DNS))
        assert [ask(sock), ask(another)] == ["one", "one"]
        assert world.program(world.entry("4", UDP, world.two), datapath=agent).sockets_ended == 2
        for ended in (sock, another):
            with pytest.raises(ConnectionAbortedError):
                ended.recv(100)


def test_a_send_after_the_upgrade_counts(world: World, agents: Agents, sources: dict[str, Path]) -> None:
    """One backend, two frontends: the last one sent to has the replies, whichever version remembers it."""
    entries = [world.entry("4", UDP, world.one), world.entry("4", UDP, world.one, vip=VIP2)]
    agents.start(bpf_directory(), *entries)
    with socket_in(world.client, "4") as sock:
        assert exchange(sock, (VIP["4"], DNS)) == ("one", (VIP["4"], DNS))
        agents.start(sources["sockets"], *entries)
        assert exchange(sock, (VIP2["4"], DNS)) == ("one", (VIP2["4"], DNS))
