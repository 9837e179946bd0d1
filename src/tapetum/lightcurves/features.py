"""Which features there are: name, formula, unit, source and invariance of each, in named sets; and tables of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa

from tapetum.core.errors import UsageError
from tapetum.lightcurves.cesium import CESIUM, cesium
from tapetum.lightcurves.curves import KEY
from tapetum.lightcurves.dmdt import dmdt
from tapetum.lightcurves.fourier import FOURIER, fourier
from tapetum.lightcurves.invariant import FOLDED, INVARIANT, folded, invariant
from tapetum.lightcurves.statistics import STATISTICS, statistics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from tapetum.lightcurves.curves import LightCurves

FeatureSet = Literal["scope", "tapetum", "cesium"]
SETS: tuple[FeatureSet, ...] = get_args(FeatureSet)

CHANGES = {
    "time": "a shift of all times",
    "level": "a constant added to all magnitudes",
    "errors": "a factor on all errors",
    "scale": "a factor on all deviations from the mean and on all errors",
    "ties": "the order of points of one time",
}
"""What a feature may be invariant to."""


@dataclass(frozen=True)
class Feature:
    """One column.

    Attributes
    ----------
    name
        With `_` and the period's name after it where `periodic`.
    of
        The set that it belongs to.
    formula
        With m, e, t: magnitudes, errors, times; w = 1/e^2; N points; P5: the 5th percentile, linear between points.
    unit
        Empty: a pure number.
    source
        Where the formula is from; scope: the described pipeline (Coughlin et al. 2021, MNRAS 505, 2954); empty: here.
    invariant
        Keys of `CHANGES` that leave it as it is, but for rounding; None: not examined.
    periodic
        Whether it needs a period.
    """

    name: str
    of: FeatureSet
    formula: str
    unit: str
    source: str
    invariant: tuple[str, ...] | None = None
    periodic: bool = False


KELLY = "Kelly et al. (2009), ApJ 698, 895"
NANDRA = "Nandra et al. (1997), ApJ 476, 70"
RICHARDS = "Richards et al. (2011), ApJ 733, 10"
SIMON = "Simon & Lee (1981), ApJ 248, 291"
SIMONETTI = "Simonetti et al. (1985), ApJ 296, 46"
STETSON = "Stetson (1996), PASP 108, 851"
WELCH = "Welch & Stetson (1993), AJ 105, 1813"

EVERYTHING = "time level errors scale ties"
ORDERED = "time level errors scale"
WITH_ERRORS = "time level scale ties"
IN_MAGNITUDES = "time level errors ties"
IN_BOTH = "time level ties"

SCOPE_FORMULAS = {
    "n": ("N", "", "scope"),
    "median": ("P50(m)", "mag", "scope"),
    "wmean": ("sum w m / sum w", "mag", "scope"),
    "chi2red": ("sum w (m - wmean)^2 / (N-1)", "", "scope"),
    "roms": ("sum |m - median|/e / (N-1)", "", "scope"),
    "wstd": ("sqrt(sum w (m - wmean)^2 / sum w)", "mag", "scope"),
    "norm_peak_to_peak_amp": ("(max(m-e) - min(m+e)) / (max(m-e) + min(m+e))", "", "scope"),
    "norm_excess_var": ("sum((m - wmean)^2 - e^2) / (N wmean^2)", "", NANDRA),
    "median_abs_dev": ("P50(|m - median|)", "mag", "scope"),
    "iqr": ("P75 - P25", "mag", "scope"),
    "i60r": ("P80 - P20", "mag", "scope"),
    "i70r": ("P85 - P15", "mag", "scope"),
    "i80r": ("P90 - P10", "mag", "scope"),
    "i90r": ("P95 - P5", "mag", "scope"),
    "skew": ("N/((N-1)(N-2)) sum r^3, r = (m - wmean)/e", "", "scope"),
    "smallkurt": ("N(N+1)/((N-1)(N-2)(N-3)) sum r^4 - 3(N-1)^2/((N-2)(N-3))", "", "scope"),
    "inv_vonneumannratio": ("wstd^2 sum dt^-2 / sum(dm^2/dt^2) of neighbours", "", "von Neumann (1941), weighted"),
    "welch_i": ("sum P, P = d_i d_(i+1), d = sqrt(N/(N-1)) r", "", f"{WELCH}, not divided by N"),
    "stetson_j": ("sum sign(P) sqrt|P|", "", f"{STETSON}, not divided by N"),
    "stetson_k": ("sum|d| / sqrt(N sum d^2)", "", STETSON),
    "ad": ("Anderson & Darling's A^2 of m/e against a normal distribution", "", "Anderson & Darling (1952)"),
    "sw": ("Shapiro & Wilk's W of m/e", "", "Royston (1995), Appl. Statist. 44, 547"),
}  # fmt: skip

FOURIER_FORMULAS = {
    "f1_power": ("(chi2_0 - chi2_k)/chi2_0 of the fit with k harmonics on a line", ""),
    "f1_BIC": ("chi2_k + (2 + 2k) ln N, the least of k = 0 to 5", ""),
    "f1_a": ("a of m = a + b(t - t_min) + sum_n A_n cos(2 pi n t/p) + B_n sin(2 pi n t/p)", "mag"),
    "f1_b": ("b", "mag/d"),
    **{name: (f"{'AB'[k % 2]}_{k // 2 + 1}, zero if above k", "mag") for k, name in enumerate(FOURIER[4:])},
}

CESIUM_FORMULAS = {
    "avg_err": ("mean of e", "mag"),
    "med_err": ("P50(e)", "mag"),
    "std_err": ("standard deviation of e", "mag"),
    "total_time": ("max t - min t", "d"),
    "avgt": ("mean of t", "d"),
    "cads_std": ("standard deviation of the gaps t_(i+1) - t_i", "d"),
    "mean": ("mean of m", "mag"),
    "cads_avg": ("mean of the gaps", "d"),
    "cads_med": ("median of the gaps", "d"),
    "med_double_to_single_step": ("median of (g_(i+2) + g_i)/(g_(i+1) - g_i), g the gaps", ""),
    "avg_double_to_single_step": ("mean of them", ""),
    "std_double_to_single_step": ("standard deviation of them", ""),
    "all_times_nhist_numpeaks": ("peaks of the histogram (50 bins) of all t_j - t_i", ""),
    "all_times_nhist_peak_val": ("highest bin / (total_time x mean bin)", "1/d"),
    "amplitude": ("(max m - min m)/2", "mag"),
    "max_slope": ("max |dm/dt| of neighbours", "mag/d"),
    "maximum": ("max m", "mag"),
    "minimum": ("min m", "mag"),
    "percent_amplitude": ("max(F_max - F_50, F_50 - F_min)/F_50, F = 10^(-0.4 m)", ""),
    "percent_beyond_1_std": ("share with |m - wmean| > wstd", ""),
    "percent_close_to_median": ("share with |m - median| < (max m - min m)/10", ""),
    "percent_difference_flux_percentile": ("(F_95 - F_5)/F_50", ""),
    "period_fast": ("period of the highest Lomb-Scargle peak between 2 total_time/N and total_time", "d"),
    "qso_log_chi2_qsonu": ("ln chi2/nu of a quasar's damped random walk", ""),
    "qso_log_chi2nuNULL_chi2nu": ("ln of what a variable that is no quasar would have, over it", ""),
    "skew": ("mean (m - mean)^3 / std^3", ""),
    "std": ("sqrt(mean (m - mean)^2)", "mag"),
}

TAPETUM_FORMULAS = {
    "n_points": ("N", "", "", EVERYTHING),
    "baseline": ("max t - min t", "d", "", EVERYTHING),
    "mag_mean": ("M = sum w m / sum w", "mag", "", "time errors ties"),
    "error_typical": ("sqrt(N / sum w)", "mag", "", IN_BOTH),
    "scatter": ("s = sqrt(sum w (m - M)^2 / sum w)", "mag", "", IN_MAGNITUDES),
    "scatter_robust": ("1.4826 P50(|m - P50|)", "mag", "", IN_MAGNITUDES),
    "amplitude": ("(P95 - P5)/2", "mag", "", IN_MAGNITUDES),
    "chi2_reduced": ("sum w (m - M)^2 / (N-1)", "", "", WITH_ERRORS),
    "excess_variance": ("(sum w (m - M)^2 - (N-1)) / sum w", "mag^2", f"{NANDRA}, not divided by the mean", IN_BOTH),
    "flux_range": ("(F_95 - F_5)/F_50, F = 10^(-0.4 m)", "", RICHARDS, IN_MAGNITUDES),
    **{
        f"flux_ratio_{share}": (
            f"(F_{50 + share / 2:g} - F_{50 - share / 2:g})/(F_95 - F_5)", "", RICHARDS, IN_MAGNITUDES,
        )
        for share in (20, 35, 50, 65, 80)
    },
    "skewness": ("sum w (m - M)^3 / (s^3 sum w)", "", "", EVERYTHING),
    "kurtosis": ("sum w (m - M)^4 / (s^4 sum w) - 3", "", "", EVERYTHING),
    "quantile_skew": ("(P95 + P5 - 2 P50)/(P95 - P5)", "", "Bowley (1901)", EVERYTHING),
    "tail_weight": ("(P95 - P5)/(P75 - P25)/2.4387: 1 if normal", "", "", EVERYTHING),
    "beyond_1_sigma": ("share with |m - M| > s", "", RICHARDS, EVERYTHING),
    "beyond_2_robust": ("share with |m - P50| > 2 scatter_robust", "", "", EVERYTHING),
    "beyond_asymmetry": ("share with m - M > s less that with M - m > s", "", "", EVERYTHING),
    "stetson_j_mean": ("sum sign(P) sqrt|P| / (N-1), P = r_i r_(i+1), r = (m - M)/e", "", STETSON, "time level scale"),
    "stetson_kurtosis": ("sum|r| / sqrt(N sum r^2)", "", STETSON, EVERYTHING),
    "autocorrelation": ("N/(N-1) sum r_i r_(i+1) / sum r^2", "", f"{WELCH}, over chi-square", ORDERED),
    "von_neumann": (
        "2 sum (m_(i+1) - m_i)^2/(e_(i+1)^2 + e_i^2) / sum r^2: 2 if white noise", "", "von Neumann (1941), weighted",
        ORDERED,
    ),
    "max_rise": ("largest (|dm| - sqrt(e_i^2 + e_(i+1)^2))/dt of pairs that brighten, or 0", "mag/d", "", "time level"),
    "max_fall": ("the same of those that fade", "mag/d", "", "time level"),
    "trend": ("slope of the weighted line through m(t)", "mag/d", "", IN_MAGNITUDES),
    "trend_power": ("share of chi-square that the line takes away", "", "", EVERYTHING),
    **{
        f"structure_{name}d": (
            f"mean (m_j - m_i)^2 of pairs {low:g} to {10 * low:g} d apart / (2 variance of m): 1 if white noise", "",
            f"{SIMONETTI}, normalised", EVERYTHING)
        for name, low in (("01", 0.03), ("1", 0.3), ("10", 3), ("100", 30), ("1000", 300))
    },
    "structure_slope": (
        "g of sqrt(mean (m_j - m_i)^2 - e_i^2 - e_j^2) ~ (t_j - t_i)^g, fit to half decades of 10 pairs", "",
        SIMONETTI, WITH_ERRORS),
    "structure_amplitude": ("that power law at 100 d", "mag", "Schmidt et al. (2010), ApJ 714, 1194", IN_BOTH),
    "drw_log_tau": ("log10 of the days of the damped random walk that fits best, 0.25 to 2048", "", KELLY, WITH_ERRORS),
    "drw_sigma": ("its standard deviation, 0.25 to 2.83 s", "mag", KELLY, IN_BOTH),
    "drw_gain": ("ln of its likelihood over that of white noise, mean integrated out", "", KELLY, WITH_ERRORS),
}  # fmt: skip

PHASES = "of phi_{k} - {k} phi_1, phi_n = atan2(B_n, A_n); missing above the order"
FOLDED_FORMULAS = {
    "fourier_power": ("f1_power", "", "", WITH_ERRORS),
    "fourier_order": ("number of harmonics with the least BIC", "", "", WITH_ERRORS),
    "fourier_amplitude": ("sqrt(A_1^2 + B_1^2)", "mag", SIMON, IN_BOTH),
    "fourier_range": ("maximum less minimum of the series, at 64 phases", "mag", "", IN_BOTH),
    **{
        f"ratio_{k}1": (f"sqrt(A_{k}^2 + B_{k}^2)/sqrt(A_1^2 + B_1^2), 0 above the order", "", SIMON, WITH_ERRORS)
        for k in range(2, 6)
    },
    **{
        f"{function}_{k}1": (f"{function} {PHASES.format(k=k)}", "", SIMON, WITH_ERRORS)
        for k in range(2, 6)
        for function in ("cos", "sin")
    },
    "fold_von_neumann": ("von_neumann in order of phase", "", "Lafler & Kinman (1965), ApJS 11, 216", ORDERED),
}  # fmt: skip


def _cesium_formula(name: str) -> tuple[str, str]:
    """Formula and unit of a name without its prefix; many differ in a number only."""
    if name in CESIUM_FORMULAS:
        return CESIUM_FORMULAS[name]
    head, _, tail = name.rpartition("_")
    if head == "cad_probs":
        return f"share of gaps below {tail} min, about half of those that equal it", ""
    if head == "flux_percentile_ratio":
        half = int(tail.removeprefix("mid")) / 2
        return f"(F_{50 + half:g} - F_{50 - half:g})/(F_95 - F_5), F = 10^(-0.4 m)", ""
    if tail == "bin":
        return f"bin of that histogram's peak number {head[-1]}, the highest being number 0", ""
    first, last = head.removesuffix("_to")[-1], tail
    return f"its peak number {first} over number {last}, the highest being number 0", ""


def _features() -> Iterator[Feature]:
    for name in STATISTICS:
        yield Feature(name, "scope", *SCOPE_FORMULAS[name])
    yield Feature(
        "dmdt", "scope", "26 x 26 counts of pairs by m_j - m_i (rows) and t_j - t_i (columns), norm 1", "",
        "Mahabal et al. (2017), arXiv:1709.06257",
    )  # fmt: skip
    for name in FOURIER:
        yield Feature(name, "scope", *FOURIER_FORMULAS[name], "scope", None, True)
    for name in CESIUM:
        formula, unit = _cesium_formula(name.removeprefix("cesium_"))
        yield Feature(name, "cesium", formula, unit, "cesium 0.12, Naul et al. (2016), arXiv:1609.04504")
    for table, names, periodic in ((TAPETUM_FORMULAS, INVARIANT, False), (FOLDED_FORMULAS, FOLDED, True)):
        for name in names:
            formula, unit, source, kept = table[name]
            yield Feature(name, "tapetum", formula, unit, source, tuple(kept.split()), periodic)


FEATURES: tuple[Feature, ...] = tuple(_features())
"""Every feature, in the order in which columns are written."""


def features_of(sets: Iterable[str]) -> tuple[Feature, ...]:
    """The features of some sets.

    Raises
    ------
    UsageError
        There is no such set.
    """
    wanted = tuple(sets)
    unknown = [name for name in wanted if name not in SETS]
    if unknown:
        raise UsageError(f"no set of features is called {unknown[0]}; there are {', '.join(SETS)}")
    return tuple(feature for feature in FEATURES if feature.of in wanted)


def reference_table(of: FeatureSet) -> str:
    """What is known of the features of a set, as a table in Markdown, for the documentation."""
    head = ["name", "formula", "unit", "source", "unchanged by"]
    rows = [
        [
            f"`{each.name}_PERIOD`" if each.periodic else f"`{each.name}`",
            each.formula,
            each.unit,
            each.source or "Tapetum",
            "" if each.invariant is None else ", ".join(each.invariant),
        ]
        for each in features_of([of])
    ]
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def feature_table(
    curves: LightCurves, sets: Iterable[str], periods: Mapping[str, NDArray[Any]] | None = None
) -> pa.Table:
    """Features of many curves, one row for each.

    Parameters
    ----------
    curves
        Clean and sorted by time.
    sets
        Of `SETS`.
    periods
        One period [d] per curve for each way of finding one: its name ends the names of the columns of periodic
        features, as in `f1_power_LS`. Without any those are left out.

    Returns
    -------
    pyarrow.Table
        `lc_id`, then the features of each set without a period, then for each name of a period `period_NAME` and
        the features that need one. What a curve has no value for is null.

    Raises
    ------
    UsageError
        There is no such set.
    ValueError
        There is not one period per curve.
    """
    wanted = {feature.of for feature in features_of(sets)}
    columns: dict[str, pa.Array] = {KEY: curves.table[KEY].combine_chunks()}
    if "scope" in wanted:
        columns |= _columns(STATISTICS, statistics(curves))
        columns["dmdt"] = _pictures(dmdt(curves))
    if "cesium" in wanted:
        columns |= _columns(CESIUM, cesium(curves))
    if "tapetum" in wanted:
        columns |= _columns(INVARIANT, invariant(curves))
    for name, period in (periods or {}).items():
        columns |= _columns([f"period_{name}"], np.asarray(period, np.float64).reshape(-1, 1))
        if "scope" in wanted:
            columns |= _columns([f"{each}_{name}" for each in FOURIER], fourier(curves, period))
        if "tapetum" in wanted:
            columns |= _columns([f"{each}_{name}" for each in FOLDED], folded(curves, period))
    return pa.table(columns)


def _columns(names: Iterable[str], values: NDArray[np.float64]) -> dict[str, pa.Array]:
    return {
        name: pa.array(column, from_pandas=True)
        for name, column in zip(names, np.ascontiguousarray(values.T), strict=True)
    }


def _pictures(values: NDArray[np.float32]) -> pa.Array:
    """One list per curve, row after row; null where there is none."""
    size = values[0].size if len(values) else 1
    offsets = np.arange(len(values) + 1, dtype=np.int32) * size
    missing = np.isnan(values[:, 0, 0]) if len(values) else np.zeros(0, np.bool_)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()), mask=pa.array(missing))
