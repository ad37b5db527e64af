"""Pods' links come and go: netlink says so before Kubernetes does, and exempt pods are looked for at once."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from lrp_operator.kernel.linkwatch import LinkWatch

log = logging.getLogger(__name__)


async def watch_links(changed: Callable[[], None]) -> None:
    """Call `changed` after every burst of changes to links, routes or neighbours, for ever."""
    try:
        with contextlib.closing(LinkWatch()) as watch:
            async for _ in watch.changes():
                changed()
    except OSError as error:
        log.warning("changes of links can't be watched (%s): exempt pods are found later than they could be", error)
        await asyncio.Event().wait()
