"""What lrpctl shows of an agent: the seed's node-local DNS, a metadata policy without a pod, and a broken policy."""

import json
import re
from pathlib import Path

import pytest
import yaml

from lrp_operator import __version__
from lrp_operator.agent.apimodel import BpfLb, KernelEntry, KernelSlot
from lrp_operator.cli.bpf import print_lb
from tests.unit.agent.processes import agent, wait_until_up
from tests.unit.cli_agent.conftest import Lrpctl, runner

EXPECTED = Path(__file__).parent / "expected"


def steady(text: str, root: Path) -> str:
    """Replace what differs from run to run."""
    text = text.replace(str(root), "ROOT").replace(__version__, "VERSION")
    return re.sub(r"pid \d+", "pid N", re.sub(r"\d+s ago", "Ns ago", text))


@pytest.mark.parametrize("words", ["status", "service list", "lrp list", "bpf lb list", "bpf skip list"])
def test_tables(lrpctl: Lrpctl, root: Path, words: str) -> None:
    result = lrpctl(*words.split())
    assert (result.exit_code, result.stderr) == (0, "")
    assert steady(result.stdout, root) == (EXPECTED / f"{words.replace(' ', '-')}.txt").read_text()


def test_where_exempt_pods_go_stands_below_the_policys_backends(capsys: pytest.CaptureFixture[str]) -> None:
    own, theirs = KernelSlot(4, "10.0.0.1:53/UDP", "a/dns"), KernelSlot(5, "10.0.0.2:53/UDP", None)
    for original, rest in ((None, []), ([theirs], ["exempt pods: 5 10.0.0.2:53/UDP -"]), ([], ["exempt pods: - - -"])):
        print_lb(BpfLb(entries=[KernelEntry(1, "10.96.0.10:53/UDP", ["skip"], 7, [own], original)]))
        rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[1:]]
        assert rows == ["1 10.96.0.10:53/UDP skip 7 4 10.0.0.1:53/UDP a/dns", *rest]


def test_status_of_a_node_where_nothing_is_in_force(tmp_path: Path) -> None:
    with agent(tmp_path, "weak"):
        wait_until_up(tmp_path)
        result = runner(tmp_path / "agent.sock")("status")
    assert result.exit_code == 1
    assert result.stdout.startswith("Redirects:  NOT in force: the cgroup does not cover the pods\n")


@pytest.mark.parametrize(
    "words", [("status",), ("service", "list"), ("lrp", "list"), ("bpf", "lb", "list"), ("bpf", "skip", "list")]
)
def test_data_is_the_same_in_json_and_yaml(lrpctl: Lrpctl, words: tuple[str, ...]) -> None:
    as_json, as_yaml = (lrpctl(*words, "-o", kind) for kind in ("json", "yaml"))
    assert (as_json.exit_code, as_yaml.exit_code) == (0, 0)
    data = json.loads(as_json.stdout)
    assert data["apiVersion"] == "v1"
    if words != ("status",):  # its ages go on
        assert yaml.safe_load(as_yaml.stdout) == data


def test_observe_for_a_while(lrpctl: Lrpctl) -> None:
    result = lrpctl("observe", "--last", "3")
    assert result.exit_code == 0
    lines = [line.split("  ", 1)[1] for line in result.stdout.splitlines()]
    assert lines == (EXPECTED / "observe.txt").read_text().splitlines()


def test_observe_filtered(lrpctl: Lrpctl) -> None:
    result = lrpctl("observe", "--protocol", "tcp", "--port", "53", "--last", "1", "-o", "json")
    redirect = json.loads(result.stdout)
    assert (redirect["frontend"], redirect["command"]) == ("10.96.0.10:53/TCP", "curl")


def test_observe_ends_after_its_time(lrpctl: Lrpctl) -> None:
    result = lrpctl("observe", "--port", "1", "--duration", "0.05")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "watching for 0.05 s" in result.stderr


def test_observe_refuses_what_it_does_not_understand(lrpctl: Lrpctl) -> None:
    result = lrpctl("observe", "--protocol", "icmp")
    assert (result.exit_code, result.stderr) == (2, "lrpctl: protocol must be tcp or udp, not 'icmp'\n")
    assert lrpctl("observe", "--port", "70000").exit_code == 2


@pytest.mark.parametrize("words", [("status",), ("service", "list"), ("observe",), ("observe", "-f")])
def test_without_an_agent(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = runner(tmp_path / "agent.sock")(*words)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith(f"lrpctl: no agent answers on {tmp_path}/agent.sock (No such file or directory). ")
    assert "work without an agent" in result.stderr


def test_help_teaches(lrpctl: Lrpctl) -> None:
    assert "Nothing is recorded while nobody watches" in lrpctl("observe", "--help").stdout
    assert "kube-proxy" in lrpctl("service", "list", "--help").stdout
