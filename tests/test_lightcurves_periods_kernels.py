"""Periodograms against slow and plain evaluations of their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.timeseries import BoxLeastSquares
from astropy.timeseries import LombScargle as Reference

from tapetum.lightcurves.periods import _fit_kernels as fits
from tapetum.lightcurves.periods.folded import BetweenBins, Boxes, Entropy
from tapetum.lightcurves.periods.grid import Grid
from tapetum.lightcurves.periods.lomb_scargle import Classical, LombScargle
from tapetum.lightcurves.periods.periodograms import Pooled, StatisticRules, periodograms, run
from tapetum.lightcurves.periods.points import Points

GRID = Grid(first=0.0173, step=0.00091, count=2100)
NUMBERS = np.array([0, 1, 31, 32, 33, 777, 1234, 2099])


@pytest.fixture
def points(rng: np.random.Generator) -> Points:
    time = np.sort(rng.uniform(58000, 58200, 150))
    mag = 17 + 0.3 * np.sin(2 * np.pi * 0.731 * time) + rng.normal(0, 0.1, 150)
    return Points.of(time, mag, rng.uniform(0.05, 0.2, 150))


def _phase_bins(time: np.ndarray, frequency: float, bins: int) -> np.ndarray:
    return ((time * frequency) % 1 * bins).astype(int)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(("bins", "levels"), [(20, 10), (7, 5), (33, 3)])
def test_entropy_is_that_of_the_histogram(points: Points, inside: bool, bins: int, levels: int) -> None:
    statistic = Entropy(points, GRID, bins, levels, inside=inside, absolute=not inside)
    values = np.empty(GRID.count)
    statistic.fill(0, values)
    scaled = (points.mag - points.mag.min()) / np.ptp(points.mag)
    scaled = 0.999 * scaled + 5e-4 if inside else scaled
    time = points.time if inside else points.time + points.epoch
    for number in NUMBERS:
        counts = np.zeros((bins, levels))
        use = scaled < 1
        phase = _phase_bins(time[use], GRID.at(number), bins)
        np.add.at(counts, (phase, (scaled[use] * levels).astype(int)), 1)
        joint = counts / counts.sum()
        column = np.broadcast_to(joint.sum(axis=1, keepdims=True), joint.shape)
        there = joint > 0
        want = (joint[there] * np.log(column[there] / joint[there])).sum()
        assert values[number] == pytest.approx(want, abs=1e-12)
    assert np.allclose(statistic.at(NUMBERS), values[NUMBERS], atol=1e-12)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_entropy_counts_as_far_as_points_go(points: Points, copies: int) -> None:
    """150, 300 and 70000 points: counted in one, two and four bytes; all in one cell at a frequency of zero."""
    many = {1: 1, 2: 2, 3: 470}[copies]
    repeated = Points(np.tile(points.time, many), np.tile(points.mag, many), np.tile(points.magerr, many))
    grid = Grid(first=0.0, step=0.731, count=2)
    values = np.empty(2)
    Entropy(repeated, grid, inside=True, absolute=False).fill(0, values)
    single = np.empty(2)
    Entropy(points, grid, inside=True, absolute=False).fill(0, single)
    assert np.allclose(values, single, atol=1e-12)
    assert values[0] > 1


def test_variance_between_bins(points: Points) -> None:
    statistic = BetweenBins(points, GRID)
    centred = points.mag - points.mag.mean()
    values = statistic.at(NUMBERS)
    for value, number in zip(values, NUMBERS, strict=True):
        bins = _phase_bins(points.time, GRID.at(number), 20)
        sums = np.bincount(bins, centred, 20)
        want = (sums**2 / np.maximum(np.bincount(bins, minlength=20), 1)).sum() / (centred**2).sum()
        assert value == pytest.approx(want, rel=1e-9)


def test_variance_ratios_have_their_degrees_of_freedom(points: Points) -> None:
    grams = periodograms(("EAOV", "AOV", "LS", "ELS"), [points], GRID, StatisticRules())
    part = BetweenBins(points, GRID).at(NUMBERS)
    assert np.allclose(grams["EAOV"].at(NUMBERS), (150 - 20) / 19 * part / (1 - part))
    power = Reference(points.time, points.mag, points.magerr).power(GRID.at(NUMBERS), method="cython")
    assert np.allclose(grams["AOV"].at(NUMBERS), (150 - 3) / 2 * power / (1 - power), rtol=1e-7)
    assert np.allclose(grams["LS"].at(NUMBERS), power, atol=1e-9)
    classical = Reference(points.time, points.mag - points.mag.mean(), fit_mean=False, center_data=False)
    want = classical.power(GRID.at(NUMBERS), method="slow", normalization="psd")
    assert np.allclose(grams["ELS"].at(NUMBERS), want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("harmonics", [1, 3])
def test_lomb_scargle_is_that_of_astropy(points: Points, harmonics: int) -> None:
    values = np.empty(GRID.count)
    statistic = LombScargle(points, GRID, harmonics)
    statistic.fill(0, values)
    reference = Reference(points.time, points.mag, points.magerr, nterms=harmonics)
    want = reference.power(GRID.at(np.arange(GRID.count)), method="cython" if harmonics == 1 else "chi2")
    assert np.abs(values - want).max() < 1e-7
    assert np.allclose(statistic.at(NUMBERS), want[NUMBERS], atol=1e-9)


def test_chunks_are_parts_of_the_whole(points: Points, monkeypatch: pytest.MonkeyPatch) -> None:
    grams = periodograms(("LS", "CE", "AOV", "EAOV", "BLS"), [points], GRID, StatisticRules())
    ((_, whole),) = list(run(grams, GRID))
    whole = {name: values.copy() for name, values in whole.items()}
    monkeypatch.setattr("tapetum.lightcurves.periods.periodograms.CHUNK", 500)
    for start, values in run(grams, GRID):
        for name, part in values.items():
            # anchors of the 32-bit phases are elsewhere, so a point may cross the edge of a bin
            assert np.isclose(part, whole[name][start : start + part.size], rtol=1e-6).mean() > 0.995


def test_boxes_find_the_eclipse_of_astropy(rng: np.random.Generator) -> None:
    time = np.sort(rng.uniform(0, 90, 400))
    mag = 12 + 0.3 * ((time / 2.71 % 1) < 0.06) + rng.normal(0, 0.03, 400)
    points = Points.of(time, mag, np.full(400, 0.03))
    grid = Grid(first=0.05, step=0.0005, count=1500)
    values = np.empty(grid.count)
    Boxes(points, grid, bins=100, longest=0.2).fill(0, values)
    best = grid.at(values.argmax())
    assert 1 / best == pytest.approx(2.71, rel=1e-3)
    reference = BoxLeastSquares(points.time, -mag, 0.03).power([1 / best], [0.06 / best], oversample=20)
    explained = 2 * float(reference.power[0]) / points.chi2  # of log likelihood
    assert values.max() == pytest.approx(explained, rel=0.05)
    assert 0 <= values.min() <= values.max() <= 1


def test_boxes_are_faint(rng: np.random.Generator) -> None:
    time = np.sort(rng.uniform(0, 90, 400))
    flare = 12 - 0.3 * ((time / 2.71 % 1) < 0.06)
    grid = Grid(first=1 / 2.71, step=1e-5, count=1)
    dip, spike = np.empty(1), np.empty(1)
    Boxes(Points.of(time, 24 - flare, np.full(400, 0.03)), grid).fill(0, dip)
    Boxes(Points.of(time, flare, np.full(400, 0.03)), grid, longest=0.2).fill(0, spike)
    assert dip[0] > 0.7
    assert spike[0] < 0.1


def test_bands_share_the_frequency_and_nothing_else(points: Points, rng: np.random.Generator) -> None:
    other = Points(points.time, 3 - 0.5 * points.mag + rng.normal(0, 0.1, 150), 0.5 * points.magerr)
    pooled = Pooled([LombScargle(points, GRID), LombScargle(other, GRID)]).at(NUMBERS)
    fit = [Reference(p.time, p.mag, p.magerr) for p in (points, other)]
    explained = sum(
        f.power(GRID.at(NUMBERS), method="cython") * p.chi2 for f, p in zip(fit, (points, other), strict=True)
    )
    assert np.allclose(pooled, explained / (points.chi2 + other.chi2), atol=1e-9)


def test_series_of_all_orders_come_from_one_decomposition(rng: np.random.Generator) -> None:
    time, weight = rng.uniform(0, 50, 90), rng.uniform(1, 9, 90)
    mag = rng.normal(0, 1, 90)
    offsets = np.array([0, 40, 90])
    centred = mag.copy()
    for begin, end in ((0, 40), (40, 90)):
        centred[begin:end] -= np.average(mag[begin:end], weights=weight[begin:end])
    gains = np.empty(6)
    fits.series_gains(time, centred, weight, offsets, 0.37, 5, gains)
    want = np.zeros(6)
    for begin, end in ((0, 40), (40, 90)):
        root = np.sqrt(weight[begin:end])
        angle = 2 * np.pi * 0.37 * time[begin:end]
        for order in range(6):
            columns = [np.ones(end - begin)]
            columns += [wave(k * angle) for k in range(1, order + 1) for wave in (np.cos, np.sin)]
            design = np.array(columns).T * root[:, None]
            left = np.linalg.lstsq(design, centred[begin:end] * root)[1][0]
            want[order] += (weight[begin:end] * centred[begin:end] ** 2).sum() - left
    assert np.allclose(gains, want, rtol=1e-9, atol=1e-9)


def test_a_band_of_few_points_fits_what_it_can(rng: np.random.Generator) -> None:
    time, mag, weight = rng.uniform(0, 50, 8), rng.normal(0, 1, 8), np.ones(8)
    mag -= mag.mean()
    gains = np.empty(6)
    fits.series_gains(time, mag, weight, np.array([0, 8]), 0.37, 5, gains)
    assert gains[0] == pytest.approx(0, abs=1e-12)
    assert 0 < gains[1] < gains[2] < (mag**2).sum()
    assert np.all(gains[3:] == gains[2])


def test_classical_lomb_scargle_needs_no_errors(points: Points) -> None:
    other = Points(points.time, points.mag, points.magerr**2)
    assert np.allclose(Classical(points, GRID).at(NUMBERS), Classical(other, GRID).at(NUMBERS))
