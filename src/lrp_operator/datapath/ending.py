"""Ending sockets that are still connected to a backend which has left.

A connected UDP socket would keep sending to a pod that is gone, and a resolver would wait for its timeout. Ended
(SOCK_DESTROY), its owner sees an error at once, connects anew, and is sent to a backend that lives. TCP notices by
itself; it is ended too where the settings ask for it.

A backend is left alone while any frontend still has it. Known limit: a socket that its owner connected to the pod's
own address has the same remote address, and is ended as well.
"""

import logging
import socket

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.kernel.netns import NetnsError
from lrp_operator.kernel.sockdiag import SockDiagError, end_sockets_everywhere

log = logging.getLogger(__name__)

_NUMBERS = {Protocol.UDP: socket.IPPROTO_UDP, Protocol.TCP: socket.IPPROTO_TCP}


def end_sockets_of(backends: set[L4Addr], *, tcp: bool) -> tuple[int, list[str]]:
    """End sockets connected to these backends in every namespace; return how many, and what could not be done."""
    ended, problems = 0, []
    for protocol in (Protocol.UDP, Protocol.TCP) if tcp else (Protocol.UDP,):
        remotes = {(backend.ip, backend.port) for backend in backends if backend.protocol is protocol}
        if not remotes:
            continue
        try:
            report = end_sockets_everywhere(_NUMBERS[protocol], remotes)
        except (SockDiagError, NetnsError) as error:
            problems.append(f"sockets connected to backends that left could not be ended: {error}")
            continue
        for problem in report.problems:
            log.info("clients of backends that left may not notice at once: %s", problem)
        ended += report.ended
    return ended, problems
