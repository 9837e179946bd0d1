"""Points of light curves as tokens of a network: the loops of `tapetum.models.points`."""

from __future__ import annotations

import numpy as np
from numba import njit

HARMONICS = 4  # of the period
ODD = 2  # odd harmonics of twice the period: 1, 3
SLOW = 4  # of twice the baseline: 1, 2, 4, 8 half turns
CHANNELS = 2 + 2 * (HARMONICS + ODD + SLOW) + 2 + 4 + 1
LARGEST, FAINTEST_GAP, LARGEST_LOG = 6.0, -4.0, 5.0


@njit(cache=True, nogil=True, error_model="numpy")
def tokens_of(time, mag, magerr, offsets, period, length, out):
    """Fill `out`, shape (n_curves, length, CHANNELS) of zeros, with the points of each curve; all are ordered by time.

    The first `length` points of each are taken.
    """
    for curve in range(len(offsets) - 1):
        first = offsets[curve]
        n = min(offsets[curve + 1] - first, length)
        if n:
            _one(
                time[first : first + n],
                mag[first : first + n],
                magerr[first : first + n],
                period[curve],
                out[curve],
            )


@njit(cache=True, nogil=True, error_model="numpy")
def _one(time, mag, magerr, period, out):
    n = len(time)
    mean, spread = mag.mean(), max(mag.std(), 1e-4)
    baseline = max(time[-1] - time[0], 1e-3)
    periodic = period > 0 and np.isfinite(period)
    if not periodic:
        period = 2 * baseline
    start, half = _origin(time, mag, magerr, mean, period)
    logs = np.array([np.log10(period), np.log10(spread), np.log10(baseline), np.log10(baseline / period)])
    for i in range(n):
        row = out[i]
        row[0] = min(max((mag[i] - mean) / spread, -LARGEST), LARGEST)
        row[1] = min(max(np.log10(max(magerr[i], 1e-6) / spread), -2.0), 1.0)
        place = 2
        if periodic:
            turn = ((time[i] - time[0]) / period - start) * 2 * np.pi
            for k in range(1, HARMONICS + 1):
                row[place], row[place + 1] = np.cos(k * turn), np.sin(k * turn)
                place += 2
            for k in range(ODD):
                angle = (2 * k + 1) * (turn / 2 + half)
                row[place], row[place + 1] = np.cos(angle), np.sin(angle)
                place += 2
        place = 2 + 2 * (HARMONICS + ODD)
        along = (time[i] - time[0]) / baseline
        for k in range(SLOW):
            angle = np.pi * along * (1 << k)
            row[place], row[place + 1] = np.cos(angle), np.sin(angle)
            place += 2
        row[place] = _log_gap(time, i, i - 1)
        row[place + 1] = _log_gap(time, i, i + 1)
        for k in range(4):
            row[place + 2 + k] = min(max(logs[k], -LARGEST_LOG), LARGEST_LOG) / 2
        row[CHANNELS - 1] = 1.0


@njit(cache=True, nogil=True, error_model="numpy")
def _log_gap(time, i, j):
    """Days between neighbours; as long as can be at the ends."""
    if j < 0 or j >= len(time):
        return 1.5
    return min(max(np.log10(max(abs(time[i] - time[j]), 1e-4)), FAINTEST_GAP), 3.0) / 2


@njit(cache=True, nogil=True, error_model="numpy")
def _origin(time, mag, magerr, mean, period):
    """Phase of the faintest point of the wave of the period [turns], and the turn of the wave of twice the period.

    The half wave is faint at phase zero rather than bright: of two unlike minima the deeper one comes first.
    """
    real, imaginary = 0.0, 0.0
    floor = (0.1 * mag.std()) ** 2 + 1e-12
    for i in range(len(time)):
        weight = (mag[i] - mean) / (magerr[i] ** 2 + floor)
        angle = (time[i] - time[0]) / period * 2 * np.pi
        real += weight * np.cos(angle)
        imaginary += weight * np.sin(angle)
    start = np.arctan2(imaginary, real) / (2 * np.pi)
    deep = 0.0
    for i in range(len(time)):
        weight = (mag[i] - mean) / (magerr[i] ** 2 + floor)
        deep += weight * np.cos(((time[i] - time[0]) / period - start) * np.pi)
    return start, (0.0 if deep >= 0 else np.pi)


