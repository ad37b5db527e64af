"""One build: the context, the labels, both images, and what is written of them."""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from deploy.image import sbom
from deploy.image.archive import Archive
from deploy.image.base import RELEASE, Base, pinned, provide
from deploy.image.settings import secrets
from deploy.image.tools import ImageError, Tool, choose, tell
from lrp_operator import __version__

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROLES = ("agent", "controller")


def build(*, no_cache: bool) -> list[Path]:
    """Build both images. Returns what was written. Raises ImageError."""
    target = ROOT / "build" / "images"
    target.mkdir(parents=True, exist_ok=True)
    tool = choose(os.environ.get("IMAGE_TOOL"))
    base = provide(tool, pinned(HERE / "agent.Dockerfile"))
    written = []
    ways: AbstractContextManager[dict[str, Path]] = nullcontext({}) if base.real else secrets(RELEASE)
    with tempfile.TemporaryDirectory() as room, ways as known:
        context = Path(room)
        _prepare(context)
        options = [f"--label={key}={value}" for key, value in _labels(base).items()]
        options += [f"--build-arg=BASE={base.image}"]
        options += [f"--secret=id={name},src={file}" for name, file in known.items()]
        if no_cache:
            options += ["--no-cache"]
        for role in ROLES:
            written += _build_one(tool, role, context, options, target)
    return written


def _build_one(tool: Tool, role: str, context: Path, options: list[str], target: Path) -> list[Path]:
    image = f"{os.environ.get('IMAGE_PREFIX') or 'localhost'}/lrp-{role}:{__version__}"
    tell(f"{image}: building with {tool.name}")
    tool.make(image, context, [f"--file={HERE / f'{role}.Dockerfile'}", *options], created_at())
    archive, bill = target / f"lrp-{role}.tar", target / f"lrp-{role}.cdx.json"
    tool.write(image, archive)
    sbom.write(Archive(archive), bill)
    tell(f"{image}: {archive.relative_to(ROOT)}, {bill.relative_to(ROOT)}")
    return [archive, bill]


def _prepare(context: Path) -> None:
    """Put what the Dockerfiles copy into a folder: the wheel, the lock, and what is left out."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(context)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"the wheel could not be built:\n{done.stdout}{done.stderr}")
    shutil.copy(ROOT / "requirements.lock", context)
    shutil.copy(HERE / "trim.sh", context)


def _labels(base: Base) -> dict[str, str]:
    name, _, digest = base.image.partition("@")
    labels = {
        "version": __version__,
        "revision": _git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"),
        "created": datetime.fromtimestamp(created_at(), UTC).isoformat(),
        "base.name": name,
        "base.digest": digest,
        "source": os.environ.get("IMAGE_SOURCE", ""),
    }
    return {f"org.opencontainers.image.{key}": value for key, value in labels.items() if value}


def created_at() -> int:
    """Return the time that what is built is of: SOURCE_DATE_EPOCH, or the last commit's."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct"))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"git {arguments[0]}: {done.stderr.strip()} (an image says which commit it is of)")
    return done.stdout.strip()
