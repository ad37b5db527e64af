"""Exemptions: whose namespace, and what happens while that can't be found out."""

from collections.abc import Iterable

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath.layout import CLIENT_BY_LINK, client_key
from lrp_operator.datapath.skips import SkipTable
from lrp_operator.resolve.model import SkipEntry

FRONTEND = L4Addr.make("169.254.169.254", 80, Protocol.TCP)
POD = SkipEntry("kube-system/proxy", "uid-1", (b"\n\0\0\1",), host_network=False, frontends=(FRONTEND,))


class DictMap(dict[bytes, bytes]):
    """A map that works."""

    def lookup(self, key: bytes) -> bytes | None:
        return self.get(key)

    def update_many(self, items: list[tuple[bytes, bytes]]) -> None:
        super().update(items)

    def update(self, key: bytes, value: bytes) -> None:  # type: ignore[override]
        self[key] = value

    def delete(self, key: bytes) -> bool:
        return self.pop(key, None) is not None

    def items(self) -> Iterable[tuple[bytes, bytes]]:  # type: ignore[override]
        return list(super().items())


class Finder:
    """Says what the kernel knows pods by: numbers, None, or an error."""

    def __init__(self) -> None:
        self.answer: tuple[int, ...] | OSError | None = (7,)
        self.asked = 0

    def __call__(self, _entry: SkipEntry) -> tuple[int, ...] | None:
        self.asked += 1
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


def passes(table: SkipTable) -> list[str]:
    return table.add_missing() + table.remove_surplus()


def test_a_pod_is_looked_for_once_until_links_change() -> None:
    kernel, finder = DictMap(), Finder()
    table = SkipTable({4: kernel}, finder)
    table.want(POD.pod, POD)
    assert passes(table) == passes(table) == []
    assert (set(kernel), finder.asked) == ({client_key(7, FRONTEND)}, 1)
    finder.answer = (8, CLIENT_BY_LINK | 9)
    table.relocate()
    assert passes(table) == []
    assert set(kernel) == {client_key(8, FRONTEND), client_key(CLIENT_BY_LINK | 9, FRONTEND)}
    assert {(one.netns_cookie, one.ifindex, one.pod) for one in table.kernel_view()} == {
        (8, 0, POD.pod),
        (0, 9, POD.pod),
    }


def test_an_exemption_stays_while_the_kernel_can_not_be_asked() -> None:
    kernel, finder = DictMap(), Finder()
    table = SkipTable({4: kernel}, finder)
    table.want(POD.pod, POD)
    passes(table)
    finder.answer = OSError("netlink is busy")
    table.relocate()
    assert "can't be looked up" in passes(table)[0]
    assert set(kernel) == {client_key(7, FRONTEND)}
    finder.answer = None
    assert "not known yet" in passes(table)[0]
    assert not kernel


def test_a_new_pod_of_the_same_name_is_another_pod() -> None:
    kernel, finder = DictMap(), Finder()
    table = SkipTable({4: kernel}, finder)
    table.want(POD.pod, POD)
    passes(table)
    finder.answer = None
    table.want(POD.pod, SkipEntry(POD.pod, "uid-2", POD.ips, host_network=False, frontends=(FRONTEND,)))
    passes(table)
    assert not kernel
