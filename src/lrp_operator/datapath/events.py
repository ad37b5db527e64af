"""Redirects as they happen: the kernel's ring, off unless someone watches."""

import struct

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.datapath.layout import CONTROL_WATCHING, unpack_event
from lrp_operator.datapath.model import RedirectEvent
from lrp_operator.kernel import bpf
from lrp_operator.kernel.ringbuf import RingBuffer

_HOOKS = {1: "connect", 2: "sendmsg", 3: "packet"}
_ACTIONS = {1: "redirected", 2: "refused", 3: "skipped", 4: "failed"}


class Events:
    """The ring and its switch."""

    def __init__(self, ring: bpf.Map, control: bpf.Map) -> None:
        self._ring = RingBuffer(ring.fd.number)
        self._control = control
        self.watch(on=False)  # an agent that was killed may have left it on

    def watch(self, *, on: bool) -> None:
        """Turn the kernel's reporting on or off. Raises OSError."""
        self._control.update(struct.pack("=I", CONTROL_WATCHING), struct.pack("=I", int(on)))

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when events wait."""
        return self._ring.fileno()

    def read(self) -> list[RedirectEvent]:
        """Return what has come since the last read."""
        return [_decode(raw) for raw in self._ring.read()]

    def close(self) -> None:
        """Turn reporting off and let go."""
        try:
            self.watch(on=False)
        finally:
            self._ring.close()


def _decode(raw: bytes) -> RedirectEvent:
    cookie, pid, hook, action, family, number, front_ip, back_ip, front_port, back_port, command, ifindex = (
        unpack_event(raw)
    )
    size = 4 if family == 4 else 16
    protocol = Protocol(number)
    backend = L4Addr(back_ip[:size], int.from_bytes(back_port, "big"), protocol)
    return RedirectEvent(
        hook=_HOOKS[hook],
        action=_ACTIONS[action],
        frontend=L4Addr(front_ip[:size], int.from_bytes(front_port, "big"), protocol),
        backend=backend if backend.port else None,
        netns_cookie=cookie,
        pid=pid,
        command=command.split(b"\0", 1)[0].decode(errors="replace"),
        ifindex=ifindex,
    )
