import pytest

from lrp_operator.api.schema import CRD_VERSION, VERSION_ANNOTATION
from lrp_operator.controller.crds import _why_not


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (None, ""),
        ({VERSION_ANNOTATION: str(CRD_VERSION)}, ""),
        ({VERSION_ANNOTATION: "0", "other": "x"}, ""),
        ({}, "is not ours"),
        ({"cilium.io/version": "9"}, "is not ours"),
        ({VERSION_ANNOTATION: str(CRD_VERSION + 1)}, "is newer"),
        ({VERSION_ANNOTATION: "2beta"}, "is no number"),
    ],
)
def test_which_definitions_may_be_written(there: dict[str, str] | None, words: str) -> None:
    sentence = _why_not("x.cilium.io", there)
    assert (words in sentence) if words else sentence == ""
