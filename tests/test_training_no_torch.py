"""What needs no torch works without it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from astropy.io import fits

if TYPE_CHECKING:
    from pathlib import Path

WITHOUT = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
from tapetum.cli import main
main()
"""


@pytest.mark.parametrize("form", [".md", ".html"])
def test_masks_are_judged_without_torch(tmp_path: Path, rng: np.random.Generator, form: str) -> None:
    fits.writeto(tmp_path / "night.fits", rng.normal(900, 20, (260, 300)).astype(np.float32))
    report = tmp_path / f"masks{form}"
    command = ["models", "evaluate", "contaminants", "--frames", str(tmp_path / "night.fits")]
    command += ["--each", "1", "-o", str(report)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Cosmic rays" in report.read_text()
