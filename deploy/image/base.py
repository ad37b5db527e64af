"""The base image: the one that the Dockerfiles pin, or a stand-in of the same name where no registry can be reached.

The stand-in is made of Debian's packages as the real one is: the same set of packages, no documentation, no
translations. It is today's, though, and the real one is of the day that its tag says; the Dockerfiles bring that up to
date.
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from deploy.image.settings import apt_conf, apt_sources
from deploy.image.tools import ImageError, Tool, install, tell

RELEASE = "bookworm"
_LEFT_OUT = ["doc/*", "man/*", "locale/*", "info/*", "groff/*", "lintian/*", "linda/*"]


@dataclass(frozen=True)
class Base:
    """What a build stands on, and whether it is the real one."""

    image: str
    real: bool


def pinned(dockerfile: Path) -> str:
    """Return the base that a Dockerfile pins, by name, tag and digest."""
    found = re.search(r"^ARG BASE=(\S+:\S+@sha256:[0-9a-f]{64})$", dockerfile.read_text(), re.MULTILINE)
    if not found:
        raise ImageError(f"{dockerfile}: no line ARG BASE=NAME:TAG@sha256:DIGEST")
    return found[1]


def provide(tool: Tool, image: str) -> Base:
    """See to it that a base is in the tool's storage. Raises ImageError."""
    if tool.has(image) or not (why := tool.pull(image)):
        return Base(image, real=True)
    name = image.partition("@")[0]
    tell(f"{name} can't be pulled ({why.splitlines()[-1]}), so a stand-in of that name is made of Debian's packages")
    if not tool.has(name):
        archive = _archive(name.rpartition(":")[2])
        with tempfile.TemporaryDirectory() as room:
            shutil.copy(archive, Path(room) / "base.tar")
            (Path(room) / "Dockerfile").write_text('FROM scratch\nADD base.tar /\nCMD ["bash"]\n')
            tool.make(name, Path(room), [], int(archive.stat().st_mtime))
    return Base(name, real=False)


def _archive(tag: str) -> Path:
    """Return the stand-in's root file system, made once and kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lrp-operator" / "images"
    archive = cache / f"debian-{tag}-{os.uname().machine}.tar"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        install("mmdebstrap")
        with tempfile.TemporaryDirectory(dir=cache) as room:
            _debootstrap(Path(room), Path(room) / "base.tar")
            (Path(room) / "base.tar").replace(archive)
    return archive


def _debootstrap(room: Path, target: Path) -> None:
    """Make a minimal root file system, by this machine's way to Debian, with Debian's own sources in it."""
    conf, sources, own = room / "apt.conf", room / "ours.sources", room / "debian.sources"
    conf.write_text(apt_conf())
    own.write_text(_DEBIAN_SOURCES)
    given = apt_sources(RELEASE) or _DEBIAN_SOURCES
    sources.write_text(given)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=usr-is-merged", f"--aptopt={conf}"]
    command += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{what}" for what in _LEFT_OUT]
    command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    command += ['--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/apt/sources.list*/*']
    command += ['--customize-hook=rm -f "$1"/etc/apt/sources.list']
    command += [f'--customize-hook=cp "{own}" "$1"/etc/apt/sources.list.d/debian.sources']
    if subprocess.run([*command, RELEASE, str(target), str(sources)], check=False).returncode:
        raise ImageError("mmdebstrap could not make the base image: what it says above is why")


_DEBIAN_SOURCES = "\n".join(
    f"Types: deb\nURIs: http://deb.debian.org/{archive}\nSuites: {suites}\nComponents: main\n"
    "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    for archive, suites in [("debian", f"{RELEASE} {RELEASE}-updates"), ("debian-security", f"{RELEASE}-security")]
)
