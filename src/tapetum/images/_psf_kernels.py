"""Compiled loops over the pixels of stars and boxes.

A PSF is a set of cubic B-splines, one per polynomial term of the field, on a grid with `over` nodes per pixel.
All pixels of one star sit at the same phase of that grid, so a stamp is a separable filter with four weights per
axis, taken at a stride of `over`. The rim of the grid is zero and wide enough that no tap leaves it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

N_BINS = 256  # of the histogram of a box; +-5 sigma of the first guess at 0.04 sigma each
NARROW_WEIGHT = 1.1  # standard deviation [pixel]
N_PASSES = 12  # of sigma clipping
MODEL_SLACK = (
    0.05  # part of a star's light in a pixel by which the PSF may be wrong before the pixel is an outlier
)


@njit(cache=True, nogil=True)
def _weights(t, w, dw):
    """Cubic B-spline and its derivative at the four nodes around a point at fraction `t` past the second one."""
    s = 1.0 - t
    w[0] = s * s * s / 6.0
    w[1] = (3.0 * t * t * t - 6.0 * t * t + 4.0) / 6.0
    w[2] = (3.0 * s * s * s - 6.0 * s * s + 4.0) / 6.0
    w[3] = t * t * t / 6.0
    dw[0] = -0.5 * s * s
    dw[1] = 1.5 * t * t - 2.0 * t
    dw[2] = -1.5 * s * s + 2.0 * s
    dw[3] = 0.5 * t * t


@njit(cache=True, nogil=True)
def _phase(offset, half, over, w, dw):
    """First of the four nodes under the first pixel of a stamp whose star is `offset` right of its centre pixel."""
    middle = half * over + over + 3  # = tapetum.images._psf_grid.grid_half
    q = middle - (half + offset) * over
    first = int(np.floor(q))
    _weights(q - first, w, dw)
    return first - 1


@njit(cache=True, nogil=True)
def _terms(x, y, n_x, n_y, order, terms):
    """Polynomial terms 1, X, Y, X^2, XY, Y^2 of a position, X and Y in -1...1 and held at the edge outside."""
    u = min(1.0, max(-1.0, (2.0 * x - (n_x - 1)) / n_x))
    v = min(1.0, max(-1.0, (2.0 * y - (n_y - 1)) / n_y))
    terms[0] = 1.0
    if order >= 1:
        terms[1] = u
        terms[2] = v
    if order >= 2:
        terms[3] = u * u
        terms[4] = u * v
        terms[5] = v * v


@njit(cache=True, nogil=True)
def _combine(coefficients, terms, grid):
    """The spline of one position: the sum of its terms."""
    n_terms, side, _ = coefficients.shape
    for r in range(side):
        for c in range(side):
            grid[r, c] = coefficients[0, r, c]
        for k in range(1, n_terms):
            for c in range(side):
                grid[r, c] += terms[k] * coefficients[k, r, c]


@njit(cache=True, nogil=True)
def _filter_rows(grid, first, w, over, size, rows):
    """Filter along x: what is left is one column per pixel and one row per node."""
    side = grid.shape[0]
    for r in range(side):
        for p in range(size):
            at = first + p * over
            rows[r, p] = (
                w[0] * grid[r, at] + w[1] * grid[r, at + 1] + w[2] * grid[r, at + 2] + w[3] * grid[r, at + 3]
            )


@njit(cache=True, nogil=True)
def _filter_columns(rows, first, w, over, size, stamp):
    """Filter along y."""
    for q in range(size):
        at = first + q * over
        for p in range(size):
            stamp[q, p] = (
                w[0] * rows[at, p] + w[1] * rows[at + 1, p] + w[2] * rows[at + 2, p] + w[3] * rows[at + 3, p]
            )


@njit(cache=True, nogil=True)
def render(coefficients, order, over, half, n_x, n_y, x, y, centre_x, centre_y, out):
    """Unit-flux stamps of stars at x, y [pixel] into `out` (n, size, size), in windows around the given centres.

    A star may be up to one pixel away from the middle of its centre pixel.
    """
    side = coefficients.shape[1]
    size = 2 * half + 1
    grid = np.empty((side, side))
    rows = np.empty((side, size))
    terms = np.zeros(6)
    wx, wy, unused = np.empty(4), np.empty(4), np.empty(4)
    for i in range(x.size):
        _terms(x[i], y[i], n_x, n_y, order, terms)
        _combine(coefficients, terms, grid)
        fx = _phase(x[i] - centre_x[i], half, over, wx, unused)
        fy = _phase(y[i] - centre_y[i], half, over, wy, unused)
        _filter_rows(grid, fx, wx, over, size, rows)
        _filter_columns(rows, fy, wy, over, size, out[i])


@njit(cache=True, nogil=True)
def _filter_back(stamp, weight, fx, fy, wx, wy, over, rows, grid):
    """The transpose of the two filters: weighted pixels back onto the nodes they came from."""
    side, size = rows.shape
    grid[:] = 0.0
    rows[:] = 0.0
    for q in range(size):
        for k in range(4):
            at = fy + q * over + k
            for p in range(size):
                rows[at, p] += wy[k] * weight[q, p] * stamp[q, p]
    for r in range(side):
        for p in range(size):
            at = fx + p * over
            for k in range(4):
                grid[r, at + k] += wx[k] * rows[r, p]


@njit(cache=True, nogil=True)
def normal_product(coefficients, terms, offsets, over, half, weight, target, use_target, out):
    """A^T W A c, or A^T W z when `use_target`: splines to pixels of every star and back.

    `terms` (n, n_terms) and `offsets` (n, 2) belong to the stars, `weight` (n, size, size) is flux^2 / variance, and
    `target` (n, size, size) the pixels in units of the flux. The result is added to `out`, shaped as `coefficients`.
    """
    n_terms, side, _ = coefficients.shape
    size = 2 * half + 1
    grid = np.empty((side, side))
    rows = np.empty((side, size))
    stamp = np.empty((size, size))
    wx, wy, unused = np.empty(4), np.empty(4), np.empty(4)
    for i in range(terms.shape[0]):
        fx = _phase(offsets[i, 0], half, over, wx, unused)
        fy = _phase(offsets[i, 1], half, over, wy, unused)
        if use_target:
            for q in range(size):
                for p in range(size):
                    stamp[q, p] = target[i, q, p]
        else:
            _combine(coefficients, terms[i], grid)
            _filter_rows(grid, fx, wx, over, size, rows)
            _filter_columns(rows, fy, wy, over, size, stamp)
        _filter_back(stamp, weight[i], fx, fy, wx, wy, over, rows, grid)
        for t in range(n_terms):
            for r in range(side):
                for c in range(side):
                    out[t, r, c] += terms[i, t] * grid[r, c]


@njit(cache=True, nogil=True)
def _solve(a, b, n):
    """Solve the positive definite system a z = b in place by Cholesky; False when it is singular. b becomes z."""
    for i in range(n):
        for j in range(i + 1):
            total = a[i, j]
            for k in range(j):
                total -= a[i, k] * a[j, k]
            if i == j:
                if total <= 1e-12 * a[i, i] or total <= 0.0:
                    return False
                a[i, i] = np.sqrt(total)
            else:
                a[i, j] = total / a[j, j]
    for i in range(n):
        for k in range(i):
            b[i] -= a[i, k] * b[k]
        b[i] /= a[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            b[i] -= a[k, i] * b[k]
        b[i] /= a[i, i]
    return True


@njit(cache=True, nogil=True)
def _inverse_diagonal(a, n, out):
    """Diagonal of the inverse of L L^T from its factor L: the variances of a fit."""
    column = np.empty(4)
    for j in range(n):
        total = 0.0
        for k in range(j, n):
            column[k] = 1.0 if k == j else 0.0
            for m in range(j, k):
                column[k] -= a[k, m] * column[m]
            column[k] /= a[k, k]
            total += column[k] * column[k]
        out[j] = total


@njit(cache=True, nogil=True)
def _photon_variance(light, gain):
    """Photon noise [DN^2] of a star's light [DN] in one pixel; 0 when the gain is not given."""
    return light / gain if gain > 0.0 and light > 0.0 else 0.0


