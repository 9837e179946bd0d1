"""Compiled loops of detection: matched filter, linking of pixels, fits of points and trails.

Images are float32, coordinates and sums float64. `pad` is the number of empty rows and columns that were put
around the weighted planes, so that no loop has to ask whether it is still inside.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

SEGMENT_COLUMNS = 9  # n_low, n_over, sum of weights, of w dx, w dy, w dx2, w dxdy, w dy2, of data
POINT_COLUMNS = 11
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
def _solve(matrix, right):
    """Solve a small system in place by Gauss elimination with pivots; the answer is in `right`, False if singular."""
    n = right.size
    for k in range(n):
        pivot = k
        for i in range(k + 1, n):
            if abs(matrix[i, k]) > abs(matrix[pivot, k]):
                pivot = i
        if not abs(matrix[pivot, k]) > 1e-300:
            return False
        for j in range(n):
            matrix[k, j], matrix[pivot, j] = matrix[pivot, j], matrix[k, j]
        right[k], right[pivot] = right[pivot], right[k]
        for i in range(k + 1, n):
            factor = matrix[i, k] / matrix[k, k]
            for j in range(k, n):
                matrix[i, j] -= factor * matrix[k, j]
            right[i] -= factor * right[k]
    for k in range(n - 1, -1, -1):
        for j in range(k + 1, n):
            right[k] -= matrix[k, j] * right[j]
        right[k] /= matrix[k, k]
    return True


@njit(cache=True, nogil=True)
def fit_points(weighted, weight, pad, stamps, column, row, sign, radius, out):
    """Fit a star of free flux around each position and say how well it fits.

    Columns of `out`: flux, sum(P^2/V), step in x, step in y, chi2 per degree of freedom, brightest pixel of the
    3x3 around the centre, what the fit says of that pixel, its noise, fraction of sum(P^2) on unusable pixels,
    fraction of pixels 2 sigma on the other side of zero, number of pixels.
    """
    side = stamps.shape[1]
    half = side // 2
    normal = np.empty((3, 3))
    right = np.empty(3)
    for n in range(stamps.shape[0]):
        stamp = stamps[n]
        top, bottom, total, lost, negative, used = 0.0, 0.0, 0.0, 0.0, 0, 0
        normal[:] = 0
        right[:] = 0
        reach = min(int(radius[n]), half)
        for j in range(-half, half + 1):
            y = row[n] + j + pad
            for i in range(-half, half + 1):
                x = column[n] + i + pad
                p = float(stamp[half + j, half + i])
                total += p * p
                inside = 0 <= y < weight.shape[0] and 0 <= x < weight.shape[1]
                w = float(weight[y, x]) if inside else 0.0
                if w == 0:
                    lost += p * p
                    continue
                wd = float(weighted[y, x])
                top += p * wd
                bottom += p * p * w
                if j * j + i * i > reach * reach:
                    continue
                used += 1
                negative += sign[n] * wd < -2 * math.sqrt(w)
                px, py = 0.0, 0.0
                if abs(i) < half and abs(j) < half:
                    px = 0.5 * (float(stamp[half + j, half + i - 1]) - float(stamp[half + j, half + i + 1]))
                    py = 0.5 * (float(stamp[half + j - 1, half + i]) - float(stamp[half + j + 1, half + i]))
                normal[0, 0] += w * p * p
                normal[0, 1] += w * p * px
                normal[0, 2] += w * p * py
                normal[1, 1] += w * px * px
                normal[1, 2] += w * px * py
                normal[2, 2] += w * py * py
                right[0] += p * wd
                right[1] += px * wd
                right[2] += py * wd
        normal[1, 0], normal[2, 0], normal[2, 1] = normal[0, 1], normal[0, 2], normal[1, 2]
        flux = top / bottom if bottom > 0 else 0.0
        good = used >= 6 and _solve(normal, right) and right[0] * sign[n] > 0
        out[n, 0] = flux
        out[n, 1] = bottom
        out[n, 2] = right[1] / right[0] if good else 0.0
        out[n, 3] = right[2] / right[0] if good else 0.0
        chi2, brightest, expected, sigma = 0.0, 0.0, 0.0, 0.0
        for j in range(-reach, reach + 1):
            for i in range(-reach, reach + 1):
                y, x = row[n] + j + pad, column[n] + i + pad
                if j * j + i * i > reach * reach or not (
                    0 <= y < weight.shape[0] and 0 <= x < weight.shape[1]
                ):
                    continue
                w = float(weight[y, x])
                if w == 0:
                    continue
                value = float(weighted[y, x]) / w
                model = flux * float(stamp[half + j, half + i])
                chi2 += w * (value - model) ** 2
                if abs(j) <= 1 and abs(i) <= 1 and (sigma == 0 or sign[n] * value > brightest):
                    brightest, expected, sigma = sign[n] * value, sign[n] * model, 1 / math.sqrt(w)
        out[n, 4] = chi2 / max(used - 3, 1)
        out[n, 5], out[n, 6], out[n, 7] = brightest, expected, sigma
        out[n, 8] = lost / total if total > 0 else 1.0
        out[n, 9] = negative / used if used > 0 else 0.0
        out[n, 10] = used


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
            if _solve(damped, step):
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
