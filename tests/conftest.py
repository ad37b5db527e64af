import os
from pathlib import Path

import pytest

from lrp_operator.loader.kept import VARIABLE

# The same programs are wanted hundreds of times: they are compiled once, as on a node, and never again while the
# sources stay. What is tested is what BCC has made, all the same (datapath/test_kept.py); what compiles, goes without.
os.environ.setdefault(VARIABLE, str(Path("~/.cache/lrp-operator/programs").expanduser()))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate",
        action="store_true",
        help="rewrite what tests/scenarios/*.txt expect and what the docs' commands print, then look at the diff",
    )


@pytest.fixture
def regenerate(request: pytest.FixtureRequest) -> bool:
    """Whether expectations are rewritten instead of compared."""
    return bool(request.config.getoption("--regenerate"))
