"""Logging: one logger per module, talk on stderr, JSON lines where a machine reads.

What a verb tells its user - what was done, what was rejected and why - goes through the logger ``tapetum.cli``
and is heard unless the user asked for quiet; what rooms note goes through their own loggers and is heard with
``--verbose``.
"""

from __future__ import annotations

import json
import logging
import sys

TALK = "tapetum.cli"


class PlainFormatter(logging.Formatter):
    """The message alone; warnings say that they are one, and other rooms than the command line say who speaks."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        text = super().format(record)
        if record.levelno == logging.WARNING:
            text = f"warning: {text}"
        return text if record.name == TALK else f"{record.name.removeprefix('tapetum.')}: {text}"


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
    """Send Tapetum's log to stderr.

    Parameters
    ----------
    verbosity
        -1 errors only, 0 what verbs tell and warnings, 1 what rooms note as well, 2 everything.
    as_json
        One JSON object per line instead of text.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else PlainFormatter("%(message)s"))
    logger = logging.getLogger("tapetum")
    logger.handlers[:] = [handler]
    logger.propagate = False
    levels = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}
    logger.setLevel(levels.get(max(verbosity, -1), logging.DEBUG))
    logging.getLogger(TALK).setLevel(logging.ERROR if verbosity < 0 else logging.INFO)
