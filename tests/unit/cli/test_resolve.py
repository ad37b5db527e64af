"""`lrpctl resolve`, run as people run it. The JSON is a stable interface: it is compared whole."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from lrp_operator.cli.main import app

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
LRPCTL = str(Path(sys.executable).parent / "lrpctl")

POLICY = """
apiVersion: cilium.io/v2
kind: CiliumLocalRedirectPolicy
metadata: {name: NAME, namespace: default}
spec:
  redirectFrontend: {addressMatcher: {ip: 169.254.169.254, toPorts: [{port: "PORT", protocol: TCP}]}}
  redirectBackend: {localEndpointSelector: {matchLabels: {app: proxy}}, toPorts: [{port: "80", protocol: TCP}]}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: lrp-pod, labels: {app: proxy}}
spec: {nodeName: n1, containers: [{ports: [{containerPort: 80}]}]}
status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}], conditions: [{type: Ready, status: "True"}]}
"""


def policy(name: str = "p", port: str = "8080") -> str:
    return POLICY.replace("NAME", name).replace("PORT", port)


def run(*words: object, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["resolve", *map(str, words)], input=stdin)


def answer(*words: object, stdin: str = "", code: int = 0) -> Any:
    result = run(*words, "-o", "json", stdin=stdin)
    assert (result.exit_code, result.stderr) == (code, "")
    return json.loads(result.stdout)


# --- The interface ----------------------------------------------------------------------------------------------------

DNS = [
    {
        "frontend": "10.96.0.10:53/TCP",
        "type": "LocalRedirect",
        "policy": "kube-system/nodelocaldns",
        "service": "kube-system/kube-dns",
        "backends": ["10.244.0.225:53/TCP"],
    },
    {
        "frontend": "10.96.0.10:53/UDP",
        "type": "LocalRedirect",
        "policy": "kube-system/nodelocaldns",
        "service": "kube-system/kube-dns",
        "backends": ["10.244.0.225:53/UDP"],
    },
]
METRICS = {
    "frontend": "10.96.0.10:9153/TCP",
    "type": "ClusterIP",
    "policy": None,
    "service": "kube-system/kube-dns",
    "backends": ["10.244.1.51:9153/TCP", "10.244.1.68:9153/TCP"],
}


def test_the_worked_example() -> None:
    found = answer("--node", "worker-1", "-f", EXAMPLES / "node-local-dns.yaml", "-f", EXAMPLES / "worker-1/dns.yaml")
    (verdict,) = found["policies"]
    assert verdict.pop("message")
    assert found == {
        "node": "worker-1",
        "frontends": DNS,
        "policies": [
            {
                "policy": "kube-system/nodelocaldns",
                "accepted": True,
                "reason": "Accepted",
                "frontends": [
                    {"frontend": "10.96.0.10:53/TCP", "redirected": True, "reason": None},
                    {"frontend": "10.96.0.10:53/UDP", "redirected": True, "reason": None},
                    {"frontend": "10.96.0.10:9153/TCP", "redirected": False, "reason": "NoMatchingPort"},
                ],
            }
        ],
        "skip": [],
    }
    assert [list(item) for item in (found, found["frontends"][0])] == [
        ["node", "frontends", "policies", "skip"],
        ["frontend", "type", "policy", "service", "backends"],
    ]


def test_all_lists_what_no_policy_redirects() -> None:
    words = [
        "--node",
        "worker-1",
        "-f",
        EXAMPLES / "node-local-dns.yaml",
        "-f",
        EXAMPLES / "worker-1/dns.yaml",
        "--all",
    ]
    assert answer(*words)["frontends"] == [*DNS, METRICS]
    words[1] = "worker-2"
    kinds = [(frontend["type"], frontend["backends"]) for frontend in answer(*words)["frontends"]]
    assert kinds == [
        ("ClusterIP", [f"10.244.1.51:{port}", f"10.244.1.68:{port}"]) for port in ("53/TCP", "53/UDP", "9153/TCP")
    ]


def test_drop_and_skip() -> None:
    pod = POD.replace("lrp-pod", "proxy").replace("app: proxy}", "app: metadata-proxy}, namespace: kube-system")
    words = ["--node", "n1", "-f", EXAMPLES / "metadata-proxy.yaml", "-f", "-"]
    refused = answer(*words)
    assert refused["frontends"] == [
        {
            "frontend": "169.254.169.254:80/TCP",
            "type": "LocalRedirect",
            "policy": "kube-system/metadata-proxy",
            "service": None,
            "backends": [],
            "onNoBackend": "drop",
        }
    ]
    assert refused["policies"][0]["frontends"] == [
        {"frontend": "169.254.169.254:80/TCP", "redirected": False, "reason": "NoLocalPod"}
    ]
    served = answer(*words, stdin=pod.replace("containerPort: 80", "containerPort: 8181"))
    assert served["frontends"][0]["backends"] == ["10.0.0.1:8181/TCP"]
    assert "onNoBackend" not in served["frontends"][0]
    assert served["skip"] == [{"pod": "kube-system/proxy", "frontends": ["169.254.169.254:80/TCP"]}]


def test_ipv6_is_written_in_brackets() -> None:
    found = answer("--node", "n1", "-f", "-", stdin=policy().replace("169.254.169.254", "'2001:0::1'") + "---" + POD)
    assert found["frontends"][0]["frontend"] == "[2001::1]:8080/TCP"
    assert found["frontends"][0]["backends"] == ["[fd00::1]:80/TCP"]


def test_the_seeds_yaml_with_what_a_cluster_adds() -> None:
    found = answer("--node", "worker-1", "-f", EXAMPLES, "-f", EXAMPLES / "worker-1")
    assert [(item["frontend"], item["backends"]) for item in found["frontends"]] == [
        ("10.96.0.10:53/TCP", ["10.244.0.225:53/TCP"]),
        ("10.96.0.10:53/UDP", ["10.244.0.225:53/UDP"]),
        ("10.96.61.7:80/TCP", ["10.244.0.17:80/TCP"]),
        ("169.254.169.254:80/TCP", []),
        ("169.254.169.254:8080/TCP", ["10.244.0.17:80/TCP"]),
    ]


def test_yaml_says_the_same_as_json() -> None:
    words = ["--node", "worker-1", "-f", EXAMPLES, "-f", EXAMPLES / "worker-1", "--all"]
    assert yaml.safe_load(run(*words, "-o", "yaml").stdout) == answer(*words)


def test_yaml_of_a_node_that_looks_like_a_number() -> None:
    assert run("--node", "1e3", "-f", "/dev/null", "-o", "yaml").stdout.startswith("node: '1e3'\n")


# --- Exit codes -------------------------------------------------------------------------------------------------------


def test_a_rejected_policy_is_exit_code_1_and_the_rest_works() -> None:
    text = "---".join([POD, policy(), policy("broken", "0")])
    found = answer("--node", "n1", "-f", "-", stdin=text, code=1)
    assert [item["policy"] for item in found["frontends"]] == ["default/p"]
    broken = found["policies"][0]
    assert (broken["policy"], broken["accepted"], broken["reason"]) == ("default/broken", False, "Invalid")
    assert "spec.redirectFrontend.addressMatcher.toPorts[0].port: must be a port number" in broken["message"]
    assert broken["frontends"] == []


def test_an_address_outside_the_ranges_is_rejected() -> None:
    words = ["--node", "n1", "-f", "-", "--address-matcher-cidr", "10.0.0.0/8"]
    assert answer(*words, stdin=policy(), code=1)["policies"][0]["reason"] == "AddressNotAllowed"
    assert answer(*words, "--address-matcher-cidr", "169.254.0.0/16", stdin=policy())["policies"][0]["accepted"]


def test_unreadable_input_is_exit_code_2_with_its_place_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(policy("broken", "0"))
    (tmp_path / "b.yaml").write_text("kind: Pod\nmetadata:\n  name: a\n---\nkind: Pod\nmetadata: {name: [\n")
    result = run("--node", "n1", "-f", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"lrpctl: {tmp_path}/b.yaml, document 2, line 6: while parsing a flow node")
    assert run("--node", "n1", "-f", tmp_path / "c.yaml").exit_code == 2


def test_a_thousand_unreadable_documents_are_told_shortly() -> None:
    result = run("--node", "n1", "-f", "-", stdin="kind: Pod\n---\n" * 1000)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 21
    assert result.stderr.endswith("and 980 more such problems\n")


def test_a_thousand_policies_of_which_one_is_broken() -> None:
    text = "---".join([POD, *(policy(f"p{number}", str(number)) for number in range(1000))])
    found = answer("--node", "n1", "-f", "-", stdin=text, code=1)
    assert len(found["frontends"]) == 999
    assert [item["policy"] for item in found["policies"] if not item["accepted"]] == ["default/p0"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Missing option '--node'"),
        (["--node", "n1"], "Missing option '--filename' / '-f'"),
        (["--node", "", "-f", "-"], "'' is no node's name"),
        (["--node", "a b", "-f", "-"], "'a b' is no node's name"),
        (["--node", "a/b", "-f", "-"], "'a/b' is no node's name"),
        (["--node", "n" * 254, "-f", "-"], "is no node's name"),
        (["--node", "n1", "-f", "-", "--address-matcher-cidr", "10.0.0.0/33"], "'10.0.0.0/33' is no address range"),
        (["--node", "n1", "-f", "-", "--address-matcher-cidr", ""], "'' is no address range"),
        (["--node", "n1", "-f", "-", "-o", "xml"], "'xml' is not one of"),
        (["--node", "n1", "-f", "-", "extra"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_exit_code_2_with_a_sentence(words: list[str], sentence: str) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_the_table() -> None:
    result = run("--node", "n1", "-f", "-", stdin="---".join([POD, policy(), policy("q")]))
    frontends, policies = result.stdout.split("\n\n")
    assert frontends.splitlines() == [
        "Frontend                   Type            Backends          Policy      Service",
        "169.254.169.254:8080/TCP   LocalRedirect   10.0.0.1:80/TCP   default/p   -",
    ]
    head, first, second = policies.splitlines()
    assert head.split() == ["Policy", "Verdict", "Not", "redirected,", "and", "why"]
    assert first.split() == ["default/p", "Accepted", "-"]
    assert "169.254.169.254:8080/TCP: Conflict: " in second


def test_a_table_of_nothing() -> None:
    assert run("--node", "n1", "-f", "/dev/null").stdout == "Node n1 redirects nothing.\n"


def test_a_pipe_gets_whole_lines_without_colours_or_commands_to_the_terminal() -> None:
    label = '"\\e[2J' + "x" * 300 + '"'
    text = policy('"\\e[2J[red]"') + "---" + policy("b").replace("proxy", label)
    result = run("--node", "n1", "-f", "-", stdin=text)
    assert result.exit_code == 1
    assert "\x1b" not in result.stdout
    assert len(result.stdout.splitlines()) == 5


def test_a_terminal_gets_colours_unless_it_wants_none() -> None:
    code = f"import pty, sys; sys.exit(pty.spawn([{LRPCTL!r}, *sys.argv[1:]]))"
    words = ["resolve", "--node", "worker-1", "-f", str(EXAMPLES / "lrp-addr.yaml")]
    for more, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"} | more
        result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, env=environment, check=False)
        assert (b"\x1b[32m" in result.stdout) is coloured
        assert b"default/lrp-addr" in result.stdout


# --- The program ------------------------------------------------------------------------------------------------------


def program(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    path = Path(sys.executable).parent / name
    return subprocess.run([path, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def test_the_program_reads_standard_input_and_ends_with_the_right_code() -> None:
    words = [LRPCTL, "resolve", "--node", "n1", "-f", "-", "-o", "json"]
    result = subprocess.run(words, input=policy("p", "0"), capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "")
    assert json.loads(result.stdout)["node"] == "n1"


@pytest.mark.parametrize(("name", "shown"), [("lrpctl", "lrpctl"), ("kubectl-lrp", "kubectl lrp")])
def test_help_names_the_program_as_it_was_called(name: str, shown: str) -> None:
    result = program(name, "resolve", "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"Usage: {shown} resolve [OPTIONS]\n")
    assert "-f - -o json" in result.stdout


@pytest.mark.parametrize("output", ["table", "json"])
def test_an_answer_that_can_not_be_written_is_no_verdict(output: str) -> None:
    with Path("/dev/full").open("w") as full:
        words = [LRPCTL, "resolve", "--node", "n1", "-f", str(EXAMPLES), "-o", output]
        result = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("lrpctl: the answer can't be written: No space left on device\n")


def test_version() -> None:
    assert program("lrpctl", "--version").stdout == "lrpctl 0.1.0\n"


def test_completion_is_there() -> None:
    result = subprocess.run(
        [LRPCTL],
        env=os.environ | {"_LRPCTL_COMPLETE": "complete_bash", "COMP_WORDS": "lrpctl res", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.split() == ["resolve"]


def test_help_is_there_before_one_blinks() -> None:
    def seconds() -> float:
        start = time.monotonic()
        program("lrpctl", "--help")
        return time.monotonic() - start

    assert min(seconds() for _ in range(5)) < 1  # measured: 0.1; the limit leaves room for a busy machine


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['lrpctl', '--help']\n"
        "from lrp_operator.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'pydantic', 'rich', 'yaml', 'aiohttp', 'watchfiles', 'pyroute2'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("\n[]\n")
