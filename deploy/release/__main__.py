"""`python -m deploy.release`: build all that a release publishes into dist/. With `publish`: push its images.

IMAGE_PREFIX is the registry and what comes before the images' names, as in registry.example.com/team.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.image.build import created_at
from deploy.image.tools import ImageError, tell
from deploy.release import artefacts
from deploy.release.artefacts import ReleaseError
from deploy.release.checks import obstacles
from deploy.release.publish import publish
from lrp_operator import __version__
from tests.cluster.binaries import NoProgramError

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"


def main() -> None:
    """Build or push a release, or say why not."""
    parser = argparse.ArgumentParser(prog="python -m deploy.release", description="Build or push a release.")
    parser.add_argument("what", nargs="?", choices=["build", "checksums", "publish"], default="build")
    what = parser.parse_args().what
    try:
        {"build": build, "checksums": checksums, "publish": push}[what]()
    except (ReleaseError, ImageError, NoProgramError) as error:
        sys.exit(f"{parser.prog}: {error}")


def build() -> None:
    """Build everything into an empty dist/."""
    if found := obstacles(ROOT):
        raise ReleaseError("this is no release:\n" + "\n".join(f"  {line}" for line in found))
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    created = created_at()
    tell(f"lrp-operator {__version__}: wheel and source")
    artefacts.python(ROOT, DIST)
    tell("chart")
    artefacts.chart(ROOT, DIST, created)
    tell("images, from nothing")
    artefacts.images(DIST)
    artefacts.checksums(DIST)
    subprocess.run(["cat", DIST / "SHA256SUMS"], check=True)


def checksums() -> None:
    """Write the checksums of what is in dist/: after the archives of other architectures have been put there."""
    artefacts.checksums(DIST)


def push() -> None:
    """Push the images that dist/ has archives of."""
    prefix = os.environ.get("IMAGE_PREFIX")
    if not prefix:
        raise ReleaseError("IMAGE_PREFIX says where to push to, such as registry.example.com/team; it is not set")
    publish(DIST, prefix)


if __name__ == "__main__":
    main()
