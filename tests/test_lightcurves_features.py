"""Sets of features: tables, documentation, cesium's, the invariant ones; recorded features of real curves."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from tapetum.core.errors import UsageError
from tapetum.lightcurves import _invariant_kernels as walk
from tapetum.lightcurves.cesium import CESIUM, cesium
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.features import CHANGES, FEATURES, SETS, feature_table, features_of, reference_table
from tapetum.lightcurves.fourier import FOURIER
from tapetum.lightcurves.invariant import FOLDED, INVARIANT, folded, invariant
from tapetum.lightcurves.statistics import STATISTICS, statistics

PERIOD = 0.6180339


def star(rng: np.random.Generator, n: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    t = np.sort(rng.uniform(0, 700, n))
    if ties:
        t[n // 2 :: 7] = t[n // 2 - 1 :: 7][: len(t[n // 2 :: 7])]
        t = np.sort(t)
    e = rng.uniform(0.02, 0.06, n)
    angle = 2 * np.pi * t / PERIOD
    m = (
        16
        + 0.3 * np.cos(angle)
        + 0.15 * np.sin(2 * angle)
        + 0.08 * np.cos(3 * angle + 1)
        + 0.05 * np.cos(4 * angle)
    )
    slow = 0.05 * np.sin(2 * np.pi * t / 200) + 1e-4 * t + 0.06 * np.cos(5 * angle + 0.4)
    return t, m + slow + rng.normal(0, e), e


def several(rng: np.random.Generator, ties: bool = False) -> LightCurves:
    lengths = [40, 120, 400, *(12 * [24] if ties else [])]
    return LightCurves.of_lists(*zip(*[star(rng, n, ties) for n in lengths], strict=True))


def all_of(curves: LightCurves) -> dict[str, np.ndarray]:
    table = feature_table(curves, ["tapetum"], {"P": np.full(len(curves), PERIOD)})
    names = [*INVARIANT, *(f"{name}_P" for name in FOLDED)]
    return {name.removesuffix("_P"): np.array(table[name].to_pylist(), float) for name in names}


def turned_ties(curves: LightCurves) -> LightCurves:
    order = np.arange(len(curves.time))
    for first, last in pairwise(
        np.concatenate([[0], np.flatnonzero(np.diff(curves.time)) + 1, [len(order)]])
    ):
        order[first:last] = order[first:last][::-1]
    assert (order != np.arange(len(order))).any()
    return LightCurves(curves.time, curves.mag[order], curves.magerr[order], curves.offsets, curves.table)


def changed(curves: LightCurves, what: str) -> LightCurves:
    if what == "ties":
        return turned_ties(curves)
    t, m, e = curves.time, curves.mag, curves.magerr
    match what:
        case "time":
            t = t + 1234.5
        case "level":
            m = m + 2.25
        case "errors":
            e = 9 * e
        case "scale":
            m, e = 16 + 1.7 * (m - 16), 1.7 * e
    return LightCurves(t, m, e, curves.offsets, curves.table)


@pytest.mark.parametrize("what", CHANGES)
def test_features_are_invariant_to_what_they_say_and_to_nothing_else(
    what: str, rng: np.random.Generator
) -> None:
    curves = several(rng, ties=what == "ties")
    before, after = all_of(curves), all_of(changed(curves, what))
    for feature in features_of(["tapetum"]):
        assert feature.invariant is not None
        assert np.isfinite(before[feature.name]).any()
        same = np.allclose(before[feature.name], after[feature.name], rtol=1e-6, atol=1e-9, equal_nan=True)
        assert same == (what in feature.invariant), feature.name


def test_every_column_is_documented_once() -> None:
    names = [feature.name for feature in FEATURES]
    assert len(set(names)) == len(names)
    assert [f.name for f in features_of(["scope"])] == [*STATISTICS, "dmdt", *FOURIER]
    assert [f.name for f in features_of(["cesium"])] == list(CESIUM)
    assert [f.name for f in features_of(["tapetum"])] == [*INVARIANT, *FOLDED]
    assert all(feature.formula for feature in FEATURES)
    for name in SETS:
        lines = reference_table(name).splitlines()
        assert len(lines) == 2 + len(features_of([name]))
        assert {line.replace("\\|", "").count("|") for line in lines} == {6}


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(
        UsageError, match="no set of features is called scop; there are scope, tapetum, cesium"
    ):
        features_of(["scop"])


def test_a_table_has_a_row_per_curve_and_null_for_what_is_missing(rng: np.random.Generator) -> None:
    t, m, e = star(rng, 60)
    curves = LightCurves.of_lists([t, t[::-1]], [m, m], [e, e], {"lc_id": ["a", "b"]})
    table = feature_table(curves, SETS, {"LS": np.array([PERIOD, 1.0]), "Ones": np.ones(2)})
    assert table["lc_id"].to_pylist() == ["a", "b"]
    good, bad = table.to_pylist()
    assert len(good["dmdt"]) == 676
    assert [
        name for name, value in good.items() if value is None and not name.startswith(("cos_", "sin_"))
    ] == []
    known = {"lc_id", "n", "n_points", "period_LS", "period_Ones"}
    assert {name for name, value in bad.items() if value is not None} == known
    periodic = [f.name for f in FEATURES if f.periodic]
    plain = {f.name for f in FEATURES if not f.periodic}
    both = {f"{name}_{end}" for name in periodic for end in ("LS", "Ones")}
    assert set(table.column_names) == {"lc_id", "period_LS", "period_Ones"} | plain | both
    assert feature_table(curves, ["tapetum"]).column_names == ["lc_id", *INVARIANT]
    assert feature_table(curves.take(np.empty(0, int)), SETS, {"X": np.empty(0)}).num_rows == 0


# --- the invariant set -------------------------------------------------------------------------------------------


def of(curves: LightCurves, name: str) -> np.ndarray:
    return invariant(curves)[:, INVARIANT.index(name)]


def dense_walk(t, m, e, tau, sigma) -> float:
    """Log-likelihood of a damped random walk whose mean is integrated out, by whole matrices."""
    distance = abs(t[:, None] - t[None])
    C = sigma**2 * (np.exp(-distance / tau) if tau else distance == 0) + np.diag(e**2)
    inverse = np.linalg.inv(C)
    ones = np.ones(len(t))
    y = m - ones @ inverse @ m / (ones @ inverse @ ones)
    return -0.5 * (y @ inverse @ y + np.linalg.slogdet(C)[1] + np.log(ones @ inverse @ ones))


def test_random_walks_have_the_likelihood_of_whole_matrices(rng: np.random.Generator) -> None:
    t, m, e = star(rng, 60, ties=True)
    work, got = np.empty(9 * walk.LANES), np.empty(walk.LANES)
    scatter = 0.3
    walk._walk_likelihood(t, m, e, m.mean(), scatter, work, got)
    taus = [0.0, *(walk.SHORTEST * 2.0**k for k in range(walk.TAUS))]
    sigmas = [scatter * walk.SMALLEST * 2 ** (k / 2) for k in range(walk.SIGMAS)]
    want = np.array([dense_walk(t, m, e, tau, sigma) for tau in taus for sigma in sigmas])
    np.testing.assert_allclose(got - got[0], want - want[0], atol=1e-8)


def test_a_random_walk_is_found_and_white_noise_is_not_one(rng: np.random.Generator) -> None:
    t = np.sort(rng.uniform(0, 3000, 600))
    e = np.full(600, 0.02)
    distance = abs(t[:, None] - t[None])
    walked = np.linalg.cholesky(0.2**2 * np.exp(-distance / 40) + 1e-12 * np.eye(600)) @ rng.normal(0, 1, 600)
    noise = rng.normal(0, 0.2, 600)
    curves = LightCurves.of_lists([t, t], [18 + walked + rng.normal(0, e), 18 + noise], [e, e])
    assert of(curves, "drw_log_tau")[0] == pytest.approx(np.log10(40), abs=0.3)
    assert of(curves, "drw_sigma")[0] == pytest.approx(0.2, rel=0.3)
    assert of(curves, "drw_gain")[0] > 100 > 5 > of(curves, "drw_gain")[1]
    slope = of(curves, "structure_slope")
    assert slope[0] > 0.2 > slope[1]


def test_structure_functions_are_means_over_pairs(rng: np.random.Generator) -> None:
    t, m, e = star(rng, 150, ties=True)
    row = dict(zip(INVARIANT, invariant(LightCurves.of_lists([t], [m], [e]))[0], strict=True))
    i, j = np.triu_indices(150, 1)
    lag, square, noise = t[j] - t[i], (m[j] - m[i]) ** 2, e[i] ** 2 + e[j] ** 2
    edges = 0.03 * 10 ** (0.5 * np.arange(11))
    for name, decade in (
        ("structure_1d", 1),
        ("structure_10d", 2),
        ("structure_100d", 3),
        ("structure_1000d", 4),
    ):
        inside = (lag >= edges[2 * decade]) & (lag < edges[2 * decade + 2])
        assert row[name] == pytest.approx(square[inside].mean() / (2 * m.var()), rel=1e-9)
    x, y = [], []
    for low, high in pairwise(edges):
        inside = (lag >= low) & (lag < high)
        left = (square - noise)[inside].mean() if inside.sum() >= 10 else 0
        if left > 0:
            x.append(np.log10(lag[inside].mean() / 100))
            y.append(0.5 * np.log10(left))
    slope, level = np.polyfit(x, y, 1)
    assert row["structure_slope"] == pytest.approx(slope, rel=1e-6)
    assert row["structure_amplitude"] == pytest.approx(10**level, rel=1e-6)


def test_shapes_are_their_formulas(rng: np.random.Generator) -> None:
    t, m, e = star(rng, 200)
    row = dict(zip(INVARIANT, invariant(LightCurves.of_lists([t], [m], [e]))[0], strict=True))
    w = e**-2.0
    mean = np.average(m, weights=w)
    scatter = np.sqrt(np.average((m - mean) ** 2, weights=w))
    flux, p, r = 10 ** (-0.4 * m), np.percentile(m, [5, 25, 50, 75, 95]), (m - mean) / e
    f = np.percentile(flux, [5, 25, 50, 75, 95])
    dm, dt, pair = np.diff(m), np.diff(t), e[1:] ** 2 + e[:-1] ** 2
    line = np.polyfit(t, m, 1, w=1 / e)
    rest = ((m - np.polyval(line, t)) ** 2 * w).sum()
    sure = (abs(dm) - np.sqrt(pair)) / dt
    want = {
        "baseline": np.ptp(t), "mag_mean": mean, "error_typical": np.sqrt(200 / w.sum()), "scatter": scatter,
        "scatter_robust": stats.median_abs_deviation(m, scale="normal"), "amplitude": (p[4] - p[0]) / 2,
        "chi2_reduced": (r**2).sum() / 199, "excess_variance": ((r**2).sum() - 199) / w.sum(),
        "flux_range": (f[4] - f[0]) / f[2], "flux_ratio_50": (f[3] - f[1]) / (f[4] - f[0]),
        "skewness": np.average(((m - mean) / scatter) ** 3, weights=w),
        "kurtosis": np.average(((m - mean) / scatter) ** 4, weights=w) - 3,
        "quantile_skew": (p[4] + p[0] - 2 * p[2]) / (p[4] - p[0]),
        "tail_weight": (p[4] - p[0]) / (p[3] - p[1]) / (stats.norm.ppf(0.95) / stats.norm.ppf(0.75)),
        "beyond_1_sigma": (abs(m - mean) > scatter).mean(),
        "beyond_2_robust": (abs(m - p[2]) > 2 * stats.median_abs_deviation(m, scale="normal")).mean(),
        "beyond_asymmetry": (m - mean > scatter).mean() - (mean - m > scatter).mean(),
        "stetson_j_mean": (np.sign(r[1:] * r[:-1]) * np.sqrt(abs(r[1:] * r[:-1]))).mean(),
        "stetson_kurtosis": abs(r).mean() / np.sqrt((r**2).mean()),
        "autocorrelation": (r[1:] * r[:-1]).mean() / (r**2).mean(),
        "von_neumann": 2 * (dm**2 / pair).sum() / (r**2).sum(),
        "max_rise": sure[dm < 0].max(), "max_fall": sure[dm > 0].max(), "trend": line[0],
        "trend_power": 1 - rest / (r**2).sum(),
    }  # fmt: skip
    for name, value in want.items():
        assert row[name] == pytest.approx(value, rel=1e-6), name


def test_series_are_described_by_amplitudes_and_phase_differences(rng: np.random.Generator) -> None:
    t = np.sort(rng.uniform(0, 500, 300))
    phases, sizes = np.array([0.7, 2.0, -1.0]), np.array([0.4, 0.2, 0.1])
    angle = 2 * np.pi * t / 3.3
    m = 15 + sum(
        size * np.cos(k * angle - phase) for k, size, phase in zip((1, 2, 3), sizes, phases, strict=True)
    )
    curves = LightCurves.of_lists([t], [m + rng.normal(0, 1e-4, 300)], [np.full(300, 1e-4)])
    row = dict(zip(FOLDED, folded(curves, np.array([3.3]))[0], strict=True))
    fine = np.linspace(0, 2 * np.pi, 10000)
    shape = sum(
        size * np.cos(k * fine - phase) for k, size, phase in zip((1, 2, 3), sizes, phases, strict=True)
    )
    assert row["fourier_order"] == 3
    assert row["fourier_amplitude"] == pytest.approx(0.4, rel=1e-3)
    assert row["fourier_range"] == pytest.approx(np.ptp(shape), rel=1e-2)
    assert row["ratio_21"] == pytest.approx(0.5, rel=1e-3)
    assert row["cos_21"] == pytest.approx(np.cos(2.0 - 1.4), abs=1e-2)
    assert row["sin_31"] == pytest.approx(np.sin(-1.0 - 2.1), abs=1e-2)
    assert row["ratio_41"] == 0
    assert np.isnan(row["cos_41"])
    assert row["fold_von_neumann"] < 0.1


def test_noise_has_no_series_and_is_white_in_phase(rng: np.random.Generator) -> None:
    e = np.full(400, 0.1)
    curves = LightCurves.of_lists([np.sort(rng.uniform(0, 500, 400))], [17 + rng.normal(0, e)], [e])
    row = dict(zip(FOLDED, folded(curves, np.array([1.7]))[0], strict=True))
    assert [row[name] for name in FOLDED[1:4]] == [0, 0, 0]
    assert all(np.isnan(row[name]) for name in FOLDED[4:16])
    assert row["fold_von_neumann"] == pytest.approx(2, abs=0.4)
    assert of(curves, "von_neumann")[0] == pytest.approx(2, abs=0.4)


@pytest.mark.parametrize(
    ("t", "m", "present"),
    [
        ([], [], {"n_points"}),
        ([5.0], [17.0], {"n_points", "baseline", "mag_mean", "error_typical", "scatter", "scatter_robust", "amplitude",
                         "excess_variance", "flux_range", "beyond_1_sigma", "beyond_2_robust", "beyond_asymmetry"}),
        ([1.0, np.nan], [17.0, 17.0], {"n_points"}),
    ],
)  # fmt: skip
def test_what_needs_more_points_is_missing(t, m, present) -> None:
    curves = LightCurves.of_lists([t], [m], [np.full(len(t), 0.1)])
    row = invariant(curves)[0]
    assert {name for name, value in zip(INVARIANT, row, strict=True) if not np.isnan(value)} == present
    assert np.isnan(folded(curves, np.ones(1))).all()
    if len(t) != 1:
        assert np.isnan(cesium(curves)).all()


@pytest.mark.parametrize("t", [np.arange(20.0), np.zeros(20), np.repeat(np.arange(10.0), 2)])
@pytest.mark.parametrize("m", [np.full(20, 17.0), np.arange(20) % 2 + 17.0])
def test_odd_curves_give_numbers_or_nothing(t, m) -> None:
    curves = LightCurves.of_lists([t], [m], [np.full(20, 0.1)])
    for values in (invariant(curves), folded(curves, np.ones(1)), cesium(curves)):
        assert not np.isinf(values).any()
    assert of(curves, "scatter")[0] == pytest.approx(m.std())


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e30])
def test_errors_of_any_size_give_numbers_or_nothing(size: float, rng: np.random.Generator) -> None:
    t, m, e = star(rng, 60)
    curves = LightCurves.of_lists([t], [m], [e * size])
    for values in (invariant(curves), folded(curves, np.ones(1)), cesium(curves), statistics(curves)):
        assert not np.isinf(values).any()


# --- cesium's ----------------------------------------------------------------------------------------------------


def test_cadences_and_lags_are_those_of_numpy(rng: np.random.Generator) -> None:
    t, m, e = star(rng, 90)
    t = np.cumsum(np.round(rng.exponential(8, 90)) / 2 + rng.uniform(0.01, 0.02, 90))
    row = dict(zip(CESIUM, cesium(LightCurves.of_lists([t], [m], [e]))[0], strict=True))
    gaps = np.diff(t)
    for minutes in (1, 500, 10000):
        want = stats.percentileofscore(gaps, minutes / 1440) / 100
        assert row[f"cesium_cad_probs_{minutes}"] == pytest.approx(want)
    steps = (gaps[2:] + gaps[:-2]) / (gaps[1:-1] - gaps[:-2])
    assert row["cesium_std_double_to_single_step"] == pytest.approx(steps.std())
    fine = np.histogram(t, bins=2500)[0]
    lags = np.convolve(fine, fine[::-1])[2499:]
    lags[0] -= 90
    lags = lags.reshape(50, 50).sum(axis=1)
    assert row["cesium_all_times_nhist_peak_val"] == pytest.approx(lags.max() / (np.ptp(t) * lags.mean()))
    inner = np.concatenate([[-1], lags, [-1]])
    peaks = [k for k in range(50) if inner[k] < inner[k + 1] > inner[k + 2]]
    assert row["cesium_all_times_nhist_numpeaks"] >= len(peaks)
    highest = sorted(peaks, key=lambda k: -lags[k])
    assert row["cesium_all_times_nhist_peak_1_to_2"] == pytest.approx(lags[highest[1]] / lags[highest[2]])


def test_quasar_fits_are_those_of_whole_matrices(rng: np.random.Generator) -> None:
    t, m, e = star(rng, 50)
    row = dict(zip(CESIUM, cesium(LightCurves.of_lists([t], [m], [e]))[0], strict=True))
    tau = 10**2.92
    C = 0.5 * 10**-4.10 * tau * np.exp(-abs(t[:, None] - t[None]) / tau) + np.diag(e**2)
    inverse = np.linalg.inv(C)
    y = m - np.ones(50) @ inverse @ m / inverse.sum()
    chi2 = y @ inverse @ y / 49
    assert row["cesium_qso_log_chi2_qsonu"] == pytest.approx(np.log(chi2), rel=1e-7)
    null = np.trace(inverse) * m.var() / 49
    assert row["cesium_qso_log_chi2nuNULL_chi2nu"] == pytest.approx(np.log(null / chi2), rel=1e-7)


def test_the_fast_period_is_the_highest_lomb_scargle_peak(rng: np.random.Generator) -> None:
    from astropy.timeseries import LombScargle

    t = np.sort(rng.uniform(0, 100, 120))
    e = rng.uniform(0.02, 0.06, 120)
    m = 17 + 0.2 * np.cos(2 * np.pi * t / 7.77) + rng.normal(0, e)
    period = cesium(LightCurves.of_lists([t], [m], [e]))[0, CESIUM.index("cesium_period_fast")]
    power = LombScargle(t, m, e)
    grid = np.arange(1 / np.ptp(t), 0.5 * 120 / np.ptp(t), 0.02 / np.ptp(t))
    assert power.power(1 / period) >= power.power(grid, method="slow").max() - 1e-3
    assert period == pytest.approx(7.77, rel=0.01)


# --- recorded features of real light curves -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest) -> tuple[LightCurves, dict[str, np.ndarray]]:
    """Cleaned real curves, and the features that were recorded for them; cleaned here slowly, by the data's README."""
    folder = request.getfixturevalue("real_data") / "lightcurves"
    gold = pq.read_table(folder / "golden_features.parquet")
    rows = {row["lc_id"]: row for row in gold.to_pylist() if row["kept"]}
    parts = []
    for row in pq.read_table(folder / "lightcurves.parquet").to_pylist():
        if row["lc_id"] in rows:
            columns = [np.array(row[name], float) for name in ("time", "mag", "magerr")]
            good = np.array(row["catflags"]) == 0
            order = np.argsort(columns[0][good], kind="stable")
            t, m, e = (column[good][order] for column in columns)
            kept = [0]
            for i in range(1, len(t)):
                if t[i] - t[kept[-1]] >= 30 / 1440:
                    kept.append(i)
            parts.append((row["lc_id"], t[kept], m[kept], e[kept]))
    ids, t, m, e = zip(*parts, strict=True)
    names = [name for name in gold.column_names if name not in ("lc_id", "dmdt")]
    want = {name: np.array([rows[i][name] for i in ids], float) for name in names}
    want["dmdt"] = np.array([rows[i]["dmdt"] for i in ids])
    return LightCurves.of_lists(t, m, e, {"lc_id": list(ids)}), want


