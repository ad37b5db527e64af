import ctypes
import os
from pathlib import Path, PurePosixPath

import pytest

from lab import Node
from lrp_operator.kernel.cgroup import (
    CgroupError,
    CgroupRoot,
    NoCgroup2Error,
    below,
    cgroup_id,
    cgroup_of,
    find_process,
    find_root,
    processes,
    root_at,
    version_1_mounts,
)

pytestmark = pytest.mark.privileged

CLONE_NEWNS, CLONE_NEWCGROUP = 0x20000, 0x2000000
MS_PRIVATE_EVERYWHERE = 0x4000 | 1 << 18


def fake_proc(directory: Path, mounts: str, cgroups: dict[str, str] | None = None) -> Path:
    for pid, text in {"self": "0::/\n", **(cgroups or {})}.items():
        (directory / pid).mkdir()
        (directory / pid / "cgroup").write_text(text)
    (directory / "self/mountinfo").write_text(mounts)
    return directory


def mount(root: str, point: str, kind: str = "cgroup2") -> str:
    return f"31 23 0:28 {root} {point} rw,relatime shared:9 - {kind} none rw\n"


def test_this_machines_root_is_found() -> None:
    root = find_root()
    assert (root.path / "cgroup.procs").exists()
    assert root.cgroup == PurePosixPath("/")


def test_version_2_beside_version_1_is_found(tmp_path: Path) -> None:
    mounts = mount("/", "/sys/fs/cgroup", "tmpfs") + mount("/", "/sys/fs/cgroup/cpu", "cgroup")
    proc = fake_proc(tmp_path, mounts + mount("/", "/sys/fs/cgroup/unified"))
    assert find_root(proc).path == Path("/sys/fs/cgroup/unified")
    assert version_1_mounts(proc) == [Path("/sys/fs/cgroup/cpu")]


def test_without_version_2_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoCgroup2Error, match="--cgroup-root"):
        find_root(fake_proc(tmp_path, mount("/", "/sys/fs/cgroup/cpu", "cgroup")))


def test_the_mount_that_covers_most_is_taken(tmp_path: Path) -> None:
    mounts = mount("/kubepods", "/a") + mount("/", "/sys/fs/cgroup") + mount("/../..", r"/run/the\040host")
    assert find_root(fake_proc(tmp_path, mounts)) == CgroupRoot(Path("/run/the host"), PurePosixPath("/../.."))


def test_a_process_without_version_2_or_without_life(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, "", {"7": "9:name=systemd:/a:b\n1:cpu:/\n", "8": "2:cpu:/x\n0::/a:b (deleted)\n"})
    with pytest.raises(NoCgroup2Error, match="version 1 only"):
        cgroup_of(7, proc)
    assert cgroup_of(8, proc) == PurePosixPath("/a:b")
    with pytest.raises(CgroupError, match="no process 9"):
        cgroup_of(9, proc)


def test_a_pods_process_is_covered_by_the_nodes_cgroup_and_no_other(node: Node) -> None:
    pod, sibling = node.pod("a"), node.pod("b")
    process = pod.popen(["sleep", "60"])
    outside = os.getpid()
    assert find_process(root_at(node.cgroup), process.pid) == pod.cgroup
    assert find_process(find_root(), process.pid) == pod.cgroup
    assert find_process(root_at(sibling.cgroup), process.pid) is None
    assert find_process(root_at(node.cgroup), outside) is None
    assert find_process(find_root(), outside) is not None


def test_a_cgroups_id_is_the_one_that_the_kernel_uses(node: Node) -> None:
    handle = ctypes.create_string_buffer(128)
    handle[0:4] = (120).to_bytes(4, "little")  # type: ignore[assignment]  # struct file_handle: size, type, content
    mount_id = ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.name_to_handle_at(-100, os.fsencode(node.cgroup), handle, ctypes.byref(mount_id), 0) == 0
    assert cgroup_id(node.cgroup) == int.from_bytes(handle.raw[8:16], "little")


def test_cgroups_with_processes_are_listed_from_the_top(node: Node) -> None:
    pods = [node.pod(name) for name in ("a", "b", "c")]
    assert list(below(node.cgroup)) == []
    started = {place: place.popen(["sleep", "60"]).pid for place in (node, pods[0], pods[2])}
    assert list(below(node.cgroup)) == [node.cgroup, pods[0].cgroup, pods[2].cgroup]
    assert list(below(node.cgroup, limit=2)) == [node.cgroup, pods[0].cgroup]
    assert processes(node.cgroup) == set(started.values())
    assert processes(node.cgroup / "gone") == set()


def test_a_path_that_is_no_cgroup_is_told(tmp_path: Path) -> None:
    with pytest.raises(NoCgroup2Error, match="not a cgroup v2 directory"):
        root_at(tmp_path)
    with pytest.raises(NoCgroup2Error, match="not a directory"):
        root_at(tmp_path / "absent")


def test_a_mount_from_a_nested_namespace_covers_only_its_subtree(node: Node, tmp_path: Path) -> None:
    """The trap: inside, this mount's topmost directory looks like the root of everything."""
    pod, outside = node.pod("a"), os.getpid()
    inside = pod.popen(["sleep", "60"])
    libc = ctypes.CDLL(None, use_errno=True)

    def nested() -> tuple[list[Path | None], list[Path | None], str]:
        # This runs in the node's cgroup, which becomes the namespace's root.
        assert libc.unshare(CLONE_NEWNS | CLONE_NEWCGROUP) == 0
        assert libc.mount(None, b"/", None, MS_PRIVATE_EVERYWHERE, None) == 0
        assert libc.mount(b"none", os.fsencode(tmp_path), b"cgroup2", 0, None) == 0
        both = (inside.pid, outside)
        theirs = root_at(tmp_path)
        hosts = find_root()
        found = [find_process(theirs, pid) for pid in both], [find_process(hosts, pid) for pid in both]
        return *found, str(hosts.cgroup)

    theirs, hosts, seen_as = node.call(nested)
    assert theirs == [tmp_path / "a", None]
    assert hosts == [pod.cgroup, find_process(find_root(), outside)]
    assert seen_as == "/.."
