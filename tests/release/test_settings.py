"""What a build is told of the machine that it runs on: ways to Debian and PyPI, and nothing else."""

import pytest

from deploy.image import settings

TARGETS = [
    "Packages|http://mirror.invalid/debian/|bookworm|main|Debian",
    "Packages|http://mirror.invalid/debian/|bookworm|main|Debian",  # of another architecture
    "Translations|http://mirror.invalid/debian/|bookworm|main|Debian",
    "Packages|http://mirror.invalid/security/|bookworm-security|main|",  # not fetched yet
    "Packages|http://mirror.invalid/debian/|trixie|main|Debian",
    "Packages|http://other.invalid/|bookworm|main|Other",
]
TOLD = {
    "apt-get": "\n".join(TARGETS),
    "apt-config": 'APT::Architecture "amd64";\nAcquire::http::Proxy "http://proxy.invalid:3128";\n'
    'Acquire::Check-Date "false";\nAcquire::Languages "none";\n',
    "pip": "global.index-url='https://pypi.invalid/simple'\n:env:.timeout='10'\n:env:.proxy='http://proxy.invalid:3128'\n",
}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with ways of its own."""
    monkeypatch.setattr(settings, "_output", lambda *command: TOLD["pip" if "pip" in command else command[0]])
    monkeypatch.setattr(settings.shutil, "which", lambda _name: "/usr/bin/it")


def test_the_releases_sources_each_once() -> None:
    found = settings.apt_sources("bookworm")
    assert [line for line in found.splitlines() if line.startswith(("URIs", "Suites"))] == [
        "URIs: http://mirror.invalid/debian/",
        "Suites: bookworm",
        "URIs: http://mirror.invalid/security/",
        "Suites: bookworm-security",
    ]


def test_apts_ways() -> None:
    assert settings.apt_conf() == ('Acquire::http::Proxy "http://proxy.invalid:3128";\nAcquire::Check-Date "false";\n')


def test_pips_ways() -> None:
    with settings.secrets("bookworm") as files:
        assert files["pip-conf"].read_text() == (
            "[global]\nindex-url = https://pypi.invalid/simple\nproxy = http://proxy.invalid:3128\n"
        )
    assert not files["pip-conf"].exists()


def test_a_machine_without_any_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_output", lambda *_command: "")
    monkeypatch.setattr(settings.shutil, "which", lambda _name: None)
    with settings.secrets("bookworm") as files:
        assert set(files) <= {"ca-certificates"}
