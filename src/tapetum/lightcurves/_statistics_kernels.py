"""Compiled loops of the basic statistics; one curve after the other, memory proportional to the longest.

Curves reach them sorted, finite and with errors above zero; `usable` says which are.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# Sums may be reordered, so that they run in vectors; NaN stays NaN. Functions with it are always inlined
# (`forceinline`): otherwise LLVM optimises them once alone and once more within their callers, a process that has just
# compiled them runs the first version and one that found them in numba's cache the second, and last digits differ.
REORDER = {"reassoc", "contract", "nsz"}
FARTHEST = 8.0  # table of the logarithm of the normal distribution: from minus to plus this
PER_UNIT = 8  # its intervals per standard deviation
FAR_TAIL = 25.0  # beyond it the distribution's tail is its asymptotic series
LOG_SQRT_2PI = 0.9189385332046727


@njit(cache=True, nogil=True)
def pour(values, offsets, which, beyond, block):
    """One curve per row of a block, filled up with `beyond`, which sorts last."""
    for row in range(which.size):
        first, last = offsets[which[row]], offsets[which[row] + 1]
        block[row, : last - first] = values[first:last]
        block[row, last - first :] = beyond


@njit(cache=True, nogil=True)
def draw(block, offsets, which, values):
    """The rows of a block back to where the curves lie."""
    for row in range(which.size):
        first, last = offsets[which[row]], offsets[which[row] + 1]
        values[first:last] = block[row, : last - first]


@njit(cache=True, nogil=True)
def usable(time, mag, magerr, offsets, good):
    """Whether a curve has points, all finite, with errors above zero, and times that never fall."""
    for i in range(good.size):
        first, last = offsets[i], offsets[i + 1]
        fine = last > first
        for j in range(first, last):
            fine &= math.isfinite(time[j]) and math.isfinite(mag[j]) and magerr[j] > 0
            fine &= math.isfinite(magerr[j]) and (j == first or time[j] >= time[j - 1])
        good[i] = fine


@njit(cache=True, nogil=True, error_model="numpy")
def signal_to_noise(mag, magerr, out):
    """Magnitude over error, whatever these are."""
    for j in range(mag.size):
        out[j] = mag[j] / magerr[j]


@njit(cache=True, nogil=True, error_model="numpy")
def percentile(ordered, share):
    """Linear interpolation between the points that enclose `share` (0 to 1) of them, as numpy does by default."""
    place = share * (ordered.size - 1)
    below = min(int(place), ordered.size - 1)
    above = min(below + 1, ordered.size - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@njit(cache=True, nogil=True)
def _deviation(ordered, centre, rank):
    """The `rank`-th smallest (from 0) of |ordered - centre|; both halves are sorted already, so by bisection."""
    half = ordered.size // 2
    low, high = max(0, rank + 1 - (ordered.size - half)), min(rank + 1, half)
    while low < high:
        left = (low + high) // 2
        if centre - ordered[half - 1 - left] < ordered[half + rank - left] - centre:
            low = left + 1
        else:
            high = left
    value = 0.0
    if low > 0:
        value = centre - ordered[half - low]
    if rank - low >= 0:
        value = max(value, ordered[half + rank - low] - centre)
    return value


@njit(cache=True, nogil=True)
def median_deviation(ordered, centre):
    """Median of |ordered - centre|, `centre` the median."""
    middle = ordered.size // 2
    if ordered.size % 2:
        return _deviation(ordered, centre, middle)
    return 0.5 * (_deviation(ordered, centre, middle - 1) + _deviation(ordered, centre, middle))


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER, forceinline=True)
def weighted_mean(mag, magerr, near):
    """Mean with weights 1 / error^2; sums are taken from `near`, so that no digits are lost."""
    total = 0.0
    moment = 0.0
    for j in range(mag.size):
        weight = 1.0 / (magerr[j] * magerr[j])
        total += weight
        moment += weight * (mag[j] - near)
    return near + moment / total, total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER, forceinline=True)
def residuals(mag, magerr, mean, out):
    """(magnitude - mean) / error, and the sums of its absolute value and its 2nd, 3rd and 4th power."""
    absolute, second, third, fourth = 0.0, 0.0, 0.0, 0.0
    for j in range(mag.size):
        r = (mag[j] - mean) / magerr[j]
        out[j] = r
        square = r * r
        absolute += abs(r)
        second += square
        third += square * r
        fourth += square * square
    return absolute, second, third, fourth


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER, forceinline=True)
def _scatter(mag, magerr, mean, median):
    """Sums of (m - mean)^2 - e^2 and of |m - median| / e."""
    excess, absolute = 0.0, 0.0
    for j in range(mag.size):
        d = mag[j] - mean
        excess += d * d - magerr[j] * magerr[j]
        absolute += abs(mag[j] - median) / magerr[j]
    return excess, absolute


@njit(cache=True, nogil=True, error_model="numpy")
def _ends(mag, magerr):
    """Largest m - e and smallest m + e."""
    top, bottom = -np.inf, np.inf
    for j in range(mag.size):
        top = max(top, mag[j] - magerr[j])
        bottom = min(bottom, mag[j] + magerr[j])
    return top, bottom


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER, forceinline=True)
def _neighbours(time, mag, residual):
    """Sums over neighbours of P, sign(P) sqrt|P|, dm^2 / dt^2 and 1 / dt^2, P being the product of their residuals."""
    product, root, steep, weight = 0.0, 0.0, 0.0, 0.0
    for j in range(mag.size - 1):
        p = residual[j] * residual[j + 1]
        product += p
        root += math.copysign(math.sqrt(abs(p)), p)
        dt = time[j + 1] - time[j]
        dm = mag[j + 1] - mag[j]
        w = 1.0 / (dt * dt)
        steep += w * dm * dm
        weight += w
    return product, root, steep, weight


@njit(cache=True, nogil=True)
def _log_tail(w):
    """Logarithm of the normal distribution's upper tail from w on, w far out."""
    if w < FAR_TAIL:
        return math.log(0.5 * math.erfc(w * math.sqrt(0.5)))
    u = 1.0 / (w * w)
    return -0.5 * w * w - LOG_SQRT_2PI - math.log(w) + math.log1p(-u * (1 - u * (3 - u * (15 - 105 * u))))


