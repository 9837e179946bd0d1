"""Create ``.venv`` with the project in it; do nothing when it is already up to date.

    python3 tools/make_venv.py [--extras dev,docs,cluster,online]

Needs python3 with ``venv`` only. uv does the work when it can be imported, else pip. The stamp is a hash of
``pyproject.toml`` and the extras, so a changed dependency rebuilds the environment and nothing else does.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "stamp"


def fingerprint(extras: str) -> str:
    """Hash of everything that decides what must be installed."""
    project = (ROOT / "pyproject.toml").read_bytes()
    return hashlib.sha256(project + extras.encode() + sys.version.encode()).hexdigest()


def install(extras: str) -> None:
    """Install the project, editable, with its extras."""
    target = f"{ROOT}[{extras}]"
    if importlib.util.find_spec("uv"):
        command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(PYTHON)]
    else:
        command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    print(f"installing tapetum[{extras}] into .venv ...", file=sys.stderr, flush=True)
    subprocess.run([*command, "-e", target], check=True)


def main() -> None:
    """Bring ``.venv`` up to date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--extras", default="dev,docs,cluster,online")
    extras = parser.parse_args().extras
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before anything checks the version
        raise SystemExit(f"Tapetum needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    wanted = fingerprint(extras)
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted:
        return
    venv.EnvBuilder(with_pip=True, clear=not PYTHON.exists()).create(VENV)
    install(extras)
    subprocess.run([str(VENV / "bin" / "tapetum"), "doctor", "--quiet"], check=True)
    STAMP.write_text(wanted)


if __name__ == "__main__":
    main()
