"""Images without a registry: a few files each, packed here as OCI archives that `ctr`, `kind` and `podman` load.

The programs are built from their modules and stand alone in their images. The client's is made of this machine's own
curl, dig and shell with the libraries that they need: what people type in such a pod is typed here.
"""

import hashlib
import io
import json
import platform
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster import binaries

TAG = "e2e"
# Files of the image's system, by their path: a program, and what makes names and addresses known to it.
CLIENT_TOOLS = ["sh", "cat", "sleep", "ls", "grep", "curl", "dig"]
SYSTEM = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": b"root:x:0:\n",
    "etc/nsswitch.conf": b"hosts: files dns\n",
}
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def name_of(image: str) -> str:
    """The image's full name, as pods have it."""
    return f"localhost/lrp-e2e-{image}:{TAG}"


def write_all(directory: Path) -> list[Path]:
    """Write every image's archive; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    pod = binaries.program("e2e-pod")
    return [
        _write(directory, "pause", {"e2e-pod": pod}, ["/e2e-pod", "pause"]),
        _write(directory, "web", {"e2e-pod": pod}, ["/e2e-pod", "serve"]),
        _write(directory, "client", {"e2e-pod": pod, **_tools(CLIENT_TOOLS)}, ["/bin/sleep", "infinity"]),
        *(
            _write(directory, name, {name: binaries.program(name)}, [f"/{name}"])
            for name in ("coredns", "node-cache", "ec2-metadata-mock")
        ),
    ]


def _tools(names: Sequence[str]) -> dict[str, Path]:
    """This machine's programs and their libraries, by the paths that they have in an image."""
    files: dict[str, Path] = {}
    for name in names:
        program = shutil.which(name)
        assert program, f"{name} is not installed: run `make setup`"
        files[f"bin/{name}"] = Path(program).resolve()
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"(/\S+) \(0x", listed):
            files[library.lstrip("/")] = Path(library).resolve()
    return files


def _write(directory: Path, image: str, files: Mapping[str, Path], entrypoint: list[str]) -> Path:
    """Write one archive: an index, a manifest, a configuration, and one layer."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for place in ("tmp", "etc", "root"):
            entry = tarfile.TarInfo(place)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if place == "tmp" else 0o755
            tar.addfile(entry)
        for path, text in SYSTEM.items():
            _add(tar, path, text, 0o644)
        for path, source in sorted(files.items()):
            _add(tar, path, source.read_bytes(), 0o755)
    blobs: dict[str, bytes] = {}

    def blob(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}

    packed = blob(layer.getvalue(), "layer.v1.tar")
    config = {
        "architecture": MACHINES[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [packed["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": [packed],
    }
    described = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    described["annotations"] = {
        "io.containerd.image.name": name_of(image),
        "org.opencontainers.image.ref.name": TAG,
    }
    index = {"schemaVersion": 2, "manifests": [described]}
    target = directory / f"{image}.tar"
    with tarfile.open(target, "w") as tar:
        _add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644)
        _add(tar, "index.json", json.dumps(index).encode(), 0o644)
        for digest, data in blobs.items():
            _add(tar, f"blobs/sha256/{digest}", data, 0o644)
    return target


def _add(tar: tarfile.TarFile, path: str, data: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))
