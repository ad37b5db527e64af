"""The parent's side: what was kept is put together; else start the child, wait, and read its answer or its error."""

import logging
import subprocess
import sys

import msgspec

from lrp_operator.loader import again
from lrp_operator.loader.kept import Store
from lrp_operator.loader.messages import Failure, Manifest, Request

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 60  # the child takes half a second; a throttled one much longer
_LOG_LINES = 15


class LoaderError(Exception):
    """The child could not build what was asked. The text has the step, the program and the end of the log."""

    def __init__(self, failure: Failure, log: str) -> None:
        self.failure = failure
        self.log_tail = "\n".join(log.strip().splitlines()[-_LOG_LINES:])
        where = f" of {failure.program}" if failure.program else ""
        text = f"eBPF {failure.step}{where} failed: {failure.message}"
        super().__init__(f"{text}\n{self.log_tail}" if self.log_tail else text)


def build(request: Request) -> Manifest:
    """Build what the request says. Raises LoaderError."""
    store = Store.given()
    if store and (manifest := again.build(request, store)):
        log.info("programs were put together from what was kept in %s", store.directory)
        return manifest
    manifest = _compile(request)
    if store and manifest.not_kept:
        log.warning("the next start after a boot compiles again, for nothing was kept: %s", manifest.not_kept)
    return manifest


def _compile(request: Request) -> Manifest:
    command = [sys.executable, "-m", "lrp_operator.loader"]
    try:
        child = subprocess.run(
            command, input=msgspec.json.encode(request), capture_output=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        log = (error.stderr or b"").decode(errors="replace")
        raise LoaderError(Failure("compile", f"no answer within {_TIMEOUT_SECONDS} seconds"), log) from error
    log = child.stderr.decode(errors="replace")
    try:
        if child.returncode == 0:
            return msgspec.json.decode(child.stdout, type=Manifest)
        failure = msgspec.json.decode(child.stdout, type=Failure)
    except msgspec.DecodeError:
        failure = Failure("child", f"it ended with code {child.returncode} and no answer")
    raise LoaderError(failure, log)