@njit(cache=True, nogil=True)
def _normal_equations(pixels, variance, value, along, flux, sky, gain, clip, sky_sigma, n_free, a, b):
    """Fill a and b for flux, with along[0], along[1] for the position (n_free >= 3) and the sky last; pixels used."""
    size = value.shape[0]
    n_shape = 3 if n_free >= 3 else 1
    basis = np.empty(4)
    a[:] = 0.0
    b[:] = 0.0
    prior, n_used = 0.0, 0
    for q in range(size):
        for p in range(size):
            v = variance[q, p]
            if v <= 0.0:
                continue
            light = flux * value[q, p]
            residual = pixels[q, p] - light - sky
            prior += 1.0 / v
            n_used += 1
            v += _photon_variance(light, gain)
            slack = MODEL_SLACK * light
            if clip > 0.0 and residual * residual > clip * clip * (v + slack * slack):
                continue
            basis[0] = value[q, p]
            if n_shape == 3:
                basis[1], basis[2] = along[0, q, p], along[1, q, p]
            if n_free > n_shape:
                basis[n_shape] = 1.0
            for j in range(n_free):
                weighted = basis[j] / v
                b[j] += weighted * residual
                for k in range(j + 1):
                    a[j, k] += weighted * basis[k]
    if n_free > n_shape and n_used > 0:
        tightness = prior / (n_used * sky_sigma * sky_sigma)
        a[n_shape, n_shape] += tightness
        b[n_shape] -= sky * tightness
    return n_used


