"""What is shipped: a wheel brings the eBPF sources along, for the loader compiles them on the node."""

import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

from lrp_operator import __version__

ROOT = Path(__file__).parents[2]


def test_the_wheel_carries_every_ebpf_source(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = {name.removeprefix("lrp_operator/") for name in zipfile.ZipFile(wheel).namelist()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "bpf").rglob("*") if path.is_file()}
    assert sources
    assert sources <= shipped


def test_the_version_is_the_packages() -> None:
    assert __version__ == version("lrp-operator")
