"""Every link leads somewhere. Those that leave the project are not followed: nothing may leave the machine."""

from pathlib import Path

import pytest

from tests.docs.pages import LINKED, ROOT, SHOWN, page


@pytest.mark.parametrize("path", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_page(path: Path) -> None:
    broken = [f"{line}: {target}" for line, target in page(path).links if not _leads_somewhere(path, target)]
    assert broken == []


def _leads_somewhere(path: Path, target: str) -> bool:
    if target.startswith(("https://", "http://")):
        return True
    name, _, anchor = target.partition("#")
    there = (path.parent / name).resolve() if name else path
    if not there.exists() or not there.is_relative_to(ROOT):
        return False
    return not anchor or anchor in page(there).anchors


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for _, target in page(index).links}
    assert linked >= set(SHOWN) - {index}
