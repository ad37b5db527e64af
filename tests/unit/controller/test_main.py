from pathlib import Path

import pytest
from typer.testing import CliRunner

from lrp_operator.controller.main import app


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "LRP_MAX_FRONTENDS_PER_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--leader-elect", "lease"], "--leader-elect: 'lease' is not NAMESPACE/NAME"),
        (["--leader-elect", "a/b/c"], "is not NAMESPACE/NAME"),
        (["--lrp-max-frontends-per-namespace", "-1"], "--lrp-max-frontends-per-namespace: "),
        (["--lrp-address-matcher-cidrs", "banana"], "is no network such as"),
        (["--kubeconfig", "/nowhere/config"], "there is no kubeconfig /nowhere/config"),
        (["--config", "/nowhere/config.yaml"], "/nowhere/config.yaml: can't be read"),
        (["withdraw", "--order", "a", "--agents", "a=b", "--agent-image", "i"], "--order: 'a' is not NAMESPACE/NAME"),
        (["withdraw", "--order", "a/b", "--agents", "a=b", "--agent-image", "i", "--timeout", "0"], "--timeout"),
    ],
)
def test_what_can_not_be_used_is_refused_in_a_sentence(args: list[str], words: str) -> None:
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(
        "{apiVersion: v1, kind: Config, clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}],"
        " users: [], contexts: [{name: a, context: {cluster: a}}], current-context: a}"
    )
    result = CliRunner().invoke(app, ["--kubeconfig", str(kubeconfig), "--healthz-bind-address", "banana"])
    assert result.exit_code == 2
    assert "'banana' is no address such as" in result.stderr


def test_the_version_needs_nothing() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout.split()[0]) == (0, "lrp-controller")
