"""lrp-agent's command line: what it teaches, and what it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lrp_operator import __version__
from lrp_operator.agent.config import SETTINGS
from lrp_operator.agent.lock import PinsLock


def lrp_agent(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from lrp_operator.agent.main import main; main()", *words]
    variables = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "COLUMNS": "300"} | variables
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)


def test_help_names_every_setting_and_the_other_command() -> None:
    text = lrp_agent("--help").stdout
    for setting in SETTINGS:
        assert f"--{setting.flag} " in text
        assert setting.key in text
    assert "cleanup" in text
    assert "--manifests" in text


def test_help_of_cleanup() -> None:
    assert "Remove every trace" in lrp_agent("cleanup", "--help").stdout


def test_version() -> None:
    assert lrp_agent("--version").stdout == f"lrp-agent {__version__}\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "what is to be followed? Give --manifests DIR"),
        (["--manifests", "d"], "which node is this? Give --node-name NAME"),
        (["--manifests", "d", "--node-name", "n", "--config", "none.yaml"], "none.yaml: can't be read"),
        (["--manifests", "d", "--node-name", "n", "--enable-ipv4", "no"], "--enable-ipv4: enableIPv4: must be true or"),
        (
            ["--manifests", "d", "--node-name", "n", "--bpf-lb-sock=false", "--kube-proxy-replacement=true"],
            "kubeProxyReplacement: true includes the socket level",
        ),
        (["--manifests", "d", "--node-name", "n", "--metrics-bind-address", "x"], "'x' is no address such as"),
        (
            ["--manifests", "d", "--node-name", "n", "--withdraw-order", "a/b"],
            "--withdraw-order: 'a/b' is to be NAMESPACE",
        ),
        (
            ["--kubeconfig", "c", "--node-name", "n", "--withdraw-order", "a"],
            "--withdraw-order: 'a' is to be NAMESPACE",
        ),
    ],
)
def test_wrong_usage_is_a_sentence(words: list[str], sentence: str) -> None:
    result = lrp_agent(*words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("lrp-agent: ")
    assert sentence in result.stderr


def test_an_unknown_flag_is_usage_too() -> None:
    assert lrp_agent("--nonsense").returncode == 2


def test_variables_count(tmp_path: Path) -> None:
    result = lrp_agent("--manifests", str(tmp_path), K8S_NODE_NAME="n", LRP_BPF_LB_SOCK="no")
    assert "LRP_BPF_LB_SOCK: socketLB.enabled: must be true or false" in result.stderr


def test_cleanup_leaves_a_running_agents_pins_alone(tmp_path: Path) -> None:
    lock = PinsLock.take(tmp_path)
    result = lrp_agent("cleanup", "--bpf-root", str(tmp_path))
    lock.release()
    assert (result.returncode, result.stdout) == (3, "")
    assert f"another agent has the pins in {tmp_path}: pid {os.getpid()} (" in result.stderr


def test_cleanup_of_nothing(tmp_path: Path) -> None:
    result = lrp_agent("cleanup", "--bpf-root", str(tmp_path / "none"), "--cgroup-root", str(tmp_path))
    assert (result.returncode, result.stdout, result.stderr) == (0, "nothing to remove\n", "")
