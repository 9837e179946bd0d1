"""Run the test suite and say what could not run and how to get it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys


def main() -> int:
    """Run pytest with the arguments given; its exit status is ours."""
    # one process per core, but not so many that they fight for memory
    workers = ["-n", "auto", "--maxprocesses", "4"] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", *workers, *sys.argv[1:]]
    # threads of numpy's BLAS would fight with the other processes; read when numpy is imported
    environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ}
    status = subprocess.run(command, check=False, env=environment).returncode
    if importlib.util.find_spec("torch") is None:
        pip = ".venv/bin/python -m pip install"
        print(
            f"training was skipped: torch is not installed; get it with  {pip} torch==2.13.0 && {pip} -e '.[train]'"
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
