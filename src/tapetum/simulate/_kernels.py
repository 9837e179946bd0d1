"""Compiled loops of the image simulation: stars from a table of sub-pixel phases, and charge that bleeds."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _cell(position, length, n_nodes):
    """Node below a position and the weight of the next one; nodes divide [0, length - 1] evenly."""
    if n_nodes == 1:
        return 0, np.float32(0.0)
    place = min(max(position / (length - 1), 0.0), 1.0) * (n_nodes - 1)
    node = min(int(place), n_nodes - 2)
    return node, np.float32(place - node)


@njit(cache=True, nogil=True)
def _add_block(canvas, left, bottom, reach, t00, t01, t10, t11, w00, w01, w10, w11):
    """Add four weighted stamps of equal size to a canvas, the middle `2 reach + 1` pixels of each side."""
    side = t00.shape[0]
    skip = side // 2 - reach
    j0, j1 = max(skip, -bottom), min(side - skip, canvas.shape[0] - bottom)
    i0, i1 = max(skip, -left), min(side - skip, canvas.shape[1] - left)
    if i0 >= i1:
        return
    for j in range(j0, j1):
        # slices, so that the inner loop runs over plain vectors
        row = canvas[bottom + j, left + i0 : left + i1]
        r00, r01, r10, r11 = t00[j, i0:i1], t01[j, i0:i1], t10[j, i0:i1], t11[j, i0:i1]
        for i in range(row.size):
            row[i] += w00 * r00[i] + w01 * r01[i] + w10 * r10[i] + w11 * r11[i]


@njit(cache=True, nogil=True)
def _add_one(canvas, left, bottom, reach, x, y, flux, shape_x, shape_y, table):
    """Add one star; `left`, `bottom` is where the corner of its stamp lies on the canvas."""
    over = table.shape[2] - 1
    fx = (x - np.floor(x + 0.5) + 0.5) * over
    fy = (y - np.floor(y + 0.5) + 0.5) * over
    px, py = min(int(fx), over - 1), min(int(fy), over - 1)
    tx, ty = np.float32(fx - px), np.float32(fy - py)
    gx, sx = _cell(x, shape_x, table.shape[1])
    gy, sy = _cell(y, shape_y, table.shape[0])
    one = np.float32(1.0)
    for b in range(2):
        wy = sy if b else one - sy
        if wy == 0:
            continue
        for a in range(2):
            wx = sx if a else one - sx
            if wx == 0:
                continue
            node = table[gy + b, gx + a]
            weight = np.float32(flux) * wx * wy
            _add_block(
                canvas, left, bottom, reach, node[py, px], node[py, px + 1], node[py + 1, px], node[py + 1, px + 1],
                weight * (one - ty) * (one - tx), weight * (one - ty) * tx, weight * ty * (one - tx), weight * ty * tx,
            )  # fmt: skip


@njit(cache=True, nogil=True)
def add_points(image, x, y, flux, reach, order, table):
    """Add stars to an image.

    Parameters
    ----------
    image : ndarray of float32, shape (n_y, n_x)
        Changed in place.
    x, y, flux : ndarray of float64, shape (n,)
    reach : ndarray of int64, shape (n,)
        Half side of the part of the stamp that is added [pixel].
    order : ndarray of int64, shape (m,)
        Which stars, in the order that keeps neighbours in the table together.
    table : ndarray of float32, shape (n_gy, n_gx, over + 1, over + 1, side, side)
        Star at node (gy, gx) of the frame, displaced by (k / over - 1/2) from the middle of its centre pixel.
    """
    n_y, n_x = image.shape
    half = table.shape[4] // 2
    for which in order:
        left = int(np.floor(x[which] + 0.5)) - half
        bottom = int(np.floor(y[which] + 0.5)) - half
        _add_one(image, left, bottom, reach[which], x[which], y[which], flux[which], n_x, n_y, table)


@njit(cache=True, nogil=True)
def point_stamps(stamps, x, y, shape_x, shape_y, table):
    """Fill `stamps`, zeros of shape (n, side, side), with one star of unit flux each."""
    half = table.shape[4] // 2
    for which in range(x.shape[0]):
        _add_one(stamps[which], 0, 0, half, x[which], y[which], 1.0, shape_x, shape_y, table)


@njit(cache=True, nogil=True)
def bleed_columns(data, full):
    """Let charge above `full`, of the same shape, run along its column until there is room.

    What reaches an edge is lost. NaN lets charge pass and keeps none.
    """
    n_y, n_x = data.shape
    excess = np.zeros(n_y, np.float64)
    for column in range(n_x):
        for row in range(n_y):
            excess[row] = 0.0
            if data[row, column] > full[row, column]:
                excess[row] = (data[row, column] - full[row, column]) / 2
                data[row, column] = full[row, column]
        for way in range(2):
            carried = 0.0
            for step in range(n_y):
                row = step if way == 0 else n_y - 1 - step
                carried += excess[row]
                room = full[row, column] - data[row, column]
                if carried > 0 and room > 0:
                    taken = min(room, carried)
                    data[row, column] += taken
                    carried -= taken
