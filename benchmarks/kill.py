"""The long kill test: a real ingest killed with SIGKILL hundreds of times; see tests/test_store_kill.py."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KILLS = 300


def run(kills: int = KILLS) -> dict[str, Any]:
    """Kill so often and print a line; an alert lost or a broken store is an error."""
    start = time.monotonic()
    test = ROOT / "tests" / "test_store_kill.py"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-o",
        "timeout=0",
        "-p",
        "no:cacheprovider",
        str(test),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "KILLS": str(kills)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the kill test failed:\n{done.stdout[-5000:]}")
    seconds = time.monotonic() - start
    print(f"kill: {kills} SIGKILLs in {seconds:.0f} s, nothing acknowledged was lost", flush=True)
    return {"kills": kills, "seconds": seconds}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS)
    run(parser.parse_args().kills)


if __name__ == "__main__":
    main()
