"""The daemon's log, on stderr: lines for people, or one JSON object a line for programs."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from dpserver.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")


class JsonFormatter(logging.Formatter):
    """One record, one line, one object."""

    def format(self, record: logging.LogRecord) -> str:
        """Give time (ISO 8601, UTC), level, logger and message; figures and the traceback where there are any."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (figures := getattr(record, "figures", None)) is not None:
            entry["figures"] = figures
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def set_up_logging(level: str, *, is_json: bool) -> None:
    """Send the log of dpserver to stderr.

    Args:
        level: one of `LEVELS`.
        is_json: write JSON lines.

    Raises:
        ConfigError: the level has another name.
    """
    if level.lower() not in LEVELS:
        raise ConfigError(f"log level {level!r} is unknown; expected one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if is_json else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    package = logging.getLogger("dpserver")
    package.handlers[:] = [handler]
    package.setLevel(level.upper())
    package.propagate = False
