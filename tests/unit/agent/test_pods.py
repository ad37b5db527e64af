"""Names of addresses and namespaces."""

import pytest

from lrp_operator.agent import pods
from lrp_operator.agent.pods import PodNames
from lrp_operator.api.addresses import parse_ip
from tests.unit.agent.fakes import FakeLinks, pod

IP = parse_ip("10.0.0.1")


def test_an_address_has_the_name_of_its_one_pod() -> None:
    names = PodNames("n1", lambda: None)
    names.put("a/one", pod("one", "10.0.0.1"))
    assert names.at(IP) == "a/one"
    names.put("a/one", pod("one", "10.0.0.2"))
    assert names.at(IP) is None
    names.put("a/one", None)
    assert names.at(parse_ip("10.0.0.2")) is None


def test_of_several_pods_the_ready_one_has_it_and_else_nobody() -> None:
    names = PodNames("n1", lambda: None)
    names.put("a/done", pod("done", "10.0.0.1", ready=False))
    names.put("a/runs", pod("runs", "10.0.0.1"))
    assert names.at(IP) == "a/runs"
    names.put("a/too", pod("too", "10.0.0.1"))
    assert names.at(IP) is None


def test_what_is_no_address_is_nobodys() -> None:
    names = PodNames("n1", lambda: None)
    names.put("a/odd", pod("odd", "not an address"))
    names.put("a/odd", None)


def test_namespaces_are_looked_up_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    links = FakeLinks(**{"10.0.0.1": 77})
    names = PodNames("n1", lambda: links)
    names.put("a/one", pod("one", "10.0.0.1"))
    names.put("a/two", pod("two", "10.0.0.2"))
    names.put("a/host", pod("host", "10.0.0.3", hostNetwork=True))
    names.put("a/far", pod("far", "10.0.0.4", nodeName="n2"))
    assert names.with_cookie(77) is None
    monkeypatch.setattr(pods, "LOOK_UP_SECONDS", 60.0)
    names.look_up_cookies()
    assert (names.with_cookie(77), names.with_cookie(1)) == ("a/one", "host")
    names.look_up_cookies()
    assert links.asked == ["10.0.0.1", "10.0.0.2"]  # not again so soon
    names.put("a/one", None)
    assert names.with_cookie(77) is None
