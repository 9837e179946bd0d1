"""Compiled loops of the invariant features; curves reach them sorted, finite, errors above zero."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from tapetum.lightcurves._cesium_kernels import flux_percentile
from tapetum.lightcurves._statistics_kernels import (
    REORDER,
    mean_and_squares,
    median_deviation,
    percentile,
    residuals,
    weighted_mean,
)

SIGMA_PER_MAD = 1.482602218505602
NORMAL_TAILS = 2.4386636364352374  # (P95 - P5) / (P75 - P25) of a normal distribution
LAGS = 10  # bins of the structure function, half a decade each ...
FIRST_LAG = 0.03  # ... from here on [d]: two of them make a decade
ENOUGH_PAIRS = 10  # in a bin, to take part in the slope
REFERENCE_LAG = 100.0  # at which the amplitude of the structure function is given [d]
TAUS = 14  # of the damped random walk: each twice the one before ...
SHORTEST = 0.25  # ... from here on [d]; one more is zero, white noise
SIGMAS = 8  # of it, each sqrt 2 times the one before ...
SMALLEST = 0.25  # ... from this part of the curve's own scatter on
LANES = (TAUS + 1) * SIGMAS


@njit(cache=True, nogil=True, error_model="numpy")
def _by_value(ordered, median, spread, row):
    """What the magnitudes in order tell: spread, fluxes, shape of the distribution."""
    low, high = percentile(ordered, 0.05), percentile(ordered, 0.95)
    row[5] = spread
    row[6] = 0.5 * (high - low)
    flux_wide = flux_percentile(ordered, 0.95) - flux_percentile(ordered, 0.05)
    row[9] = flux_wide / flux_percentile(ordered, 0.5)
    for k, share in enumerate((0.2, 0.35, 0.5, 0.65, 0.8)):
        top, bottom = flux_percentile(ordered, 0.5 + 0.5 * share), flux_percentile(ordered, 0.5 - 0.5 * share)
        row[10 + k] = (top - bottom) / flux_wide
    row[17] = (high + low - 2 * median) / (high - low)
    row[18] = (high - low) / (percentile(ordered, 0.75) - percentile(ordered, 0.25)) / NORMAL_TAILS


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER, forceinline=True)
def _moments(mag, magerr, mean, total):
    """Weighted second, third and fourth moment."""
    second, third, fourth = 0.0, 0.0, 0.0
    for j in range(mag.size):
        w, d = 1.0 / (magerr[j] * magerr[j]), mag[j] - mean
        square = w * d * d
        second += square
        third += square * d
        fourth += square * d * d
    return second / total, third / total, fourth / total


@njit(cache=True, nogil=True, error_model="numpy")
def _beyond(mag, mean, scatter, median, spread, row):
    """Shares of points far from the mean and from the median."""
    n, faint, bright, far = mag.size, 0, 0, 0
    for j in range(n):
        faint += mag[j] - mean > scatter
        bright += mean - mag[j] > scatter
        far += abs(mag[j] - median) > 2 * spread
    row[19] = (faint + bright) / n
    row[20] = far / n
    row[21] = (faint - bright) / n


@njit(cache=True, nogil=True, error_model="numpy")
def _by_time(time, mag, magerr, residual, chi2, row):
    """What neighbours in time tell; `residual` is (magnitude - mean) / error."""
    n = mag.size
    product, root, steps, rise, fall = 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(n - 1):
        p = residual[j] * residual[j + 1]
        product += p
        root += math.copysign(math.sqrt(abs(p)), p)
        dm, dt = mag[j + 1] - mag[j], time[j + 1] - time[j]
        variance = magerr[j] * magerr[j] + magerr[j + 1] * magerr[j + 1]
        steps += dm * dm / variance
        if dt > 0:
            sure = (abs(dm) - math.sqrt(variance)) / dt
            if dm < 0:
                rise = max(rise, sure)
            else:
                fall = max(fall, sure)
    row[22] = root / (n - 1)
    row[24] = product / (n - 1) / (chi2 / n)
    row[25] = 2 * steps / chi2
    row[26], row[27] = rise, fall


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER, forceinline=True)
def _trend(time, mag, magerr, mean, total):
    """Slope of a weighted line, and the part of chi-square that it takes away."""
    middle = 0.0
    for j in range(mag.size):
        middle += (time[j] - time[0]) / (magerr[j] * magerr[j])
    middle = time[0] + middle / total
    tt, tm, mm = 0.0, 0.0, 0.0
    for j in range(mag.size):
        w, t, m = 1.0 / (magerr[j] * magerr[j]), time[j] - middle, mag[j] - mean
        tt += w * t * t
        tm += w * t * m
        mm += w * m * m
    return tm / tt, tm * tm / (tt * mm)


@njit(cache=True, nogil=True, error_model="numpy")
def _pairs_by_lag(time, mag, magerr, mean, table):
    """Rows of `table` by lag: pairs, and sums of dm^2, of e_i^2 + e_j^2 and of dt, from running sums of single points.

    sum_j (m_j - m_i)^2 = sum_j m_j^2 - 2 m_i sum_j m_j + k m_i^2: no loop over pairs.
    """
    n = mag.size
    running = np.zeros((4, n + 1))
    for j in range(n):
        d = mag[j] - mean
        running[0, j + 1] = running[0, j] + d
        running[1, j + 1] = running[1, j] + d * d
        running[2, j + 1] = running[2, j] + magerr[j] * magerr[j]
        running[3, j + 1] = running[3, j] + (time[j] - time[0])
    table[:] = 0.0
    first = np.empty(LAGS + 1, np.int64)
    first[:] = 0
    for i in range(n - 1):
        d, e, t = mag[i] - mean, magerr[i] * magerr[i], time[i] - time[0]
        for k in range(LAGS + 1):
            j = max(first[k], i + 1)
            lag = FIRST_LAG * 10.0 ** (0.5 * k)
            while j < n and time[j] - time[i] < lag:
                j += 1
            first[k] = j
            if k and j > first[k - 1]:
                h, count = first[k - 1], j - first[k - 1]
                linear = running[0, j] - running[0, h]
                table[k - 1, 0] += count
                table[k - 1, 1] += running[1, j] - running[1, h] - 2 * d * linear + count * d * d
                table[k - 1, 2] += running[2, j] - running[2, h] + count * e
                table[k - 1, 3] += running[3, j] - running[3, h] - count * t
            if j == n:
                first[k:] = n
                break


@njit(cache=True, nogil=True, error_model="numpy")
def _structure(table, variance, row):
    """Mean squares per decade over that of white noise, and the power law of what errors leave of them."""
    for decade in range(LAGS // 2):
        pairs = table[2 * decade, 0] + table[2 * decade + 1, 0]
        row[30 + decade] = (table[2 * decade, 1] + table[2 * decade + 1, 1]) / (2 * variance * pairs)
    n, x1, x2, y1, xy = 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(LAGS):
        left = table[k, 1] - table[k, 2]
        if table[k, 0] >= ENOUGH_PAIRS and left > 0:
            x = math.log10(table[k, 3] / table[k, 0] / REFERENCE_LAG)
            y = 0.5 * math.log10(left / table[k, 0])
            n += 1
            x1 += x
            x2 += x * x
            y1 += y
            xy += x * y
    if n >= 3:
        slope = (n * xy - x1 * y1) / (n * x2 - x1 * x1)
        row[35] = slope
        row[36] = 10.0 ** ((y1 - slope * x1) / n)


@njit(cache=True, nogil=True, error_model="numpy")
def _walk_lanes(scatter, work):
    """States of the filters at their beginning."""
    for lane in range(LANES):
        variance = (scatter * SMALLEST) ** 2 * 2.0 ** (lane % SIGMAS)
        work[lane] = work[lane + LANES] = variance
        for row in range(2, 8):
            work[lane + row * LANES] = 1.0 if row == 7 else 0.0


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER, forceinline=True)
def _walk_step(y, noise, scale, work):
    """One point: predict, compare, correct, for every walk at once (Kalman 1960), of the data and of a constant.

    `work` is one row of `LANES` after the other, at fixed distances, so that the loop runs in vectors: variances of
    the walks; that of the state; states of the data and of the constant; sums of squares of what was not predicted
    of the data, of both, of the constant; product of the variances of that; decay since the last point.
    """
    for lane in range(LANES):
        variance, a = work[lane], work[lane + 8 * LANES]
        before = variance + a * a * (work[lane + LANES] - variance)
        gain = 1.0 / (before + noise)
        v = y - a * work[lane + 2 * LANES]
        o = 1.0 - a * work[lane + 3 * LANES]
        vg, og = v * gain, o * gain
        work[lane + LANES] = before * noise * gain
        work[lane + 2 * LANES] = a * work[lane + 2 * LANES] + before * vg
        work[lane + 3 * LANES] = a * work[lane + 3 * LANES] + before * og
        work[lane + 4 * LANES] += v * vg
        work[lane + 5 * LANES] += v * og
        work[lane + 6 * LANES] += o * og
        work[lane + 7 * LANES] *= gain * scale


@njit(cache=True, nogil=True, error_model="numpy")
def _walk_likelihood(time, mag, magerr, mean, scatter, work, likelihood):
    """Log-likelihood of every walk, its mean integrated out, but for a constant that they share."""
    _walk_lanes(scatter, work)
    scale = scatter * scatter
    for lane in range(LANES):
        likelihood[lane] = 0.0
    for j in range(mag.size):
        dt = time[j] - time[j - 1] if j else math.inf
        a = math.exp(-dt / (SHORTEST * 2.0 ** (TAUS - 1)))
        for k in range(TAUS, -1, -1):
            for lane in range(k * SIGMAS, (k + 1) * SIGMAS):
                work[lane + 8 * LANES] = a if k else (0.0 if dt > 0 else 1.0)
            a *= a  # half the time scale, each time
        _walk_step(mag[j] - mean, magerr[j] * magerr[j], scale, work)
        if j % 8 == 7 or j == mag.size - 1:
            for lane in range(LANES):
                likelihood[lane] += 0.5 * math.log(work[lane + 7 * LANES])
                work[lane + 7 * LANES] = 1.0
    for lane in range(LANES):
        constant = work[lane + 6 * LANES]
        fit = work[lane + 4 * LANES] - work[lane + 5 * LANES] ** 2 / constant
        likelihood[lane] -= 0.5 * (fit + math.log(constant * scale))


@njit(cache=True, nogil=True, error_model="numpy")
def _summit(below, middle, above):
    """Where a parabola through three values has its top, in steps from the middle one."""
    curvature = below + above - 2 * middle
    return 0.5 * (below - above) / curvature if curvature < 0 else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def _walk(time, mag, magerr, mean, scatter, work, likelihood, row):
    """Time scale and amplitude of the damped random walk that fits best, and how much better than white noise."""
    _walk_likelihood(time, mag, magerr, mean, scatter, work, likelihood)
    best, white = SIGMAS, 0
    for lane in range(LANES):
        if not math.isfinite(likelihood[lane]):
            return  # errors so small against the scatter that their squares leave the range of numbers
        if lane < SIGMAS:
            white = lane if likelihood[lane] > likelihood[white] else white
        else:
            best = lane if likelihood[lane] > likelihood[best] else best
    k, s = best // SIGMAS, best % SIGMAS
    dk, ds = 0.0, 0.0
    if 1 < k < TAUS:
        dk = _summit(likelihood[best - SIGMAS], likelihood[best], likelihood[best + SIGMAS])
    if 0 < s < SIGMAS - 1:
        ds = _summit(likelihood[best - 1], likelihood[best], likelihood[best + 1])
    row[37] = math.log10(SHORTEST) + (k - 1 + dk) * math.log10(2.0)
    row[38] = scatter * SMALLEST * 2.0 ** (0.5 * (s + ds))
    row[39] = likelihood[best] - likelihood[white]


@njit(cache=True, nogil=True, error_model="numpy")
def _of_one(time, mag, magerr, ordered, scratch, lags, work, likelihood, row):
    """The features of one curve."""
    n = mag.size
    median = percentile(ordered, 0.5)
    mean, total = weighted_mean(mag, magerr, median)
    spread = SIGMA_PER_MAD * median_deviation(ordered, median)
    absolute, chi2, _, _ = residuals(mag, magerr, mean, scratch)
    second, third, fourth = _moments(mag, magerr, mean, total)
    scatter = math.sqrt(second)
    row[1] = time[n - 1] - time[0]
    row[2], row[3], row[4] = mean, math.sqrt(n / total), scatter
    row[7] = chi2 / (n - 1)
    row[8] = (chi2 - (n - 1)) / total
    row[15], row[16] = third / scatter**3, fourth / (second * second) - 3
    row[23] = absolute / math.sqrt(n * chi2)
    _by_value(ordered, median, spread, row)
    _beyond(mag, mean, scatter, median, spread, row)
    if n > 1:
        _by_time(time, mag, magerr, scratch, chi2, row)
        row[28], row[29] = _trend(time, mag, magerr, mean, total)
        _pairs_by_lag(time, mag, magerr, mean, lags)
        _structure(lags, mean_and_squares(mag)[1] / n, row)
    if n > 2 and scatter > 0:
        _walk(time, mag, magerr, mean, scatter, work, likelihood, row)


@njit(cache=True, nogil=True, error_model="numpy")
def invariant_of(time, mag, magerr, offsets, good, by_mag, out):
    """The features of every curve that need no period, into the rows of `out`."""
    longest = 0
    for i in range(good.size):
        longest = max(longest, offsets[i + 1] - offsets[i])
    scratch = np.empty(longest)
    lags = np.empty((LAGS, 4))
    work, likelihood = np.empty(9 * LANES), np.empty(LANES)
    for i in range(good.size):
        first, last = offsets[i], offsets[i + 1]
        out[i] = np.nan
        out[i, 0] = last - first
        if not good[i]:
            continue
        _of_one(
            time[first:last], mag[first:last], magerr[first:last], by_mag[first:last], scratch[: last - first], lags,
            work, likelihood, out[i],
        )  # fmt: skip
        for k in range(out.shape[1]):
            if not math.isfinite(out[i, k]):
                out[i, k] = np.nan


@njit(cache=True, nogil=True, error_model="numpy")
def phase_keys(time, offsets, good, periods, turns, keys):
    """Whole numbers that sort as the phases do and end in the number of the point."""
    for i in range(good.size):
        first = offsets[i]
        for j in range(first, offsets[i + 1]):
            keys[j] = j - first
            if good[i]:
                phase = (time[j] - time[first]) / periods[i]
                keys[j] += np.int64((phase - math.floor(phase)) * turns) * turns


@njit(cache=True, nogil=True, error_model="numpy")
def folded_of(mag, magerr, offsets, good, turns, keys, out):
    """Von Neumann ratio in order of phase, around the circle."""
    for i in range(good.size):
        first, last = offsets[i], offsets[i + 1]
        out[i] = np.nan
        if not good[i] or last - first < 3:
            continue
        m, e = mag[first:last], magerr[first:last]
        mean, _ = weighted_mean(m, e, m[0])
        steps, chi2 = 0.0, 0.0
        before = keys[last - 1] % turns
        for j in range(first, last):
            point = keys[j] % turns
            steps += (m[point] - m[before]) ** 2 / (e[point] ** 2 + e[before] ** 2)
            chi2 += ((m[point] - mean) / e[point]) ** 2
            before = point
        if chi2 > 0:
            out[i] = 2 * steps / chi2 * (last - first - 1) / (last - first)
