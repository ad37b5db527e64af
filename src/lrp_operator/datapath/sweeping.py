"""Places in the table of sockets whose owner was closed without a program of ours noticing.

A place is given back at its owner's close(), by a program (bpf/socket.c). Where someone detached that program for a
while, and with an MPTCP connection (the socket that is redirected is not the one that is closed), places stay taken:
nothing breaks, but other sockets are remembered at a higher price, and an earlier version's tables never empty. So
after each start and each repair, and when a table is crowded, the tables are compared with the sockets that there are.

A socket that has no port yet is in no list, and may be about to connect: a place is given back only when its owner has
been missing twice.
"""

from collections.abc import Iterable

from lrp_operator.datapath.remembered import SocketTable
from lrp_operator.kernel.sockdiag import list_cookies_everywhere


class Sweep:
    """Two looks, at least one pass apart; then it is over, until a table is crowded."""

    def __init__(self) -> None:
        self._missing: set[int] | None = None
        self.done = False

    def look(self, tables: Iterable[SocketTable]) -> None:
        """Look once more, if there is reason. Raises SockDiagError, NetnsError, OSError; then it is not over."""
        tables = list(tables)
        if self.done and any(table.crowded for table in tables):
            self._missing, self.done = None, False
        if self.done:
            return
        owners = {cookie for table in tables for cookie, _ in table.items()}
        if not owners:
            self.done = True
            return
        alive, unreadable = list_cookies_everywhere()
        if unreadable:
            return  # sockets in namespaces that could not be searched may be alive
        missing = owners - alive
        if self._missing is None:
            self._missing = missing
            self.done = not missing
            return
        for table in tables:
            table.free(missing & self._missing)
        self.done = True
