"""Debian's kernels, from the archive that this machine's own apt is set up with, kept unpacked in a cache.

A kernel is known by its series, such as 6.1, and of each series the newest in the archive is taken. Those of other
Debian releases than this machine's stand beside its own in the same archive: so apt is given a list of sources of its
own, in a directory of its own, made from what `apt-get indextargets` says of this machine. Nothing of the machine's own
apt is changed. Only suites with small indices are asked: security updates and backports have every series.

The cloud flavour is taken: a tenth of the drivers, and all that the product uses. Below the cache:

    apt/            apt's state: the list of sources, the indices
    RELEASE/        one kernel: vmlinuz, and its modules in lib/modules/RELEASE
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

Tell = Callable[[str], None]

NEWEST = "newest"
# The oldest that the README names, then each that Debian supports for long, and whatever came last.
SERIES = ("5.10", "6.1", "6.12", "6.18", NEWEST)
_SUITES = {
    "security": ("bullseye-security", "bookworm-security", "trixie-security"),
    "main": ("bookworm-backports", "trixie-backports"),
}
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")  # of the package debian-archive-keyring
_FLAVOUR = "cloud-amd64"
_INDICES_LAST = 24 * 3600.0
_TIMEOUT = 600.0


class NoKernelError(Exception):
    """A kernel, or what it takes, can't be fetched; the text says why."""


class NotInArchiveError(NoKernelError):
    """The archive has no kernel of that series (any more)."""


@dataclass(frozen=True, slots=True)
class UnpackedKernel:
    """A kernel in the cache. release: as `uname -r` will tell it."""

    release: str
    directory: Path

    @property
    def image(self) -> Path:
        """The kernel itself."""
        return self.directory / "vmlinuz"

    def with_dependencies(self, modules: Iterable[str]) -> list[Path]:
        """Files of modules and of what they depend on, in the order of loading; those built in have none."""
        found: dict[Path, None] = {}
        for module in modules:
            for line in run(
                ["modprobe", "-d", str(self.directory), "-S", self.release, "--show-depends", module]
            ).splitlines():
                kind, _, path = line.partition(" ")
                if kind == "insmod":
                    found[Path(path.split()[0])] = None
        return list(found)


