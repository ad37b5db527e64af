"""The loader child: what it builds, and how it tells what went wrong."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Node
from lrp_operator.datapath.engine import Datapath
from lrp_operator.datapath.model import DatapathError, DatapathSettings
from lrp_operator.datapath.plan import Build, plan
from lrp_operator.kernel import bpf, features
from lrp_operator.loader.kept import VARIABLE
from lrp_operator.loader.messages import Program, ProgramSet, Request
from lrp_operator.loader.run import LoaderError, build

pytestmark = pytest.mark.privileged


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is the child: nothing that was kept may take its place."""
    monkeypatch.delenv(VARIABLE, raising=False)


CONNECT4 = Program(bpf.ProgType.CGROUP_SOCK_ADDR, bpf.AttachType.CONNECT4)


@pytest.fixture
def wanted(node: Node) -> Iterator[Build]:
    settings = DatapathSettings(node.bpf / "lrp", node.cgroup)
    settings.bpf_root.mkdir()
    return plan(settings, features.probe(), None)


def request_for(wanted: Build, **changes: object) -> Request:
    """Ask for one program; changes: of the set that it is in, or `folders`."""
    folders = changes.pop("folders", wanted.folders)
    given: dict[str, object] = {
        "source": "socket.c",
        "folder": wanted.socket_programs.folder,
        "functions": {"lrp_connect4": CONNECT4},
        "defines": wanted.program_defines,
    }
    sizes = {**wanted.map_defines, "LRP_MAX_FLOWS": wanted.max_flows}
    return Request(folders, sizes, [ProgramSet(**{**given, **changes})])  # type: ignore[arg-type]


def test_it_pins_maps_and_programs_and_says_what(wanted: Build) -> None:
    manifest = build(request_for(wanted))
    with bpf.open_pin(Path(wanted.socket_programs.folder) / "lrp_connect4") as program:
        info = bpf.prog_info(program)
    assert manifest.programs == {"lrp_connect4": info.id}
    assert manifest.instructions["lrp_connect4"] > 100
    assert info.type == bpf.ProgType.CGROUP_SOCK_ADDR
    opened = bpf.Map.open(wanted.tables / "frontends4")
    assert (opened.info.type, opened.info.max_entries) == (bpf.MapType.HASH, 4096)
    before = opened.info.id
    opened.close()
    # Another build on the same tables keeps the maps.
    build(request_for(wanted, folder=f"{wanted.socket_programs.folder}-again"))
    again = bpf.Map.open(wanted.tables / "frontends4")
    assert again.info.id == before
    again.close()


def test_it_compiles_for_arm64_too(wanted: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """BCC takes the architecture of its header search from ARCH; the programs themselves are the same everywhere."""
    monkeypatch.setenv("ARCH", "arm64")
    assert build(request_for(wanted)).programs


def test_what_sockets_keep_has_the_layout_of_its_version(wanted: Build) -> None:
    """Sockets that stand keep these values over an upgrade: a change of layout needs a new LRP_SOCKETS_VERSION."""
    build(request_for(wanted))
    assert wanted.sockets.name == "sockets-v1"
    sizes = {}
    for name in ("few_peers4", "few_peers6", "many_peers4", "many_peers6", "places4", "places6"):
        opened = bpf.Map.open(wanted.sockets / name)
        sizes[name] = opened.info.value_size
        opened.close()
    assert sizes == {
        "few_peers4": 116,
        "few_peers6": 260,
        "many_peers4": 1800,
        "many_peers6": 4104,
        "places4": 40,
        "places6": 80,
    }


def test_a_compile_error_shows_the_compilers_words(wanted: Build, tmp_path: Path) -> None:
    source = tmp_path / "bad.c"
    source.write_text("int lrp_connect4(struct bpf_sock_addr *ctx)\n{\n\treturn no_such_thing;\n}\n")
    with pytest.raises(LoaderError, match=r"eBPF compile failed") as caught:
        build(request_for(wanted, source=str(source)))
    assert "use of undeclared identifier 'no_such_thing'" in str(caught.value)
    assert caught.value.failure.step == "compile"
    assert not Path(wanted.socket_programs.folder).exists()


def test_a_verifier_error_shows_the_program_and_the_end_of_the_log(wanted: Build, tmp_path: Path) -> None:
    source = tmp_path / "bad.c"
    source.write_text(
        "int lrp_fine(struct bpf_sock_addr *ctx)\n{\n\treturn 1;\n}\n"
        "int lrp_bad(struct bpf_sock_addr *ctx)\n{\n\treturn *(volatile int *)(long)ctx->user_port;\n}\n"
    )
    functions = dict.fromkeys(("lrp_fine", "lrp_bad"), CONNECT4)
    with pytest.raises(LoaderError, match=r"eBPF load of lrp_bad failed") as caught:
        build(request_for(wanted, source=str(source), functions=functions))
    assert "invalid mem access" in str(caught.value)
    assert len(caught.value.log_tail.splitlines()) <= 15
    assert not Path(wanted.socket_programs.folder).exists(), "whole or not at all"
    # What was half done is no obstacle.
    assert build(request_for(wanted)).programs.keys() == {"lrp_connect4"}


def test_a_function_that_is_not_there(wanted: Build) -> None:
    with pytest.raises(LoaderError, match=r"eBPF load of lrp_missing failed"):
        build(request_for(wanted, functions={"lrp_missing": CONNECT4}))


def test_a_place_that_is_no_bpffs(wanted: Build, tmp_path: Path) -> None:
    elsewhere = tmp_path / "x"
    with pytest.raises(LoaderError, match=r"eBPF (maps|pin) failed"):
        build(request_for(wanted, folders=dict.fromkeys(wanted.folders, str(elsewhere)), folder=str(elsewhere / "p")))


def test_pypis_bcc_is_told_from_the_real_one(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc/__init__.py").write_text("# block chain\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    datapath = Datapath(DatapathSettings(node.bpf / "lrp", node.cgroup))
    with pytest.raises(DatapathError, match=r"is another package named bcc: remove it and install python3-bpfcc"):
        datapath.open()
    assert not datapath.status().in_force


def test_bcc_is_not_there(wanted: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bcc.py").write_text("raise ImportError('No module named bcc')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(LoaderError, match=r"BCC is not installed .*: install the package python3-bpfcc"):
        build(request_for(wanted))


def test_a_child_that_dies_is_said_with_its_last_words(
    wanted: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bcc.py").write_text("import os\nos.write(2, b'last words')\nos._exit(7)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(LoaderError, match=r"ended with code 7 and no answer\nlast words"):
        build(request_for(wanted))
