"""Features that say the same of the same star whenever time began to count, and however bright or well measured it is.

What each of them does not depend on, with formula and unit, is in `tapetum.lightcurves.features`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.lightcurves import _invariant_kernels as kernels
from tapetum.lightcurves._ordered import ordered_values
from tapetum.lightcurves.fourier import series
from tapetum.lightcurves.statistics import usable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.lightcurves.curves import LightCurves, Values

INVARIANT = (
    "n_points", "baseline", "mag_mean", "error_typical", "scatter", "scatter_robust", "amplitude", "chi2_reduced",
    "excess_variance", "flux_range", "flux_ratio_20", "flux_ratio_35", "flux_ratio_50", "flux_ratio_65",
    "flux_ratio_80", "skewness", "kurtosis", "quantile_skew", "tail_weight", "beyond_1_sigma", "beyond_2_robust",
    "beyond_asymmetry", "stetson_j_mean", "stetson_kurtosis", "autocorrelation", "von_neumann", "max_rise", "max_fall",
    "trend", "trend_power", "structure_01d", "structure_1d", "structure_10d", "structure_100d", "structure_1000d",
    "structure_slope", "structure_amplitude", "drw_log_tau", "drw_sigma", "drw_gain",
)  # fmt: skip
"""Names of the columns of `invariant`, in order."""

FOLDED = (
    "fourier_power", "fourier_order", "fourier_amplitude", "fourier_range", "ratio_21", "ratio_31", "ratio_41",
    "ratio_51", "cos_21", "sin_21", "cos_31", "sin_31", "cos_41", "sin_41", "cos_51", "sin_51", "fold_von_neumann",
)  # fmt: skip
"""Names of the columns of `folded`, in order."""

PHASES = 64  # at which the fitted series is looked at for its range
TURNS = 1 << 30  # steps of phase in a sort key, and the most points of a curve


def invariant(curves: LightCurves) -> Values:
    """The features of the set `tapetum` that need no period.

    Parameters
    ----------
    curves
        Sorted by time.

    Returns
    -------
    ndarray of float64, shape (n_curves, 40)
        In the order of `INVARIANT`. A row is NaN but for `n_points` where the curve is not `usable`; single values
        are NaN where their formula has none: ratios to the scatter of a constant curve, differences of a single
        point, lags at which there is no pair.
    """
    result = np.empty((len(curves), len(INVARIANT)))
    by_mag = ordered_values(curves.mag, curves.offsets)
    good = usable(curves)
    kernels.invariant_of(curves.time, curves.mag, curves.magerr, curves.offsets, good, by_mag, result)
    return result


def folded(curves: LightCurves, period: NDArray[Any]) -> Values:
    """The features of the set `tapetum` at one period per curve.

    Parameters
    ----------
    curves
        Sorted by time.
    period : ndarray, shape (n_curves,)
        [d]

    Returns
    -------
    ndarray of float64, shape (n_curves, 17)
        In the order of `FOLDED`. The series is that of `fourier`, its order chosen by the BIC. Above the order
        ratios are zero and phase differences NaN; without a harmonic all are NaN but fourier_power and
        fourier_order and the amplitudes, which are zero. NaN altogether where `fourier` is.

    Raises
    ------
    ValueError
        There is not one period per curve.

    Notes
    -----
    Ratios and phase differences as in Simon & Lee (1981), ApJ 248, 291, of the series in cosines.
    """
    values, order = series(curves, period)
    fitted = order >= 0
    waves = values[:, 4::2] + 1j * values[:, 5::2]  # A + iB: amplitude, and phase of a series in cosines
    size = np.abs(waves)
    result = np.full((len(curves), len(FOLDED)), np.nan)
    result[:, 0] = values[:, 0]
    result[fitted, 1] = order[fitted]
    result[:, 2] = size[:, 0]
    result[fitted, 3] = 0.0
    harmonic = order >= 1
    relative, size = _from_first_harmonic(waves[harmonic], size[harmonic]), size[harmonic]
    angle = np.arange(1, 6)[:, None] * np.arange(PHASES) * 2j * np.pi / PHASES
    shape = (relative @ np.exp(-angle)).real
    result[harmonic, 3] = np.ptp(shape, axis=1)
    result[harmonic, 4:8] = size[:, 1:] / size[:, :1]
    there = size[:, 1:] > 0
    turned = np.divide(relative[:, 1:], size[:, 1:], out=np.zeros_like(relative[:, 1:]), where=there)
    pairs = np.where(there[..., None], np.stack([turned.real, turned.imag], axis=-1), np.nan)
    result[harmonic, 8:16] = pairs.reshape(-1, 8)
    result[:, 16] = _fold_von_neumann(curves, np.asarray(period, np.float64), fitted)
    return result


def _from_first_harmonic(waves: NDArray[np.complex128], size: Values) -> NDArray[np.complex128]:
    """A + iB of each harmonic when time begins at the crest of the first."""
    back = np.conj(waves[:, :1] / size[:, :1])
    return np.asarray(waves * back ** np.arange(1, 6))


def _fold_von_neumann(curves: LightCurves, period: Values, fitted: NDArray[np.bool_]) -> Values:
    keys = np.empty(len(curves.time), np.int64)
    kernels.phase_keys(curves.time, curves.offsets, fitted, period, TURNS, keys)
    ratio = np.empty(len(curves))
    by_phase = ordered_values(keys, curves.offsets)
    kernels.folded_of(curves.mag, curves.magerr, curves.offsets, fitted, TURNS, by_phase, ratio)
    return ratio
