"""YAML that the pages show is what it pretends to be: policies that would be accepted, values that the chart has."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lrp_operator.api.objects import Policy
from lrp_operator.resolve.engine import Resolver
from lrp_operator.resolve.options import ResolveOptions
from lrp_operator.sources.manifests import read_manifests
from tests.cluster import binaries
from tests.docs.pages import Block, blocks
from tests.docs.test_words import CHART

YAML = [block for block in blocks() if block.language == "yaml"]


def documents(block: Block) -> list[Any]:
    return [document for document in yaml.safe_load_all(block.text) if document]


@pytest.mark.parametrize("block", YAML, ids=str)
def test_it_is_yaml_of_a_kind_that_is_checked(block: Block) -> None:
    assert all(isinstance(document, dict) for document in documents(block))


@pytest.mark.parametrize("block", [block for block in YAML if "kind:" in block.text], ids=str)
def test_policies_would_be_accepted(block: Block) -> None:
    objects, problems = read_manifests(str(block), block.text.encode())
    assert problems == []
    policies = [obj for obj in objects.values() if isinstance(obj, Policy)]
    assert len(policies) == sum(one["kind"] == "CiliumLocalRedirectPolicy" for one in documents(block))
    resolver = Resolver("a-node", ResolveOptions())
    for policy in policies:
        resolver.upsert(policy)
    resolver.resolve()
    assert [verdict.message for verdict in resolver.resolution().verdicts if not verdict.accepted] == []


@pytest.mark.cluster
@pytest.mark.parametrize("block", [block for block in YAML if "kind:" not in block.text], ids=str)
def test_values_are_the_charts(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(block.text)
    command = [binaries.program("helm"), "template", "shown", CHART, "-f", path, "--set", "image.registry=localhost"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
