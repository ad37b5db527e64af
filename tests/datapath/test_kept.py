"""What BCC has made once is kept in files, and as good as compiled; what is no good is compiled anew, openly."""

import errno
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab import Node
from lrp_operator.datapath.model import DatapathSettings, TcLevel
from lrp_operator.datapath.plan import Build, TcBuild, plan
from lrp_operator.kernel import bpf, features, mapshape
from lrp_operator.loader.kept import FILES, VARIABLE, KeptProgram, KeptSet, Store
from lrp_operator.loader.messages import Manifest, Request
from lrp_operator.loader.run import build
from tests.datapath.world import DNS, UDP, VIP, World, exchange, socket_in

pytestmark = pytest.mark.privileged


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place to keep things in."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wanted(node: Node) -> Iterator[Build]:
    """Both levels."""
    settings = DatapathSettings(node.bpf / "lrp", node.cgroup, tc_level=TcLevel.PODS, max_flows=4096)
    settings.bpf_root.mkdir()
    return plan(settings, features.probe(), None)


def request_for(wanted: Build) -> Request:
    sizes = {**wanted.map_defines, "LRP_MAX_FLOWS": wanted.max_flows}
    return Request(wanted.folders, sizes, [wanted.socket_programs, wanted.tc_programs])


def after_a_boot(wanted: Build) -> Manifest:
    """Build it when everything that was pinned has gone."""
    for folder in wanted.root.iterdir():
        shutil.rmtree(folder)
    return build(request_for(wanted))


def was_compiled(manifest: Manifest) -> bool:
    return bool(manifest.bcc_version)


def in_kernel(wanted: Build) -> dict[str, object]:
    """All that is pinned: shapes of maps, tags of programs (hashes of their instructions, whatever their maps)."""
    found: dict[str, object] = {}
    for path in sorted(path for path in wanted.root.rglob("*") if path.is_file()):
        with bpf.open_pin(path) as fd:
            is_program = path.name.startswith("lrp_")
            info = bpf.prog_info(fd) if is_program else None
            found[str(path)] = (info.type, info.tag, info.name) if info else mapshape.shape_of(fd)
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


@pytest.mark.usefixtures("cache")
def test_after_a_boot_nothing_is_compiled_and_all_is_as_it_was(wanted: Build) -> None:
    first = build(request_for(wanted))
    compiled = in_kernel(wanted)
    assert was_compiled(first)
    assert len(compiled) == 12 + 6 + 6 + 9 + 3, "the tables', the sockets' and the flows' maps; both levels' programs"
    again = after_a_boot(wanted)
    assert not was_compiled(again)
    assert in_kernel(wanted) == compiled
    assert again.instructions == first.instructions


@pytest.mark.usefixtures("cache")
def test_what_is_pinned_stays_in_use(wanted: Build) -> None:
    """Tables that stand are the ones that the programs use."""
    build(request_for(wanted))
    shutil.rmtree(wanted.socket_programs.folder)
    with bpf.open_pin(wanted.tables / "frontends4") as table:
        number = bpf.map_info(table).id
    manifest = build(Request(wanted.folders, {**request_for(wanted).map_defines}, [wanted.socket_programs]))
    assert not was_compiled(manifest)
    with bpf.open_pin(Path(wanted.socket_programs.folder) / "lrp_connect4") as program:
        assert number in bpf.maps_of(program)


@pytest.mark.usefixtures("cache", "vacant")
def test_programs_that_were_kept_redirect(world: World) -> None:
    with world.instead():
        pass
    with world.instead() as datapath, socket_in(world.client, "4") as sock:
        world.program(world.entry("4", UDP, world.one), datapath=datapath)
        assert exchange(sock, (VIP["4"], DNS)) == ("one", (VIP["4"], DNS))


