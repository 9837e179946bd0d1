"""Statistics in the manner of cesium (Naul et al. 2016, arXiv:1609.04504) that the described pipeline can add."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tapetum.lightcurves import _cesium_kernels as kernels
from tapetum.lightcurves._ordered import ordered_values
from tapetum.lightcurves.statistics import usable

if TYPE_CHECKING:
    from tapetum.lightcurves.curves import LightCurves, Values

CESIUM = tuple(
    f"cesium_{name}"
    for name in (
        "avg_err", "med_err", "std_err", "total_time", "avgt", "cads_std", "mean", "cads_avg", "cads_med",
        *(f"cad_probs_{minutes}" for minutes in kernels.MINUTES),
        "med_double_to_single_step", "avg_double_to_single_step", "std_double_to_single_step",
        "all_times_nhist_numpeaks", "all_times_nhist_peak_val",
        *(f"all_times_nhist_peak_{pair}" for pair in ("1_to_2", "1_to_3", "2_to_3", "1_to_4", "2_to_4", "3_to_4")),
        *(f"all_times_nhist_peak{rank}_bin" for rank in (1, 2, 3, 4)),
        "amplitude", *(f"flux_percentile_ratio_mid{width}" for width in (20, 35, 50, 65, 80)),
        "max_slope", "maximum", "minimum", "percent_amplitude", "percent_beyond_1_std", "percent_close_to_median",
        "percent_difference_flux_percentile", "period_fast", "qso_log_chi2_qsonu", "qso_log_chi2nuNULL_chi2nu",
        "skew", "std",
    )
)  # fmt: skip
"""Names of the columns of `cesium`, in order."""


def cesium(curves: LightCurves) -> Values:
    """The 59 statistics of cesium that the described pipeline lists in its settings, as cesium 0.12 computes them.

    With its oddities: `double_to_single_step` divides the sum of a gap and the next but one by the difference of two
    gaps; the peaks of the histogram of lags are counted from zero, so `1_to_2` compares second and third highest;
    the walk of `qso_*` is that of quasars in g whatever the band. `period_fast` sums its sinusoids directly where
    cesium approximates, so of peaks of nearly equal height it may take another.

    Parameters
    ----------
    curves
        Sorted by time.

    Returns
    -------
    ndarray of float64, shape (n_curves, 59)
        In the order of `CESIUM`; formulas and units are in `tapetum.lightcurves.features`. A row is NaN where the
        curve is not `usable`; single values where their formula has none, as ratios of gaps that are equal.
    """
    result = np.empty((len(curves), len(CESIUM)))
    gaps, steps = np.empty_like(curves.time), np.empty_like(curves.time)
    kernels.gaps_of(curves.time, curves.offsets, gaps, steps)
    ordered = [ordered_values(values, curves.offsets) for values in (curves.mag, curves.magerr, gaps, steps)]
    kernels.cesium_of(
        curves.time, curves.mag, curves.magerr, curves.offsets, usable(curves), *ordered, result
    )
    return result