def cache() -> Path:
    """Where kernels are kept, outside the tree."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lrp-operator" / "kernels"


def series_of(release: str) -> str:
    """6.12 of 6.12.118+deb13-cloud-amd64."""
    return ".".join(release.split(".")[:2])


def find(series: str, archive: "Archive | None", tell: Tell) -> UnpackedKernel:
    """The newest kernel of a series, fetched and unpacked if it must be; where there is none, one that is kept.

    Raises NoKernelError.
    """
    release = _newest(series, archive.releases() if archive else ())
    if archive is None or release is None:
        release = _newest(series, (path.parent.name for path in cache().glob("*/vmlinuz")))
        if release is None:
            raise NotInArchiveError(f"there is no Linux {series} in the archive, nor in the cache")
        tell(f"{series}: not in the archive; {release} is taken from the cache")
    kernel = UnpackedKernel(release, cache() / release)
    if archive and not kernel.image.exists():
        archive.unpack(release, kernel.directory)
        _forget_older(release)
    return kernel


def busybox(tell: Tell) -> Path:
    """A shell and its tools that need no libraries, for a guest's first steps. Raises NoKernelError.

    Taken out of its package: to install it would remove a machine's own busybox.
    """
    target = cache() / "busybox"
    if not target.exists():
        tell("downloading busybox-static")
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache(), prefix=".unpacking-") as name:
            room = Path(name)
            run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=", "busybox-static"], room)
            run(["dpkg-deb", "-x", *map(str, room.glob("*.deb")), str(room)])
            next(path for path in room.rglob("bin/busybox")).replace(target)
    return target


def _forget_older(release: str) -> None:
    for other in cache().glob("*/vmlinuz"):
        name = other.parent.name
        if series_of(name) == series_of(release) and _order(name) < _order(release):
            shutil.rmtree(other.parent)


def _newest(series: str, releases: Iterable[str]) -> str | None:
    fitting = [name for name in releases if series in {NEWEST, series_of(name)}]
    return max(fitting, key=_order, default=None)


def _order(release: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", release.removesuffix(f"-{_FLAVOUR}"))))


class Archive:
    """The machine's archive, seen through a directory of apt's own."""

    def __init__(self, directory: Path, tell: Tell) -> None:
        self._directory = directory
        self._tell = tell
        self._sources = directory / "sources.list"

    @classmethod
    def of_this_machine(cls, tell: Tell) -> "Archive":
        """Make the directory, and bring its indices up to date if they are older than a day. Raises NoKernelError."""
        archive = cls(cache() / "apt", tell)
        archive._refresh()
        return archive

    def _refresh(self) -> None:
        for part in ("lists/partial", "archives/partial"):
            (self._directory / part).mkdir(parents=True, exist_ok=True)
        wanted = "".join(f"{line}\n" for line in _source_lines())
        fresh = self._sources.exists() and time.time() - self._sources.stat().st_mtime < _INDICES_LAST
        if fresh and self._sources.read_text() == wanted:
            return
        self._sources.write_text(wanted)
        self._tell("asking the archive which kernels it has")
        try:
            self._apt("apt-get", "update", "--error-on=any")
        except NoKernelError as error:
            os.utime(self._sources, (0, 0))  # ask again next time; a suite that has gone must not hide the others
            if not self.releases():
                raise
            self._tell(str(error))

    def _apt(self, program: str, *args: str, cwd: Path | None = None) -> str:
        settings = {
            "Dir::Etc::SourceList": self._sources,
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": self._directory / "lists",
            "Dir::Cache": self._directory,
            "Dir::Cache::Archives": self._directory / "archives",
            "APT::Sandbox::User": "",  # another user may not look into a home directory
        }
        options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        return run([program, *options, *args], cwd)

    def releases(self) -> list[str]:
        """Every kernel of the flavour that the indices name; packages that only depend on others are left out."""
        pattern = rf"^linux-image-[0-9]+\.[0-9]+\.[0-9]+.*-{_FLAVOUR}$"
        lines = self._apt("apt-cache", "search", "--names-only", pattern).splitlines()
        return [line.split()[0].removeprefix("linux-image-") for line in lines]

    def unpack(self, release: str, target: Path) -> None:
        """Download a kernel and lay it out in a directory, whole or not at all. Raises NoKernelError."""
        packages = self._packages(release)
        self._tell(f"{release}: downloading {', '.join(packages)}")
        with tempfile.TemporaryDirectory(dir=cache(), prefix=".unpacking-") as name:
            room = Path(name)
            self._apt("apt-get", "download", "-q", *packages, cwd=room)
            for package in sorted(room.glob("*.deb")):
                run(["dpkg-deb", "-x", str(package), str(room / "root")])
            _lay_out(room / "root", room / "kernel", release)
            (room / "kernel").replace(target)

    def _packages(self, release: str) -> list[str]:
        """The packages of a kernel: one, or since 7.x a few that the one of old depends on."""
        pattern = rf"^linux-(image|binary|modules|base)-{re.escape(release)}$"
        return sorted(
            line.split()[0] for line in self._apt("apt-cache", "search", "--names-only", pattern).splitlines()
        )


def _lay_out(unpacked: Path, target: Path, release: str) -> None:
    """Pick the kernel and its modules, wherever its packages have them. Raises NoKernelError."""
    image = next((path for path in sorted(unpacked.rglob("vmlinuz*")) if path.is_file()), None)
    trees = sorted(path for path in unpacked.rglob(f"lib/modules/{release}") if path.is_dir())
    if image is None or not trees:
        raise NoKernelError(f"the packages of {release} have no kernel or no modules where they are looked for")
    modules = target / "lib" / "modules" / release
    for tree in trees:
        shutil.copytree(tree, modules, symlinks=True, dirs_exist_ok=True)
    run(["depmod", "-b", str(target), release])
    image.replace(target / "vmlinuz")


def _source_lines() -> list[str]:
    """Sources for the suites that kernels come from, at the places where apt has this machine's own."""
    architecture = run(["dpkg", "--print-architecture"]).strip()
    if architecture != "amd64":
        raise NoKernelError(
            f"guests share this machine's programs, and only amd64 kernels are known here: {architecture}"
        )
    form, codename = "$(REPO_URI) $(RELEASE)", _codename()
    targets = run(["apt-get", "indextargets", "--format", form, "Created-By: Packages", "Component: main"])
    place_of = {suite: uri for uri, suite in map(str.split, targets.splitlines())}
    places = {"main": place_of.get(codename), "security": place_of.get(f"{codename}-security")}
    if not any(places.values()):
        raise NoKernelError("apt is not set up with a Debian archive here")
    key = f" signed-by={_KEYRING}" if _KEYRING.exists() else ""
    return [
        f"deb [target=Packages arch={architecture}{key}] {uri} {suite} main"
        for kind, uri in places.items()
        if uri
        for suite in _SUITES[kind]
    ]


def _codename() -> str:
    found = re.search(r'^VERSION_CODENAME="?(\w+)', Path("/etc/os-release").read_text(), re.MULTILINE)
    return found[1] if found else ""


def run(command: list[str], cwd: Path | None = None) -> str:
    """Run to the end and return the output. Raises NoKernelError with the last words."""
    try:
        done = subprocess.run(
            command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_TIMEOUT
        )
    except FileNotFoundError as error:
        raise NoKernelError(f"there is no program {command[0]} here") from error
    except subprocess.TimeoutExpired as error:
        raise NoKernelError(f"{command[0]} did not end within {_TIMEOUT:.0f} s") from error
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()[-3:]
        raise NoKernelError(f"{command[0]}: {' '.join(words)}")
    return done.stdout
