"""Compiled search for the training rows that are nearest to a row with missing values."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _distances(row, value, present, out):
    """Mean squared difference of what `row` and each donor both have; infinite when there is nothing.

    Feature by feature, so that the loop over donors is one of plain arrays; each sum has the order of the features.
    """
    shared = np.zeros(out.size)
    out[:] = 0.0
    for j in range(row.size):
        if np.isnan(row[j]):
            continue
        for k in range(out.size):
            step = (row[j] - value[j, k]) * present[j, k]
            out[k] += step * step
            shared[k] += present[j, k]
    for k in range(out.size):
        out[k] = out[k] / shared[k] if shared[k] > 0 else np.inf


@njit(cache=True, nogil=True)
def _mean_of_nearest(distances, value, present, n_neighbours, fallback):
    """Mean value of the nearest donors that have one; of two equally far ones the first counts."""
    nearest = np.full(n_neighbours, np.inf)
    values = np.empty(n_neighbours)
    count = 0
    for k in range(distances.size):
        if present[k] == 0 or not distances[k] < nearest[-1]:
            continue
        place = n_neighbours - 1
        while place > 0 and nearest[place - 1] > distances[k]:
            nearest[place] = nearest[place - 1]
            values[place] = values[place - 1]
            place -= 1
        nearest[place] = distances[k]
        values[place] = value[k]
        count += 1
    return values[: min(count, n_neighbours)].mean() if count else fallback


@njit(cache=True, nogil=True)
def fill_from_neighbours(rows, donors, n_neighbours, fallback):
    """Replace NaN in `rows` by the mean of the nearest donors that have the value.

    Row by row, so that the result does not depend on which rows come together.

    Parameters
    ----------
    rows : ndarray, shape (n, k)
        Changed in place.
    donors : ndarray, shape (n_donors, k)
    n_neighbours : int
    fallback : ndarray, shape (k,)
        For rows that have nothing in common with any donor that could give the value.
    """
    value = np.empty((donors.shape[1], donors.shape[0]))
    present = np.empty_like(value)
    for k in range(donors.shape[0]):
        for j in range(donors.shape[1]):
            there = not np.isnan(donors[k, j])
            present[j, k] = 1.0 if there else 0.0
            value[j, k] = donors[k, j] if there else 0.0
    distances = np.empty(donors.shape[0])
    for row in rows:
        missing = np.flatnonzero(np.isnan(row))
        if missing.size == 0:
            continue
        _distances(row, value, present, distances)
        for gap in missing:
            row[gap] = _mean_of_nearest(distances, value[gap], present[gap], n_neighbours, fallback[gap])
