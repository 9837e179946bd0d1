"""The 22 statistics against their formulas written out slowly."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from tapetum.lightcurves._ordered import BLOCK, ordered_values
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.statistics import STATISTICS, statistics, usable

BAD = {
    "unsorted": ([2.0, 1.0, 3.0], [1.0, 2.0, 3.0], [0.1, 0.1, 0.1]),
    "NaN magnitude": ([1.0, 2.0, 3.0], [1.0, np.nan, 3.0], [0.1, 0.1, 0.1]),
    "infinite magnitude": ([1.0, 2.0, 3.0], [1.0, np.inf, 3.0], [0.1, 0.1, 0.1]),
    "NaN time": ([1.0, np.nan, 3.0], [1.0, 2.0, 3.0], [0.1, 0.1, 0.1]),
    "zero error": ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.1, 0.0, 0.1]),
    "negative error": ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.1, -0.1, 0.1]),
    "NaN error": ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.1, np.nan, 0.1]),
    "infinite error": ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.1, np.inf, 0.1]),
    "empty": ([], [], []),
}


def made_up(rng: np.random.Generator, lengths: list[int]) -> LightCurves:
    times = [np.sort(rng.uniform(0, 900, n)) for n in lengths]
    errors = [rng.uniform(0.01, 0.1, n) for n in lengths]
    mags = [18 + 0.3 * np.sin(t) + rng.normal(0, e) for t, e in zip(times, errors, strict=True)]
    return LightCurves.of_lists(times, mags, errors)


def slowly(t, m, e):
    n, w = len(m), e**-2.0
    median, mean = np.median(m), np.average(m, weights=w)
    r = (m - mean) / e
    scatter = np.sqrt(np.average((m - mean) ** 2, weights=w))
    d = np.sqrt(n / (n - 1)) * r
    p, dt, dm = d[1:] * d[:-1], np.diff(t), np.diff(m)
    top, bottom = (m - e).max(), (m + e).min()
    snr = np.sort(m / e)
    z = (snr - snr.mean()) / snr.std(ddof=1)
    i = np.arange(1, n + 1)
    ranges = [np.percentile(m, 100 - q) - np.percentile(m, q) for q in (25, 20, 15, 10, 5)]
    return [
        n, median, mean, (r**2).sum() / (n - 1), (abs(m - median) / e).sum() / (n - 1), scatter,
        (top - bottom) / (top + bottom), ((m - mean) ** 2 - e**2).sum() / (n * mean**2), np.median(abs(m - median)),
        *ranges, n / (n - 1) / (n - 2) * (r**3).sum(),
        n * (n + 1) / (n - 1) / (n - 2) / (n - 3) * (r**4).sum() - 3 * (n - 1) ** 2 / (n - 2) / (n - 3),
        (dt**-2.0).sum() * scatter**2 / ((dm / dt) ** 2).sum(), p.sum(), (np.sign(p) * np.sqrt(abs(p))).sum(),
        abs(d).mean() / np.sqrt((d**2).mean()),
        -n - ((2 * i - 1) / n * (stats.norm.logcdf(z) + stats.norm.logsf(z)[::-1])).sum(), stats.shapiro(snr)[0],
    ]  # fmt: skip


def test_every_statistic_is_its_formula(rng: np.random.Generator) -> None:
    curves = made_up(rng, [4, 5, 6, 7, 11, 12, 50, 51, 98, 700])
    want = np.array([slowly(*curve) for curve in curves])
    got = statistics(curves)
    assert got.shape == (10, len(STATISTICS))
    np.testing.assert_allclose(got[:, :-1], want[:, :-1], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got[:, -1], want[:, -1], rtol=5e-6)


def test_normal_tails_are_right_far_out(rng: np.random.Generator) -> None:
    mags = [
        np.concatenate([rng.normal(0, 1, n - 1), [far]]) for n, far in ((80, 1e3), (700, -1e6), (2500, 1e9))
    ]
    curves = LightCurves.of_lists(
        [np.arange(len(m)) * 1.0 for m in mags], mags, [np.ones(len(m)) for m in mags]
    )
    got = statistics(curves)[:, STATISTICS.index("ad")]
    np.testing.assert_allclose(got, [slowly(*curve)[20] for curve in curves], rtol=1e-9)


def test_three_points_have_the_shapiro_wilk_statistic_of_three_points() -> None:
    got = statistics(LightCurves.of_lists([[0.0, 1.0, 2.0]], [[1.0, 5.0, 2.0]], [[1.0, 1.0, 1.0]]))
    assert got[0, -1] == pytest.approx(stats.shapiro([1.0, 5.0, 2.0])[0], rel=1e-6)


def test_a_curve_has_the_same_statistics_in_any_company(rng: np.random.Generator) -> None:
    curves = made_up(rng, [60, 33, 90, 64, 65])
    alone = np.concatenate([statistics(curves.take(np.array([i]))) for i in range(5)])
    np.testing.assert_array_equal(statistics(curves), alone)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_curve_is_missing_and_its_neighbours_are_not(bad, rng: np.random.Generator) -> None:
    good = made_up(rng, [20])
    rows = [next(iter(good)), bad, next(iter(good))]
    curves = LightCurves.of_lists(*zip(*rows, strict=True))
    assert usable(curves).tolist() == [True, False, True]
    got = statistics(curves)
    assert got[1, 0] == len(bad[0])
    assert np.isnan(got[1, 1:]).all()
    np.testing.assert_array_equal(got[[0, 2]], np.repeat(statistics(good), 2, axis=0))


def missing(t, m, e) -> set[str]:
    row = statistics(LightCurves.of_lists([t], [m], [e]))[0]
    return {name for name, value in zip(STATISTICS, row, strict=True) if np.isnan(value)}


def test_few_points_lack_what_divides_by_their_degrees_of_freedom() -> None:
    pairs = {
        "chi2red",
        "roms",
        "skew",
        "smallkurt",
        "inv_vonneumannratio",
        "stetson_j",
        "welch_i",
        "ad",
        "sw",
    }
    assert missing([0.0], [17.0], [0.1]) == pairs | {"stetson_k"}
    assert missing([0.0, 1.0], [17.0, 18.0], [0.1, 0.1]) == {"skew", "smallkurt", "sw"}
    assert missing([0.0, 1.0, 2.0], [17.0, 18.0, 17.5], [0.1, 0.1, 0.1]) == {"smallkurt"}


def test_a_constant_curve_lacks_what_divides_by_its_scatter() -> None:
    t = np.arange(10.0)
    assert missing(t, np.full(10, 17.3), np.full(10, 0.1)) == {"inv_vonneumannratio", "stetson_k", "ad", "sw"}


def test_points_of_one_time_lack_only_what_divides_by_their_distance() -> None:
    assert missing([0.0, 1.0, 1.0, 2.0, 3.0], [1.0, 3.0, 2.0, 4.0, 2.0], np.full(5, 0.1)) == {
        "inv_vonneumannratio"
    }


def test_nothing_at_all_has_no_statistics() -> None:
    assert statistics(LightCurves.of_lists([], [], [])).shape == (0, len(STATISTICS))


@pytest.mark.parametrize("kind", [np.float64, np.int64])
def test_values_are_ordered_within_curves_of_any_length(kind, rng: np.random.Generator) -> None:
    lengths = [0, 1, 31, 32, 33, 0, 5000, 64, BLOCK + 1, 2]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = rng.normal(0, 1e6, offsets[-1]).astype(kind)
    got = ordered_values(values, offsets)
    assert got.dtype == kind
    want = [np.sort(values[a:b]) for a, b in pairwise(offsets)]
    np.testing.assert_array_equal(got, np.concatenate(want))