@njit(cache=True, nogil=True)
def _fit_quality(pixels, variance, value, flux, sky, gain):
    """Chi-square, pixels used, and part of the light that fell on them."""
    chi2, n_used, seen, whole = 0.0, 0, 0.0, 0.0
    for q in range(value.shape[0]):
        for p in range(value.shape[0]):
            whole += value[q, p]
            v = variance[q, p]
            if v > 0.0:
                light = flux * value[q, p]
                residual = pixels[q, p] - light - sky
                chi2 += residual * residual / (v + _photon_variance(light, gain))
                n_used += 1
                seen += value[q, p]
    return chi2, n_used, seen / whole if whole > 0.0 else 0.0


@njit(cache=True, nogil=True)
def _place(grid, rows, drows, offset_x, offset_y, half, over, flux, moving, value, along):
    """Unit-flux stamp of a star at an offset and, while it moves, what its flux does per pixel of a move."""
    size = 2 * half + 1
    wx, wy, dwx, dwy = np.empty(4), np.empty(4), np.empty(4), np.empty(4)
    fx = _phase(offset_x, half, over, wx, dwx)
    fy = _phase(offset_y, half, over, wy, dwy)
    _filter_rows(grid, fx, wx, over, size, rows)
    _filter_columns(rows, fy, wy, over, size, value)
    if moving:
        _filter_columns(rows, fy, dwy, over, size, along[1])
        _filter_rows(grid, fx, dwx, over, size, drows)
        _filter_columns(drows, fy, wy, over, size, along[0])
        for q in range(size):
            for p in range(size):
                along[0, q, p] *= -over * flux
                along[1, q, p] *= -over * flux


@njit(cache=True, nogil=True)
def _limited(step, offset):
    """An offset after a step: at most half a pixel at a time, at most one from the centre."""
    return min(1.0, max(-1.0, offset + min(0.5, max(-0.5, step))))


@njit(cache=True, nogil=True)
def fit_stars(
    pixels,
    variance,
    coefficients,
    order,
    over,
    half,
    n_x,
    n_y,
    x,
    y,
    centre_x,
    centre_y,
    gain,
    n_moves,
    sky_sigma,
    clip,
    out,
):
    """Least squares of flux, and on request position and local sky, of each star in its stamp.

    `pixels`, `variance` (n, size, size) are windows around the given centre pixels; variance 0 marks a bad pixel.
    `n_moves` Gauss-Newton steps move the star (0: position is held), `sky_sigma` > 0 adds a constant with that prior
    [in units of the noise]; `gain` > 0 adds the photon noise of the fitted star; pixels beyond `clip` sigma (> 0) of
    the model are left out. Columns of `out`: x, y, flux, flux_err, sky, chi2, number of pixels, part of the light
    that fell on good pixels, x_err, y_err.
    """
    side = coefficients.shape[1]
    size = 2 * half + 1
    grid = np.empty((side, side))
    rows, drows = np.empty((side, size)), np.empty((side, size))
    value, along = np.empty((size, size)), np.empty((2, size, size))
    terms = np.zeros(6)
    a, b, errors = np.empty((4, 4)), np.empty(4), np.empty(4)
    # the first step finds a flux, the last one flux and sky where the star has come to rest
    n_steps = n_moves + 2 if gain > 0.0 or clip > 0.0 or n_moves > 0 else 1
    for i in range(x.size):
        _terms(x[i], y[i], n_x, n_y, order, terms)
        _combine(coefficients, terms, grid)
        dx, dy, flux, sky = x[i] - centre_x[i], y[i] - centre_y[i], 0.0, 0.0
        out[i, :] = np.nan
        out[i, 0], out[i, 1], out[i, 6], out[i, 7] = x[i], y[i], 0.0, 0.0
        solved = False
        for step in range(n_steps):
            moving = 0 < step < n_steps - 1 and n_moves > 0 and flux > 0.0
            _place(grid, rows, drows, dx, dy, half, over, flux, moving, value, along)
            n_free = (3 if moving else 1) + (1 if sky_sigma > 0.0 else 0)
            strict = clip if step > 1 else 0.0
            n_used = _normal_equations(
                pixels[i], variance[i], value, along, flux, sky, gain, strict, sky_sigma, n_free, a, b
            )
            solved = n_used >= n_free and _solve(a, b, n_free)
            if not solved:
                break
            _inverse_diagonal(a, n_free, errors)
            flux += b[0]
            out[i, 3] = np.sqrt(errors[0])
            if moving:
                dx, dy = _limited(b[1], dx), _limited(b[2], dy)
                out[i, 8], out[i, 9] = np.sqrt(errors[1]), np.sqrt(errors[2])
            if sky_sigma > 0.0:
                sky += b[n_free - 1]
        if not solved:
            out[i, 3] = np.nan
            continue
        out[i, 0], out[i, 1], out[i, 2], out[i, 4] = centre_x[i] + dx, centre_y[i] + dy, flux, sky
        out[i, 5], out[i, 6], out[i, 7] = _fit_quality(pixels[i], variance[i], value, flux, sky, gain)


