"""Which Services a policy is about, and that tenants can't have an agent ask for more than that."""

import pytest

from lrp_operator.agent.kube_services import MOST_NAMED, OPENINGS, Handle, NeededServices, handles_of
from lrp_operator.api.addresses import parse_ip
from lrp_operator.api.objects import Policy, Service
from lrp_operator.sources.kube.informer import Change
from tests.unit.agent.fakes import address_policy, policy, service


@pytest.mark.parametrize(
    ("written", "handles"),
    [
        (policy(service="kube-dns"), {"kube-system/kube-dns"}),
        (address_policy("a", "10.96.0.10", port=30053), {parse_ip("10.96.0.10"), 30053}),
        (address_policy("a", "fd00::1", port=53), {parse_ip("fd00::1"), 53}),
        (address_policy("a", "169.254.169.254"), set()),
        (address_policy("a", "fe80::1"), set()),
        (address_policy("a", "no address"), set()),
        (policy(service="a,metadata.namespace!=b"), set()),
        (policy(service="A"), set()),
        (policy(service="a" * 64), set()),
    ],
    ids=str,
)
def test_what_a_policy_is_about(written: Policy, handles: set[Handle]) -> None:
    assert handles_of(written) == handles


class FakeWatch:
    def __init__(self) -> None:
        self.synced = False
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


class FakeWatches:
    """Watches that tell what a test says."""

    def __init__(self) -> None:
        self.opened: list[tuple[str | None, FakeWatch]] = []
        self.needed = NeededServices(self, self._tell)
        self.told: dict[str, Service] = {}
        self._takes: dict[str | None, list[object]] = {}

    def _tell(self, key: str, told: Service | None) -> None:
        if told is None:
            del self.told[key]
        else:
            self.told[key] = told

    def follow(self, name: str | None, take: object) -> FakeWatch:
        watch = FakeWatch()
        self.opened.append((name, watch))
        self._takes[name] = [take, watch]
        return watch

    def tell(self, name: str | None, *services: Service, deletes: tuple[str, ...] = ()) -> None:
        take, watch = self._takes[name]
        assert isinstance(watch, FakeWatch)
        assert callable(take)
        watch.synced = True
        take(Change(services, deletes, synced=True))

    @property
    def open(self) -> set[str | None]:
        return {name for name, watch in self.opened if not watch.stopped}


@pytest.fixture
def watches() -> FakeWatches:
    return FakeWatches()


def test_a_name_is_covered_once_its_watch_has_told(watches: FakeWatches) -> None:
    watches.needed.set_policy("kube-system/dns", policy())
    assert not watches.needed.covers("kube-system/dns")
    watches.tell("kube-system/kube-dns", service())
    assert watches.needed.covers("kube-system/dns")
    assert list(watches.told) == ["kube-system/kube-dns"]
    watches.needed.set_policy("kube-system/dns", None)
    assert (watches.told, watches.open) == ({}, set())


def test_two_policies_on_one_service_share_its_watch(watches: FakeWatches) -> None:
    watches.needed.set_policy("kube-system/a", policy("a"))
    watches.needed.set_policy("kube-system/b", policy("b"))
    watches.needed.set_policy("kube-system/a", None)
    assert [name for name, _ in watches.opened] == ["kube-system/kube-dns"]
    assert watches.open == {"kube-system/kube-dns"}


def test_while_all_are_being_listed_named_ones_stay_known(watches: FakeWatches) -> None:
    """Nothing is taken away in between, and what was deleted in between is gone after."""
    watches.needed.set_policy("kube-system/dns", policy())
    watches.needed.set_policy("kube-system/other", policy("other", service="other"))
    watches.tell("kube-system/kube-dns", service())
    watches.tell("kube-system/other", service("other", "10.96.0.99"))
    watches.needed.set_policy("kube-system/address", address_policy("address", "10.96.0.11"))
    assert not watches.needed.covers("kube-system/address")
    assert set(watches.told) == {"kube-system/kube-dns", "kube-system/other"}
    watches.tell(None, service(), service("owner", "10.96.0.11"), service("unneeded", "10.96.0.12"))
    assert watches.needed.covers("kube-system/address")
    assert set(watches.told) == {"kube-system/kube-dns", "kube-system/owner"}
    assert watches.open == {None}
    watches.tell(None, service("owner", "10.96.0.13"))
    watches.tell(None, service("unneeded", "10.96.0.11"))
    assert set(watches.told) == {"kube-system/kube-dns", "kube-system/unneeded"}
    watches.tell(None, deletes=("kube-system/unneeded",))
    assert set(watches.told) == {"kube-system/kube-dns"}


def test_many_names_are_one_watch(watches: FakeWatches) -> None:
    for number in range(MOST_NAMED + 5):
        watches.needed.set_policy(f"kube-system/{number}", policy(str(number), service=f"s{number}"))
    assert [name for name, _ in watches.opened].count(None) == 1
    assert len(watches.opened) == MOST_NAMED + 1


def test_watches_are_opened_at_a_bounded_rate(watches: FakeWatches) -> None:
    for number in range(10 * OPENINGS):
        watches.needed.set_policy("kube-system/dns", policy(service=f"s{number}"))
    assert len(watches.opened) == OPENINGS + 1
    assert watches.opened[-1][0] is None
