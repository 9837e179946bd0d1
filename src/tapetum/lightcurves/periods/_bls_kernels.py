"""Compiled box least squares on phase bins: Kovacs, Zucker & Mazeh (2002), A&A 391, 369."""

from __future__ import annotations

import numpy as np
from numba import njit

from tapetum.lightcurves.periods._fold_kernels import RUN, fold, padded, steps, turns


@njit(cache=True, nogil=True)
def boxes(time, weight, product, bins, shortest, longest, first, step, start, values):
    """Largest part of the weighted sum of squares that one faint box explains, at each frequency, into `values`.

    `weight` has the sum one, `product` is weight times centred magnitude and is scaled so that the sum of
    ``product^2 / weight`` is one. A box takes `shortest` to `longest` of the `bins` phase bins, and may
    begin in any.
    """
    points = time.size
    time = padded(time)
    phase = np.empty(time.size, np.uint32)
    move = np.empty(time.size, np.uint32)
    cells = np.empty(time.size, np.uint16)
    base = np.zeros(time.size, np.uint16)
    sums = np.empty((2, bins + longest + 1))
    steps(time, step, move)
    for block in range(0, values.size, RUN):
        turns(time, first + (start + block) * step, phase)
        for k in range(block, min(block + RUN, values.size)):
            fold(phase, move, k - block, bins, base, cells)
            _running(cells, weight, product, bins, points, sums)
            values[k] = _deepest(sums, bins, shortest, longest)


@njit(cache=True, nogil=True)
def _running(cells, weight, product, bins, points, sums):
    """Sums of weight and product over the bins before each, once around and `longest` further."""
    sums[:] = 0.0
    for i in range(points):
        at = cells[i] + 1
        sums[0, at] += weight[i]
        sums[1, at] += product[i]
    for at in range(bins + 1, sums.shape[1]):
        sums[0, at] = sums[0, at - bins]
        sums[1, at] = sums[1, at - bins]
    for at in range(1, sums.shape[1]):
        sums[0, at] += sums[0, at - 1]
        sums[1, at] += sums[1, at - 1]


@njit(cache=True, nogil=True)
def _deepest(sums, bins, shortest, longest):
    best = 0.0
    width = shortest
    while width <= longest:
        for at in range(bins):
            inside = sums[0, at + width] - sums[0, at]
            fainter = sums[1, at + width] - sums[1, at]
            room = inside * (1.0 - inside)
            if fainter > 0.0 and room > 1e-12:
                best = max(best, fainter * fainter / room)
        width += max(1, width // 4)
    return best
