"""What the ConfigMap says that agents follow."""

import pytest

from lrp_operator.api.withdrawal import orders_withdrawal


@pytest.mark.parametrize(
    ("data", "ordered"),
    [
        ({"withdraw": "false"}, False),
        ({"withdraw": "true"}, True),
        ({}, True),  # the line was taken out
        (None, True),  # and with it, as the only one, all data
        ({"withdraw": "no"}, False),  # whoever wrote that did not mean it
    ],
)
def test_the_order_is_a_line_that_is_gone_or_says_so(data: dict[str, str] | None, ordered: bool) -> None:
    assert orders_withdrawal(data) == ordered
