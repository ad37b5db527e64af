"""A way to the API server from inside a network namespace: what connects to its address there is passed on, unseen."""

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Self

from lrp_operator.kernel.netns import Where, in_netns
from tests.cluster.apiserver import LOCALHOST


class Relay:
    """Listens on a port of loopback inside a namespace, and connects to the same port outside. A context manager."""

    def __init__(self, netns: Where, port: int) -> None:
        self._listener = in_netns(netns, lambda: socket.create_server((LOCALHOST, port)))
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._stop = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        connections: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._pass_on(reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)

        server = await asyncio.start_server(connected, sock=self._listener)
        await self._stop.wait()
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(LOCALHOST, self._port)
        except OSError:
            writer.close()
            return
        await asyncio.wait(
            [asyncio.create_task(_copy(reader, back)), asyncio.create_task(_copy(there, writer))],
            return_when=asyncio.FIRST_COMPLETED,
        )


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until either side ends it, and then the other side hears of it."""
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