@njit(cache=True, nogil=True)
def _weighted_moments(data, bad, cx, cy, variance, half, m):
    """Sums of light under a round Gaussian: 1, x, y, xx, yy, xy; then the peak near the centre and the bad pixels."""
    n_y, n_x = data.shape
    ix, iy = int(np.floor(cx + 0.5)), int(np.floor(cy + 0.5))
    m[:] = 0.0
    m[6] = -np.inf
    for r in range(iy - half, iy + half + 1):
        for c in range(ix - half, ix + half + 1):
            if r < 0 or c < 0 or r >= n_y or c >= n_x or bad[r, c] != 0:
                m[7] += 1.0
                continue
            value = data[r, c]
            if value > m[6] and abs(r - iy) < 3 and abs(c - ix) < 3:
                m[6] = value
            u, v = c - cx, r - cy
            w = value * np.exp(-0.5 * (u * u + v * v) / variance)
            m[0] += w
            m[1] += w * u
            m[2] += w * v
            m[3] += w * u * u
            m[4] += w * v * v
            m[5] += w * u * v


@njit(cache=True, nogil=True)
def moments(data, bad, x, y, sigma, half, n_steps, out):
    """Adaptive Gaussian moments (Bernstein & Jarvis 2002) with a round weight that follows the object's size.

    The weight is never narrower than `NARROW_WEIGHT`: pixels could not sample it. `data` is finite. Columns of `out`:
    x, y, size (standard deviation) [pixel], ellipticity, flux of the Gaussian [DN], peak [DN], bad pixels within
    `half`, converged (1 or 0).
    """
    m = np.empty(8)
    for i in range(x.size):
        cx, cy, variance = x[i], y[i], sigma * sigma
        total, ellipticity, good = 0.0, 0.0, 0.0
        for _ in range(n_steps):
            good = 0.0
            weight = max(variance, NARROW_WEIGHT * NARROW_WEIGHT)
            _weighted_moments(data, bad, cx, cy, weight, half, m)
            if m[0] <= 0.0:
                break
            dx, dy = m[1] / m[0], m[2] / m[0]
            # of Gaussians: 1 / measured = 1 / object + 1 / weight, and the weight keeps this part of shift and light
            measured = 0.5 * ((m[3] + m[4]) / m[0] - (dx * dx + dy * dy))
            if not (0.01 < measured < 0.9 * weight):
                break
            new = 1.0 / (1.0 / measured - 1.0 / weight)
            gain = (new + weight) / weight
            cx += min(1.0, max(-1.0, gain * dx))
            cy += min(1.0, max(-1.0, gain * dy))
            if new > half * half or max(abs(cx - x[i]), abs(cy - y[i])) > 2.0:
                break
            ellipticity = np.hypot(m[3] - m[4], 2.0 * m[5]) / (m[3] + m[4])
            total, good = gain * m[0], 1.0
            settled = abs(new - variance) < 1e-3 * variance and max(abs(dx), abs(dy)) < 1e-3
            variance = new
            if settled:
                break
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = cx, cy, np.sqrt(variance), ellipticity
        out[i, 4], out[i, 5], out[i, 6], out[i, 7] = total, m[6], m[7], good


