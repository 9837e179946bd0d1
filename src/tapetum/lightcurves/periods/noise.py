"""What noise at the times of a curve makes of a periodogram: false-alarm probabilities measured, not bounded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tapetum.lightcurves.periods.periodograms import (
    Algorithm,
    StatisticRules,
    periodograms,
    run,
)
from tapetum.lightcurves.periods.points import Points
from tapetum.lightcurves.periods.significance import SMALL, SeriesNoise, of_many, variance_log_single
from tapetum.lightcurves.periods.stream import Digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.lightcurves.periods.grid import Grid, Values

EULER = 0.5772156649015329
LEAST_TRIALS = 8
LARGEST_LOG = 700.0  # that exp still takes
SERIES: tuple[Algorithm, ...] = ("LS", "ELS", "AOV")
ENTROPIES: tuple[Algorithm, ...] = ("CE", "ECE")


@dataclass(frozen=True)
class NoiseLaw:
    """How the best value of a periodogram is distributed if the magnitudes have nothing to do with the times.

    Where the distribution at a single frequency is known (LS, ELS, AOV: beta) the best of a whole grid is that
    of `independent` frequencies; this number is measured on shuffled magnitudes. Else it is the Gumbel
    distribution with the mean and scatter of the best shuffled values, whose far tail is an extrapolation: of
    the value itself (CE, ECE, BLS), or of minus the logarithm of its nominal probability (EAOV, as its F distribution
    does not hold where bins are empty).

    Attributes
    ----------
    algorithm
        Which periodogram.
    independent
        Number of independent frequencies; NaN for a Gumbel distribution.
    mode, scale
        Of the Gumbel distribution.
    trials
        Shuffled curves that were searched; `independent` is known to 1 / sqrt(trials).
    """

    algorithm: Algorithm
    independent: float
    mode: float
    scale: float
    trials: int

    def log_fap(self, value: float, log_single: float) -> float:
        """Logarithm of the probability that noise has a value as good anywhere.

        `log_single` is that at a single frequency by `log_single` of this module.
        """
        if math.isfinite(self.independent):
            return float(of_many(log_single, self.independent))
        if not self.scale > 0:  # too few points: all shuffled curves were as good
            return math.nan
        log_expected = (self.mode - _rising(self.algorithm, value, log_single)) / self.scale
        if log_expected < SMALL:
            return log_expected
        return math.log(-math.expm1(-math.exp(min(log_expected, LARGEST_LOG))))


def _rising(algorithm: Algorithm, value: float, log_single: float) -> float:
    """What rises with how good a value is, and has an exponential tail or a steeper one."""
    if algorithm in ENTROPIES:
        return -value
    return -log_single if math.isfinite(log_single) else value


def log_single(algorithm: Algorithm, value: Values, bands: list[Points], rules: StatisticRules) -> Values:
    """Logarithm of the probability that noise has a value as good at one frequency; NaN where this is not known."""
    if algorithm in (*ENTROPIES, "BLS"):
        return np.full(np.shape(value), np.nan)
    if algorithm == "EAOV":
        points = sum(band.time.size for band in bands)
        if len(bands) > 1:
            return np.full(np.shape(value), np.nan)
        return variance_log_single(value, points, rules.phase_bins)
    noise = series_noise(algorithm, bands, rules)
    if noise.freedom <= 0:
        return np.full(np.shape(value), np.nan)
    return noise.log_single(series_power(algorithm, value, bands, rules))


def series_noise(algorithm: Algorithm, bands: list[Points], rules: StatisticRules) -> SeriesNoise:
    """The noise of LS, AOV or ELS."""
    harmonics = {"LS": rules.harmonics, "AOV": rules.aov_harmonics}.get(algorithm, 1)
    return SeriesNoise.of(bands, harmonics, free_mean=algorithm != "ELS")


def series_power(algorithm: Algorithm, value: Values, bands: list[Points], rules: StatisticRules) -> Values:
    """Power in [0, 1] from a value of LS, AOV or ELS."""
    if algorithm == "ELS":
        return np.asarray(
            value / (0.5 * sum(float(((b.mag - b.mag.mean()) ** 2).sum()) for b in bands)), np.float64
        )
    if algorithm == "AOV":
        points = sum(band.time.size for band in bands)
        functions = len(bands) * 2 * rules.aov_harmonics
        ratio = value * functions / max(points - functions - len(bands), 1)
        return np.asarray(ratio / (1 + ratio), np.float64)
    return np.asarray(value, np.float64)


def noise_laws(
    names: tuple[Algorithm, ...],
    bands: list[Points],
    grid: Grid,
    rules: StatisticRules,
    trials: int,
    rng: np.random.Generator,
) -> dict[Algorithm, NoiseLaw]:
    """Search curves with the same times and shuffled (magnitude, error) pairs, each band for itself.

    A law of LS, ELS or AOV serves all curves of the same times; the others depend on how the magnitudes are
    distributed as well. Noise that is not independent from point to point (red noise) is not noise in this sense:
    real slow variability is then significant, as it should be.
    """
    trials = max(trials, LEAST_TRIALS)
    best: dict[Algorithm, list[float]] = {name: [] for name in names}
    rare: dict[Algorithm, list[float]] = {name: [] for name in names}
    for _ in range(trials):
        shuffled = [_shuffled(points, rng) for points in bands]
        for name, value in _best(names, shuffled, grid, rules).items():
            best[name].append(value)
            rare[name].append(float(log_single(name, np.array(value), shuffled, rules)))
    return {name: _law(name, np.array(best[name]), np.array(rare[name])) for name in names}


def _law(name: Algorithm, best: Values, rare: Values) -> NoiseLaw:
    if name in SERIES:
        # -log(1 - p) of the rarest of N independent frequencies is exponential with the rate N; the mean of n
        # such has a reciprocal that is too large by n / (n - 1)
        rate = (best.size - 1) / float(-np.log1p(-np.exp(np.minimum(rare, -1e-12))).sum())
        return NoiseLaw(name, rate, np.nan, np.nan, best.size)
    rising = np.array([_rising(name, *pair) for pair in zip(best.tolist(), rare.tolist(), strict=True)])
    scale = float(rising.std(ddof=1)) * math.sqrt(6) / math.pi
    return NoiseLaw(name, np.nan, float(rising.mean()) - EULER * scale, scale, best.size)


def _best(
    names: tuple[Algorithm, ...], bands: list[Points], grid: Grid, rules: StatisticRules
) -> dict[Algorithm, float]:
    grams = periodograms(names, bands, grid, rules)
    digests = {name: Digest(grid, gram.largest, 1, 1) for name, gram in grams.items()}
    for start, values in run(grams, grid):
        for name, digest in digests.items():
            digest.absorb(start, values[name])
    return {name: float(digest.top()[1][0]) for name, digest in digests.items()}


def _shuffled(points: Points, rng: np.random.Generator) -> Points:
    order: NDArray[np.int64] = rng.permutation(points.time.size)
    return Points(points.time, points.mag[order], points.magerr[order], points.epoch)
