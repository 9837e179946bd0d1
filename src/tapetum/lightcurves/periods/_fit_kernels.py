"""Compiled fits of Fourier series at single frequencies, all orders from one decomposition.

In every band the series has coefficients of its own; bands share the frequency. The normal matrix is made of
sums of w cos(m phi) and w sin(m phi) up to twice the order; ordered (1, cos, sin, cos 2, sin 2, ...), its Cholesky
decomposition holds those of all lower orders.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

TINY = 1e-9  # of a diagonal element: a pivot below this part of it is no independent term
LEAST_FREEDOM = 3  # points more than coefficients that a band must have for an order to be fitted


@njit(cache=True, nogil=True)
def series_gains(time, mag, weight, offsets, frequency, orders, gains):
    """Chi-square that a series of order k takes away from that about the mean, into ``gains[k]``, summed over bands.

    `mag` must be free of the weighted mean of its band; points are in order of bands, which begin at `offsets`.
    A band with too few points for an order adds what its highest possible order does.
    """
    cosine, sine = np.empty(time.size), np.empty(time.size)
    unit(time, frequency, cosine, sine)
    _gains(cosine, sine, mag, weight, offsets, orders, np.empty((2, time.size)), gains)


@njit(cache=True, nogil=True)
def unit(time, frequency, cosine, sine):
    """Cosine and sine of the phases at one frequency."""
    for i in range(time.size):
        cycles = time[i] * frequency
        angle = 2.0 * math.pi * (cycles - math.floor(cycles))
        cosine[i], sine[i] = math.cos(angle), math.sin(angle)


@njit(cache=True, nogil=True, fastmath={"contract"}, forceinline=True)
def _turn(cosine, sine, by_cosine, by_sine):
    """Move phases on by angles of known cosine and sine."""
    for i in range(cosine.size):
        c, s = cosine[i], sine[i]
        cosine[i] = c * by_cosine[i] - s * by_sine[i]
        sine[i] = s * by_cosine[i] + c * by_sine[i]


@njit(cache=True, nogil=True)
def _gains(cosine, sine, mag, weight, offsets, orders, wave, gains):
    gains[: orders + 1] = 0.0
    sums = np.empty((4, 2 * orders + 1))
    for band in range(offsets.size - 1):
        begin, end = offsets[band], offsets[band + 1]
        possible = min(orders, (end - begin - 1 - LEAST_FREEDOM) // 2)
        if possible < 1:
            continue
        part = slice(begin, end)
        wave[0, part] = weight[part]
        wave[1, part] = 0.0
        for m in range(2 * possible + 1):
            _sum(wave[0, part], wave[1, part], mag[part], sums[:, m])
            _turn(wave[0, part], wave[1, part], cosine[part], sine[part])
        matrix, right = _normal(sums, possible)
        _take(matrix, right, possible, orders, gains)


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _sum(c, s, y, sums):
    """Sums over points of w cos(m phi), w sin(m phi), and of both times y."""
    a = b = d = e = 0.0
    for i in range(y.size):
        a += c[i]
        b += s[i]
        d += c[i] * y[i]
        e += s[i] * y[i]
    sums[0], sums[1], sums[2], sums[3] = a, b, d, e


@njit(cache=True, nogil=True)
def _normal(sums, orders):
    """Normal matrix and right side in the order 1, cos, sin, cos 2, sin 2, ..."""
    size = 2 * orders + 1
    matrix = np.empty((size, size))
    right = np.empty(size)
    matrix[0, 0] = sums[0, 0]
    right[0] = sums[2, 0]
    for j in range(1, orders + 1):
        row = 2 * j - 1
        right[row] = sums[2, j]
        right[row + 1] = sums[3, j]
        matrix[row, 0] = sums[0, j]
        matrix[row + 1, 0] = sums[1, j]
        for k in range(1, j + 1):
            column = 2 * k - 1
            low_c, low_s = sums[0, j - k], sums[1, j - k]
            high_c, high_s = sums[0, j + k], sums[1, j + k]
            matrix[row, column] = 0.5 * (low_c + high_c)
            matrix[row + 1, column + 1] = 0.5 * (low_c - high_c)
            matrix[row + 1, column] = 0.5 * (high_s + low_s)
            matrix[row, column + 1] = 0.5 * (high_s - low_s)
    return matrix, right


@njit(cache=True, nogil=True)
def _take(matrix, right, possible, orders, gains):
    """Decompose in place; the square of each solved element is what its term takes from chi-square."""
    total = 0.0
    for row in range(right.size):
        scale = matrix[row, row]
        for column in range(row):
            value = matrix[row, column]
            for k in range(column):
                value -= matrix[row, k] * matrix[column, k]
            matrix[row, column] = value / matrix[column, column] if matrix[column, column] > 0 else 0.0
        pivot = scale
        value = right[row]
        for k in range(row):
            pivot -= matrix[row, k] ** 2
            value -= matrix[row, k] * right[k]
        if pivot > TINY * scale:
            matrix[row, row] = math.sqrt(pivot)
            right[row] = value / matrix[row, row]
        else:
            matrix[row, row] = 0.0
            right[row] = 0.0
        total += right[row] ** 2
        if row % 2 == 0:
            gains[row // 2] += total
    for order in range(possible + 1, orders + 1):
        gains[order] += total


@njit(cache=True, nogil=True)
def gains_at(time, mag, weight, offsets, frequencies, order):
    """What a series of one order explains at each frequency [chi-square]."""
    gains = np.empty(order + 1)
    found = np.empty(frequencies.size)
    for i in range(frequencies.size):
        series_gains(time, mag, weight, offsets, frequencies[i], order, gains)
        found[i] = gains[order]
    return found


@njit(cache=True, nogil=True)
def best_order(gains, chi2, points, bands, price, orders):
    """Order of the lowest information, and that information: N ln chi2 + coefficients times their price."""
    best, lowest = 0, points * math.log(chi2)
    for order in range(1, orders + 1):
        left = max(chi2 - gains[order], 1e-12 * chi2)
        information = points * math.log(left) + (2 * order * bands + 1) * price
        if information < lowest:
            best, lowest = order, information
    return best, lowest


@njit(cache=True, nogil=True)
def refine(
    time, mag, weight, offsets, chi2, price, frequencies, reach, spacing, orders, found, order, information
):
    """Look around each frequency for the lowest information, by steps of `spacing` up to `reach`."""
    gains = np.empty(orders + 1)
    wave = np.empty((2, time.size))
    cosine, sine = np.empty(time.size), np.empty(time.size)
    by_cosine, by_sine = np.empty(time.size), np.empty(time.size)
    unit(time, spacing, by_cosine, by_sine)
    sides = int(reach / spacing)
    bands = offsets.size - 1
    for i in range(frequencies.size):
        information[i] = np.inf
        unit(time, frequencies[i] - sides * spacing, cosine, sine)
        for k in range(-sides, sides + 1):
            frequency = frequencies[i] + k * spacing
            if frequency > 0.5 * spacing:
                _gains(cosine, sine, mag, weight, offsets, orders, wave, gains)
                which, value = best_order(gains, chi2, time.size, bands, price, orders)
                if value < information[i]:
                    found[i], order[i], information[i] = frequency, which, value
            _turn(cosine, sine, by_cosine, by_sine)
