"""Compiled digest of a periodogram that comes piece by piece: moments, largest values, highest peaks."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def absorb(values, start, gaps, sign, moments, top, top_at, peaks, peaks_at, width, best):
    """Take in the values of the frequencies `start`, `start` + 1, ...; NaN and what lies in `gaps` does not count.

    `moments` is (n, mean, sum of squares about it). `top` and `peaks` are heaps of ``sign * value`` with the
    smallest one first, `top_at` and `peaks_at` the numbers of their frequencies. A peak is the best of `width`
    frequencies side by side: `best` is (value, number, block) of the block that is being read.
    """
    gap = 0
    for i in range(values.size):
        number = start + i
        value = values[i]
        while gap < gaps.shape[0] and number >= gaps[gap, 1]:
            gap += 1
        if (gap < gaps.shape[0] and number >= gaps[gap, 0]) or np.isnan(value):
            continue
        moments[0] += 1.0
        change = value - moments[1]
        moments[1] += change / moments[0]
        moments[2] += change * (value - moments[1])
        value *= sign
        if value > top[0]:
            replace_first(top, top_at, value, number)
        block = float(number // width)
        if block != best[2]:
            flush(peaks, peaks_at, best)
            best[2] = block
        if value > best[0]:
            best[0] = value
            best[1] = number


@njit(cache=True, nogil=True)
def flush(peaks, peaks_at, best):
    """The best of a block that ended goes to the peaks."""
    if best[0] > peaks[0]:
        replace_first(peaks, peaks_at, best[0], int(best[1]))
    best[0] = -np.inf


@njit(cache=True, nogil=True)
def replace_first(heap, numbers, value, number):
    """Replace the smallest of a heap and restore its order."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= heap.size:
            break
        if child + 1 < heap.size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[at] = heap[child]
        numbers[at] = numbers[child]
        at = child
    heap[at] = value
    numbers[at] = number
