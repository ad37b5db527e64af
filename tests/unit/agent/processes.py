"""Starting an agent's process and waiting for it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrp_operator.agent.apimodel import Status
from lrp_operator.cli.client import AgentError, Client
from tests.unit.agent.fakes import DEADLINE

TOP = Path(__file__).parents[3]


@contextmanager
def agent(root: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """An agent of its own below a directory; killed in the end if it still runs."""
    command = [sys.executable, "-m", "tests.unit.agent.agent_process", str(root), *words]
    with subprocess.Popen(command, cwd=TOP, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until_up(root: Path, *, ready: bool = False, says: str = "") -> Status:
    """Return the status as soon as the agent has resolved its policies. ready: all is well; says: it tells this."""
    end = time.monotonic() + DEADLINE
    while True:
        try:
            status = Client(root / "agent.sock").get("status", Status)
            if status.ready or (status.policies.accepted and not ready and says in status.message):
                return status
        except AgentError:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end
        time.sleep(0.01)
