"""`python -m tests.e2e.kind`: the same suite on a kind cluster, for who has Docker and kind.

The cluster is made with kind's own network and removed again; what the suite does to a node itself is skipped.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cluster import binaries
from tests.e2e import images
from tests.e2e.bringing import built_images

NAME = "lrp-e2e"
ROOT = Path(__file__).parents[2]


def main() -> int:
    """Make the cluster, load the images, run the suite; then remove the cluster."""
    if missing := [program for program in ("docker", "kind") if not shutil.which(program)]:
        print(f"not installed: {', '.join(missing)}; `make e2e` needs neither", file=sys.stderr)
        return 1
    tools = {str(binaries.program(name).parent) for name in ("kubectl", "helm")}
    with tempfile.TemporaryDirectory(prefix="lrp-e2e-kind-") as room:
        environment = {
            **os.environ,
            "KUBECONFIG": f"{room}/kubeconfig",
            "PATH": os.pathsep.join([*sorted(tools), os.environ["PATH"]]),
        }

        def kind(*args: str | Path) -> None:
            subprocess.run(["kind", *args, "--name", NAME], env=environment, check=True)

        archives = [*images.write_all(Path(room) / "images"), *built_images()]
        try:
            kind("create", "cluster", "--wait", "3m")
            for archive in archives:
                kind("load", "image-archive", archive)
            suite = [sys.executable, "-m", "pytest", "tests/e2e", "-s", "-v", *sys.argv[1:]]
            return subprocess.run(suite, cwd=ROOT, env=environment, check=False).returncode
        finally:
            kind("delete", "cluster")


if __name__ == "__main__":
    sys.exit(main())
