"""Log lines on standard error: text for people, or JSON (one object a line) for collectors.

Only the standard library. A line says what happened to which object; it never carries a manifest's contents.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum


class LogFormat(StrEnum):
    """How lines look."""

    TEXT = "text"
    JSON = "json"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix("lrp_operator."),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")


def set_up(log_format: LogFormat) -> None:
    """Send the program's lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format is LogFormat.JSON else _Text())
    root = logging.getLogger("lrp_operator")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False
    logging.getLogger("aiohttp").handlers[:] = [handler]
    logging.getLogger("asyncio").handlers[:] = [handler]


class OnChange:
    """Logs a message when it differs from the last one under its name, so that a retried failure is one line."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._last: dict[str, str] = {}

    def tell(self, name: str, message: str, *, cured: str = "") -> None:
        """Log `message` as a warning if it is new under `name`; empty after one that was not logs `cured`."""
        if message == self._last.get(name, ""):
            return
        self._last[name] = message
        if message:
            self._log.warning("%s", message)
        elif cured:
            self._log.info("%s", cured)