@njit(cache=True, nogil=True)
def _usable(data, bad, r, c):
    """Is this pixel finite and not masked? A mask of one pixel stands for none."""
    return np.isfinite(data[r, c]) and (bad.size == 1 or bad[r, c] == 0)


@njit(cache=True, nogil=True)
def _ranked(values, n, rank):
    """The value of this rank among the first `n`, which are re-ordered (Hoare's selection; no sort to compile)."""
    low, high = 0, n - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return float(values[rank])


@njit(cache=True, nogil=True)
def _first_guess(data, bad, top, bottom, left, right):
    """Median, scale of the lower half, and number of good pixels of a box, from a sixteenth of its pixels."""
    sample = np.empty(((bottom - top) * (right - left)) // 16 + 1, np.float32)
    n, k = 0, 0
    for r in range(top, bottom):
        for c in range(left, right):
            if _usable(data, bad, r, c):
                if n % 16 == 0:
                    sample[k] = data[r, c]
                    k += 1
                n += 1
    if k < 4:
        return 0.0, -1.0, n
    # by rank, so that no wild pixel can stretch it; sources matter less below the median
    middle = _ranked(sample, k, k // 2)
    return middle, 1.4826 * (middle - _ranked(sample, k, k // 4)), n


@njit(cache=True, nogil=True)
def _clipped(counts):
    """Mean, median and standard deviation [bin] of a histogram, clipped at 3 sigma about the median."""
    first, last = 0, counts.size
    mean, median, spread = 0.0, 0.0, 0.0
    for _ in range(N_PASSES):
        m0, m1, m2 = 0.0, 0.0, 0.0
        for b in range(first, last):
            m0 += counts[b]
            m1 += counts[b] * (b + 0.5)
            m2 += counts[b] * (b + 0.5) * (b + 0.5)
        if m0 < 1.0:
            break
        mean = m1 / m0
        spread = np.sqrt(max(m2 / m0 - mean * mean, 1.0 / 12.0))
        run, b = 0.0, first
        while run + counts[b] < 0.5 * m0:
            run += counts[b]
            b += 1
        median = b + (0.5 * m0 - run) / counts[b]
        lower, upper = (
            int(max(0.0, median - 3.0 * spread)),
            int(min(counts.size, median + 3.0 * spread + 1.0)),
        )
        if lower == first and upper == last:
            break
        first, last = lower, upper
    return mean, median, spread


@njit(cache=True, nogil=True)
def spline_rows(pieces, origin, start, least, first, last, out):
    """Rows `first` to `last` of an image from cubic pieces along each, at least `least`.

    `pieces` (n_y, n, 4) are coefficients by falling power of the distance from `origin` (n,); a piece holds from
    `start` (n + 1,) to the next one [pixel].
    """
    for y in range(first, last):
        for k in range(origin.size):
            a, b, c, d = pieces[y, k]
            for x in range(start[k], start[k + 1]):
                t = x - origin[k]
                out[y, x] = max(((a * t + b) * t + c) * t + d, least)


@njit(cache=True, nogil=True)
def box_statistics(data, bad, edges_y, edges_x, level, noise, part):
    """Sky level and noise of every box: clipped mode and standard deviation of its histogram.

    `bad` is nonzero where a pixel is not to be used; `part` receives the fraction of pixels that are good.
    """
    counts = np.empty(N_BINS, np.int64)
    for j in range(level.shape[0]):
        top, bottom = edges_y[j], edges_y[j + 1]
        for i in range(level.shape[1]):
            left, right = edges_x[i], edges_x[i + 1]
            middle, sigma, n = _first_guess(data, bad, top, bottom, left, right)
            part[j, i] = n / ((bottom - top) * (right - left))
            level[j, i], noise[j, i] = np.nan, np.nan
            width = 10.0 * sigma / N_BINS
            if not (width > 0.0):
                continue
            low = middle - 5.0 * sigma
            counts[:] = 0
            for r in range(top, bottom):
                for c in range(left, right):
                    if _usable(data, bad, r, c):
                        b = (data[r, c] - low) / width
                        if 0.0 <= b < N_BINS:
                            counts[int(b)] += 1
            mean, median, spread = _clipped(counts)
            # crowded boxes have a tail to the right: mode after Da Costa (1992), while mean and median agree
            best = 2.5 * median - 1.5 * mean if abs(mean - median) < 0.3 * spread else median
            level[j, i] = low + width * best
            noise[j, i] = width * spread
