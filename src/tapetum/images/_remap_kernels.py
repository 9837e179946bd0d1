"""The compiled loops of the remapper: where each output pixel lies in the input, and what is found there.

Everything here works on a block of output rows and writes nothing else, so blocks may run in any order and in any
number of threads with the same result.
"""

from __future__ import annotations

import numpy as np
from numba import njit

TAPS = 6  # of a Lanczos-3 kernel along one axis
BEFORE = 2  # of them lie before the pixel that holds the position
PATCH = 24  # input pixels along one axis that one output pixel may draw from
NO_DATA = np.uint8(1)


@njit(cache=True, nogil=True, error_model="numpy")
def interpolate_map(node_x, node_y, node_area, step, over, row, x, y, area):
    """Fill a block of coordinates by cubic Lagrange interpolation between the nodes of a map.

    Node (k, l) lies at output pixel ((k - 1) * step, (l - 1) * step). Each output pixel has `over` x `over`
    positions, at the centres of its equal parts; the block starts at output row `row`.
    """
    n_nodes = node_x.shape[1]
    line = np.empty((3, n_nodes))
    weight = np.empty(4)
    for r in range(x.shape[0]):
        cell = (row + r // over) // step
        t = (row + (r + 0.5) / over - 0.5) / step - cell
        weight[0] = -t * (t - 1.0) * (t - 2.0) / 6.0
        weight[1] = (t + 1.0) * (t - 1.0) * (t - 2.0) / 2.0
        weight[2] = -(t + 1.0) * t * (t - 2.0) / 2.0
        weight[3] = (t + 1.0) * t * (t - 1.0) / 6.0
        for k in range(n_nodes):
            line[0, k] = line[1, k] = line[2, k] = 0.0
            for j in range(4):
                line[0, k] += weight[j] * node_x[cell + j, k]
                line[1, k] += weight[j] * node_y[cell + j, k]
                line[2, k] += weight[j] * node_area[cell + j, k]
        _along(line[0], step, over, x[r])
        _along(line[1], step, over, y[r])
        _along(line[2], step, over, area[r])


@njit(cache=True, nogil=True, error_model="numpy")
def _along(nodes, step, over, values):
    """One row of a map: the cubic through four nodes, as a polynomial per cell."""
    n_cell = step * over
    for start in range(0, values.size, n_cell):
        cell = start // n_cell
        a, b, c, d = nodes[cell], nodes[cell + 1], nodes[cell + 2], nodes[cell + 3]
        c1 = c - b / 2.0 - a / 3.0 - d / 6.0
        c2 = (a + c) / 2.0 - b
        c3 = (d - a) / 6.0 + (b - c) / 2.0
        for k in range(start, min(start + n_cell, values.size)):
            t = ((k - start + 0.5) / over - 0.5) / step
            values[k] = b + t * (c1 + t * (c2 + t * c3))


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def resample(
    data, variance, flags, dirty, lut, x, y, area, over, least, missed, spread, out, out_variance, out_mask
):
    """Fill a block of output rows from the input.

    Input pixels that are NaN are left out. `dirty` says of a pixel that some pixel of the 6x6 around a position in it
    carries a flag, as NaN must; where it is 0 the plain sum is enough. Flags are handed on by input pixels from a
    share of the weight on: `missed` of those left out, `spread` of those used. `variance` without rows means that
    there is none to carry.
    """
    n_y, n_x = data.shape
    n_phases = lut.shape[1] - 1
    with_variance = variance.shape[0] > 0
    patch = np.zeros((PATCH, PATCH), np.float32)
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            if over == 1:
                column, line = x[r, c], y[r, c]
                if column >= BEFORE and column < n_x - 3 and line >= BEFORE and line < n_y - 3:
                    i, j = np.uint64(column), np.uint64(line)
                    if dirty[j, i] == 0:
                        p = np.uint64((column - i) * n_phases + 0.5)
                        q = np.uint64((line - j) * n_phases + 0.5)
                        factor = np.float32(area[r, c])
                        out[r, c] = factor * _plain_sum(data, lut[0, p], lut[0, q], i, j)
                        out_mask[r, c] = 0
                        if with_variance:
                            total = _plain_sum(variance, lut[1, p], lut[1, q], i, j)
                            out_variance[r, c] = factor * factor * total
                        continue
            elif not with_variance and _clean(dirty, x, y, over, r, c):
                out[r, c] = _plain_mean(data, lut[0], x, y, area, over, r, c)
                out_mask[r, c] = 0
                continue
            _careful_sum(
                data, variance, flags, lut, x, y, area, over, least, missed, spread, patch, r, c,
                out, out_variance, out_mask,
            )  # fmt: skip


@njit(cache=True, nogil=True, inline="always")
def _clean(dirty, x, y, over, r, c):
    """Whether all positions of an output pixel lie well inside the input, beside no flagged pixel."""
    n_y, n_x = dirty.shape
    for a in range(r * over, (r + 1) * over):
        for b in range(c * over, (c + 1) * over):
            column, line = x[a, b], y[a, b]
            if not (column >= BEFORE and column < n_x - 3 and line >= BEFORE and line < n_y - 3):
                return False
            if dirty[np.uint64(line), np.uint64(column)] != 0:
                return False
    return True


@njit(cache=True, nogil=True, inline="always")
def _plain_mean(image, table, x, y, area, over, r, c):
    """Mean over the positions of an output pixel, times its area."""
    n_phases = table.shape[0] - 1
    total = np.float32(0.0)
    for a in range(r * over, (r + 1) * over):
        for b in range(c * over, (c + 1) * over):
            column, line = x[a, b], y[a, b]
            i, j = np.uint64(column), np.uint64(line)
            p = np.uint64((column - i) * n_phases + 0.5)
            q = np.uint64((line - j) * n_phases + 0.5)
            total += np.float32(area[a, b]) * _plain_sum(image, table[p], table[q], i, j)
    return total / np.float32(over * over)


@njit(cache=True, nogil=True, inline="always")
def _plain_sum(image, along_x, along_y, i, j):
    """Sum of 6x6 pixels around pixel (i, j), weighted by a separable kernel."""
    total = np.float32(0.0)
    for m in range(TAPS):
        row = np.uint64(j + np.uint64(m) - np.uint64(BEFORE))
        part = np.float32(0.0)
        for k in range(TAPS):
            part += along_x[k] * image[row, np.uint64(i + np.uint64(k) - np.uint64(BEFORE))]
        total += along_y[m] * part
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _careful_sum(
    data, variance, flags, lut, x, y, area, over, least, missed, spread, patch, r, c,
    out, out_variance, out_mask,
):  # fmt: skip
    """One output pixel with all rules: several positions, flagged pixels, the border of the image."""
    with_variance = variance.shape[0] > 0
    out[r, c] = np.nan
    out_mask[r, c] = NO_DATA
    if with_variance:
        out_variance[r, c] = np.nan
    i, j, width, height = _footprint(x, y, area, over, r, c, data.shape)
    if width == 0:
        return
    whole = _spread(lut, x, y, area, over, patch, r, c, i, j, width, height)
    good = np.float32(0.0)
    value = np.float32(0.0)
    noise = np.float32(0.0)
    reasons = np.uint8(0)
    for m in range(j, j + height):
        for k in range(i, i + width):
            weight = patch[m - j, k - i]
            inside = k >= 0 and k < data.shape[1] and m >= 0 and m < data.shape[0]
            used = inside and not np.isnan(data[m, k])
            if abs(weight) >= (spread if used else missed) * whole:
                reasons |= flags[m, k] if inside else NO_DATA
            if used:
                good += weight
                value += weight * data[m, k]
                if with_variance:
                    noise += weight * weight * variance[m, k]
    if good < least * whole or whole <= 0.0:
        out_mask[r, c] = reasons | NO_DATA
        return
    scale = whole / good
    out[r, c] = value * scale
    out_mask[r, c] = reasons
    if with_variance:
        out_variance[r, c] = noise * scale * scale


@njit(cache=True, nogil=True, error_model="numpy")
def _footprint(x, y, area, over, r, c, shape):
    """First column, first row, width and height of what an output pixel draws from; width 0: from nothing."""
    left, right, low, high = np.inf, -np.inf, np.inf, -np.inf
    for a in range(r * over, (r + 1) * over):
        for b in range(c * over, (c + 1) * over):
            if not (np.isfinite(x[a, b]) and np.isfinite(y[a, b]) and np.isfinite(area[a, b])):
                return 0, 0, 0, 0
            left, right = min(left, x[a, b]), max(right, x[a, b])
            low, high = min(low, y[a, b]), max(high, y[a, b])
    if right < -1.0 or left > shape[1] or high < -1.0 or low > shape[0]:
        return 0, 0, 0, 0
    if right - left > PATCH - TAPS - 1 or high - low > PATCH - TAPS - 1:
        return 0, 0, 0, 0
    i, j = int(np.floor(left)) - BEFORE, int(np.floor(low)) - BEFORE
    return i, j, int(np.floor(right)) - BEFORE + TAPS - i, int(np.floor(high)) - BEFORE + TAPS - j


@njit(cache=True, nogil=True, error_model="numpy")
def _spread(lut, x, y, area, over, patch, r, c, i, j, width, height):
    """Add up the weight of each input pixel over the positions of one output pixel; returns their sum, its area."""
    n_phases = lut.shape[1] - 1
    patch[:height, :width] = 0.0
    whole = np.float32(0.0)
    for a in range(r * over, (r + 1) * over):
        for b in range(c * over, (c + 1) * over):
            column, line = np.floor(x[a, b]), np.floor(y[a, b])
            along_x = lut[0, int((x[a, b] - column) * n_phases + 0.5)]
            along_y = lut[0, int((y[a, b] - line) * n_phases + 0.5)]
            share = np.float32(area[a, b] / (over * over))
            whole += share
            k0, m0 = int(column) - BEFORE - i, int(line) - BEFORE - j
            for m in range(TAPS):
                for k in range(TAPS):
                    patch[m0 + m, k0 + k] += share * along_y[m] * along_x[k]
    return whole
