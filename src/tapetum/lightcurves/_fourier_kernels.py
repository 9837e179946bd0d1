"""Compiled fits of a line and a Fourier series of rising order to light curves, weighted by their errors.

The twelve functions are 1, u (time from -1 to 1) and cos, sin of the first five harmonics. One matrix of their
weighted products gives the fits of all orders: the leading part of a Cholesky factor is the factor of the leading
part, so each two more functions lower chi-square by the squares of two more terms.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from tapetum.lightcurves._statistics_kernels import REORDER, weighted_mean

HARMONICS = 5
TERMS = 2 + 2 * HARMONICS
ORDERS = HARMONICS + 1
COLUMNS = 14
LEAST_PIVOT = 1e-6  # of a function that is not yet a sum of others; below, products lose too many digits
LEAST_REST = 1e-8  # of chi-square that a fit leaves; below, the difference of sums loses too many digits
DEPENDENT = 1e-24  # squared length that a function keeps beside the others when it is a sum of them


@njit(cache=True, nogil=True, fastmath={"contract"}, forceinline=True)
def _sine_of_quarter(x):
    """sin(2 pi x) for |x| <= 1/4: the series up to x^21, to the last digit."""
    z = 39.47841760435743 * x * x
    s = 1.0 - z / 420.0
    s = 1.0 - z / 342.0 * s
    s = 1.0 - z / 272.0 * s
    s = 1.0 - z / 210.0 * s
    s = 1.0 - z / 156.0 * s
    s = 1.0 - z / 110.0 * s
    s = 1.0 - z / 72.0 * s
    s = 1.0 - z / 42.0 * s
    s = 1.0 - z / 20.0 * s
    return 6.283185307179586 * x * (1.0 - z / 6.0 * s)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "arcp"}, forceinline=True)
def _circle(time, start, frequency, phase, cosine, sine):
    """Fill in cos and sin of 2 pi ((time - start) frequency + phase); no branches, so that it runs in vectors."""
    for j in range(time.size):
        x = (time[j] - start) * frequency + phase
        x -= np.floor(x + 0.5)
        size = abs(x)
        cosine[j] = _sine_of_quarter(0.25 - size)
        sine[j] = _sine_of_quarter(math.copysign(0.25 - abs(size - 0.25), x))


@njit(cache=True, nogil=True, fastmath=REORDER, forceinline=True)
def _turn(cosine, sine, cosine1, sine1):
    """One harmonic further."""
    for j in range(cosine.size):
        c = cosine[j] * cosine1[j] - sine[j] * sine1[j]
        sine[j] = sine[j] * cosine1[j] + cosine[j] * sine1[j]
        cosine[j] = c


@njit(cache=True, nogil=True, fastmath=REORDER, forceinline=True)
def _dots(weight, x, y):
    """Sums of weight x and weight y."""
    a, b = 0.0, 0.0
    for j in range(weight.size):
        a += weight[j] * x[j]
        b += weight[j] * y[j]
    return a, b


@njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER, forceinline=True)
def prepare(time, mag, magerr, mean, total, work):
    """Rows 0 to 4 of `work`: u, normalised weights, weighted u, weighted and plain magnitude from its mean; 9: ones."""
    first, last = time[0], time[time.size - 1]
    per_day = 2.0 / (last - first) if last > first else 0.0
    for j in range(time.size):
        u = (time[j] - first) * per_day - 1.0
        w = 1.0 / (magerr[j] * magerr[j] * total)
        work[0, j] = u
        work[1, j] = w
        work[2, j] = w * u
        work[3, j] = w * (mag[j] - mean)
        work[4, j] = mag[j] - mean
        work[9, j] = 1.0


@njit(cache=True, nogil=True)
def _products(work, matrix, right):
    """Weighted products of the functions with each other (upper part) and with the magnitude.

    Those of cosines and sines follow from the sums of w cos kx and w sin kx with k up to twice the order.
    """
    w, wu, wy = work[1], work[2], work[3]
    cosine1, sine1, cosine, sine = work[5], work[6], work[7], work[8]
    C, S = np.empty(2 * HARMONICS + 1), np.empty(2 * HARMONICS + 1)
    C[0], S[0] = 1.0, 0.0
    matrix[0, 0] = 1.0
    matrix[0, 1], matrix[1, 1] = _dots(work[0], w, wu)
    right[1], right[0] = _dots(wy, work[0], work[9])
    for j in range(cosine.size):
        cosine[j], sine[j] = 1.0, 0.0
    for k in range(1, 2 * HARMONICS + 1):
        _turn(cosine, sine, cosine1, sine1)
        C[k], S[k] = _dots(w, cosine, sine)
        if k <= HARMONICS:
            matrix[0, 2 * k], matrix[0, 2 * k + 1] = C[k], S[k]
            matrix[1, 2 * k], matrix[1, 2 * k + 1] = _dots(wu, cosine, sine)
            right[2 * k], right[2 * k + 1] = _dots(wy, cosine, sine)
    for a in range(1, HARMONICS + 1):
        for b in range(a, HARMONICS + 1):
            matrix[2 * a, 2 * b] = 0.5 * (C[b - a] + C[a + b])
            matrix[2 * a + 1, 2 * b + 1] = 0.5 * (C[b - a] - C[a + b])
            matrix[2 * a, 2 * b + 1] = 0.5 * (S[a + b] + S[b - a])
            matrix[2 * a + 1, 2 * b] = 0.5 * (S[a + b] - S[b - a])


@njit(cache=True, nogil=True, error_model="numpy")
def _factor(matrix, right, terms, share):
    """Upper triangle R of R'R = matrix (in place) and R'share = right; whether all pivots are large enough."""
    for k in range(terms):
        pivot = matrix[k, k]
        for i in range(k):
            pivot -= matrix[i, k] * matrix[i, k]
        if not pivot > LEAST_PIVOT:
            return False
        root = math.sqrt(pivot)
        matrix[k, k] = root
        for j in range(k + 1, terms):
            value = matrix[k, j]
            for i in range(k):
                value -= matrix[i, k] * matrix[i, j]
            matrix[k, j] = value / root
        value = right[k]
        for i in range(k):
            value -= matrix[i, k] * share[i]
        share[k] = value / root
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def _solve(R, share, used, coefficients):
    """R coefficients = share, with the first `used` functions; one that is a sum of others gets zero."""
    coefficients[:] = 0.0
    for k in range(used - 1, -1, -1):
        if R[k, k] > 0:
            value = share[k]
            for j in range(k + 1, used):
                value -= R[k, j] * coefficients[j]
            coefficients[k] = value / R[k, k]


@njit(cache=True, nogil=True, fastmath=REORDER, forceinline=True)
def _dot(x, y):
    total = 0.0
    for j in range(x.size):
        total += x[j] * y[j]
    return total


@njit(cache=True, nogil=True, fastmath=REORDER, forceinline=True)
def _subtract(y, factor, x):
    for j in range(x.size):
        y[j] -= factor * x[j]


@njit(cache=True, nogil=True, error_model="numpy")
def _functions(work, terms, basis):
    """The functions times the square root of the weights, and the magnitude likewise."""
    n = work.shape[1]
    cosine1, sine1, cosine, sine = work[5], work[6], work[7], work[8]
    for j in range(n):
        cosine[j], sine[j] = 1.0, 0.0
    for k in range(terms // 2):
        if k:
            _turn(cosine, sine, cosine1, sine1)
        for j in range(n):
            root = math.sqrt(work[1, j])
            basis[2 * k, j] = root * cosine[j]
            basis[2 * k + 1, j] = root * (sine[j] if k else work[0, j])
            basis[TERMS, j] = root * work[4, j]


@njit(cache=True, nogil=True, error_model="numpy")
def _orthogonal_fit(work, terms, basis, R, share, chi2):
    """As `_factor`, by Gram & Schmidt with every step done twice: slow, and sound where functions are nearly sums."""
    _functions(work, terms, basis)
    y = basis[TERMS]
    for k in range(terms):
        q = basis[k]
        before = _dot(q, q)
        R[: k + 1, k] = 0.0
        for _ in range(2):
            for i in range(k):
                part = _dot(basis[i], q)
                R[i, k] += part
                _subtract(q, part, basis[i])
        length = _dot(q, q)
        share[k] = 0.0
        if length > DEPENDENT * max(before, 1.0):
            R[k, k] = math.sqrt(length)
            _subtract(q, 1.0 - 1.0 / R[k, k], q)
            share[k] = _dot(q, y)
            _subtract(y, share[k], q)
        else:
            _subtract(q, 1.0, q)
        if k % 2:
            chi2[k // 2] = _dot(y, y)


@njit(cache=True, nogil=True, error_model="numpy")
def _chi_squares(squares, share, terms, chi2):
    """What the fits of each order leave of the sum of squares; whether enough for it to be a difference of sums."""
    rest = squares
    for k in range(terms):
        rest -= share[k] * share[k]
        if k % 2:
            chi2[k // 2] = rest
    return rest > LEAST_REST * squares


@njit(cache=True, nogil=True, error_model="numpy")
def fourier_of(time, mag, magerr, offsets, good, periods, centre, out, orders):
    """Fit every curve at its period: 14 columns of `out`, and the order that was chosen (-1: none).

    `centre`: a magnitude near the mean of each curve.
    """
    longest = 1
    for i in range(good.size):
        longest = max(longest, offsets[i + 1] - offsets[i])
    rows = 10
    buffer = np.empty((rows + TERMS + 1) * longest)
    for i in range(good.size):
        out[i] = np.nan
        orders[i] = -1
        first, last = offsets[i], offsets[i + 1]
        n = last - first
        if good[i] and n > 2 and periods[i] > 0 and math.isfinite(periods[i]):
            mean, total = weighted_mean(mag[first:last], magerr[first:last], centre[i])
            # whole rows one after the other, so that loops over them run in vectors
            work = buffer[: rows * n].reshape((rows, n))
            basis = buffer[rows * n : (rows + TERMS + 1) * n].reshape((TERMS + 1, n))
            prepare(time[first:last], mag[first:last], magerr[first:last], mean, total, work)
            orders[i] = _fit(time[first:last], periods[i], mean, total, work, basis, out[i])


@njit(cache=True, nogil=True, error_model="numpy")
def _fit(time, period, mean, total, work, basis, row):
    """The fit of one curve; the order chosen, or -1."""
    n = time.size
    terms = min(TERMS, 2 * ((n - 1) // 2))  # as many as leave a degree of freedom
    matrix, right = np.empty((TERMS, TERMS)), np.empty(TERMS)
    share, chi2, coefficients = np.empty(TERMS), np.empty(ORDERS), np.empty(TERMS)
    _circle(time, time[0], 1.0 / period, (time[0] % period) / period, work[5], work[6])
    _products(work, matrix, right)
    sound = _factor(matrix, right, terms, share)
    if sound:
        sound = _chi_squares(_dot(work[3], work[4]), share, terms, chi2)
    if not sound:
        _orthogonal_fit(work, terms, basis, matrix, share, chi2)
    best, lowest = -1, np.inf
    for order in range(terms // 2):
        chi2[order] *= total
        bic = chi2[order] + math.log(n) * (2 + 2 * order)
        if bic < lowest:
            best, lowest = order, bic
    if best < 0:
        return -1
    _solve(matrix, share, 2 + 2 * best, coefficients)
    half = 0.5 * (time[n - 1] - time[0])
    row[0] = (chi2[0] - chi2[best]) / chi2[0]
    row[1] = lowest
    row[2] = mean + coefficients[0] - coefficients[1]
    row[3] = coefficients[1] / half if half > 0 else 0.0
    for k in range(2, TERMS):
        row[2 + k] = coefficients[k]
    return best
