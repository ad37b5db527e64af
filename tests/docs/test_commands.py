"""The commands that the pages show do what the pages show."""

from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks
from tests.docs.shell import alike, run, steady, steps, why_not_run

CONSOLES = [block for block in blocks() if block.is_console]
RUN = [block for block in CONSOLES if "not run" not in block.notes and "from" not in block.notes]
TOLD = [block for block in blocks() if "from" in block.notes]


def _param(block: Block) -> object:
    helm = any("helm" in step.programs for step in steps(block))  # built by those tests' means
    return pytest.param(block, id=str(block), marks=[pytest.mark.cluster] if helm else [])


@pytest.mark.parametrize("block", [_param(block) for block in RUN])
def test_a_block_shows_what_its_commands_print(block: Block, regenerate: bool) -> None:
    found = ""
    right = True
    for number, step in enumerate(steps(block), 1):
        assert not why_not_run(step), f"{block}: {why_not_run(step)}: write <!-- not run: REASON --> before the block"
        last = number == len(steps(block))
        printed = run(step, int(block.notes.get("exit code", 0)) if last else 0)
        printed += "" if printed.endswith("\n") or not printed else "\n"
        same = alike(printed, step.shown)
        right = right and same
        found += f"{step.written}\n{step.shown if same else _clean(printed)}"
    if regenerate and not right:
        _rewrite(block, found)
    else:
        assert steady(block.text) == steady(found)


def _clean(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def _rewrite(block: Block, text: str) -> None:
    page = block.page.read_text(encoding="utf-8")
    assert page.count(block.text) == 1, f"{block}: the block is there twice, or was changed meanwhile"
    block.page.write_text(page.replace(block.text, text), encoding="utf-8")


@pytest.mark.parametrize("block", TOLD, ids=str)
def test_a_block_from_a_file_is_in_it(block: Block) -> None:
    source = ROOT / block.notes["from"]
    shown = "".join(step.shown for step in steps(block)) if block.is_console else block.text
    assert steady(shown) in steady(source.read_text(encoding="utf-8"))


def test_every_command_is_run_or_says_why_not() -> None:
    """A shell's block without output is one too: it is for copying."""
    unmarked = [
        str(block) for block in blocks() if block.language in {"sh", "shell", "bash"} and "not run" not in block.notes
    ]
    assert unmarked == []
    assert len(RUN) >= 5
    assert {Path(block.page).name for block in RUN} >= {"README.md"}
