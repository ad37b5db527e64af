"""A directory of manifests as the circle sees it."""

import asyncio
from pathlib import Path

import pytest

from lrp_operator.agent.parts import SourceUpdate
from lrp_operator.agent.sources import Given, ManifestSource
from lrp_operator.api.objects import Node, Service
from tests.unit.agent.fakes import DEADLINE

SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n"
NODE = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n"


async def test_what_came_what_went_and_what_can_not_be_read(tmp_path: Path) -> None:
    directory = tmp_path / "manifests"
    changes = ManifestSource(directory).changes()

    async def told() -> SourceUpdate:
        async with asyncio.timeout(DEADLINE):
            return await anext(changes)

    first = await told()
    assert (first.complete, first.upserts) == (False, ())
    assert str(directory) in first.problems[0]

    (tmp_path / "new").mkdir()
    (tmp_path / "new/a.yaml").write_text(f"{SERVICE}---\n{NODE}")
    (tmp_path / "new").rename(directory)
    second = await told()
    assert (second.complete, second.problems) == (True, ())
    assert [(type(o), o.metadata.key) for o in second.upserts] == [(Service, "default/a"), (Node, "/n1")]

    (tmp_path / "a.yaml").write_text(NODE)
    (tmp_path / "a.yaml").rename(directory / "a.yaml")
    third = await told()
    assert (third.upserts, third.deletes) == ((), ((Service, "default/a"),))

    (tmp_path / "b.yaml").write_text("{")
    (tmp_path / "b.yaml").rename(directory / "b.yaml")
    fourth = await told()
    assert (fourth.complete, fourth.deletes) == (True, ())
    assert "b.yaml" in fourth.problems[0]
    assert (third.whole, fourth.whole) == (True, False)
    await changes.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (Given(), "what is to be followed? Give --manifests DIR or --kubeconfig FILE"),
        (Given(Path("m"), kubeconfig="k"), "--manifests and --kubeconfig exclude each other"),
        (Given(Path("m"), api_server="https://a"), "--manifests and --api-server exclude each other"),
        (Given(context="c"), "--context is about a kubeconfig"),
        (Given(Path("m")), ""),
        (Given(kubeconfig="k", context="c", api_server="https://a"), ""),
    ],
)
def test_objects_come_from_one_place(given: Given, sentence: str) -> None:
    assert given.fault().startswith(sentence)
    assert bool(given.fault()) == bool(sentence)