def test_statistics_are_the_recorded_ones(recorded) -> None:
    curves, want = recorded
    table = feature_table(curves, ["scope"])
    assert len(curves) > 200
    for name in STATISTICS:
        tolerance = 5e-6 if name == "sw" else 1e-9
        np.testing.assert_allclose(table[name].to_numpy(), want[name], rtol=tolerance, err_msg=name)
    got = np.array(table["dmdt"].to_pylist())
    np.testing.assert_allclose(got, want["dmdt"], atol=1e-6)


@pytest.mark.parametrize("algorithm", ["LS", "CE", "AOV", "Ones"])
def test_series_are_the_recorded_ones(recorded, algorithm: str) -> None:
    curves, want = recorded
    period = np.ones(len(curves)) if algorithm == "Ones" else want[f"period_{algorithm}"]
    table = feature_table(curves, ["scope"], {algorithm: period})
    got = np.stack([table[f"{name}_{algorithm}"].to_numpy() for name in FOURIER], axis=1)
    gold = np.stack([want[f"{name}_{algorithm}"] for name in FOURIER], axis=1)
    np.testing.assert_allclose(got[:, 0], gold[:, 0], atol=1e-6)
    np.testing.assert_allclose(got[:, 1], gold[:, 1], rtol=1e-6)
    np.testing.assert_array_equal(got[:, 4:] != 0, gold[:, 4:] != 0)  # of the same order
    assert np.median(abs(got - gold)[:, 4:][gold[:, 4:] != 0]) < 1e-3
    for (t, _, _), p, ours, theirs in zip(curves, period, got, gold, strict=True):
        angle = 2 * np.pi * np.arange(1, 6)[:, None] * t / p
        basis = np.concatenate(
            [[np.ones_like(t), t - t[0]], np.stack([np.cos(angle), np.sin(angle)], 1).reshape(10, -1)]
        )
        np.testing.assert_allclose(ours[2:] @ basis, theirs[2:] @ basis, atol=1e-3)


def test_cesium_s_are_the_recorded_ones(recorded) -> None:
    curves, want = recorded
    got = cesium(curves)
    for name, column in zip(CESIUM, got.T, strict=True):
        gold = np.where(np.isfinite(want[name]), want[name], np.nan)
        if name != "cesium_period_fast":
            np.testing.assert_allclose(column, gold, rtol=1e-8, atol=1e-12, err_msg=name)
    # cesium spreads the points over a grid and transforms that; here the sums are exact: other peaks may be highest
    period, theirs = got[:, CESIUM.index("cesium_period_fast")], want["cesium_period_fast"]
    assert (abs(period / theirs - 1) < 0.01).mean() > 0.97


def test_real_curves_have_features_that_survive_json(recorded) -> None:
    curves, want = recorded
    table = feature_table(curves, ["tapetum"], {"LS": want["period_LS"]})
    rows = table.to_pylist()
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    always = [n for n in INVARIANT if not n.startswith("structure")]
    assert all(table[name].null_count == 0 for name in always)