@pytest.mark.usefixtures("cache")
def test_want_of_memory_is_not_held_against_what_was_kept(wanted: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    build(request_for(wanted))

    def no_memory(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    before = open_descriptors()
    for step in ("make", "load_program"):
        with monkeypatch.context() as patch:
            patch.setattr(mapshape if step == "make" else bpf, step, no_memory)
            assert was_compiled(after_a_boot(wanted))
        assert not was_compiled(after_a_boot(wanted))
    assert open_descriptors() == before


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.usefixtures("cache")
def test_other_sources_constants_or_kernels_are_compiled(
    wanted: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(request_for(wanted))
    other = replace(wanted, program_defines={**wanted.program_defines, "LRP_CLUSTER_IP": 1})
    assert was_compiled(after_a_boot(other))
    assert not was_compiled(after_a_boot(other))
    monkeypatch.setattr("platform.release", lambda: "6.66")
    assert was_compiled(after_a_boot(wanted))
    monkeypatch.undo()
    monkeypatch.setattr("lrp_operator.loader.kept._makers", lambda: "another compiler")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    assert was_compiled(after_a_boot(wanted))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "elsewhere"))
    assert was_compiled(after_a_boot(wanted))


def test_a_file_that_a_crash_has_cut_off_is_not_used(wanted: Build, cache: Path) -> None:
    build(request_for(wanted))
    for path in (cache / "builds").glob("socket-*"):
        path.write_bytes(path.read_bytes()[:1000])
    assert was_compiled(after_a_boot(wanted))
    assert not was_compiled(after_a_boot(wanted))


@pytest.mark.usefixtures("cache")
def test_what_this_kernel_refuses_is_forgotten(wanted: Build, caplog: pytest.LogCaptureFixture) -> None:
    build(request_for(wanted))
    store, programs = Store.given(), wanted.tc_programs
    assert store is not None
    only_exits = bytes((0x95, 0, 0, 0, 0, 0, 0, 0))  # with nothing in r0, which no verifier allows
    store.keep_programs(programs, KeptSet({name: KeptProgram(only_exits, {}) for name in programs.functions}, {}))
    assert was_compiled(after_a_boot(wanted))
    assert "can't be used: the kernel refuses lrp_from_pod: [Errno 13] bpf PROG_LOAD" in warnings(caplog)
    assert not was_compiled(after_a_boot(wanted))


def test_a_directory_that_others_can_write_in_is_not_trusted(
    wanted: Build, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(request_for(wanted))
    (cache / "builds").chmod(0o777)
    assert was_compiled(after_a_boot(wanted))
    assert "nobody else's to write in" in warnings(caplog)
    assert "nothing was kept" in warnings(caplog)


def test_where_nothing_can_be_written_all_works_and_it_is_told(
    wanted: Build, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file, where a directory should be")
    assert was_compiled(build(request_for(wanted)))
    assert "nothing was kept" in warnings(caplog)


def test_the_oldest_files_go(cache: Path, wanted: Build) -> None:
    (cache / "builds").mkdir(mode=0o700, parents=True)
    for number in range(FILES):
        (cache / "builds" / f"old-{number}").touch()
    build(request_for(wanted))
    names = [path.name for path in (cache / "builds").iterdir()]
    assert len(names) == FILES
    assert sum(not name.startswith("old") for name in names) == 5


IN_A_CONTAINER = """
import subprocess, sys
from pathlib import Path
from lrp_operator.loader.kept import Store
directory, aside = map(Path, sys.argv[1:])
subprocess.run(["mount", "--bind", directory, aside], check=True)
subprocess.run(["mount", "-t", "tmpfs", "root", directory.parent], check=True)
directory.mkdir()
subprocess.run(["mount", "--bind", aside, directory], check=True)
subprocess.run(["umount", aside], check=True)
subprocess.run(["mount", "-o", "remount,ro", directory.parent], check=True)
print(*Store(directory).clear(), sep="\\n")
"""


def test_a_withdrawal_removes_the_directory_that_is_mounted_from_the_node(
    wanted: Build, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    build(request_for(wanted))
    # A node is a first process and its mounts; a container on it has a root and mounts of its own.
    node = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "sh", "-c", '"$@"; exit $?', "node"]
    command = [
        *node,
        "unshare",
        "--mount",
        sys.executable,
        "-c",
        IN_A_CONTAINER,
        str(cache),
        str(tmp_path_factory.mktemp("aside")),
    ]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines() == [
        f"directory {cache / 'builds'}",
        f"directory {cache}",
    ]
    assert not cache.exists()
    store = Store.given()
    assert store is not None
    assert store.clear() == [], "once more is no error"
    cache.mkdir()  # as who starts a container makes it
    assert store.clear() == [f"directory {cache}"]


def test_what_others_have_put_there_stays(wanted: Build, cache: Path) -> None:
    build(request_for(wanted))
    (cache / "theirs").touch()
    assert Store(cache).clear() == [f"directory {cache / 'builds'}"]
    assert [path.name for path in cache.iterdir()] == ["theirs"]


@pytest.mark.usefixtures("cache")
def test_tables_that_stand_are_not_kept_again_but_were(wanted: Build) -> None:
    """A change of mode on a running node, and a boot after it: what sockets remember is of the time before."""
    before = replace(wanted, tc=TcBuild.NONE, map_defines={**wanted.map_defines, "LRP_MAX_FRONTENDS": 16})
    build(Request(before.folders, {**before.map_defines, "LRP_MAX_FLOWS": 1}, [before.socket_programs]))
    assert was_compiled(build(request_for(wanted)))
    assert not was_compiled(after_a_boot(wanted))
