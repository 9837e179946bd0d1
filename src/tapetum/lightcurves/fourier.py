"""Fourier series of up to five harmonics on a line, fitted to light curves at given periods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tapetum.lightcurves import _fourier_kernels as kernels
from tapetum.lightcurves.statistics import usable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.lightcurves.curves import LightCurves, Values

FOURIER = (
    "f1_power", "f1_BIC", "f1_a", "f1_b", "f1_amp", "f1_phi0", "f1_relamp1", "f1_relphi1", "f1_relamp2",
    "f1_relphi2", "f1_relamp3", "f1_relphi3", "f1_relamp4", "f1_relphi4",
)  # fmt: skip
"""Names of the columns of `fourier`, in order."""


class Series(NamedTuple):
    """Fitted series: `values` as from `fourier`; `order`, the number of harmonics chosen, -1 without a fit."""

    values: Values
    order: NDArray[np.int64]


def fourier(curves: LightCurves, period: NDArray[Any]) -> Values:
    r"""The 14 Fourier features of the described pipeline, at one period per curve.

    Least squares with weights 1/e^2 of

    .. math:: m = a + b (t - t_{min}) + \sum_{n=1}^{k} A_n \cos(2 \pi n t / p) + B_n \sin(2 \pi n t / p)

    for k = 0 to 5; of these the k with the least BIC = chi2_k + (2 + 2 k) ln N is taken. f1_power is
    (chi2_0 - chi2_k) / chi2_0, f1_BIC that BIC, f1_a and f1_b are a [mag] and b [mag/d]. The other ten columns, from
    f1_amp to f1_relphi4, are A_1, B_1, A_2, B_2 ... A_5, B_5 [mag] as they are, whatever their names say, and zero
    above the order k: so the described pipeline writes them and its classifiers read them. They depend on where
    time is zero; `tapetum.lightcurves.invariant` has amplitudes and phases that do not.

    Parameters
    ----------
    curves
        Sorted by time.
    period : ndarray, shape (n_curves,)
        [d]

    Returns
    -------
    ndarray of float64, shape (n_curves, 14)
        In the order of `FOURIER`. NaN where the curve is not `usable` or has fewer than three points, or the period
        is not finite and above zero; f1_power also where a line fits perfectly.

    Raises
    ------
    ValueError
        There is not one period per curve.

    Notes
    -----
    With fewer than 13 points only orders that leave a degree of freedom are tried. Where harmonics are (nearly) sums
    of other terms, as with a period that is long against the baseline, an orthogonal factorisation replaces the
    matrix of products, and coefficients that the data cannot tell are zero.
    """
    return series(curves, period).values


def series(curves: LightCurves, period: NDArray[Any]) -> Series:
    """As `fourier`, together with the order that was chosen."""
    period = np.asarray(period, np.float64)
    if period.shape != (len(curves),):
        raise ValueError(f"need one period for each of {len(curves)} curves, got shape {period.shape}")
    values = np.empty((len(curves), len(FOURIER)))
    order = np.empty(len(curves), np.int64)
    good = usable(curves)
    begin = np.minimum(curves.offsets[:-1], max(len(curves.mag) - 1, 0))
    centre = curves.mag[begin] if len(curves.mag) else np.zeros(len(curves))
    kernels.fourier_of(
        curves.time, curves.mag, curves.magerr, curves.offsets, good, period, centre, values, order
    )
    return Series(values, order)