@njit(cache=True, nogil=True, error_model="numpy")
def powers_of(time, mag, magerr, offsets, frequency, out):
    """Part of chi-square that a sinusoid with a free mean explains, at some frequencies of each curve."""
    for curve in range(len(offsets) - 1):
        part = slice(offsets[curve], offsets[curve + 1])
        for k in range(frequency.shape[1]):
            out[curve, k] = _power(time[part], mag[part], magerr[part], frequency[curve, k])


@njit(cache=True, nogil=True, error_model="numpy")
def _power(time, mag, magerr, frequency):
    """Zechmeister & Kuerster (2009), A&A 496, 577, equation 5."""
    total, y, c, s = 0.0, 0.0, 0.0, 0.0
    yy, yc, ys, cc, cs = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(len(time)):
        weight = 1.0 / (magerr[i] * magerr[i])
        angle = 2.0 * np.pi * (time[i] - time[0]) * frequency
        cosine, sine, value = np.cos(angle), np.sin(angle), mag[i] - mag[0]
        total += weight
        y += weight * value
        c += weight * cosine
        s += weight * sine
        yy += weight * value * value
        yc += weight * value * cosine
        ys += weight * value * sine
        cc += weight * cosine * cosine
        cs += weight * cosine * sine
    if not total > 0 or not np.isfinite(frequency):
        return np.nan
    y, c, s = y / total, c / total, s / total
    yy, yc, ys = yy / total - y * y, yc / total - y * c, ys / total - y * s
    cc, ss, cs = cc / total - c * c, 1.0 - cc / total - s * s, cs / total - c * s
    determinant = cc * ss - cs * cs
    if yy <= 0 or determinant <= 1e-12:
        return np.nan
    return (ss * yc * yc + cc * ys * ys - 2.0 * cs * yc * ys) / (yy * determinant)


@njit(cache=True, nogil=True, error_model="numpy")
def harmonics_of(time, mag, magerr, offsets, period, out, left):
    """Fit a mean and all the harmonics that `out`, shape (n_curves, 2 k), has room for; NaN without a period.

    `left` gets the scatter about the fit. A little is added to the diagonal, so that few points give small waves.
    """
    order = out.shape[1] // 2
    for curve in range(len(offsets) - 1):
        first, last = offsets[curve], offsets[curve + 1]
        out[curve], left[curve] = np.nan, np.nan
        if last - first >= 5 and period[curve] > 0 and np.isfinite(period[curve]):
            part = slice(first, last)
            _fit_waves(
                time[part], mag[part], magerr[part], period[curve], order, out[curve], left[curve : curve + 1]
            )


@njit(cache=True, nogil=True, error_model="numpy")
def _fit_waves(time, mag, magerr, period, order, out, left):
    n, size = len(time), 2 * order + 1
    normal, target, row = np.zeros((size, size)), np.zeros(size), np.ones(size)
    weight = 1.0 / (magerr * magerr + 0.01 * mag.var() + 1e-12)
    total = weight.sum()
    mean = (weight * mag).sum() / total
    for i in range(n):
        angle = 2.0 * np.pi * (time[i] - time[0]) / period
        for k in range(order):
            row[1 + 2 * k], row[2 + 2 * k] = np.cos((k + 1) * angle), np.sin((k + 1) * angle)
        for a in range(size):
            target[a] += weight[i] / total * row[a] * (mag[i] - mean)
            for b in range(size):
                normal[a, b] += weight[i] / total * row[a] * row[b]
    for a in range(1, size):
        normal[a, a] += 1.0 / n
    if not (np.isfinite(target).all() and np.isfinite(normal).all()):
        return
    answer = np.linalg.solve(normal, target)
    out[:] = answer[1:]
    square = 0.0
    for i in range(n):
        angle = 2.0 * np.pi * (time[i] - time[0]) / period
        model = answer[0]
        for k in range(order):
            model += answer[1 + 2 * k] * np.cos((k + 1) * angle) + answer[2 + 2 * k] * np.sin((k + 1) * angle)
        square += weight[i] / total * (mag[i] - mean - model) ** 2
    left[0] = np.sqrt(square)
