"""Whether this tree is a release, and if not, what is to be done."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import yaml

from lrp_operator import __version__

CHART = Path("deploy/helm/lrp-operator")


def obstacles(root: Path, version: str = __version__) -> list[str]:
    """Say what stands in the way of a release of this tree; nothing if nothing does."""
    return [*chart_differs(root, version), *changelog_lacks(root, version), *_git_says(root, version)]


def chart_differs(root: Path, version: str = __version__) -> Iterator[str]:
    """Say where the chart has another version than the programs."""
    chart = yaml.safe_load((root / CHART / "Chart.yaml").read_text())
    for key in ("version", "appVersion"):
        if chart[key] != version:
            yield f"{CHART}/Chart.yaml: {key} is {chart[key]}, but lrp_operator.__version__ is {version}"


def changelog_lacks(root: Path, version: str = __version__) -> Iterator[str]:
    """Say what the changelog lacks: an entry, or the day of the release in it."""
    found = re.search(rf"^## {re.escape(version)} - (.+)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    if not found:
        yield f"CHANGELOG.md: no entry `## {version} - YYYY-MM-DD`"
    elif not re.fullmatch(r"\d{4}-\d\d-\d\d", found[1]):
        yield f"CHANGELOG.md: {version} is `{found[1]}`; a release has its day there, as YYYY-MM-DD"


def _git_says(root: Path, version: str) -> Iterator[str]:
    if changed := _git(root, "status", "--porcelain"):
        yield f"uncommitted changes, which nobody could build again: {', '.join(changed.split()[1::2])}"
    tags = [tag for tag in _git(root, "tag", "--points-at", "HEAD").split() if tag.startswith("v")]
    if tags and f"v{version}" not in tags:
        yield f"the commit is tagged {', '.join(tags)}, but its version is {version}"


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout
