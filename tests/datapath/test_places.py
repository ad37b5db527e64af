"""Bad places: each is told in one sentence, and trying again costs nothing and works once it is mended."""

import ctypes
import os
from dataclasses import replace
from pathlib import Path

import pytest

from lab import Node
from lrp_operator.datapath.engine import Datapath
from lrp_operator.datapath.model import DatapathError, DatapathSettings, SocketLevel
from lrp_operator.datapath.place import why_not_covered
from lrp_operator.datapath.plan import plan
from lrp_operator.kernel import bpf, features
from lrp_operator.kernel.cgroup import find_root
from lrp_operator.kernel.features import KernelFeatures
from tests.datapath.world import UDP, World

pytestmark = pytest.mark.privileged

NOBODY = 65534


@pytest.fixture
def settings(node: Node) -> DatapathSettings:
    return DatapathSettings(node.bpf / "lrp", node.cgroup)


def why_not(settings: DatapathSettings) -> str:
    """The sentence that opening fails with."""
    datapath = Datapath(settings)
    with pytest.raises(DatapathError) as caught:
        datapath.open()
    status = datapath.status()
    assert (status.in_force, status.message) == (False, "the datapath is not open")
    with pytest.raises(DatapathError, match="the datapath is not open"):
        datapath.flush(complete=True)
    return str(caught.value)


def test_pins_elsewhere_than_on_a_bpffs(settings: DatapathSettings, tmp_path: Path) -> None:
    said = why_not(replace(settings, bpf_root=tmp_path / "lrp"))
    assert said == f"{tmp_path}/lrp is not on a bpffs: mount one (mount -t bpf bpf /sys/fs/bpf) or give --bpf-root"


def test_pins_where_no_folder_can_be(settings: DatapathSettings) -> None:
    said = why_not(replace(settings, bpf_root=Path("/proc/nowhere")))
    assert said.startswith("the folder /proc/nowhere for pins can't be made (")
    assert "is a bpffs mounted there?" in said


@pytest.mark.parametrize("where", ["a folder", "a file", "nowhere"])
def test_no_cgroup_v2(settings: DatapathSettings, tmp_path: Path, where: str) -> None:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a file").touch()
    said = why_not(replace(settings, cgroup_root=tmp_path / where))
    assert said == f"{tmp_path / where} is no cgroup v2: give --cgroup-root where the node's is mounted"


def test_no_rights(settings: DatapathSettings, node: Node) -> None:
    def as_nobody() -> str:
        settings.bpf_root.mkdir()
        for path in (settings.bpf_root, settings.bpf_root.parent):
            os.chmod(path, 0o777)  # noqa: PTH101, S103 (what is missing is the right to load programs, nothing else)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return why_not(settings)

    assert node.call(as_nobody) == (
        "no right to load eBPF programs: run as root, or with CAP_SYS_ADMIN and CAP_NET_ADMIN"
    )


def lacking(**missing: object) -> KernelFeatures:
    return replace(features.probe(), **missing)


def test_a_kernel_without_a_feature(settings: DatapathSettings) -> None:
    host_only = replace(settings, socket_level=SocketLevel.HOST_ONLY)
    for bad in ((lacking(netns_cookie_helper=False), 7), (features.probe(), None)):
        with pytest.raises(DatapathError, match="needs network namespace cookies, which this kernel has not"):
            plan(host_only, *bad)
    hooks = features.probe().hooks - {bpf.AttachType.GETPEERNAME4}
    with pytest.raises(DatapathError, match=r"no cgroup hooks getpeername4 \(Linux 5.8 has them\): upgrade it"):
        plan(settings, lacking(hooks=hooks), 7)
    plan(replace(settings, ipv4=False), lacking(hooks=hooks), 7)
    with pytest.raises(DatapathError, match="no BPF ring buffer"):
        plan(settings, lacking(ring_buffer=False), 7)


@pytest.mark.parametrize("missing", ["netns_cookie_helper", "set_retval"])
def test_an_older_kernel_redirects_with_less(world: World, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    have = lacking(**{missing: False})
    monkeypatch.setattr(features, "probe", lambda: have)
    with world.instead(cluster_ip=True) as datapath:
        world.program(world.entry("4", UDP, world.one, affinity_seconds=9), world.entry("6", UDP), datapath=datapath)
        assert world.client.ask_udp("10.96.0.10", 53).name == "one"
        with pytest.raises(PermissionError if missing == "set_retval" else ConnectionRefusedError):
            world.client.ask_udp("fd00:96::10", 53)
        lost = [feature.consequence for feature in datapath.status().features if not feature.available]
        assert len(lost) == 1


def test_cilium_on_the_node_is_told_and_left_alone(settings: DatapathSettings) -> None:
    hook = bpf.AttachType.SENDMSG4
    let_pass = bytes.fromhex("b7000000010000009500000000000000")
    with (
        bpf.Fd(os.open(settings.cgroup_root, os.O_RDONLY)) as cgroup,
        bpf.load_program(hook.program_type, let_pass, hook, "cil_sock4_sendm") as program,
        bpf.link_to_cgroup(program, cgroup.number, hook),
    ):
        assert "Cilium redirects sockets on this node (its program cil_sock4_sendm is on sendmsg4)" in why_not(settings)
        assert len(bpf.attached_programs(cgroup.number, hook, effective=True)) == 1
    datapath = Datapath(settings)
    datapath.open()
    assert datapath.status().in_force
    datapath.close()


def test_a_map_that_is_not_ours_is_refused_again_and_again_without_leaks(settings: DatapathSettings) -> None:
    datapath = Datapath(settings)
    datapath.open()
    datapath.close()
    (tables,) = settings.bpf_root.glob("tables-*")
    (tables / "frontends4").unlink()
    foreign = bpf.Map.create(bpf.MapType.HASH, 8, 8, 4)
    bpf.pin(foreign.fd, tables / "frontends4")
    foreign.close()
    why_not(settings)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        said = why_not(settings)
    assert "map frontends4 has type, size and flags (1, 4, 0)" in said
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    (tables / "frontends4").unlink()
    datapath.open()
    datapath.flush(complete=True)
    assert datapath.status().in_force
    datapath.close()


def test_a_cgroup_that_dies(node: Node, settings: DatapathSettings) -> None:
    doomed = node.cgroup / "doomed"
    doomed.mkdir()
    datapath = Datapath(replace(settings, cgroup_root=doomed))
    datapath.open()
    assert datapath.status().in_force
    doomed.rmdir()
    status = datapath.status()
    assert not status.in_force
    assert status.message
    with pytest.raises(DatapathError):
        datapath.reconcile()
    doomed.mkdir()
    assert len(datapath.reconcile().repaired) == 9
    assert datapath.status().in_force
    datapath.close()


def test_a_cgroup_mount_that_covers_only_a_part_of_the_node(node: Node, tmp_path: Path) -> None:
    """As in a container that mounts cgroup2 by itself: its topmost directory is the container's own cgroup."""

    def from_a_cgroup_namespace() -> str:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(0x02000000 | 0x00020000) == 0  # CLONE_NEWCGROUP | CLONE_NEWNS
        assert libc.mount(b"none", b"/", None, 1 << 18 | 1 << 14, None) == 0  # MS_PRIVATE | MS_REC
        assert libc.mount(b"none", bytes(tmp_path), b"cgroup2", 0, None) == 0
        return why_not_covered(tmp_path)

    assert "covers only a part of the node" in node.call(from_a_cgroup_namespace)
    assert why_not_covered(find_root().path) == ""
