"""The keys of a cluster of one's own: an authority, and who is who by its certificates."""

import base64
import subprocess
from pathlib import Path

import yaml

EC = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def write_authority(room: Path) -> None:
    """Write an authority, and the key that service accounts' tokens are signed with."""
    room.mkdir(parents=True)
    _openssl(
        room, "req", "-x509", *EC, "-days", "365", "-subj", "/CN=lrp-operator e2e authority",
        "-addext", "keyUsage=critical,keyCertSign", "-keyout", "ca.key", "-out", "ca.crt",
    )  # fmt: skip
    _openssl(room, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "accounts.key")


def write_certificate(room: Path, name: str, user: str, *groups: str, at: str = "DNS:localhost") -> None:
    """Write NAME.key and NAME.crt: who it is, and, for a server, where (as openssl's subjectAltName has it)."""
    subject = "".join(f"/O={group}" for group in groups) + f"/CN={user}"
    _openssl(
        room, "req", "-x509", "-CA", "ca.crt", "-CAkey", "ca.key", "-days", "365", "-subj", subject, *EC,
        "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth,clientAuth",
        "-addext", f"subjectAltName={at}", "-keyout", f"{name}.key", "-out", f"{name}.crt",
    )  # fmt: skip


def write_kubeconfig(room: Path, name: str, url: str) -> Path:
    """Write NAME.kubeconfig for who has that certificate."""

    def data(file: str) -> str:
        return base64.b64encode((room / file).read_bytes()).decode()

    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "e2e", "cluster": {"server": url, "certificate-authority-data": data("ca.crt")}}],
        "users": [
            {
                "name": name,
                "user": {"client-certificate-data": data(f"{name}.crt"), "client-key-data": data(f"{name}.key")},
            }
        ],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": name}}],
        "current-context": "e2e",
    }
    file = room / f"{name}.kubeconfig"
    file.touch(mode=0o600)
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


def _openssl(room: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=room, check=True, capture_output=True)
