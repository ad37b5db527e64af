"""Pages of Markdown, as far as the checks look at them: fenced blocks, code in sentences, links, headings.

A comment right before a block says how it is to be taken:

    <!-- not run: REASON -->     its commands can't run here; what they name is still checked
    <!-- from: FILE -->          what it shows is in that file, which a test of its own holds to the truth
    <!-- exit code: N -->        what its last command ends with, if not 0
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
SHOWN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
"""Pages whose commands are run."""
WORDED = [*SHOWN, *sorted((ROOT / "examples").glob("*/README.md"))]
"""Pages whose words are looked up."""
LINKED = [*WORDED, *(ROOT / path for path in ("CONTRIBUTING.md", "bpf/README.md", "benchmarks/README.md"))]
"""Pages whose links are followed."""

_NOTE = re.compile(r"<!-- (not run|from|exit code): (.+?) -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block. start: the line, counted from 0, of its first line of text; notes: of the comment before it."""

    page: Path
    start: int
    language: str
    text: str
    notes: dict[str, str]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.start + 1}"

    @property
    def is_console(self) -> bool:
        """Whether it shows commands and what they print."""
        return self.text.startswith("$ ")


@dataclass(frozen=True)
class Page:
    """A page, taken apart. spans: code in sentences, with its line; links: targets, with their lines."""

    path: Path
    blocks: tuple[Block, ...]
    spans: tuple[tuple[int, str], ...]
    links: tuple[tuple[int, str], ...]
    anchors: frozenset[str]


@cache
def page(path: Path) -> Page:
    """Read a page."""
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
    inline = [(token.map[0] + 1, child) for token in tokens if token.map for child in token.children or ()]
    return Page(
        path,
        tuple(_blocks(path, tokens)),
        tuple((line, child.content) for line, child in inline if child.type == "code_inline"),
        tuple((line, str(child.attrs["href"])) for line, child in inline if child.type == "link_open"),
        frozenset(_anchors(tokens)),
    )


def blocks() -> list[Block]:
    """All blocks of the pages that are shown."""
    return [block for path in SHOWN for block in page(path).blocks]


def _blocks(path: Path, tokens: list[Token]) -> list[Block]:
    found = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "fence" and token.map:
            said = before.content if before is not None and before.type == "html_block" else ""
            notes = {kind: " ".join(text.split()) for kind, text in _NOTE.findall(said)}
            found.append(Block(path, token.map[0] + 1, token.info.strip(), token.content, notes))
    return found


def _anchors(tokens: list[Token]) -> list[str]:
    """What GitHub names headings: lower case, without punctuation, with hyphens for blanks."""
    titles = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "heading_open"]
    plain = ["".join(child.content for child in title.children or ()) for title in titles]
    return [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in plain]
