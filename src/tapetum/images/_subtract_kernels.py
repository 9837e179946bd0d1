"""Compiled loops of the subtraction."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def convolve_tiles(padded, kernels, tile, first_row, last_row, out):
    """Convolve rows of tiles, each with a kernel of its own.

    Parameters
    ----------
    padded : float32 (n_y + 2 h, n_x + 2 h)
        The image with a border of h = half side of the kernels.
    kernels : float32 (n_ty, n_tx, 2 h + 1, 2 h + 1)
        Already turned by 180 degrees, so that a sum over shifted pixels is a convolution.
    tile : int
        Side of a tile [pixel].
    first_row, last_row : int
        Rows of tiles to do.
    out : float32 (n_y, n_x)
        Written.
    """
    n_y, n_x = out.shape
    side = kernels.shape[2]
    quads = side // 4
    row_sum = np.empty(tile, np.float32)
    for ty in range(first_row, last_row):
        for y in range(ty * tile, min((ty + 1) * tile, n_y)):
            for tx in range(kernels.shape[1]):
                x0 = tx * tile
                width = min(tile, n_x - x0)
                kernel = kernels[ty, tx]
                row_sum[:width] = 0
                for ky in range(side):
                    line = padded[y + ky, x0 : x0 + width + side - 1]
                    taps = kernel[ky]
                    for quad in range(quads):
                        k = 4 * quad
                        a, b, c, d = taps[k], taps[k + 1], taps[k + 2], taps[k + 3]
                        for i in range(width):
                            row_sum[i] += (
                                a * line[i + k]
                                + b * line[i + k + 1]
                                + c * line[i + k + 2]
                                + d * line[i + k + 3]
                            )
                    for k in range(4 * quads, side):
                        a = taps[k]
                        for i in range(width):
                            row_sum[i] += a * line[i + k]
                for i in range(width):  # an assignment of slices takes a second longer to compile
                    out[y, x0 + i] = row_sum[i]


@njit(cache=True, nogil=True)
def local_maxima(image, mask, threshold, margin, xs, ys):
    """Positions of good pixels above a threshold map that no neighbour exceeds; returns how many were written.

    Parameters
    ----------
    image, threshold : float32 (n_y, n_x)
    mask : uint8 (n_y, n_x)
    margin : int
        Pixels at the edges that are left out, at least 1.
    xs, ys : int32 (n,)
        Written, at most n of them.
    """
    n_y, n_x = image.shape
    n = 0
    for y in range(margin, n_y - margin):
        for x in range(margin, n_x - margin):
            value = image[y, x]
            if not value > threshold[y, x] or mask[y, x] != 0:
                continue
            highest = True
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    other = image[y + dy, x + dx]
                    if other > value or (other == value and (dy < 0 or (dy == 0 and dx < 0))):
                        highest = False
            if highest and n < len(xs):
                xs[n] = x
                ys[n] = y
                n += 1
    return n


@njit(cache=True, nogil=True)
def fill_bad(data, mask, reach, out):
    """Copy an image and put the mean of the good neighbours into bad pixels; 0 where there is none.

    Parameters
    ----------
    data : float32 (n_y, n_x)
    mask : uint8 (n_y, n_x)
        Nonzero is bad.
    reach : int
        How far neighbours are looked for [pixel].
    out : float32 (n_y, n_x)
        Written.
    """
    n_y, n_x = data.shape
    for y in range(n_y):
        for x in range(n_x):
            if mask[y, x] == 0 and not np.isnan(data[y, x]):
                out[y, x] = data[y, x]
                continue
            total = 0.0
            n = 0
            for j in range(max(y - reach, 0), min(y + reach + 1, n_y)):
                for i in range(max(x - reach, 0), min(x + reach + 1, n_x)):
                    if mask[j, i] == 0 and not np.isnan(data[j, i]):
                        total += data[j, i]
                        n += 1
            out[y, x] = total / n if n else 0.0


@njit(cache=True, nogil=True)
def spread_mask(mask, radius, out):
    """OR the bits of bad pixels into all pixels within a radius.

    Parameters
    ----------
    mask : uint8 (n_y, n_x)
    radius : float
        Of the disc [pixel].
    out : uint8 (n_y, n_x)
        Changed in place.
    """
    n_y, n_x = mask.shape
    reach = int(radius)
    limit = radius * radius
    for y in range(n_y):
        for x in range(n_x):
            bits = mask[y, x]
            if bits == 0:
                continue
            for j in range(max(y - reach, 0), min(y + reach + 1, n_y)):
                for i in range(max(x - reach, 0), min(x + reach + 1, n_x)):
                    if (j - y) * (j - y) + (i - x) * (i - x) <= limit:
                        out[j, i] |= bits


@njit(cache=True, nogil=True)
def mark_changed(data, noise, mask, limit, bad, first, last, out):
    """`mask`, with `bad` where there is no value, and 1 beyond `limit` sigma; rows `first` to `last` of `out`."""
    for y in range(first, last):
        for x in range(data.shape[1]):
            value = data[y, x]
            if np.isnan(value):
                out[y, x] = bad
            else:
                out[y, x] = mask[y, x] | (abs(value) > limit * noise[y, x])


@njit(cache=True, nogil=True)
def finish_difference(target, model, noise, spread_noise, photons, relative, first, last, data, sigma):
    """Difference of two images and its noise, rows `first` to `last`.

    Parameters
    ----------
    target, model : float32 (n_y, n_x)
        The image that was not convolved, and the convolved one; both free of NaN.
    noise, spread_noise : float32 (n_y, n_x)
        Sky noise of the target, and of the convolved image.
    photons : float
        Variance per unit of light [DN], of both together.
    relative : float
        Error of the model relative to its brightest neighbour.
    data, sigma : float32 (n_y, n_x)
        Written: target minus model, and its standard deviation.
    """
    n_y, n_x = target.shape
    column = np.zeros(n_x + 2, np.float32)  # brightest of each three rows, with a margin
    for y in range(first, last):
        above, below = model[max(y - 1, 0)], model[min(y + 1, n_y - 1)]
        for x in range(n_x):
            column[x + 1] = max(max(above[x], model[y, x]), max(below[x], np.float32(0.0)))
        for x in range(n_x):
            brightest = max(max(column[x], column[x + 1]), column[x + 2])
            change = target[y, x] - model[y, x]
            variance = noise[y, x] ** 2 + spread_noise[y, x] ** 2 + (relative * brightest) ** 2
            variance += photons * max(model[y, x], np.float32(0.0))
            if change * change > 9 * variance:
                variance += photons * abs(change)  # what is new has photon noise of its own
            data[y, x] = change
            sigma[y, x] = np.sqrt(variance)
