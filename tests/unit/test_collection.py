"""Who runs every test doesn't run those that change a cluster: they are for who names their folder."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
OTHERS = [f"--ignore={path}" for path in TESTS.iterdir() if path.is_dir() and path.name != "e2e"]


@pytest.mark.parametrize(
    ("arguments", "is_named"),
    [
        (["tests"], False),
        (["tests", "-k", "e2e"], False),
        (["tests", "--override-ini=log_file_date_format=tests/e2e"], False),
        (["tests/e2e"], True),
        (["tests/e2e/test_1_walk.py::test_kinds"], True),
    ],
)
def test_the_walk_is_for_who_names_it(arguments: list[str], is_named: bool) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *OTHERS, *arguments]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert ("::test_kinds" in done.stdout) is is_named, done.stdout + done.stderr
