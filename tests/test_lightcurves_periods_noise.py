"""False-alarm probabilities: those of theory, and calibrated ones, on pure noise."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.timeseries import LombScargle as Reference
from astropy.timeseries.periodograms.lombscargle import _statistics as reference
from scipy.special import betaincc
from scipy.stats import kstest

from tapetum.lightcurves.periods.grid import Grid
from tapetum.lightcurves.periods.noise import log_single, noise_laws
from tapetum.lightcurves.periods.periodograms import StatisticRules, periodograms, run
from tapetum.lightcurves.periods.points import Points
from tapetum.lightcurves.periods.significance import SeriesNoise, _mean_root, of_many
from tapetum.lightcurves.periods.stream import Digest

RULES = StatisticRules()
GRID = Grid(first=0.05, step=0.02, count=400)
NAMES = ("LS", "AOV", "EAOV", "ECE")


def _noise(rng: np.random.Generator, time: np.ndarray) -> Points:
    return Points.of(time, rng.normal(0, 1, time.size), np.ones(time.size))


@pytest.fixture
def points(rng: np.random.Generator) -> Points:
    time = np.sort(rng.uniform(0, 200, 80))
    return Points.of(time, rng.normal(0, 1, 80), rng.uniform(0.5, 2, 80))


def test_the_bound_is_that_of_astropy(points: Points) -> None:
    power = np.linspace(0.01, 0.95, 30)
    noise = SeriesNoise.of([points], 1)
    want = reference.fap_baluev(power, 10.0, points.time, points.mag, points.magerr)
    assert np.allclose(noise.log_fap(power, 10.0), np.log(want), rtol=1e-9, atol=1e-12)
    single = Reference(points.time, points.mag, points.magerr).false_alarm_probability(
        0.3, method="single", maximum_frequency=10.0
    )
    assert noise.log_single(0.3) == pytest.approx(np.log(single), rel=1e-9)


def test_probabilities_do_not_underflow() -> None:
    time = np.linspace(0, 1000, 5000) ** 1.01
    points = Points.of(time, np.sin(time), np.ones(5000))
    noise = SeriesNoise.of([points], 1)
    value = float(noise.log_fap(0.999, 48.0))
    assert -20_000 < value < -15_000
    assert np.isfinite(noise.log_fap(np.array([0.0, 1.0]), 48.0)).all()
    assert of_many(np.array(-5000.0), 1e6) == pytest.approx(-5000 + np.log(1e6))


def test_more_terms_have_a_beta_distribution(points: Points) -> None:
    noise = SeriesNoise.of([points, points], 3)
    power = np.array([0.1, 0.3, 0.6])
    want = np.log(betaincc(6, (160 - 14) / 2, power))
    assert np.allclose(noise.log_single(power), want, rtol=1e-9)


def test_speed_of_many_terms(rng: np.random.Generator) -> None:
    speeds = (1.0, 4.0, 9.0, 2.0, 8.0, 18.0)
    drawn = rng.dirichlet(np.ones(6), 200_000)
    assert _mean_root(speeds) == pytest.approx(np.sqrt(drawn @ np.array(speeds)).mean(), rel=2e-3)
    assert _mean_root((3.0, 3.0)) == pytest.approx(np.sqrt(3))
    assert _mean_root((1.0, 1.0 + 1e-9)) == pytest.approx(1, rel=1e-6)


def test_the_bound_of_three_harmonics_holds_on_noise() -> None:
    """With random times nothing is aliased and the bound is sharp: probabilities at the 10 % level are right."""
    rng = np.random.default_rng(3)
    rules = StatisticRules(harmonics=3)
    grid = Grid(0.05, 0.01, 300)
    low = 0
    for _ in range(200):
        points = _noise(rng, np.sort(rng.uniform(0, 20, 100)))
        gram = periodograms(("LS",), [points], grid, rules)["LS"]
        values = np.empty(grid.count)
        gram.raw.fill(0, values)
        low += SeriesNoise.of([points], 3).log_fap(values.max(), grid.last) < np.log(0.1)
    assert 9 <= low <= 31


@pytest.fixture(scope="module")
def night() -> np.ndarray:
    """100 times near midnight."""
    rng = np.random.default_rng(5)
    return np.sort(rng.choice(np.arange(100), 100, replace=False) + rng.normal(0, 0.05, 100))


@pytest.fixture(scope="module")
def chances(night: np.ndarray) -> dict[str, np.ndarray]:
    """Calibrated probabilities of 200 curves of pure noise: of new noise for LS and AOV, else of shuffled noise."""
    rng = np.random.default_rng(6)
    first = _noise(rng, night)
    laws = noise_laws(NAMES, [first], GRID, RULES, 400, rng)
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(200):
        for names, points in (
            (("LS", "AOV"), _noise(rng, night)),
            (("EAOV", "ECE"), Points(first.time, rng.permutation(first.mag), first.magerr)),
        ):
            grams = periodograms(names, [points], GRID, RULES)
            digests = {name: Digest(GRID, gram.largest, 1, 1) for name, gram in grams.items()}
            ((start, values),) = run(grams, GRID)
            for name in names:
                digests[name].absorb(start, values[name])
                best = digests[name].top()[1]
                single = float(log_single(name, best, [points], RULES)[0])
                found[name].append(laws[name].log_fap(float(best[0]), single))
    return {name: np.exp(values) for name, values in found.items()}


@pytest.mark.parametrize("name", NAMES)
def test_calibrated_probabilities_are_uniform_on_noise(name: str, chances: dict[str, np.ndarray]) -> None:
    """No tenth of the range is off by more than chance allows: Kolmogorov-Smirnov distance below 0.1 for 200 curves."""
    assert kstest(chances[name], "uniform").statistic < 0.1


def test_the_bound_is_far_too_high_at_night(night: np.ndarray, chances: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng(5)
    bound = []
    for _ in range(100):
        points = _noise(rng, night)
        values = np.empty(GRID.count)
        periodograms(("LS",), [points], GRID, RULES)["LS"].raw.fill(0, values)
        bound.append(float(SeriesNoise.of([points], 1).log_fap(values.max(), GRID.last)))
    assert np.mean(np.exp(bound) < 0.5) < 0.35
    assert 0.4 < np.mean(chances["LS"] < 0.5) < 0.6
