"""What may be released: one version, a dated entry in the changelog, a commit that is all there is."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.image.base import pinned
from deploy.release.checks import CHART, chart_differs, obstacles

ROOT = Path(__file__).parents[2]
VERSION = "1.2.3"
ENTRY = f"# Changelog\n\n## {VERSION} - 2026-01-31\n\nNews.\n\n## 1.2.2 - 2026-01-01\n"


def test_the_chart_has_the_programs_version() -> None:
    assert list(chart_differs(ROOT)) == []


def test_both_images_stand_on_the_same_base() -> None:
    agent, controller = (pinned(ROOT / "deploy" / "image" / f"{role}.Dockerfile") for role in ("agent", "controller"))
    assert agent == controller


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree that may be released."""
    (tmp_path / CHART).mkdir(parents=True)
    (tmp_path / CHART / "Chart.yaml").write_text(yaml.safe_dump({"version": VERSION, "appVersion": VERSION}))
    (tmp_path / "CHANGELOG.md").write_text(ENTRY)
    _git(tmp_path, "init", "-q")
    _commit(tmp_path)
    return tmp_path


def test_a_release_is_one(tree: Path) -> None:
    assert obstacles(tree, VERSION) == []
    _git(tree, "tag", f"v{VERSION}")
    assert obstacles(tree, VERSION) == []


def test_the_chart_is_behind(tree: Path) -> None:
    (tree / CHART / "Chart.yaml").write_text(yaml.safe_dump({"version": VERSION, "appVersion": "1.2.2"}))
    _commit(tree)
    assert obstacles(tree, VERSION) == [
        f"{CHART}/Chart.yaml: appVersion is 1.2.2, but lrp_operator.__version__ is {VERSION}"
    ]


@pytest.mark.parametrize(
    ("changelog", "lacks"),
    [
        (ENTRY.replace(VERSION, "1.2.4"), f"CHANGELOG.md: no entry `## {VERSION} - YYYY-MM-DD`"),
        (
            ENTRY.replace("2026-01-31", "unreleased"),
            f"CHANGELOG.md: {VERSION} is `unreleased`; a release has its day there, as YYYY-MM-DD",
        ),
    ],
)
def test_the_changelog_lacks_it(tree: Path, changelog: str, lacks: str) -> None:
    (tree / "CHANGELOG.md").write_text(changelog)
    _commit(tree)
    assert obstacles(tree, VERSION) == [lacks]


def test_not_all_is_committed(tree: Path) -> None:
    (tree / "CHANGELOG.md").write_text(ENTRY + "More.\n")
    (tree / "new").touch()
    assert obstacles(tree, VERSION) == ["uncommitted changes, which nobody could build again: CHANGELOG.md, new"]


def test_the_tag_is_another_versions(tree: Path) -> None:
    _git(tree, "tag", "v1.2.4")
    assert obstacles(tree, VERSION) == [f"the commit is tagged v1.2.4, but its version is {VERSION}"]


def test_a_dockerfile_without_a_pinned_base_is_told(tmp_path: Path) -> None:
    shutil.copy(ROOT / "deploy" / "image" / "agent.Dockerfile", tmp_path)
    file = tmp_path / "agent.Dockerfile"
    file.write_text(file.read_text().replace("@sha256:", "#"))
    with pytest.raises(Exception, match="no line ARG BASE=NAME:TAG@sha256:DIGEST"):
        pinned(file)


def _commit(tree: Path) -> None:
    _git(tree, "add", "--all")
    _git(tree, "-c", "user.name=test", "-c", "user.email=test@example.invalid", "commit", "-qm", "change")


def _git(tree: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=tree, check=True, capture_output=True)
