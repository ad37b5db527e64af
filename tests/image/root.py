"""An image as a container runtime runs it, without one: its root file system, that nobody can write to, and its user.

The image's own settings are in force (user, environment, PATH). /proc, /sys and /dev are the machine's, for the agent
is run with the node's.
"""

import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.image.archive import Archive

# In a mount namespace of its own: with the process goes all that is mounted here.
_ENTER = """
root=$1 user=$2; shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
for tree in proc sys dev; do mount --rbind "/$tree" "$root/$tree"; done
mount -t tmpfs tmpfs "$root/run"
while [ "$1" != -- ]; do
  mkdir -p "$root/$2"
  mount --bind "$1" "$root/$2"
  shift 2
done
shift
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user" "$root" "$@"
"""


@dataclass(frozen=True)
class Root:
    """An image and where it is unpacked."""

    archive: Archive
    path: Path

    def command(self, *arguments: str, mounts: Mapping[Path, str] | None = None) -> list[str]:
        """Return the command that runs a program of the image. mounts: folders, and where below /run they are seen."""
        config = self.archive.config["config"]
        pairs = [word for source, target in (mounts or {}).items() for word in (str(source), target)]
        environment = ["env", "-i", *config["Env"]]
        enter = ["unshare", "--mount", "sh", "-euc", _ENTER, "sh", str(self.path), config.get("User") or "0:0"]
        return [*enter, *pairs, "--", *environment, *arguments]

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a program of the image to its end."""
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=60, check=False)


def unpacked(archive: Archive, target: Path) -> Root:
    """Unpack an image's layers, one on the other."""
    target.mkdir(mode=0o755)
    for layer in archive.layers():
        with tarfile.open(fileobj=layer) as tar:
            tar.extraction_filter = lambda entry, _path: entry  # all as it is; Debian 12's Python knows no filters
            tar.extractall(target)  # noqa: S202 - it was built here
    return Root(archive, target)
