"""Compiled conditional entropy: Graham et al. (2013), MNRAS 434, 2629.

With c the number of points in a cell of phase and magnitude and C the number in a phase bin,
``n H = sum C ln C - sum c ln c``. The second sum is kept up while points are counted (a cell that goes from c to
c + 1 adds ``(c + 1) ln(c + 1) - c ln c``, from a table), so no logarithm is taken and no cell visited again.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from tapetum.lightcurves.periods._fold_kernels import LANES, RUN, fold, padded, steps, turns


@njit(cache=True, nogil=True)
def entropy(time, level, bins, width, counts, growth, table, first, step, start, values):
    """Conditional entropy at the frequencies ``first + (start + k) step``, into `values` [nat].

    `level` (uint16) is the magnitude bin of a point times `width`, the cells that a magnitude bin takes (a
    multiple of 8, >= `bins`); `growth` and `table` hold (c + 1) ln(c + 1) - c ln c and c ln c. `counts`, (LANES,
    cells), is room for the histograms; bytes will do, and are faster, for less than 256 points.
    """
    points = time.size
    time = padded(time)
    base = padded(level)
    phase = np.empty(time.size, np.uint32)
    move = np.empty(time.size, np.uint32)
    cells = np.empty((LANES, time.size), np.uint16)
    words = counts.view(np.uint64)
    column = np.zeros(width, counts.dtype)
    sums = column.view(np.uint64)
    steps(time, step, move)
    for block in range(0, values.size, RUN):
        turns(time, first + (start + block) * step, phase)
        for part in range(block, min(block + RUN, values.size), LANES):
            for lane in range(LANES):
                fold(phase, move, part - block + lane, bins, base, cells[lane])
            counts[:] = 0
            inner = _count(cells, counts, growth, points)
            for lane in range(min(LANES, values.size - part)):
                _add_rows(words, lane, sums)
                values[part + lane] = (_outer(column, table, bins) - inner[lane]) / points


@njit(cache=True, nogil=True)
def _count(cells, counts, growth, points):
    """Count the cells of every lane; sum of c ln c of each."""
    a = b = c = d = 0.0
    for i in range(points):
        cell = cells[0, i]
        many = counts[0, cell]
        counts[0, cell] = many + 1
        a += growth[many]
        cell = cells[1, i]
        many = counts[1, cell]
        counts[1, cell] = many + 1
        b += growth[many]
        cell = cells[2, i]
        many = counts[2, cell]
        counts[2, cell] = many + 1
        c += growth[many]
        cell = cells[3, i]
        many = counts[3, cell]
        counts[3, cell] = many + 1
        d += growth[many]
    return a, b, c, d


@njit(cache=True, nogil=True)
def _add_rows(words, lane, sums):
    """Number of points in each phase bin; 8 bytes are added as one word, as no sum exceeds what its cell can hold."""
    for i in range(sums.size):
        many = words[lane, i]
        for at in range(i + sums.size, words.shape[1], sums.size):
            many += words[lane, at]
        sums[i] = many


@njit(cache=True, nogil=True)
def _outer(column, table, bins):
    """Sum of C ln C over phase bins."""
    total = 0.0
    for i in range(bins):
        total += table[column[i]]
    return total
