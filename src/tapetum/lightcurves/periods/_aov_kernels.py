"""Compiled analysis of variance of phase bins: Schwarzenberg-Czerny (1989), MNRAS 241, 153.

``theta = ((n - r) / (r - 1)) s1 / s2`` with s1 the sum of squares between the r bins and s2 that within them. As
s1 + s2 does not depend on the frequency, the part s1 / (s1 + s2) says it all, and only the sum of the magnitudes
and the number of points of each bin are needed; one 64-bit integer holds both (the number in its high bits), so
that a point costs one addition and the result does not depend on the order of the points.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from tapetum.lightcurves.periods._fold_kernels import LANES, RUN, fold, padded, steps, turns


@njit(cache=True, nogil=True)
def between_bins(time, packed, shift, scale, bins, first, step, start, values):
    """``s1 / (s1 + s2)`` at the frequencies ``first + (start + k) step``, into `values`.

    `packed` (int64) is ``2^shift + q``, q `scale` times a centred magnitude whose sum of squares is one.
    """
    points = time.size
    time = padded(time)
    phase = np.empty(time.size, np.uint32)
    move = np.empty(time.size, np.uint32)
    cells = np.empty((LANES, time.size), np.uint16)
    base = np.zeros(time.size, np.uint16)
    sums = np.zeros((LANES, bins), np.int64)
    steps(time, step, move)
    for block in range(0, values.size, RUN):
        turns(time, first + (start + block) * step, phase)
        for part in range(block, min(block + RUN, values.size), LANES):
            for lane in range(LANES):
                fold(phase, move, part - block + lane, bins, base, cells[lane])
            sums[:] = 0
            for i in range(points):
                for lane in range(LANES):
                    sums[lane, cells[lane, i]] += packed[i]
            for lane in range(min(LANES, values.size - part)):
                values[part + lane] = _between(sums[lane], shift) / scale**2


@njit(cache=True, nogil=True)
def _between(sums, shift):
    high = 64 - shift
    between = 0.0
    for i in range(sums.size):
        low = (sums[i] << high) >> high
        many = (sums[i] - low) >> shift
        between += float(low) * float(low) / max(many, 1)
    return between
