"""Compiled loops of detection: matched filter, linking of pixels, fits of points and trails.

Images are float32, coordinates and sums float64. `pad` is the number of empty rows and columns that were put
around the weighted planes, so that no loop has to ask whether it is still inside.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from tapetum.images._psf_kernels import _combine, _solve, _terms, _weights

SEGMENT_COLUMNS = 9  # n_low, n_over, sum of weights, of w dx, w dy, w dx2, w dxdy, w dy2, of data
POINT_COLUMNS = 9
FIT_TURNS = 12  # steps of the fit of a position
WINDOWS = 4  # pixels are cut anew when the position has come to lie in another one
FARTHEST = 1.6  # a position may leave the peak it began at [pixel]
LEAST_WINDOW = 0.4  # added to the variance of a window for moments [pixel^2]
FAR_OUT = 30.0  # such a window is followed down to exp(-FAR_OUT / 2)
TRAIL_PARAMETERS = 6  # x, y, length, angle, flux, sigma


@njit(cache=True, nogil=True)
def weigh(data, noise, mask, pad, weighted, weight, first, last):
    """Rows `first` to `last` of data / noise^2 and 1 / noise^2, both zero where a pixel cannot be used."""
    for y in range(first, last):
        for x in range(data.shape[1]):
            value = data[y, x]
            sigma = noise[y, x]
            inverse = np.float32(0)
            if mask[y, x] == 0 and sigma > 0 and math.isfinite(sigma) and math.isfinite(value):
                inverse = np.float32(1) / (sigma * sigma)
                weighted[y + pad, x + pad] = value * inverse
            weight[y + pad, x + pad] = inverse


@njit(cache=True, nogil=True)
def bin_by_two(source, pad, target):
    """Sum 2x2 pixels of a padded plane into a padded plane of half the size."""
    n_y, n_x = target.shape[0] - 2 * pad, target.shape[1] - 2 * pad
    for y in range(n_y):
        for x in range(n_x):
            row, column = pad + 2 * y, pad + 2 * x
            target[y + pad, x + pad] = (
                source[row, column]
                + source[row, column + 1]
                + source[row + 1, column]
                + source[row + 1, column + 1]
            )


@njit(cache=True, nogil=True, fastmath={"contract"})
def matched_filter(weighted, weight, kernels, tile, first, last, snr):
    """Rows `first` to `last` of sum(P D / V) / sqrt(sum(P^2 / V)), P the kernel of the tile that a pixel lies in.

    The optimum for known noise: Zackay & Ofek (2017), ApJ 836, 187, equation 11 in its local form.
    """
    n_x = snr.shape[1]
    side = kernels.shape[2]
    top = np.empty(tile, np.float32)
    bottom = np.empty(tile, np.float32)
    for y in range(first, last):
        row = min(y // tile, kernels.shape[0] - 1)
        for left in range(0, n_x, tile):
            width = min(tile, n_x - left)
            kernel = kernels[row, min(left // tile, kernels.shape[1] - 1)]
            top[:] = 0
            bottom[:] = 0
            for j in range(side):
                for i in range(side):
                    p = kernel[j, i]
                    q = p * p
                    line = weighted[y + j, left + i : left + i + width]
                    variance_line = weight[y + j, left + i : left + i + width]
                    for x in range(width):
                        top[x] += p * line[x]
                        bottom[x] += q * variance_line[x]
            for x in range(width):
                snr[y, left + x] = top[x] / math.sqrt(bottom[x]) if bottom[x] > 0 else np.float32(0)


@njit(cache=True, nogil=True)
def local_statistics(snr, box, stride, level, spread):
    """Median and robust standard deviation (quartiles) of the non-zero values in boxes; NaN in empty ones."""
    n_y, n_x = snr.shape
    values = np.empty(((box + stride - 1) // stride) ** 2, np.float32)
    for j in range(level.shape[0]):
        for i in range(level.shape[1]):
            count = 0
            y_end, x_end = min(n_y, (j + 1) * box), min(n_x, (i + 1) * box)
            for y in range(max(0, min(j * box, n_y - box)), y_end, stride):
                for x in range(max(0, min(i * box, n_x - box)), x_end, stride):
                    if snr[y, x] != 0 and count < values.size:
                        values[count] = snr[y, x]
                        count += 1
            level[j, i] = np.nan
            spread[j, i] = np.nan
            if count >= 16:
                ordered = np.sort(values[:count])
                level[j, i] = ordered[count // 2]
                spread[j, i] = (ordered[(3 * count) // 4] - ordered[count // 4]) / 1.349


@njit(cache=True, nogil=True)
def standardise(snr, level, spread, box, first, last):
    """Rows `first` to `last`: subtract the level and divide by the spread, interpolated between boxes."""
    n_j, n_i = level.shape
    for y in range(first, last):
        v = min(max((y + 0.5) / box - 0.5, 0.0), n_j - 1.0)
        j = min(int(v), max(n_j - 2, 0))
        below = min(j + 1, n_j - 1)
        b = v - j
        for x in range(snr.shape[1]):
            if snr[y, x] == 0:
                continue
            u = min(max((x + 0.5) / box - 0.5, 0.0), n_i - 1.0)
            i = min(int(u), max(n_i - 2, 0))
            right = min(i + 1, n_i - 1)
            a = u - i
            middle = (1 - b) * ((1 - a) * level[j, i] + a * level[j, right]) + b * (
                (1 - a) * level[below, i] + a * level[below, right]
            )
            width = (1 - b) * ((1 - a) * spread[j, i] + a * spread[j, right]) + b * (
                (1 - a) * spread[below, i] + a * spread[below, right]
            )
            snr[y, x] = (snr[y, x] - middle) / width


@njit(cache=True, nogil=True)
def above(values, limit, both_signs):
    """Flat indices of the pixels whose value is at least `limit`, or at most ``-limit`` when `both_signs`."""
    flat = values.ravel()
    count = 0
    for k in range(flat.size):
        if flat[k] >= limit or (both_signs and flat[k] <= -limit):
            count += 1
    found = np.empty(count, np.int64)
    count = 0
    for k in range(flat.size):
        if flat[k] >= limit or (both_signs and flat[k] <= -limit):
            found[count] = k
            count += 1
    return found


@njit(cache=True, inline="always")
def _root(parent, k):
    while parent[k] != k:
        parent[k] = parent[parent[k]]
        k = parent[k]
    return k


@njit(cache=True, nogil=True)
def link_pixels(values, order, prominence, contrast, labels, peaks):
    """Join pixels to segments of one sign, a segment for every peak that stands out of its surroundings.

    Pixels come in order of falling absolute value, so a pixel that touches two segments is the saddle between
    them: the lower one stays apart when its peak is higher than the saddle by ``prominence + contrast * peak``
    (topological persistence), else it is part of the higher one.

    Parameters
    ----------
    order : ndarray of int64
        Flat indices of the pixels to link, by falling absolute value.
    labels : ndarray of int32, shape of `values`, zeros
        Filled with segment + 1.
    peaks : ndarray of int64, as long as `order`
        Filled with the flat index of the peak of each segment.

    Returns
    -------
    n, parent : int, ndarray of int32
        Number of segments before joining, and the segment that each one became part of.
    """
    n_y, n_x = values.shape
    flat = values.ravel()
    label = labels.ravel()
    parent = np.empty(order.size, np.int32)
    n = 0
    for k in order:
        y, x = k // n_x, k % n_x
        here = flat[k]
        size = abs(here)
        best = -1
        for j in range(max(y - 1, 0), min(y + 2, n_y)):
            for i in range(max(x - 1, 0), min(x + 2, n_x)):
                other = label[j * n_x + i]
                if other == 0 or flat[j * n_x + i] * here <= 0:
                    continue
                one = _root(parent, other - 1)
                if best == -1 or one == best:
                    best = one
                    continue
                low, high = max(one, best), min(one, best)  # numbered by falling peak
                summit = abs(flat[peaks[low]])
                if summit - size < prominence + contrast * summit:
                    parent[low] = high
                best = high
        if best == -1:
            best = n
            parent[n] = n
            peaks[n] = k
            n += 1
        label[k] = best + 1
    for s in range(n):
        parent[s] = _root(parent, s)
    return n, parent[:n]


@njit(cache=True, nogil=True)
def segment_sums(values, weighted, weight, pad, order, labels, parent, peaks, threshold, sums):
    """Sums over the pixels of each segment, coordinates from its peak; columns as in `SEGMENT_COLUMNS`."""
    n_x = values.shape[1]
    flat = values.ravel()
    label = labels.ravel()
    for k in order:
        s = parent[label[k] - 1]
        label[k] = s + 1
        y, x = k // n_x, k % n_x
        dx, dy = float(x - peaks[s] % n_x), float(y - peaks[s] // n_x)
        v = abs(float(flat[k]))
        sums[s, 0] += 1
        sums[s, 1] += v >= threshold
        sums[s, 2] += v
        sums[s, 3] += v * dx
        sums[s, 4] += v * dy
        sums[s, 5] += v * dx * dx
        sums[s, 6] += v * dx * dy
        sums[s, 7] += v * dy * dy
        inverse = weight[y + pad, x + pad]
        if inverse > 0:
            sums[s, 8] += weighted[y + pad, x + pad] / inverse


@njit(cache=True, nogil=True)
def _place_star(grid, over, reach_psf, dx, dy, half, slopes, value, slope_x, slope_y):
    """A star of unit flux dx, dy from the middle of a window, and what it changes by per pixel of its own move."""
    middle = grid.shape[0] // 2
    wx, wy, dwx, dwy = np.empty(4), np.empty(4), np.empty(4), np.empty(4)
    qx, qy = middle - dx * over, middle - dy * over
    first_x, first_y = math.floor(qx), math.floor(qy)
    _weights(qx - first_x, wx, dwx)
    _weights(qy - first_y, wy, dwy)
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            p, px, py = 0.0, 0.0, 0.0
            if abs(i - dx) < reach_psf + 1 and abs(j - dy) < reach_psf + 1:
                at_x, at_y = first_x + i * over - 1, first_y + j * over - 1
                for k in range(4):
                    across, along = 0.0, 0.0
                    for m in range(4):
                        node = grid[at_y + k, at_x + m]
                        across += wx[m] * node
                        if slopes:
                            along += dwx[m] * node
                    p += wy[k] * across
                    px += wy[k] * along
                    py += dwy[k] * across
            value[j + half, i + half] = p
            if slopes:
                slope_x[j + half, i + half] = -over * px
                slope_y[j + half, i + half] = -over * py


@njit(cache=True, nogil=True)
def _cut_window(weighted, weight, pad, column, row, half, data, w):
    """Pixels around one, and their weights: zero where they cannot be used."""
    for j in range(-half, half + 1):
        for i in range(-half, half + 1):
            y, x = row + j + pad, column + i + pad
            here = np.float32(0)
            if 0 <= y < weight.shape[0] and 0 <= x < weight.shape[1]:
                here = weight[y, x]
            w[j + half, i + half] = here
            data[j + half, i + half] = float(weighted[y, x]) / here if here > 0 else 0.0


@njit(cache=True, nogil=True)
def _without_neighbours(data, column, row, half, near, x, y, flux, grid, over, reach_psf, value):
    """Take the stars `near` (their numbers) out of a window."""
    far = half + reach_psf + 1
    for m in near:
        dx, dy = x[m] - column, y[m] - row
        if flux[m] != 0 and abs(dx) < far and abs(dy) < far:
            _place_star(grid, over, reach_psf, dx, dy, half, False, value, value, value)
            for j in range(2 * half + 1):
                for i in range(2 * half + 1):
                    data[j, i] -= flux[m] * value[j, i]


@njit(cache=True, nogil=True)
def _explained(data, w, value, slope_x, slope_y, reach, sign, sums):
    """Chi-square that a star of the best flux takes away within `reach`; with the sums for the next step.

    `sums`: of w p d, w p p, w p px, w p py, w px px, w px py, w py py, w px r, w py r, with r what the star leaves.
    """
    half = value.shape[0] // 2
    top, bottom = 0.0, 0.0
    for j in range(-reach, reach + 1):
        for i in range(-reach, reach + 1):
            if i * i + j * j <= reach * reach:
                p, here = value[half + j, half + i], w[half + j, half + i]
                top += here * p * data[half + j, half + i]
                bottom += here * p * p
    sums[:] = 0
    if bottom <= 0 or top * sign <= 0:
        return 0.0
    flux = top / bottom
    sums[0], sums[1] = top, bottom
    for j in range(-reach, reach + 1):
        for i in range(-reach, reach + 1):
            if i * i + j * j <= reach * reach:
                p, here = value[half + j, half + i], w[half + j, half + i]
                px, py = slope_x[half + j, half + i], slope_y[half + j, half + i]
                left = data[half + j, half + i] - flux * p
                sums[2] += here * p * px
                sums[3] += here * p * py
                sums[4] += here * px * px
                sums[5] += here * px * py
                sums[6] += here * py * py
                sums[7] += here * px * left
                sums[8] += here * py * left
    return top * top / bottom


@njit(cache=True, nogil=True)
def _settle(data, w, dx, dy, sign, reach, grid, over, reach_psf, value, slope_x, slope_y, sums):
    """Least squares of the position in a window, from dx, dy off its middle, by damped Gauss-Newton steps.

    The flux is solved for at every position, so that there are two unknowns; a step that explains less is taken
    back and tried again, shorter. The position stays within a pixel of the middle.
    """
    half = value.shape[0] // 2
    _place_star(grid, over, reach_psf, dx, dy, half, True, value, slope_x, slope_y)
    gain = _explained(data, w, value, slope_x, slope_y, reach, sign, sums)
    now = sums.copy()
    damping = 1e-3
    for _ in range(FIT_TURNS):
        if gain <= 0:
            break
        flux = now[0] / now[1]
        xx = (now[4] - now[2] * now[2] / now[1]) * (1 + damping)
        yy = (now[6] - now[3] * now[3] / now[1]) * (1 + damping)
        xy = now[5] - now[2] * now[3] / now[1]
        whole = xx * yy - xy * xy
        if not whole > 1e-9 * xx * yy:
            break
        step_x = (yy * now[7] - xy * now[8]) / (whole * flux)
        step_y = (xx * now[8] - xy * now[7]) / (whole * flux)
        new_x = min(max(dx + min(max(step_x, -0.5), 0.5), -1.0), 1.0)
        new_y = min(max(dy + min(max(step_y, -0.5), 0.5), -1.0), 1.0)
        moved = abs(new_x - dx) + abs(new_y - dy)
        _place_star(grid, over, reach_psf, new_x, new_y, half, True, value, slope_x, slope_y)
        better = _explained(data, w, value, slope_x, slope_y, reach, sign, sums)
        if better >= gain:
            dx, dy, gain = new_x, new_y, better
            now[:] = sums
            damping = max(damping * 0.1, 1e-6)
        else:
            damping = damping * 10 if damping > 0.1 else 0.5
        if moved < 1e-3:
            break
    return dx, dy


@njit(cache=True, nogil=True)
def _judge_point(data, w, value, sign, reach, out):
    """Fill the columns of `fit_points` for a star at rest."""
    half = value.shape[0] // 2
    top, bottom, total, lost = 0.0, 0.0, 0.0, 0.0
    for j in range(2 * half + 1):
        for i in range(2 * half + 1):
            p, here = value[j, i], w[j, i]
            total += p * p
            lost += p * p if here == 0 else 0.0
            top += here * p * data[j, i]
            bottom += here * p * p
    flux = top / bottom if bottom > 0 else 0.0
    chi2, brightest, expected, sigma, negative, used = 0.0, 0.0, 0.0, 0.0, 0, 0
    for j in range(-reach, reach + 1):
        for i in range(-reach, reach + 1):
            here = w[half + j, half + i]
            if here == 0 or i * i + j * j > reach * reach:
                continue
            one, model = data[half + j, half + i], flux * value[half + j, half + i]
            used += 1
            negative += sign * one * math.sqrt(here) < -2
            chi2 += here * (one - model) ** 2
            if abs(j) <= 1 and abs(i) <= 1 and (sigma == 0 or sign * one > brightest):
                brightest, expected, sigma = sign * one, sign * model, 1 / math.sqrt(here)
    out[0], out[1] = flux, bottom
    out[2] = chi2 / max(used - 3, 1)
    out[3], out[4], out[5] = brightest, expected, sigma
    out[6] = lost / total if total > 0 else 1.0
    out[7] = negative / used if used > 0 else 0.0
    out[8] = used


@njit(cache=True, nogil=True)
def fit_points(
    weighted, weight, pad, coefficients, order, over, reach_psf, n_x, n_y,
    factor, half, reach, moving, todo, first, near, sign, home_x, home_y, x, y, flux, fitted, out,
):  # fmt: skip
    """Fit a star of free flux, and when `moving` of free position, at each place, and say how well it fits.

    The PSF is that of `tapetum.images.psf.PsfModel`: splines with `over` nodes per pixel, in stamps of `reach_psf`
    pixels on each side, on a frame of n_x by n_y; on a plane binned by `factor` a pixel holds that many times the
    PSF's. Positions count within `reach` of a centre pixel, fluxes within the window of `half`. `todo` are the places
    to work on, in turn; the stars ``near[first[n]:first[n + 1]]`` are taken out of the pixels of the n-th as they are
    known by then. `x`, `y`, `flux` and `fitted` are changed in place; a star that leaves home by more than
    `FARTHEST` is sent back.

    Columns of `out`: flux, sum(P^2/V), chi2 per degree of freedom, brightest pixel of the 3x3 around the centre, what
    the fit says of that pixel, its noise, fraction of sum(P^2) on unusable pixels, fraction of pixels 2 sigma on the
    other side of zero, number of pixels.
    """
    side = coefficients.shape[1]
    size = 2 * half + 1
    grid, terms, sums = np.empty((side, side)), np.zeros(6), np.empty(9)
    data, w, value = np.empty((size, size)), np.empty((size, size)), np.empty((size, size))
    slope_x, slope_y = np.empty((size, size)), np.empty((size, size))
    for n in todo:
        _terms((x[n] + 0.5) * factor - 0.5, (y[n] + 0.5) * factor - 0.5, n_x, n_y, order, terms)
        _combine(coefficients, terms, grid)
        others = near[first[n] : first[n + 1]]
        at_rest = not moving
        for turn in range(WINDOWS):
            column, row = math.floor(x[n] + 0.5), math.floor(y[n] + 0.5)
            _cut_window(weighted, weight, pad, column, row, half, data, w)
            _without_neighbours(data, column, row, half, others, x, y, flux, grid, over, reach_psf, value)
            if at_rest or turn == WINDOWS - 1:
                break
            dx, dy = _settle(
                data, w, x[n] - column, y[n] - row, sign[n], reach, grid, over, reach_psf,
                value, slope_x, slope_y, sums,
            )  # fmt: skip
            x[n], y[n] = column + dx, row + dy
            at_rest = math.floor(x[n] + 0.5) == column and math.floor(y[n] + 0.5) == row
            if math.hypot(x[n] - home_x[n], y[n] - home_y[n]) > FARTHEST:
                x[n], y[n], fitted[n], at_rest = home_x[n], home_y[n], False, True
        _place_star(grid, over, reach_psf, x[n] - column, y[n] - row, half, False, value, slope_x, slope_y)
        _judge_point(data, w, value, sign[n], reach, out[n])
        flux[n] = out[n, 0]


@njit(cache=True, nogil=True)
def light_in_rings(
    weighted, weight, pad, coefficients, order, over, reach_psf, n_x, n_y,
    todo, first, near, x, y, flux, light, variance, good, whole,
):  # fmt: skip
    """Sums in rings one pixel wide around each place, the stars near it taken out.

    `light`, `variance`, `good` and `whole`, all of shape (len(todo), rings), become the sums of the data, of their
    variance, the number of usable pixels and that of all pixels whose distance rounds to the ring's number.
    """
    side = coefficients.shape[1]
    half = light.shape[1] - 1
    size = 2 * half + 1
    grid, terms = np.empty((side, side)), np.zeros(6)
    data, w, value = np.empty((size, size)), np.empty((size, size)), np.empty((size, size))
    for k in range(todo.size):
        n = todo[k]
        _terms(x[n], y[n], n_x, n_y, order, terms)
        _combine(coefficients, terms, grid)
        column, row = math.floor(x[n] + 0.5), math.floor(y[n] + 0.5)
        _cut_window(weighted, weight, pad, column, row, half, data, w)
        others = near[first[n] : first[n + 1]]
        _without_neighbours(data, column, row, half, others, x, y, flux, grid, over, reach_psf, value)
        for j in range(size):
            for i in range(size):
                ring = int(math.hypot(column + i - half - x[n], row + j - half - y[n]) + 0.5)
                if ring > half:
                    continue
                whole[k, ring] += 1
                if w[j, i] > 0:
                    good[k, ring] += 1
                    light[k, ring] += data[j, i]
                    variance[k, ring] += 1 / w[j, i]


@njit(cache=True, nogil=True)
def _seen_moments(weighted, weight, pad, x, y, left, right, top, bottom, wxx, wxy, wyy):
    """Sums of v, v dx^2, v dx dy and v dy^2 under a Gaussian window, v the pixel times the window.

    Along a row the window is a product of factors that are in geometric progression, so it takes two multiplications
    per pixel; a row begins and ends where the window has fallen to exp(-`FAR_OUT` / 2).
    """
    steep = wyy / (wxx * wyy - wxy * wxy)
    bend = math.exp(-steep)
    total, sxx, sxy, syy = 0.0, 0.0, 0.0, 0.0
    for j in range(top, bottom):
        dy = j - pad - y
        lowest = dy * dy / wyy
        if lowest >= FAR_OUT:
            continue
        middle, wide = x + wxy * dy / wyy, math.sqrt((FAR_OUT - lowest) / steep)
        first = max(left, math.ceil(middle - wide) + pad)
        last = min(right, math.floor(middle + wide) + 1 + pad)
        t = first - pad - middle
        height = math.exp(-0.5 * (lowest + steep * t * t))
        ratio = math.exp(-steep * (t + 0.5))
        row, row_x, row_xx = 0.0, 0.0, 0.0
        dx = first - pad - x
        for i in range(first, last):
            w = weight[j, i]
            if w != 0:
                value = height * weighted[j, i] / w
                row += value
                row_x += value * dx
                row_xx += value * dx * dx
            height *= ratio
            ratio *= bend
            dx += 1
        total += row
        sxx += row_xx
        sxy += row_x * dy
        syy += row * dy * dy
    return total, sxx, sxy, syy


@njit(cache=True, nogil=True)
def fit_ellipse(weighted, weight, pad, x, y, sign, sigma, radius):
    """Second moments Mxx, Mxy, Myy [pixel^2] of the elliptical Gaussian that fits best; NaN if there is none.

    After Bernstein & Jarvis (2002), AJ 123, 583, section 3. Under a Gaussian of covariance W a Gaussian of covariance
    M shows C = (1/M + 1/W)^-1, so M = (1/C - 1/W)^-1, with W = M + `LEAST_WINDOW` in the next turn: a window narrower
    than the pixels would see one of them only.
    """
    mxx, mxy, myy = sigma**2, 0.0, sigma**2
    reach = int(radius)
    column, row = math.floor(x + 0.5), math.floor(y + 0.5)
    left, right = max(column - reach, 0) + pad, min(column + reach + 1 + pad, weight.shape[1])
    top, bottom = max(row - reach, 0) + pad, min(row + reach + 1 + pad, weight.shape[0])
    for _ in range(60):
        wxx, wyy = mxx + LEAST_WINDOW, myy + LEAST_WINDOW
        window = wxx * wyy - mxy * mxy
        total, sxx, sxy, syy = _seen_moments(
            weighted, weight, pad, x, y, left, right, top, bottom, wxx, mxy, wyy
        )
        total, sxx, sxy, syy = sign * total, sign * sxx, sign * sxy, sign * syy
        seen = sxx * syy - sxy * sxy
        if total <= 0 or sxx <= 0 or seen <= 0:
            break
        ixx = syy * total / seen - wyy / window
        iyy = sxx * total / seen - wxx / window
        ixy = -sxy * total / seen + mxy / window
        inverse = ixx * iyy - ixy * ixy
        if ixx <= 0 or inverse <= 0:
            break
        new_xx, new_xy, new_yy = iyy / inverse, -ixy / inverse, ixx / inverse
        if new_xx + new_yy > 2 * radius**2:
            break
        change = abs(new_xx - mxx) + abs(new_yy - myy) + abs(new_xy - mxy)
        mxx, mxy, myy = new_xx, new_xy, new_yy
        if change < 2e-3 * (mxx + myy):
            return mxx, mxy, myy
    return np.nan, np.nan, np.nan


@njit(cache=True, nogil=True)
def adaptive_moments(weighted, weight, pad, x, y, sign, sigma, radius, out):
    """Columns of `out`: Mxx, Mxy, Myy [pixel^2] of `fit_ellipse` for each of the positions."""
    for n in range(x.size):
        out[n, 0], out[n, 1], out[n, 2] = fit_ellipse(
            weighted, weight, pad, x[n], y[n], sign[n], sigma[n], radius[n]
        )


@njit(cache=True, nogil=True)
def opposite_peak(snr, column, row, sign, radius, out):
    """Largest value of the other sign within `radius` of each pixel, as a positive number."""
    for n in range(column.size):
        reach = int(radius[n])
        best = 0.0
        for j in range(max(row[n] - reach, 0), min(row[n] + reach + 1, snr.shape[0])):
            for i in range(max(column[n] - reach, 0), min(column[n] + reach + 1, snr.shape[1])):
                if (j - row[n]) ** 2 + (i - column[n]) ** 2 <= radius[n] ** 2:
                    best = max(best, -sign[n] * float(snr[j, i]))
        out[n] = best


@njit(cache=True, nogil=True)
def strip_pixels(weighted, weight, pad, x, y, length, angle, half_width, reach):
    """Usable pixels within `half_width` of a line and `reach` beyond its ends: columns x, y, value, 1 / noise^2."""
    c, s = math.cos(angle), math.sin(angle)
    half = 0.5 * length + reach
    n_y, n_x = weight.shape[0] - 2 * pad, weight.shape[1] - 2 * pad
    span_y = half * abs(s) + half_width * abs(c)
    first, last = max(math.ceil(y - span_y), 0), min(math.floor(y + span_y), n_y - 1)
    kept = np.empty((max(int((2 * half + 3) * (2 * half_width + 3)), 16), 4))
    count = 0
    for j in range(first, last + 1):
        left, right = 0.0, n_x - 1.0
        dy = j - y
        if abs(c) > 1e-9:  # |u| <= half
            a, b = (-half - dy * s) / c, (half - dy * s) / c
            left, right = max(left, x + min(a, b)), min(right, x + max(a, b))
        if abs(s) > 1e-9:  # |v| <= half_width
            a, b = (dy * c - half_width) / s, (dy * c + half_width) / s
            left, right = max(left, x + min(a, b)), min(right, x + max(a, b))
        for i in range(math.ceil(left), math.floor(right) + 1):
            u, v = (i - x) * c + dy * s, -(i - x) * s + dy * c
            w = weight[j + pad, i + pad]
            if w > 0 and abs(u) <= half and abs(v) <= half_width and count < kept.shape[0]:
                kept[count, 0] = i
                kept[count, 1] = j
                kept[count, 2] = weighted[j + pad, i + pad] / w
                kept[count, 3] = w
                count += 1
    return kept[:count]


@njit(cache=True, inline="always")
def _trail_terms(parameters, x, y, terms):
    """Brightness of a trail at a pixel, and its derivatives by the six parameters.

    A line of `length` smeared by a Gaussian: Veres et al. (2012), PASP 124, 1197, equation 3.
    """
    x0, y0, length, angle, flux, sigma = parameters
    c, s = math.cos(angle), math.sin(angle)
    u, v = (x - x0) * c + (y - y0) * s, -(x - x0) * s + (y - y0) * c
    head, tail = u + 0.5 * length, u - 0.5 * length
    scale = 1 / (math.sqrt(2 * math.pi) * sigma)
    g_head = scale * math.exp(-0.5 * (head / sigma) ** 2)
    g_tail = scale * math.exp(-0.5 * (tail / sigma) ** 2)
    along = 0.5 * (math.erf(head / (sigma * math.sqrt(2.0))) - math.erf(tail / (sigma * math.sqrt(2.0))))
    across = scale * math.exp(-0.5 * (v / sigma) ** 2)
    by_u = (g_head - g_tail) * across
    by_v = along * across * (-v / sigma**2)
    density = flux / length
    terms[0] = density * (-c * by_u + s * by_v)
    terms[1] = density * (-s * by_u - c * by_v)
    terms[2] = density * 0.5 * (g_head + g_tail) * across - density / length * along * across
    terms[3] = density * (by_u * v - by_v * u)
    terms[4] = along * across / length
    terms[5] = density * (
        -(head * g_head - tail * g_tail) / sigma * across + along * across * (v * v / sigma**3 - 1 / sigma)
    )
    return density * along * across


@njit(cache=True, nogil=True)
def _trail_cost(parameters, pixels, terms):
    cost = 0.0
    for k in range(pixels.shape[0]):
        z = abs(pixels[k, 2] - _trail_terms(parameters, pixels[k, 0], pixels[k, 1], terms))
        z *= math.sqrt(pixels[k, 3])
        cost += z * z if z < 4 else 8 * z - 16
    return cost


@njit(cache=True, nogil=True)
def fit_trail(pixels, parameters, sigma_low, sigma_high, n_iterations):  # noqa: C901 - one fit, step by step
    """Levenberg-Marquardt fit of a trail to the pixels of a strip, with Huber's weights beyond 4 sigma.

    `parameters` (x, y, length, angle, flux, sigma) is the start and becomes the answer.

    Returns
    -------
    cost, flux_err : float
        Robust sum of squares, and formal error of the flux with the other parameters fixed.
    """
    terms = np.empty(TRAIL_PARAMETERS)
    trial = np.empty(TRAIL_PARAMETERS)
    normal = np.empty((TRAIL_PARAMETERS, TRAIL_PARAMETERS))
    right = np.empty(TRAIL_PARAMETERS)
    step = np.empty(TRAIL_PARAMETERS)
    damping = 1e-2
    new = 0.0
    cost = _trail_cost(parameters, pixels, terms)
    for _ in range(n_iterations):
        normal[:] = 0
        right[:] = 0
        for k in range(pixels.shape[0]):
            residual = pixels[k, 2] - _trail_terms(parameters, pixels[k, 0], pixels[k, 1], terms)
            w = pixels[k, 3]
            z = abs(residual) * math.sqrt(w)
            if z > 4:
                w *= 4 / z
            for a in range(TRAIL_PARAMETERS):
                right[a] += w * residual * terms[a]
                for b in range(a + 1):
                    normal[a, b] += w * terms[a] * terms[b]
        for a in range(TRAIL_PARAMETERS):
            for b in range(a):
                normal[b, a] = normal[a, b]
        improved = False
        while damping < 1e8:
            damped = normal.copy()
            for a in range(TRAIL_PARAMETERS):
                damped[a, a] += damping * normal[a, a] + 1e-30
            step[:] = right
            if _solve(damped, step, TRAIL_PARAMETERS):
                trial[:] = parameters + step
                trial[2] = max(trial[2], 0.2)
                trial[5] = min(max(trial[5], sigma_low), sigma_high)
                new = _trail_cost(trial, pixels, terms)
                if new < cost:
                    improved = True
                    break
            damping *= 10
        if not improved:
            break
        gain = cost - new
        parameters[:] = trial
        cost = new
        damping = max(damping * 0.1, 1e-10)
        if gain < 1e-4 * cost and gain < 0.05:
            break
    curvature = 0.0
    for k in range(pixels.shape[0]):
        _trail_terms(parameters, pixels[k, 0], pixels[k, 1], terms)
        curvature += pixels[k, 3] * terms[4] ** 2
    return cost, 1 / math.sqrt(curvature) if curvature > 0 else np.inf
