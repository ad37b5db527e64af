"""A machine for one kernel: QEMU without KVM, with this machine's own files as its disk.

The guest sees the host's root directory through virtio-fs, mounted read-only, with a layer of memory on top: so it runs
the same Python, BCC and project as the host, and nothing that it writes comes through. It has no network. Its first
program (an initramfs with busybox, the few modules that this takes and a script) makes that root and starts
`tests.kernels.guest`, which speaks on the second serial port; the kernel's messages go to a file by the first.

Other modules are loaded when they are asked for, from the kernel's own tree in the cache.
"""

import lzma
import os
import re
import selectors
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.kernels import rows
from tests.kernels.archive import UnpackedKernel

PROJECT = Path(__file__).parents[2]
_FIRST_MODULES = ("virtio_pci", "virtiofs", "overlay")
_MEMORY = "1024M"
_SHARERS = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")  # Debian 13 and 12
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LINES = 12

_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
for module in /modules/*.ko; do insmod $module; done
mount -t virtiofs -o ro host /lower && mount -t tmpfs memory /upper && mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /root
for place in proc:proc sysfs:sys devtmpfs:dev tmpfs:run cgroup2:sys/fs/cgroup bpf:sys/fs/bpf; do
  mount -t ${place%%:*} ${place%%:*} /root/${place#*:}
done
mkdir /root/run/kernel
printf '#!/bin/sh\\nexec /sbin/modprobe -d %s "$@"\\n' TREE > /root/run/kernel/modprobe
chmod +x /root/run/kernel/modprobe
echo /run/kernel/modprobe > /proc/sys/kernel/modprobe
umount /proc
exec switch_root /root /bin/sh -c 'COMMAND; echo o > /proc/sysrq-trigger; sleep 60'
"""


class MachineError(Exception):
    """A guest could not be run, or did not do what it should; the text has the console's last lines."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. silence: between two words of a guest; life: of a guest."""

    silence: float = 300.0
    life: float = 1800.0


def run(kernel: UnpackedKernel, busybox: Path, checks: Sequence[str], limits: Limits) -> Iterator[rows.Said]:
    """Boot a kernel, have it do checks, and yield what it says. Raises MachineError where it comes to no end."""
    with ExitStack() as stack:
        room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lrp-kernel-")))
        console = _new_console(kernel)
        _write_initramfs(room / "initramfs", kernel, busybox, checks)
        sharer = _start(stack, _share(room / "files.sock"), room / "files.log")
        _wait_for(room / "files.sock", sharer, room / "files.log")
        machine = _start(stack, _qemu(kernel, room, console), room / "qemu.log", stdout=subprocess.PIPE)
        ended = False
        for line in _lines(machine, limits, console):
            try:
                said = rows.decode(line)
            except msgspec.DecodeError as error:
                raise _lost(f"the guest said what can't be read ({line!r})", console) from error
            ended = isinstance(said, rows.End)
            yield said
        if not ended:
            raise _lost(f"the guest ended before its last check: {_last(room / 'qemu.log')}", console)
        console.unlink()


def _new_console(kernel: UnpackedKernel) -> Path:
    """A file for the kernel's messages, of this guest alone. It stays where the guest is lost."""
    descriptor, path = tempfile.mkstemp(".log", "console-", kernel.directory)
    os.close(descriptor)
    return Path(path)


def _qemu(kernel: UnpackedKernel, room: Path, console: Path) -> list[str]:
    memory = f"memory-backend-memfd,id=memory,size={_MEMORY},share=on"
    return [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", _MEMORY,
        "-nodefaults", "-display", "none", "-no-reboot", "-object", memory, "-numa", "node,memdev=memory",
        "-chardev", f"socket,id=files,path={room}/files.sock", "-device", "vhost-user-fs-pci,chardev=files,tag=host",
        "-serial", f"file:{console}", "-serial", "stdio", "-kernel", str(kernel.image), "-initrd", f"{room}/initramfs",
        # Emulation is slow enough: no mitigations for processors that it is not. A panic ends the machine.
        "-append", "console=ttyS0 panic=-1 mitigations=off random.trust_cpu=on",
    ]  # fmt: skip


def sharer() -> str | None:
    """The program that gives guests this machine's files; None if it is not installed."""
    return next((path for path in _SHARERS if Path(path).exists()), None)


def _share(socket: Path) -> list[str]:
    program = sharer()
    if program is None:
        raise MachineError("there is no virtiofsd here: install the package virtiofsd, or qemu-system-common")
    return [program, f"--socket-path={socket}", "-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=always"]


def _start(stack: ExitStack, command: list[str], log: Path, stdout: int | None = None) -> "subprocess.Popen[bytes]":
    """Start a program, which dies with this process and gives way to others."""
    words = stack.enter_context(log.open("wb"))
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "5", *command],
        stdin=subprocess.DEVNULL,
        stdout=words if stdout is None else stdout,
        stderr=words,
    )
    stack.callback(_end, process)
    return process


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def _wait_for(socket: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 10
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise MachineError(f"virtiofsd does not start: {_last(log)}")
        time.sleep(0.02)


def _lines(machine: "subprocess.Popen[bytes]", limits: Limits, console: Path) -> Iterator[bytes]:
    """The lines that a machine writes, until it ends. Raises MachineError when it takes too long."""
    assert machine.stdout is not None
    stream, waiting = machine.stdout.fileno(), b""
    born = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            left = limits.life - (time.monotonic() - born)
            if not selector.select(min(left, limits.silence)):
                raise _lost(f"no word for {min(limits.silence, limits.life):.0f} s", console)
            if not (data := os.read(stream, 65536)):
                return
            *lines, waiting = (waiting + data).split(b"\n")
            yield from (line.strip() for line in lines if line.strip())
            if time.monotonic() - born > limits.life:
                raise _lost(f"not done after {limits.life:.0f} s", console)


def _lost(what: str, console: Path) -> MachineError:
    return MachineError(f"{what}; the console's last lines:\n{_last(console)}\n({console})")


def _last(log: Path) -> str:
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|[^\n\x20-\x7e]", "", log.read_text(errors="replace"))
    return "\n".join(text.strip().splitlines()[-_LINES:])


# --------------------------------------------------------------------------------------------------- the initramfs


def _write_initramfs(target: Path, kernel: UnpackedKernel, busybox: Path, checks: Sequence[str]) -> None:
    files = {"init": (_script(kernel, checks).encode(), 0o755), "bin/busybox": (busybox.read_bytes(), 0o755)}
    for number, module in enumerate(kernel.with_dependencies(_FIRST_MODULES)):
        name, packed = module.name.partition(".ko")[0], module.read_bytes()
        plain = lzma.decompress(packed) if module.suffix == ".xz" else packed
        files[f"modules/{number:02}-{name}.ko"] = (plain, 0o644)
    directories = ["bin", "modules", "proc", "lower", "upper", "root"]
    target.write_bytes(_archive(directories, files))


def _script(kernel: UnpackedKernel, checks: Sequence[str]) -> str:
    """The first program: the script above, with what is this run's own."""
    guest = shlex.join([sys.executable, "-B", "-m", "tests.kernels.guest", *checks])
    command = f"cd {shlex.quote(str(PROJECT))} && HOME=/run PATH={_PATH} PYTHONPATH=src {guest}"
    quoted = command.replace("'", "'\\''")
    return _INIT.replace("COMMAND", quoted).replace("TREE", shlex.quote(str(kernel.directory)))


def _archive(directories: Sequence[str], files: dict[str, tuple[bytes, int]]) -> bytes:
    """Lay files out as the kernel wants an initramfs: a cpio archive of the format "newc"."""
    members = [(name, 0o040755, b"") for name in directories]
    members += [(name, 0o100000 | mode, content) for name, (content, mode) in files.items()]
    packed = bytearray()
    for number, (name, mode, content) in enumerate([*members, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        packed += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        packed += bytes(-len(packed) % 4) + content
        packed += bytes(-len(packed) % 4)
    return bytes(packed)
