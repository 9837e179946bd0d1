"""The `tapetum` command: one short file per noun; heavy imports live inside the verbs, so that help is instant."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command; what goes wrong becomes one line on stderr and an exit status, never a traceback."""
    # more processes, not threads that wait for each other; read when numpy is imported, so before anything else
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from tapetum.cli.app import app
    from tapetum.core.errors import TapetumError

    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # a full disk shows here, not in the interpreter's last breath
    except TapetumError as problem:
        _complain(str(problem), problem.exit_code)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stdout = None  # else the interpreter tries to flush it once more
        sys.exit(1)
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else ""
        _complain(f"{where}{problem.strerror or problem}", 1)
    except KeyboardInterrupt:
        _complain("interrupted", 130)


def _complain(message: str, status: int) -> None:
    import logging

    from tapetum.core.log import TALK, configure_logging

    if not logging.getLogger("tapetum").handlers:
        configure_logging()
    logging.getLogger(TALK).error("error: %s", message)
    sys.exit(status)
