"""What has no answer is told as such, whatever a library makes of it."""

import pytest

from lrp_operator.sources.kube.client import KubeClient
from lrp_operator.sources.kube.credentials import Access
from lrp_operator.sources.kube.errors import ApiUnreachable


class Fixed:
    """The same access for ever."""

    def __init__(self, server: str) -> None:
        self.server = server

    async def access(self) -> Access:
        return Access(self.server, None)

    async def refused(self, access: Access) -> None:
        raise AssertionError(access)


@pytest.mark.parametrize(
    ("server", "why"),
    [
        ("http://127.0.0.1:1", "connection refused"),
        (f"http://{'a' * 70}.b", "label"),
        ("http://a..b", "label"),
    ],
)
async def test_no_answer(server: str, why: str) -> None:
    async with KubeClient(Fixed(server)) as client:
        with pytest.raises(ApiUnreachable, match="can't be reached since") as raised:
            await client.request("GET", "/")
        assert why in str(raised.value)
        assert client.away
        with pytest.raises(ApiUnreachable) as again:
            await client.request("GET", "/")
        assert str(again.value) == str(raised.value), "one sentence, with the time of the first"