@njit(cache=True, nogil=True, fastmath={"contract"})
def _log_sides(w, table):
    """Logarithm of the normal distribution function below w and above it."""
    if abs(w) < FARTHEST:
        place = (w + FARTHEST) * PER_UNIT
        k = int(place)
        u = 2.0 * (place - k) - 1.0
        near, far = table[k], table[table.shape[0] - 1 - k]
        below, above = near[7], far[7]
        for order in range(6, -1, -1):
            below = below * u + near[order]
            above = above * -u + far[order]
        return below, above
    tail = _log_tail(abs(w))
    rest = math.log1p(-math.exp(tail))
    return (tail, rest) if w < 0 else (rest, tail)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER, forceinline=True)
def mean_and_squares(values):
    """Mean, and sum of the squared distances from it."""
    total = 0.0
    for j in range(values.size):
        total += values[j] - values[0]
    mean = values[0] + total / values.size
    squares = 0.0
    for j in range(values.size):
        squares += (values[j] - mean) * (values[j] - mean)
    return mean, squares


@njit(cache=True, nogil=True, error_model="numpy")
def anderson_darling(ordered, mean, squares, table):
    """Anderson & Darling's A^2 against a normal distribution of the sample's mean and (n - 1) standard deviation."""
    n = ordered.size
    if n < 2 or not squares > 0:
        return np.nan
    per_sigma = math.sqrt((n - 1) / squares)
    total = 0.0
    for i in range(n):
        below, above = _log_sides((ordered[i] - mean) * per_sigma, table)
        total += (2 * i + 1) * below + (2 * (n - i) - 1) * above
    return -n - total / n


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER, forceinline=True)
def shapiro_wilk(ordered, squares, coefficients):
    """Shapiro & Wilk's W: the squared correlation with what a normal sample in order would be."""
    n = ordered.size
    if n < 3 or not squares > 0:
        return np.nan
    slope = 0.0
    for i in range(n // 2):
        slope += coefficients[i] * (ordered[n - 1 - i] - ordered[i])
    return slope * slope / squares


@njit(cache=True, nogil=True, error_model="numpy")
def _by_order(ordered, median, row):
    """The statistics of the magnitudes in order."""
    row[1] = median
    row[8] = median_deviation(ordered, median)
    for k, low in enumerate((0.25, 0.2, 0.15, 0.1, 0.05)):
        row[9 + k] = percentile(ordered, 1 - low) - percentile(ordered, low)


@njit(cache=True, nogil=True, error_model="numpy")
def _by_time(time, mag, magerr, median, scratch, row):
    """The statistics of the magnitudes as they follow each other."""
    n = float(mag.size)
    mean, weights = weighted_mean(mag, magerr, median)
    absolute, second, third, fourth = residuals(mag, magerr, mean, scratch)
    excess, from_median = _scatter(mag, magerr, mean, median)
    top, bottom = _ends(mag, magerr)
    product, root, steep, steep_weight = _neighbours(time, mag, scratch)
    row[2] = mean
    row[3] = second / (n - 1)
    row[4] = from_median / (n - 1)
    row[5] = math.sqrt(second / weights)
    row[6] = (top - bottom) / (top + bottom)
    row[7] = excess / (n * mean * mean)
    row[14] = n / ((n - 1) * (n - 2)) * third
    row[15] = n * (n + 1) / ((n - 1) * (n - 2) * (n - 3)) * fourth - 3 * (n - 1) ** 2 / ((n - 2) * (n - 3))
    row[16] = steep_weight * (second / weights) / steep
    row[17] = n / (n - 1) * product
    row[18] = math.sqrt(n / (n - 1)) * root
    row[19] = absolute / math.sqrt(n * second)


@njit(cache=True, nogil=True, error_model="numpy")
def statistics_of(time, mag, magerr, offsets, good, by_mag, by_snr, coefficients, starts, table, out):
    """The statistics of every curve, into the rows of `out`.

    `by_mag`, `by_snr`: magnitudes and magnitudes over errors, each curve in rising order; `coefficients` of
    Shapiro & Wilk from `starts` on for each curve; `table` of the normal distribution's logarithm.
    """
    longest = 0
    for i in range(good.size):
        longest = max(longest, offsets[i + 1] - offsets[i])
    scratch = np.empty(longest)
    for i in range(good.size):
        first, last = offsets[i], offsets[i + 1]
        row = out[i]
        row[0] = last - first
        if not good[i]:
            row[1:] = np.nan
            continue
        ordered = by_mag[first:last]
        median = percentile(ordered, 0.5)
        _by_order(ordered, median, row)
        _by_time(time[first:last], mag[first:last], magerr[first:last], median, scratch, row)
        mean, squares = mean_and_squares(by_snr[first:last])
        row[20] = anderson_darling(by_snr[first:last], mean, squares, table)
        row[21] = shapiro_wilk(by_snr[first:last], squares, coefficients[starts[i] :])
        for k in range(row.size):
            if not math.isfinite(row[k]):
                row[k] = np.nan
