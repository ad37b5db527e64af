"""Who we are to the API server, from files that change under us."""

import json
import stat
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lrp_operator.sources.kube import credentials
from lrp_operator.sources.kube.credentials import Kubeconfig, ServiceAccount, checked_server
from lrp_operator.sources.kube.errors import CredentialsError

CERTIFICATE = next(Path("/etc/ssl/certs").glob("*.pem"))


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "ca.crt").write_bytes(CERTIFICATE.read_bytes())
    return tmp_path


async def test_a_service_accounts_token_is_read_each_time(account: Path) -> None:
    here = ServiceAccount("https://10.0.0.1:6443/", account)
    first = await here.access()
    assert (first.server, first.authorization) == ("https://10.0.0.1:6443", "Bearer first")
    (account / "token").write_text("second")
    second = await here.access()
    assert second.authorization == "Bearer second"
    assert second.tls is first.tls, "the authority is the same: connections may be kept"


@pytest.mark.parametrize(
    ("file", "content"),
    [("token", None), ("ca.crt", None), ("ca.crt", b"none"), ("token", b"\xff"), ("token", b"two\nlines")],
)
async def test_broken_files_are_told_and_read_again(account: Path, file: str, content: bytes | None) -> None:
    here = ServiceAccount("https://10.0.0.1", account)
    good = (account / file).read_bytes()
    (account / file).unlink()
    if content is not None:
        (account / file).write_bytes(content)
    with pytest.raises(
        CredentialsError,
        match=r"service account's files can't be read|holds no certificates|characters that no token has",
    ):
        await here.access()
    (account / file).write_bytes(good)
    assert (await here.access()).authorization == "Bearer first"


def test_where_the_server_is(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    assert ServiceAccount("", account).server == "https://[fd00::1]:6443"
    assert ServiceAccount("https://node:1", account).server == "https://node:1"
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(CredentialsError, match="--api-server"):
        ServiceAccount("", account)
    assert ServiceAccount.is_here(account)
    assert not ServiceAccount.is_here(account / "none")


@pytest.mark.parametrize("url", ["10.0.0.1", "10.0.0.1:6443", "ftp://a", "https://", "https://a?b"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(CredentialsError, match="no address of an API server"):
        checked_server(url)


# --- kubeconfigs ------------------------------------------------------------------------------------------------------


def kubeconfig(directory: Path, user: dict[str, Any], **cluster: Any) -> str:
    path = directory / "config"
    names = {"cluster": "c", "user": "u"}
    tree = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "https://10.0.0.1:6443", **cluster}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "one", "context": names}, {"name": "nobody", "context": {"cluster": "c", "user": ""}}],
        "current-context": "one",
    }
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def plugin(directory: Path, *, lives: float | None) -> dict[str, Any]:
    """A user whose token an exec plugin makes: "token-1" at its first run, and so on. lives: seconds."""
    path = directory / "plugin"
    path.write_text(
        textwrap.dedent(f"""\
            #!{sys.executable}
            import json, pathlib, time
            runs = pathlib.Path({str(directory)!r}) / "runs"
            runs.write_text((runs.read_text() if runs.exists() else "") + "x")
            status = {{"token": f"token-{{len(runs.read_text())}}"}}
            lives = {lives!r}
            if lives is not None:
                status["expirationTimestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + lives))
            kind = {{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}}
            print(json.dumps(kind | {{"status": status}}))
            """)
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path), "interactiveMode": "Never"}}


async def test_a_token_in_a_file_is_read_anew_when_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first")
    config = Kubeconfig(kubeconfig(tmp_path, {"tokenFile": str(tmp_path / "token")}))
    first = await config.access()
    assert (first.server, first.authorization) == ("https://10.0.0.1:6443", "Bearer first")
    (tmp_path / "token").write_text("second\n")
    assert await config.access() is first, "nobody has refused it"
    await config.refused(first)
    second = await config.access()
    assert second.authorization == "Bearer second"
    await config.refused(first)
    assert await config.access() is second, "it was another that was refused"


async def test_an_exec_plugin_runs_once_until_it_is_refused(tmp_path: Path) -> None:
    config = Kubeconfig(kubeconfig(tmp_path, plugin(tmp_path, lives=None)))
    assert not (tmp_path / "runs").exists(), "not before it is needed"
    access = [await config.access() for _ in range(3)]
    assert {a.authorization for a in access} == {"Bearer token-1"}
    await config.refused(access[0])
    assert (await config.access()).authorization == "Bearer token-2"


async def test_an_exec_plugin_runs_again_before_its_token_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Kubeconfig(kubeconfig(tmp_path, plugin(tmp_path, lives=3600)))
    assert (await config.access()).authorization == "Bearer token-1"
    now = time.time()
    monkeypatch.setattr(credentials.time, "time", lambda: now + 3500)
    assert (await config.access()).authorization == "Bearer token-1"
    monkeypatch.setattr(credentials.time, "time", lambda: now + 3600 - credentials.EARLY_SECONDS + 2)
    assert (await config.access()).authorization == "Bearer token-2"


@pytest.mark.filterwarnings("ignore")
async def test_an_exec_plugin_that_fails_is_told(tmp_path: Path) -> None:
    user = plugin(tmp_path, lives=None)
    (tmp_path / "plugin").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(CredentialsError, match=r"exec plugin of user 'u' .* gave no credentials"):
        await Kubeconfig(kubeconfig(tmp_path, user)).access()


async def test_the_server_of_the_command_line_comes_first(tmp_path: Path) -> None:
    config = Kubeconfig(kubeconfig(tmp_path, {"token": "t"}, **{"tls-server-name": "kube"}), server="https://node:6443")
    access = await config.access()
    assert (config.server, access.server, access.server_name) == ("https://node:6443", "https://node:6443", "kube")


async def test_a_context_without_a_user(tmp_path: Path) -> None:
    access = await Kubeconfig(kubeconfig(tmp_path, {"token": "t"}), "nobody").access()
    assert access.authorization == ""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "there is no kubeconfig"),
        ("", "can't be used"),
        ("[1]", "can't be used"),
        ("a: [", "can't be used"),
        (json.dumps({"clusters": [], "contexts": [], "users": [], "current-context": "x"}), "can't be used: .* name x"),
        ("\x00", "can't be used"),
    ],
)
def test_a_broken_kubeconfig_is_a_sentence(tmp_path: Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CredentialsError, match=sentence):
        Kubeconfig(str(path))
