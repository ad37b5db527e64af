"""What is in the images, what is not, and that their programs run as in a pod."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.image.settings import apt_conf, apt_sources, pip_conf
from lrp_operator import __version__
from tests.image.conftest import archive
from tests.image.root import Root

pytestmark = pytest.mark.privileged

ROOT = Path(__file__).parents[2]
MOST = {"agent": 130_000_000, "controller": 60_000_000}
OUR_CERTIFICATES = Path("/usr/local/share/ca-certificates")


@pytest.mark.parametrize("role", MOST)
def test_it_is_small(role: str) -> None:
    size = archive(role).compressed()
    print(f"lrp-{role}: {size / 1e6:.1f} MB compressed")
    assert size <= MOST[role]


def test_it_says_what_it_is(root: Root) -> None:
    config = root.archive.config
    labels = {key.removeprefix("org.opencontainers.image."): text for key, text in config["config"]["Labels"].items()}
    assert labels["title"] == root.archive.names[0].rpartition("/")[2].partition(":")[0]
    assert labels["version"] == __version__ == root.archive.names[0].rpartition(":")[2]
    assert labels["licenses"] == "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)"
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["revision"])
    assert labels["base.name"].startswith("docker.io/library/debian:bookworm-")
    assert labels["created"][:19] == config["created"][:19]
    assert config["os"] == "linux"


def test_the_agents_programs_run(agent: Root) -> None:
    assert agent.archive.config["config"]["Entrypoint"] == ["lrp-agent"]
    assert agent.run("lrp-agent", "--version").stdout == f"lrp-agent {__version__}\n"
    for program in ("lrpctl", "kubectl-lrp"):
        helped = agent.run(program, "--help")
        assert helped.returncode == 0, helped.stderr
        assert "service" in helped.stdout
    mounts = agent.run("sh", "-c", "grep -c ' /proc proc ' /proc/self/mounts; mount --version")
    assert re.match(r"[1-9]\nmount from util-linux", mounts.stdout), mounts


def test_the_controller_runs_as_nobody_who_may_write(controller: Root) -> None:
    assert controller.archive.config["config"]["Entrypoint"] == ["lrp-controller"]
    assert controller.run("id", "-u").stdout == "65532\n"
    assert "Read-only file system" in controller.run("touch", "/tmp/a").stderr  # noqa: S108
    assert controller.run("lrp-controller", "--version").stdout == f"lrp-controller {__version__}\n"
    imported = controller.run("python", "-c", "import lrp_operator.controller.run, kopf; print('all of it')")
    assert imported.stdout == "all of it\n", imported.stderr
    assert controller.run("python", "-c", "import bcc").returncode


def test_the_controller_says_what_it_lacks(controller: Root) -> None:
    started = controller.run("lrp-controller")
    assert started.returncode
    assert "Traceback" not in started.stderr
    assert "kubeconfig" in started.stderr.lower(), started.stderr


@pytest.mark.parametrize("program", ["pip", "gcc", "cc", "ld", "clang", "apt-get", "perl", "curl", "git"])
def test_what_no_program_of_it_runs_is_not_there(root: Root, program: str) -> None:
    assert root.run("sh", "-c", f"command -v {program}").returncode
    assert root.run("python", "-c", f"import {program}").returncode


def test_no_file_lends_rights(root: Root) -> None:
    files = [path for path in root.path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    assert [path for path in files if path.stat().st_mode & 0o6000] == []


def test_modules_are_compiled(root: Root) -> None:
    """Nothing can be written there, so what is not compiled now is compiled at each start."""
    module = "lrp_operator.agent.run" if root.archive.names[0].find("agent") > 0 else "lrp_operator.controller.run"
    told = root.run("python", "-v", "-c", f"import {module}").stderr
    assert re.search(r"^# code object from '/.*\.pyc'$", told, re.MULTILINE)
    assert re.findall(r"^# code object from (/.*\.py)$", told, re.MULTILINE) == []


def test_nothing_of_the_machine_that_built_it_is_in_it(root: Root) -> None:
    needles = [needle for needle in _ways() if needle]
    found = [
        (entry.name, needle)
        for entry, content in root.archive.files()
        if content and entry.size < 1_000_000 and (text := content.read())
        for needle in needles
        if needle in text
    ]
    assert found == []
    settings = json.dumps(root.archive.config).encode()
    assert [needle for needle in needles if needle in settings] == []


def _ways() -> Iterator[bytes]:
    """How this machine reaches Debian and PyPI, as far as that is its own."""
    given = apt_sources("bookworm") + pip_conf()
    hosts = set(re.findall(r"https?://([^/\s]+)", given)) - {"deb.debian.org", "security.debian.org"}
    yield from (host.encode() for host in hosts)
    yield from (line.encode() for line in apt_conf().splitlines())
    for certificate in OUR_CERTIFICATES.glob("*.crt"):
        yield certificate.read_bytes().splitlines()[1]


def test_the_bill_of_materials_has_all_of_it(root: Root) -> None:
    bill = json.loads(root.archive.path.with_suffix(".cdx.json").read_text())
    listed = {component["purl"].partition("?")[0] for component in bill["components"]}
    locked = re.findall(r"^([a-z0-9-]+)==(\S+) \\$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert len(locked) > 30
    assert {f"pkg:pypi/{name}@{version}" for name, version in locked} <= listed
    assert f"pkg:pypi/lrp-operator@{__version__}" in listed
    there = set(root.run("dpkg-query", "-W", "-f", "${Package}\n").stdout.split())
    assert {component["name"] for component in bill["components"] if component["purl"].startswith("pkg:deb/")} == there
    assert ("python3-bpfcc" in there) == ("agent" in root.archive.names[0])
    assert "apt" not in there
