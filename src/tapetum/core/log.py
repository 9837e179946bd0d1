"""Logging: one logger per module, talk on stderr, JSON lines where a machine reads."""

from __future__ import annotations

import json
import logging
import sys


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure_logging(verbosity: int = 0, *, as_json: bool = False) -> None:
    """Send Tapetum's log to stderr; `verbosity` -1 errors only, 0 warnings, 1 progress, 2 everything."""
    levels = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("tapetum")
    logger.handlers[:] = [handler]
    logger.setLevel(levels.get(max(verbosity, -1), logging.DEBUG))
    logger.propagate = False
