"""Compiled counts of pairs of points by their distance in time and in magnitude.

A pair's bins come from two tables, at differences of whole numbers of small steps. Each entry is the number of edges
that lie below, or, where a step contains an edge, that number less `OPEN`: then the difference itself is compared
with that one edge. So every pair lands where comparing it with all edges would put it, without searching.
"""

from __future__ import annotations

import numpy as np
from numba import njit

PER_MAG = 8192.0  # steps
PER_DAY = 2048.0
NEAR = 1 << 13  # points fewer steps of time apart look at the first table of times ...
FAR_PER_DAY = 8.0  # ... others at the second, of these steps
OPEN = 128
ROW = 64  # counters per bin of time


@njit(cache=True, nogil=True)
def _count_row(time, mag, i, first, last, days, steps, dt_edges, dm_edges, dt_table, dm_table, even, odd):
    """Pairs of point i with those from `first` to before `last`.

    Two sets of counters take turns: one need not wait for what was just written to it.
    """
    base, day = np.int64(dm_table.size // 2) - steps[i], -np.int64(days[i])
    t, m = time[i], mag[i]
    for j in range(first, last, 2):
        k = min(j + 1, last - 1)
        a = np.int64(dt_table[np.uintp(day + days[np.uintp(j)])])
        b = np.int64(dt_table[np.uintp(day + days[np.uintp(k)])])
        p = np.int64(dm_table[np.uintp(base + steps[np.uintp(j)])])
        q = np.int64(dm_table[np.uintp(base + steps[np.uintp(k)])])
        if (a | b | p | q) < 0:
            if a < 0:
                a += OPEN
                a += time[j] - t >= dt_edges[np.uintp(a)]
            if b < 0:
                b += OPEN
                b += time[k] - t >= dt_edges[np.uintp(b)]
            if p < 0:
                p += OPEN
                p += mag[j] - m >= dm_edges[np.uintp(p)]
            if q < 0:
                q += OPEN
                q += mag[k] - m >= dm_edges[np.uintp(q)]
        even[np.uintp(a * ROW + p)] += 1
        odd[np.uintp(b * ROW + q)] += k > j


@njit(cache=True, nogil=True)
def _count(time, mag, near, far, steps, dt_edges, dm_edges, near_table, far_table, dm_table, even, odd):
    """All pairs of a curve; times are sorted, so those that lie near each other come first."""
    n, split = time.size, 0
    for i in range(n - 1):
        while split < n and near[split] - near[i] < NEAR:
            split += 1
        _count_row(
            time, mag, i, i + 1, split, near, steps, dt_edges, dm_edges, near_table, dm_table, even, odd
        )
        _count_row(time, mag, i, split, n, far, steps, dt_edges, dm_edges, far_table, dm_table, even, odd)


@njit(cache=True, nogil=True)
def _edges_below(value, edges):
    """How many edges are not above a value."""
    low, high = 0, edges.size
    while low < high:
        middle = (low + high) // 2
        if value >= edges[middle]:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def _count_by_search(time, mag, dt_edges, dm_edges, counts):
    """As `_count`, for curves and edges that the tables do not serve."""
    for i in range(time.size - 1):
        for j in range(i + 1, time.size):
            a = _edges_below(time[j] - time[i], dt_edges)
            counts[a * ROW + _edges_below(mag[j] - mag[i], dm_edges)] += 1


@njit(cache=True, nogil=True, error_model="numpy")
def _write(even, odd, out):
    """Rows of magnitude, columns of time, the length of it all one; zeros where there is no pair."""
    length = 0.0
    for k in range(out.shape[0]):
        for a in range(out.shape[1]):
            cell = (a + 1) * ROW + k + 1
            even[cell] += odd[cell]
            length += float(even[cell]) ** 2
    scale = 1.0 / np.sqrt(length) if length > 0 else 0.0
    for k in range(out.shape[0]):
        for a in range(out.shape[1]):
            out[k, a] = even[(a + 1) * ROW + k + 1] * scale


@njit(cache=True, nogil=True)
def _in_steps(time, mag, n_far, n_steps, near, far, steps):
    """Times and magnitudes in whole steps from the least; whether all pairs lie within the tables."""
    bright, faint = mag[0], mag[0]
    for j in range(mag.size):
        bright, faint = min(bright, mag[j]), max(faint, mag[j])
    if not (faint - bright) * PER_MAG < n_steps - 1 or not ((time[-1] - time[0]) * FAR_PER_DAY < n_far - 1):
        return False
    for j in range(mag.size):
        steps[j] = int((mag[j] - bright) * PER_MAG)
        near[j] = int((time[j] - time[0]) * PER_DAY)
        far[j] = int((time[j] - time[0]) * FAR_PER_DAY)
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def dmdt_of(time, mag, offsets, good, dt_edges, dm_edges, near_table, far_table, dm_table, out):
    """The histogram of every curve into `out` (curves, dm bins, dt bins); empty tables: search instead.

    The last edges must lie just above what they stand for, so that the last bins are closed.
    """
    longest = 0
    for i in range(good.size):
        longest = max(longest, offsets[i + 1] - offsets[i])
    near, far, steps = np.empty(longest, np.int32), np.empty(longest, np.int32), np.empty(longest, np.int32)
    even = np.empty((dt_edges.size + 1) * ROW, np.int64)
    odd = np.empty_like(even)
    for i in range(good.size):
        if not good[i]:
            out[i] = np.nan
            continue
        t, m = time[offsets[i] : offsets[i + 1]], mag[offsets[i] : offsets[i + 1]]
        even[:] = 0
        odd[:] = 0
        if _in_steps(t, m, far_table.size, dm_table.size // 2, near, far, steps):
            _count(t, m, near, far, steps, dt_edges, dm_edges, near_table, far_table, dm_table, even, odd)
        else:
            _count_by_search(t, m, dt_edges, dm_edges, even)
        _write(even, odd, out[i])
