"""A child process that loads lru.c, fills its maps, attaches it to a cgroup, and leaves; the pinned links stay.

As in the product's loader: BCC would stay in memory for good. It reads a `Wish` from standard input.
"""

import os
import struct
import sys
from ipaddress import IPv4Network
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from benchmarks.crowd import crowd, under_test
from benchmarks.program import Wish
from lrp_operator.kernel import bpf
from lrp_operator.loader.sources import bpf_directory
from lrp_operator.resolve.model import FrontendEntry

_DISTRIBUTION_PACKAGES = "/usr/lib/python3/dist-packages"
_CGROUP_SOCK = 9  # BPF_PROG_TYPE_CGROUP_SOCK
_SOCK_RELEASE = 34  # BPF_CGROUP_INET_SOCK_RELEASE

HOOKS = {
    "connect4": (bpf.ProgType.CGROUP_SOCK_ADDR, bpf.AttachType.CONNECT4),
    "sendmsg4": (bpf.ProgType.CGROUP_SOCK_ADDR, bpf.AttachType.SENDMSG4),
    "recvmsg4": (bpf.ProgType.CGROUP_SOCK_ADDR, bpf.AttachType.RECVMSG4),
    "getpeername4": (bpf.ProgType.CGROUP_SOCK_ADDR, bpf.AttachType.GETPEERNAME4),
    "release": (_CGROUP_SOCK, _SOCK_RELEASE),
}
PODS = (IPv4Network("10.244.0.0/16"), IPv4Network("10.128.0.0/9"))
"""Whose addresses are whose: pods are somebody, but not the node."""


def _import_bcc() -> ModuleType:
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_directory() / "include")
    sys.path.append(_DISTRIBUTION_PACKAGES)
    import bcc  # noqa: PLC0415 (after the environment and the path are set)

    module: ModuleType = bcc
    return module


def _fill(module: Any, entries: list[FrontendEntry]) -> None:
    services: list[tuple[bytes, bytes]] = []
    backends: list[tuple[bytes, bytes]] = []
    for number, entry in enumerate(entries, 1):
        frontend = entry.frontend
        port = frontend.port.to_bytes(2, "big")
        for slot in range(len(entry.backends) + 1):
            key = struct.pack("=4s2sHBB2x", frontend.ip, port, slot, frontend.protocol, 0)
            backend = 0 if slot == 0 else len(backends) + slot
            services.append((key, struct.pack("=IHHI", backend, len(entry.backends), number, 0)))
        for backend_address in entry.backends:
            value = struct.pack("=4s2sHI", backend_address.ip, backend_address.port.to_bytes(2, "big"), 0, 0)
            backends.append((struct.pack("=I", len(backends) + 1), value))
    owners = [(struct.pack("=I4s", net.prefixlen, net.network_address.packed), struct.pack("=I", 2)) for net in PODS]
    for name, items in (("services", services), ("backends", backends), ("owners", owners)):
        opened = bpf.Map(bpf.Fd(os.dup(module[name].map_fd)))
        for key, value in items:
            opened.update(key, value)
        opened.close()


def main() -> None:
    """Load, fill, attach, pin."""
    wish = msgspec.json.decode(sys.stdin.buffer.read(), type=Wish)
    module = _import_bcc().BPF(src_file=str(Path(__file__).with_name("lru.c")))
    tested = under_test(wish.backend)
    _fill(module, [*tested, *crowd(wish.frontends - len(tested))])
    pins = Path(wish.bpf_root)
    pins.mkdir()
    cgroup = os.open(wish.cgroup, os.O_RDONLY | os.O_DIRECTORY)
    for name, (kind, hook) in HOOKS.items():
        program = module.load_func(name, int(kind), attach_type=int(hook))
        with bpf.Fd(bpf.call(bpf.Command.LINK_CREATE, struct.pack("=4I", program.fd, cgroup, hook, 0))) as link:
            bpf.pin(link, pins / name)
    os.close(cgroup)


if __name__ == "__main__":
    main()
