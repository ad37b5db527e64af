"""Pods' links come and go: netlink says so before Kubernetes does.

Only that something changed is listened for, never what: whoever is told looks for itself. So an overrun of the
socket (ENOBUFS) loses nothing.
"""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)

RTMGRP_LINK = 0x1
RTMGRP_IPV4_ROUTE = 0x40
RTMGRP_IPV6_ROUTE = 0x400
SETTLE_SECONDS = 0.1
"""A new pod's link makes a burst of events; one look after it is enough."""


async def watch_links(changed: Callable[[], None]) -> None:
    """Call `changed` after every burst of changes to links or routes, for ever."""
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        netlink.bind((0, RTMGRP_LINK | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE))
    except OSError as error:
        log.warning("changes of links can't be watched (%s): exempt pods are found later than they could be", error)
        await asyncio.Event().wait()
        return
    with netlink:
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(OSError):
                await loop.sock_recv(netlink, 1 << 16)
            await asyncio.sleep(SETTLE_SECONDS)
            _drain(netlink)
            changed()


def _drain(netlink: socket.socket) -> None:
    """Read away what arrived meanwhile."""
    while True:
        try:
            netlink.recv(1 << 16)
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # that one means that there was too much; the rest is still to be read
                return
