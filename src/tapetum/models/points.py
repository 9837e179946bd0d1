"""Light curves as the inputs of a network that looks at points: which points, scaled how, with which phases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tapetum.models import _points_kernels as kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.lightcurves.curves import LightCurves

CHANNELS = kernels.CHANNELS
MAGNITUDE, ERROR, THERE = 0, 1, CHANNELS - 1
"""Places of the scaled magnitude, of the logarithm of its error, and of what says that there is a point."""


def prepare_points(
    curves: LightCurves, period: NDArray[np.float64], length: int, rng: np.random.Generator | None = None
) -> NDArray[np.float32]:
    """At most `length` points of each light curve, by time, zeros after them.

    Nothing in them depends on where time or magnitudes begin. The channels of a point: the deviation from the mean
    in standard deviations of the curve (within +-6); log10 of the error in the same unit; cosine and sine of the first
    four harmonics of the period, phase zero where its first harmonic is faintest, then of the first and the third of
    twice the period; cosine and sine of 1, 2, 4 and 8 half turns over the baseline; half of log10 of the days since
    the last point and to the next; half of log10 of period [d], of the standard deviation [mag], of the baseline
    [d] and of their ratio; and 1.

    Parameters
    ----------
    curves
        Sorted by time, values finite.
    period : ndarray, shape (n_curves,)
        [d]; NaN: none was found, and the channels of phases are zero.
    length
        Points of a row.
    rng
        Which points are taken of a longer curve is drawn with it; None: every so manieth.

    Returns
    -------
    ndarray of float32, shape (n_curves, length, CHANNELS)
    """
    few = curves.where(chosen_points(curves.n_points, length, rng))
    out = np.zeros((len(curves), length, CHANNELS), np.float32)
    kernels.tokens_of(few.time, few.mag, few.magerr, few.offsets, np.asarray(period, np.float64), length, out)
    return out


def chosen_points(
    n_points: NDArray[np.int64], length: int, rng: np.random.Generator | None = None
) -> NDArray[np.bool_]:
    """Which of the points of curves are looked at where they are more than `length`, shape (n_points.sum(),)."""
    total = int(n_points.sum())
    first = np.repeat(np.cumsum(n_points) - n_points, n_points)
    place = np.arange(total) - first
    count = np.repeat(n_points, n_points)
    if rng is None:
        # the k-th is taken where k * length / count passes a whole number
        return np.asarray((place * length) // count != ((place - 1) * length) // count) | (count <= length)
    owner = np.repeat(np.arange(len(n_points)), n_points)
    order = np.lexsort((rng.random(total), owner))
    rank = np.empty(total, np.int64)
    rank[order] = place
    return np.asarray(rank < length)


def sine_powers(curves: LightCurves, frequency: NDArray[np.float64]) -> NDArray[np.float64]:
    """Part of chi-square that a sinusoid with a free mean explains (Zechmeister & Kuerster 2009, A&A 496, 577).

    Parameters
    ----------
    curves
        With errors above 0.
    frequency : ndarray, shape (n_curves, k)
        [1/d]

    Returns
    -------
    ndarray, shape (n_curves, k)
        0 to 1; NaN where the curve or the frequency allows none.
    """
    out = np.full(frequency.shape, np.nan)
    kernels.powers_of(curves.time, curves.mag, curves.magerr, curves.offsets, frequency, out)
    return out


def waves(
    curves: LightCurves, period: NDArray[np.float64], order: int
) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
    """Harmonics of a period, all fitted together whatever the noise allows, unlike `tapetum.lightcurves.fourier`.

    Parameters
    ----------
    curves
        With errors above 0.
    period : ndarray, shape (n_curves,)
        [d]
    order
        How many.

    Returns
    -------
    waves : ndarray of complex128, shape (n_curves, order)
        Cosine and sine amplitudes A + iB [mag], time beginning at the first point.
    left : ndarray, shape (n_curves,)
        Scatter about the fit [mag]. Both are NaN without a period.
    """
    out = np.empty((len(curves), 2 * order))
    left = np.empty(len(curves))
    kernels.harmonics_of(
        curves.time, curves.mag, curves.magerr, curves.offsets, np.asarray(period, np.float64), out, left
    )
    return np.asarray(out[:, ::2] + 1j * out[:, 1::2]), left
