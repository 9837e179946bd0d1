"""The 22 statistics of light curves that the described pipeline feeds to its classifiers.

Coughlin et al. (2021), MNRAS 505, 2954.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial.chebyshev import cheb2poly, chebpts1, chebvander
from numpy.polynomial.polynomial import polyval
from scipy.special import log_ndtr, ndtri

from tapetum.lightcurves import _statistics_kernels as kernels
from tapetum.lightcurves._ordered import ordered_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.lightcurves.curves import LightCurves, Values, Whole

STATISTICS = (
    "n", "median", "wmean", "chi2red", "roms", "wstd", "norm_peak_to_peak_amp", "norm_excess_var", "median_abs_dev",
    "iqr", "i60r", "i70r", "i80r", "i90r", "skew", "smallkurt", "inv_vonneumannratio", "welch_i", "stetson_j",
    "stetson_k", "ad", "sw",
)  # fmt: skip
"""Names of the columns of `statistics`, in order."""

FIRST_WEIGHT = (0.0, 0.221157, -0.147981, -2.07119, 4.434685, -2.706056)  # Royston (1995), in 1 / sqrt(n)
SECOND_WEIGHT = (0.0, 0.042981, -0.293762, -1.752461, 5.682633, -3.582633)


def usable(curves: LightCurves) -> NDArray[np.bool_]:
    """Curves that features can be computed for: points, all finite, errors above zero, times that never fall.

    Every feature of other curves is NaN (`n` is their number of points). Clean the curves first
    (`tapetum.lightcurves.clean`) to lose single points instead of whole curves; `LightCurves.ordered` sorts them.

    Returns
    -------
    ndarray of bool, shape (n_curves,)
    """
    good = np.empty(len(curves), np.bool_)
    kernels.usable(curves.time, curves.mag, curves.magerr, curves.offsets, good)
    return good


def statistics(curves: LightCurves) -> Values:
    r"""Statistics of the magnitudes m with errors e at times t, w = e^-2, N points.

    Percentiles interpolate linearly; d = sqrt(N/(N-1)) (m - wmean)/e; P = d_i d_(i+1) of neighbours in time.
    The formulas are those of the described pipeline, oddities included, so that its classifiers can be used:
    skew and smallkurt divide by e, not by the scatter; welch_i and stetson_j are sums and grow with N; ad and sw
    look at m/e. The set `tapetum` (`tapetum.lightcurves.invariant`) has the sound ones.

    Parameters
    ----------
    curves
        Sorted by time.

    Returns
    -------
    ndarray of float64, shape (n_curves, 22)
        In the order of `STATISTICS`; formulas and units are in `tapetum.lightcurves.features`. A row is NaN but for
        `n` where the curve is not `usable`; a single value is NaN where its formula has none: everything that
        divides by N-1, N-2 or N-3 in curves of one, two or three points, ratios to the scatter of a constant
        curve, inv_vonneumannratio where two points have one time.

    Notes
    -----
    Anderson & Darling (1952); Shapiro & Wilk (1965) with the weights of Royston (1995), Appl. Statist. 44, 547.
    """
    good = usable(curves)
    snr = np.empty_like(curves.mag)
    kernels.signal_to_noise(curves.mag, curves.magerr, snr)
    by_mag, by_snr = (ordered_values(values, curves.offsets) for values in (curves.mag, snr))
    weights, starts = _shapiro_table(curves.n_points)
    result = np.empty((len(curves), len(STATISTICS)))
    kernels.statistics_of(
        curves.time, curves.mag, curves.magerr, curves.offsets, good, by_mag, by_snr, weights, starts,
        _log_normal_table(), result,
    )  # fmt: skip
    return result


def _shapiro_table(n_points: Whole) -> tuple[Values, Whole]:
    """Weights of every length that occurs, one after the other, and where those of each curve begin."""
    lengths, which = np.unique(n_points, return_inverse=True)
    parts = [_shapiro_weights(n) for n in lengths.tolist()]
    begin = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return np.concatenate([*parts, np.empty(0)]), begin[which]


@lru_cache(maxsize=4096)
def _shapiro_weights(n: int) -> Values:
    """Weights of the differences between largest and smallest, second largest and second smallest ... point."""
    if n < 3:
        return np.empty(0)
    expected = -ndtri(
        (np.arange(1, n // 2 + 1) - 0.375) / (n + 0.25)
    )  # of a normal sample in order (Blom 1958)
    if n == 3:
        return np.array([np.sqrt(0.5)])
    norm = 2 * (expected**2).sum()
    replaced = 2 if n > 5 else 1
    ends = np.array([polyval(n**-0.5, terms) for terms in (FIRST_WEIGHT, SECOND_WEIGHT)])[:replaced]
    ends += expected[:replaced] / np.sqrt(norm)
    rest = (norm - 2 * (expected[:replaced] ** 2).sum()) / (1 - 2 * (ends**2).sum())
    weights = np.concatenate([ends, expected[replaced:] / np.sqrt(rest)])
    return np.asarray(weights / np.sqrt(2 * (weights**2).sum()))


@lru_cache(maxsize=1)
def _log_normal_table() -> Values:
    """Polynomials of the logarithm of the normal distribution function, one per interval; good to 1e-15."""
    n, terms = int(2 * kernels.FARTHEST * kernels.PER_UNIT), 8
    middle = -kernels.FARTHEST + (np.arange(n) + 0.5) / kernels.PER_UNIT
    node = chebpts1(terms)
    value = log_ndtr(middle + node[:, None] / (2 * kernels.PER_UNIT))
    chebyshev = np.linalg.solve(chebvander(node, terms - 1), value)
    powers = np.zeros((terms, terms))
    for k in range(terms):
        powers[: k + 1, k] = cheb2poly(np.eye(terms)[k])
    return np.ascontiguousarray((powers @ chebyshev).T)
