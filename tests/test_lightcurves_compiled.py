"""Compiled kernels: the same digits from a process that compiles them and from one that finds them in the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import hashlib
import numpy as np
import pyarrow as pa
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.fourier import fourier
from tapetum.lightcurves.statistics import statistics

rng = np.random.default_rng(7)
n, points = 30, 61
time = np.sort(rng.uniform(0, 300, (n, points)), axis=1).ravel()
mag = 15 + 0.3 * np.sin(2 * np.pi * time / 1.3) + rng.normal(0, 0.05, time.size)
table = pa.table({"lc_id": [str(number) for number in range(n)]})
curves = LightCurves(time, mag, rng.uniform(0.02, 0.1, time.size), np.arange(n + 1) * points, table)
for values in (statistics(curves), fourier(curves, np.full(n, 1.3))):
    print(hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest())
"""


def test_fresh_and_cached_kernels_give_the_same_digits(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    fresh = run()
    assert any(tmp_path.rglob("*.nbc")), "nothing was compiled"
    assert run() == fresh
