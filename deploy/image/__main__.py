"""`python -m deploy.image`: build the images, and write them and their bills of materials to build/images.

IMAGE_TOOL chooses docker, podman or buildah, IMAGE_PREFIX what the images are called (localhost/lrp-agent:VERSION),
IMAGE_SOURCE what their labels say of where the source is, SOURCE_DATE_EPOCH their files' time (the last commit's).
"""

import argparse
import sys

from deploy.image.build import build
from deploy.image.tools import ImageError


def main() -> None:
    """Build both images, or say why not."""
    parser = argparse.ArgumentParser(prog="python -m deploy.image", description="Build the images into build/images.")
    parser.add_argument("--no-cache", action="store_true", help="take nothing from builds before, as a release does")
    options = parser.parse_args()
    try:
        build(no_cache=options.no_cache)
    except ImageError as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
