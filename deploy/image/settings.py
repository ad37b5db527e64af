"""How this machine reaches Debian and PyPI, for a build where no registry can be reached.

Such a machine often has mirrors, proxies or certificates of its own. A build is told of them by secrets: files that are
there while a command of the Dockerfile runs, and in no layer. Only what says where and how is passed on; what else the
machine is set to is its own.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_APT_WAYS = r"Acquire::(?:https?|Check-)"
_PIP_WAYS = ("index-url", "extra-index-url", "proxy", "trusted-host")


@contextmanager
def secrets(release: str) -> Iterator[dict[str, Path]]:
    """Lay down the secrets that the Dockerfiles know, those that this machine has: by their names."""
    texts = {"apt-sources": apt_sources(release), "apt-conf": apt_conf(), "pip-conf": pip_conf()}
    with TemporaryDirectory() as room:
        files = {name: Path(room) / name for name, text in texts.items() if text}
        for name, file in files.items():
            file.write_text(texts[name])
        if _CERTIFICATES.exists():
            files["ca-certificates"] = _CERTIFICATES
        yield files


def apt_sources(release: str) -> str:
    """Return this machine's sources of a release of Debian, as debian.sources spells them; empty if it has none."""
    if not shutil.which("apt-get"):
        return ""
    shape = "$(CREATED_BY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
    targets = [line.split("|") for line in _output("apt-get", "indextargets", "--format", shape).splitlines()]
    sources = dict.fromkeys(
        f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: {component}\nSigned-By: {_KEYRING}\n"
        for kind, uri, suite, component, origin in targets
        if kind == "Packages" and re.fullmatch(rf"{release}(-updates|-security)?", suite) and origin in {"Debian", ""}
    )
    return "\n".join(sources)


def apt_conf() -> str:
    """Return apt's proxies and what it is not to check; empty where there is no apt."""
    if not shutil.which("apt-config"):
        return ""
    lines = _output("apt-config", "dump", "--no-empty").splitlines()
    return "".join(f"{line}\n" for line in lines if re.match(_APT_WAYS, line))


def pip_conf() -> str:
    """Return where pip looks for packages, and how it gets there; empty where that is the usual."""
    found = re.findall(
        r"^[^.]+\.([a-z-]+)='(.*)'$", _output(sys.executable, "-m", "pip", "config", "list"), re.MULTILINE
    )
    ways = [f"{key} = {value}\n" for key, value in dict(found).items() if key in _PIP_WAYS]
    return "[global]\n" + "".join(ways) if ways else ""


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
