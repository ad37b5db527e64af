"""docker, podman, buildah: what differs between them, and which one is used.

All three build the same Dockerfiles with the same options. podman and buildah can set the time of every file, so what
they build twice from the same inputs is the same; docker sets the image's only.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class ImageError(Exception):
    """An image can't be built; the text says why."""


@dataclass(frozen=True)
class Tool:
    """One of the three, and what it spells in its own way."""

    name: str
    exists: tuple[str, ...]
    save: tuple[str, ...]
    build: tuple[str, ...]

    def is_working(self) -> bool:
        """Tell whether it is there and can build: a docker command without its engine can't."""
        try:
            return subprocess.run([self.name, "info"], capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            return False

    def has(self, image: str) -> bool:
        """Tell whether an image is in its storage."""
        return subprocess.run([self.name, *self.exists, image], capture_output=True, check=False).returncode == 0

    def pull(self, image: str) -> str:
        """Fetch an image. Returns why that failed, or nothing."""
        done = subprocess.run([self.name, "pull", image], capture_output=True, text=True, check=False)
        return done.stderr.strip() if done.returncode else ""

    def make(self, image: str, context: Path, options: Sequence[str], created: int) -> None:
        """Build an image from a folder. Raises ImageError."""
        own = [word.format(created=created) for word in self.build]
        command = [self.name, "build", *own, "--pull=false", "--tag", image, *options, str(context)]
        if subprocess.run(command, check=False).returncode:
            raise ImageError(f"{self.name} could not build {image}: what it says above is why")

    def write(self, image: str, archive: Path) -> None:
        """Write an image, with its name, as an archive that docker and containerd take. Raises ImageError."""
        part = archive.with_suffix(".part")
        part.unlink(missing_ok=True)
        command = [self.name, *(word.format(image=image, archive=part) for word in self.save)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ImageError(f"{self.name} could not write {image} to {archive}: {done.stderr.strip()}")
        part.replace(archive)


# Without an OCI runtime, which would be needed only for this; and with layers kept, as docker keeps them.
_BUILDAH = ("--timestamp={created}", "--identity-label=false", "--layers", "--isolation=chroot")
TOOLS = (
    Tool(
        "docker",
        exists=("image", "inspect"),
        save=("image", "save", "--output", "{archive}", "{image}"),
        build=("--build-arg=SOURCE_DATE_EPOCH={created}",),
    ),
    Tool(
        "podman",
        exists=("image", "exists"),
        save=("image", "save", "--quiet", "--format", "docker-archive", "--output", "{archive}", "{image}"),
        build=_BUILDAH,
    ),
    Tool(
        "buildah",
        exists=("inspect", "--type", "image"),
        save=("push", "--quiet", "{image}", "docker-archive:{archive}:{image}"),
        build=_BUILDAH,
    ),
)


def choose(name: str | None) -> Tool:
    """Return the tool that was asked for, or the first that works; where none does, buildah. Raises ImageError."""
    known = {tool.name: tool for tool in TOOLS}
    if not name:
        for tool in TOOLS:
            if tool.is_working():
                return tool
        install("buildah")
        return known["buildah"]
    if name not in known:
        raise ImageError(f"IMAGE_TOOL={name} is none of {', '.join(known)}")
    if not known[name].is_working():
        raise ImageError(f"IMAGE_TOOL={name} is not there or does not work: `{name} info` says why")
    return known[name]


def install(package: str) -> None:
    """Install a program from the distribution, if it is not there. Raises ImageError."""
    if shutil.which(package):
        return
    tell(f"installing {package}")
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ImageError(f"{package} is needed and not there, and neither is apt-get to install it") from error
    if done.returncode:
        raise ImageError(f"{package} is needed and can't be installed:\n{done.stderr.strip()}")


def tell(line: str) -> None:
    """Say what goes on, to people."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201
