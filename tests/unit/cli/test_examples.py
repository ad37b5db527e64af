"""The examples are the seeds' YAML, and every one of them can be read and means something."""

from pathlib import Path

import pytest
import yaml

from lrp_operator.api.crd import parse_policy
from lrp_operator.api.objects import Policy
from lrp_operator.sources.files import read_directory, read_paths

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
FILES = sorted(path for path in EXAMPLES.rglob("*.yaml") if path.name != "values.yaml")  # those are for the chart


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_says_what_it_is_for_and_is_valid(path: Path) -> None:
    assert path.read_text().startswith("# ")
    with path.open("rb") as nothing:
        for obj in read_paths([str(path)], nothing):
            if isinstance(obj, Policy):
                parse_policy(obj)


def test_the_directories_have_no_problems() -> None:
    for directory in {path.parent for path in FILES}:
        objects, problems = read_directory(directory)
        assert objects
        assert problems == []


def test_the_seeds_policies_are_unchanged() -> None:
    backend = {
        "localEndpointSelector": {"matchLabels": {"app": "proxy"}},
        "toPorts": [{"port": "80", "protocol": "TCP"}],
    }
    frontends = {
        "lrp-addr": {"addressMatcher": {"ip": "169.254.169.254", "toPorts": [{"port": "8080", "protocol": "TCP"}]}},
        "lrp-svc": {"serviceMatcher": {"serviceName": "my-service", "namespace": "default"}},
    }
    for name, frontend in frontends.items():
        assert yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text()) == {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumLocalRedirectPolicy",
            "metadata": {"name": name},
            "spec": {"redirectFrontend": frontend, "redirectBackend": backend},
        }
