"""Compiled loops of the statistics in the manner of cesium; curves reach them sorted, finite, errors above zero."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from tapetum.lightcurves._statistics_kernels import REORDER, percentile, weighted_mean

MINUTES = (
    1,
    10,
    20,
    30,
    40,
    50,
    100,
    500,
    1000,
    5000,
    10000,
    50000,
    100000,
    500000,
    1000000,
    5000000,
    10000000,
)
FINE_BINS = 2500  # of the histogram of times ...
LAG_BINS = 50  # ... and of that of their differences
LOG_TAU = (
    2.92  # damped random walk of quasars in g at magnitude 19: log10 of days (Butler & Bloom 2011, table)
)
LOG_VARIANCE = -4.10
COARSE, WIDE = 5, 500  # frequencies per width of a peak, in the first search and around its five best peaks
PEAKS = 5


@njit(cache=True, nogil=True, error_model="numpy")
def _mean_std(values):
    mean = 0.0
    for value in values:
        mean += value
    mean /= values.size
    square = 0.0
    for value in values:
        square += (value - mean) ** 2
    return mean, math.sqrt(square / values.size)


@njit(cache=True, nogil=True, error_model="numpy")
def gaps_of(time, offsets, gaps, steps):
    """Gaps g between neighbours, and (g_(i+2) + g_i) / (g_(i+1) - g_i); NaN where a curve has no more of them."""
    gaps[:] = np.nan
    steps[:] = np.nan
    for i in range(offsets.size - 1):
        first, last = offsets[i], offsets[i + 1]
        for j in range(first, last - 1):
            gaps[j] = time[j + 1] - time[j]
        for j in range(first, last - 3):
            steps[j] = (gaps[j + 2] + gaps[j]) / (gaps[j + 1] - gaps[j])


@njit(cache=True, nogil=True)
def _below(ordered, limit, equal):
    """How many values lie below a limit, or on it where `equal`."""
    low, high = 0, ordered.size
    while low < high:
        middle = (low + high) // 2
        if ordered[middle] < limit or (equal and ordered[middle] == limit):
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True, error_model="numpy")
def _cadence(time, magerr, by_error, by_gap, by_step, row):
    """Errors, times, gaps between neighbours, and how gaps follow each other; `by_` are sorted."""
    row[0], row[2] = _mean_std(magerr)
    row[1] = percentile(by_error, 0.5)
    row[3] = time[-1] - time[0]
    row[7], row[5] = _mean_std(by_gap)
    row[8] = percentile(by_gap, 0.5)
    since = 0.0
    for t in time:
        since += t - time[0]
    row[4] = time[0] + since / time.size
    for k, minutes in enumerate(MINUTES):
        below, upto = _below(by_gap, minutes / 1440.0, False), _below(by_gap, minutes / 1440.0, True)
        row[9 + k] = (below + upto + (upto > below)) * 0.5 / by_gap.size
    if by_step.size > 0:
        row[27], row[28] = _mean_std(by_step)
        if not math.isnan(by_step[by_step.size - 1]):
            row[26] = percentile(by_step, 0.5)


@njit(cache=True, nogil=True, error_model="numpy")
def _lags(time, lags):
    """Histogram of the differences of all times, from a fine histogram of the times themselves."""
    first, span = time[0], time[-1] - time[0]
    width = span / FINE_BINS
    count, where = np.zeros(time.size, np.int64), np.empty(time.size, np.int64)
    used = 0
    for t in time:
        k = min(int((t - first) / span * FINE_BINS), FINE_BINS - 1)
        if k > 0 and t < first + k * width:
            k -= 1
        elif k < FINE_BINS - 1 and t >= first + (k + 1) * width:
            k += 1
        if used == 0 or where[used - 1] != k:
            where[used] = k
            used += 1
        count[used - 1] += 1
    per_bin = FINE_BINS // LAG_BINS
    lags[:] = 0
    lags[0] = -time.size
    for i in range(used):
        lags[0] += count[i] * count[i]
        for j in range(i + 1, used):
            lags[(where[j] - where[i]) // per_bin] += count[i] * count[j]


@njit(cache=True, nogil=True)
def _is_peak(lags, i):
    """Higher than both neighbours; of a plateau its first bin."""
    if i > 0 and lags[i] <= lags[i - 1]:
        return False
    j = i + 1
    while j < lags.size and lags[j] == lags[i]:
        j += 1
    return j == lags.size or lags[j] < lags[i]


@njit(cache=True, nogil=True, error_model="numpy")
def _lag_peaks(time, row):
    """Peaks of the histogram of lags. The highest is number 0 here, so `1_to_2` compares second and third."""
    lags = np.empty(LAG_BINS, np.int64)
    _lags(time, lags)
    most, total = 0.0, 0.0
    for lag in lags:
        most = max(most, float(lag))
        total += float(lag)
    row[30] = most / ((time[-1] - time[0]) * total / LAG_BINS)
    taken = np.zeros(LAG_BINS, np.bool_)
    value = np.full(5, np.nan)
    n_peaks = 0
    for i in range(LAG_BINS):
        taken[i] = not _is_peak(lags, i)
        n_peaks += not taken[i]
    row[29] = n_peaks
    for rank in range(min(5, n_peaks)):
        best = -1
        for i in range(LAG_BINS):
            if not taken[i] and (best < 0 or lags[i] > lags[best]):
                best = i
        taken[best] = True
        value[rank] = lags[best]
        if rank:
            row[36 + rank] = best
    for k, (i, j) in enumerate(((1, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4))):
        row[31 + k] = value[i] / value[j]


@njit(cache=True, nogil=True, error_model="numpy")
def flux_percentile(ordered, share):
    """Percentile of the fluxes 10^(-0.4 mag), the faintest first, of magnitudes in rising order."""
    n = ordered.size
    place = share * (n - 1)
    below = min(int(place), n - 1)
    above = min(below + 1, n - 1)
    low, high = 10.0 ** (-0.4 * ordered[n - 1 - below]), 10.0 ** (-0.4 * ordered[n - 1 - above])
    return low + (place - below) * (high - low)


@njit(cache=True, nogil=True, error_model="numpy")
def _levels(ordered, row):
    """Extremes and percentiles, of magnitudes and of fluxes."""
    row[41] = 0.5 * (ordered[-1] - ordered[0])
    wide = flux_percentile(ordered, 0.95) - flux_percentile(ordered, 0.05)
    for k, share in enumerate((0.2, 0.35, 0.5, 0.65, 0.8)):
        high, low = flux_percentile(ordered, 0.5 + 0.5 * share), flux_percentile(ordered, 0.5 - 0.5 * share)
        row[42 + k] = (high - low) / wide
    row[48], row[49] = ordered[-1], ordered[0]
    middle = flux_percentile(ordered, 0.5)
    row[50] = max(flux_percentile(ordered, 1.0) - middle, middle - flux_percentile(ordered, 0.0)) / middle
    row[53] = wide / middle


@njit(cache=True, nogil=True, error_model="numpy")
def _moments(time, mag, magerr, ordered, row):
    """Slope, and shares of the points within distances."""
    n = mag.size
    steepest = 0.0 if n > 1 else np.nan
    for j in range(n - 1):
        steepest = max(steepest, abs((mag[j + 1] - mag[j]) / (time[j + 1] - time[j])))
    row[47] = steepest
    median = percentile(ordered, 0.5)
    mean, total = weighted_mean(mag, magerr, median)
    square = 0.0
    for j in range(n):
        square += ((mag[j] - mean) / magerr[j]) ** 2
    limit, window = math.sqrt(square / total), 0.1 * (ordered[-1] - ordered[0])
    beyond, close = 0, 0
    for j in range(n):
        beyond += abs(mag[j] - mean) > limit
        close += abs(mag[j] - median) < window
    row[51], row[52] = beyond / n, close / n
    row[6], row[58] = _mean_std(mag)
    cube = 0.0
    for j in range(n):
        cube += (mag[j] - row[6]) ** 3
    row[57] = cube / n / row[58] ** 3


@njit(cache=True, nogil=True, error_model="numpy")
def _solve_chain(diagonal, beside, pivot, right, solution):
    """Solve a symmetric matrix that is zero but on the diagonal and beside it; `pivot` takes its factor."""
    n = diagonal.size
    pivot[0] = diagonal[0]
    solution[0] = right[0]
    for j in range(1, n):
        share = beside[j] / pivot[j - 1]
        pivot[j] = diagonal[j] - share * beside[j]
        solution[j] = right[j] - share * solution[j - 1]
    solution[n - 1] /= pivot[n - 1]
    for j in range(n - 2, -1, -1):
        solution[j] = (solution[j] - beside[j + 1] * solution[j + 1]) / pivot[j]


@njit(cache=True, nogil=True, error_model="numpy")
def _times_chain(diagonal, beside, x, y):
    for j in range(x.size):
        y[j] = diagonal[j] * x[j]
        if j > 0:
            y[j] += beside[j] * x[j - 1]
        if j < x.size - 1:
            y[j] += beside[j + 1] * x[j + 1]


@njit(cache=True, nogil=True, error_model="numpy")
def _quasar(time, mag, magerr, centre, row):
    """Fit of a damped random walk with the parameters of quasars (Butler & Bloom 2011, AJ 141, 93)."""
    n = 1
    kept = np.zeros(mag.size, np.int64)
    for j in range(1, mag.size):
        if time[j] > time[j - 1]:
            kept[n] = j
            n += 1
    if n < 2:
        return
    y, w = mag[kept[:n]] - centre, 1.0 / magerr[kept[:n]] ** 2
    beside, walk = np.zeros(n), np.zeros(n)  # of the inverse covariance of the walk, in units of its variance
    for j in range(1, n):
        r = math.exp(-(time[kept[j]] - time[kept[j] - 1]) / 10.0**LOG_TAU)
        e = 1.0 / (1.0 / r - r)
        beside[j] = -e
        walk[j - 1] += 1.0 + r * e
        walk[j] += r * e
    walk[n - 1] += 1.0
    diagonal = walk + w * 0.5 * 10.0 ** (LOG_VARIANCE + LOG_TAU)
    pivot, z, z0, u, u0 = np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    _solve_chain(diagonal, beside, pivot, w * y, z)
    _solve_chain(diagonal, beside, pivot, w, z0)
    _times_chain(walk, beside, z, u)
    _times_chain(walk, beside, z0, u0)
    level = u.sum() / u0.sum()
    chi2 = ((y - level) * (u - u0 * level)).sum()
    inverse = 1.0 / pivot[n - 1]
    trace = walk[n - 1] * w[n - 1] * inverse
    for j in range(n - 2, -1, -1):
        next_to = -beside[j + 1] / pivot[j] * inverse
        inverse = 1.0 / pivot[j] - beside[j + 1] / pivot[j] * next_to
        trace += beside[j + 1] * next_to * (w[j] + w[j + 1]) + walk[j] * w[j] * inverse
    expected = trace * _mean_std(y)[1] ** 2
    row[55] = math.log(chi2 / (n - 1)) if chi2 > 0 else np.nan
    row[56] = math.log(expected / chi2) if chi2 > 0 and expected > 0 else np.nan


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER, forceinline=True)
def _sums(w, wy, c, s, step_c, step_s):
    """Weighted sums of cosines, sines and their products, and then one frequency further."""
    C, S, CC, CS, YC, YS = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(w.size):
        a, b = w[j] * c[j], w[j] * s[j]
        C += a
        S += b
        CC += a * c[j]
        CS += a * s[j]
        YC += wy[j] * c[j]
        YS += wy[j] * s[j]
        turned = c[j] * step_c[j] - s[j] * step_s[j]
        s[j] = s[j] * step_c[j] + c[j] * step_s[j]
        c[j] = turned
    return C, S, CC, CS, YC, YS


@njit(cache=True, nogil=True, error_model="numpy")
def _powers(t, w, wy, first, step, power):
    """Power of a sinusoid with a free mean at first + k step (Zechmeister & Kuerster 2009), but for a constant."""
    c, s = np.cos(2 * math.pi * first * t), np.sin(2 * math.pi * first * t)
    step_c, step_s = np.cos(2 * math.pi * step * t), np.sin(2 * math.pi * step * t)
    for k in range(power.size):
        C, S, CC, CS, YC, YS = _sums(w, wy, c, s, step_c, step_s)
        SS = 1.0 - CC - S * S
        CC -= C * C
        CS -= C * S
        power[k] = (YC * YC * SS + YS * YS * CC - 2 * YC * YS * CS) / (CC * SS - CS * CS)
        if not math.isfinite(power[k]):
            power[k] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def _best_period(time, mag, magerr, centre):
    """Period of the highest Lomb-Scargle peak between twice the mean gap and the baseline."""
    span, n = time[-1] - time[0], time.size
    if not span > 0 or n < 3:
        return np.nan
    mean, total = weighted_mean(mag, magerr, centre)
    w = 1.0 / (magerr * magerr * total)
    wy = w * (mag - mean)
    t = (time - time[0]) / span  # frequencies are per baseline from here on
    power = np.empty(math.ceil((0.5 * n - 1.0) * COARSE) + 1)
    _powers(t, w, wy, 1.0, 1.0 / COARSE, power)
    near = np.empty(2 * WIDE // COARSE)
    least, best, highest = power.min(), np.nan, -1.0
    for _ in range(PEAKS):
        k = np.argmax(power)
        first = 1.0 + (k - 1.0) / COARSE
        power[max(0, k - COARSE - 1) : k + COARSE + 1] = least
        _powers(t, w, wy, first, 1.0 / WIDE, near)
        if near.max() > highest:
            highest = near.max()
            best = first + np.argmax(near) / WIDE
    return span / best


@njit(cache=True, nogil=True, error_model="numpy")
def cesium_of(time, mag, magerr, offsets, good, by_mag, by_error, by_gap, by_step, out):
    """The 59 statistics of every curve, into the rows of `out`; `by_` are sorted within each curve."""
    for i in range(good.size):
        row = out[i]
        row[:] = np.nan
        if not good[i]:
            continue
        first, last = offsets[i], offsets[i + 1]
        t, m, e, ordered = time[first:last], mag[first:last], magerr[first:last], by_mag[first:last]
        if t.size > 1:
            _cadence(
                t,
                e,
                by_error[first:last],
                by_gap[first : last - 1],
                by_step[first : max(first, last - 3)],
                row,
            )
            if t[-1] > t[0]:
                _lag_peaks(t, row)
        _levels(ordered, row)
        _moments(t, m, e, ordered, row)
        median = percentile(ordered, 0.5)
        _quasar(t, m, e, median, row)
        row[54] = _best_period(t, m, e, median)
        for k in range(row.size):
            if not math.isfinite(row[k]):
                row[k] = np.nan
