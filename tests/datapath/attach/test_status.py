"""What people are told of pods' links: `lrpctl status`."""

from datetime import UTC, datetime

import pytest

from lrp_operator.agent.apimodel import FrontendCounts, Pins, PodLink, PolicyCounts, Status
from lrp_operator.cli.status import print_status


def status(*links: PodLink, problems: list[str] | None = None) -> Status:
    return Status(
        agent_version="0",
        node="worker-1",
        pid=1,
        started=datetime.now(UTC),
        mode="TC level: pods",
        notes=[],
        ready=True,
        healthy=not problems,
        in_force=True,
        message="",
        pins=Pins("/sys/fs/bpf/lrp", "/sys/fs/cgroup"),
        programs={},
        features=[],
        sources=[],
        policies=PolicyCounts(0, 0, 0),
        frontends=FrontendCounts(0, 0, 0, 0),
        problems=problems or [],
        slots_used={},
        slots_max={},
        last_sync=None,
        events_dropped=0,
        links=list(links),
        flows={"ipv4": 7},
        flows_max=4096,
    )


def printed(capsys: pytest.CaptureFixture[str], answer: Status) -> dict[str, str]:
    print_status(answer)
    lines = [line.split(":", 1) for line in capsys.readouterr().out.splitlines() if ":" in line]
    return {name: text.strip() for name, text in lines}


def test_links_are_counted_by_how_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    shadowed = "veth1 is left alone: others use both tcx and clsact there (a, b), so no place of ours is right"
    lost = "the node has no route to 192.0.2.1"
    lines = printed(
        capsys,
        status(
            PodLink("default/a", "veth0", "attached", ""),
            PodLink("", "veth9", "attached", ""),
            PodLink("default/b", "veth1", "shadowed", shadowed),
            PodLink("default/c", "", "missing", lost),
            problems=[f"pod default/b: {shadowed}", f"pod default/c is not redirected: {lost}"],
        ),
    )
    assert lines["Pod links"] == "2 attached, 1 missing, 1 shadowed"
    assert lines["Flows"] == "ipv4 7 of 4096"
    assert lines["Redirects"] == "in force, with problems (below)"


def test_each_problem_names_its_pod(capsys: pytest.CaptureFixture[str]) -> None:
    problems = [f"pod default/p{n} is not redirected: the node has no route to 192.0.2.{n}" for n in range(12)]
    print_status(status(problems=problems))
    told = capsys.readouterr().out
    assert told.count("is not redirected") == 10
    assert "and 2 more (see -o json)" in told


def test_without_links_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Pod links" not in printed(capsys, status())


def test_what_a_link_is_called_can_not_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of others' programs and links come from elsewhere."""
    print_status(status(problems=["pod default/b: veth1 is left alone: evil\x1b[2J"]))
    told = capsys.readouterr().out
    assert "\x1b" not in told
