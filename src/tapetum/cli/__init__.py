"""The `tapetum` command: one short file per noun; heavy imports live inside the verbs, so that help is instant."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; a `TapetumError` becomes one line on stderr and its exit status, never a traceback."""
    from tapetum.cli.app import app
    from tapetum.core.errors import TapetumError

    try:
        app()
    except TapetumError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stderr.close()
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
