"""`python -m tapetum`: the command of this very Python, whatever is on the PATH."""

from __future__ import annotations

from tapetum.cli import main

if __name__ == "__main__":
    main()
