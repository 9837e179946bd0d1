"""False-alarm probabilities, as logarithms: they do not underflow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.integrate import quad
from scipy.special import betaln, gammaln, logsumexp
from scipy.stats import f as fisher

if TYPE_CHECKING:
    from tapetum.lightcurves.periods.grid import Values
    from tapetum.lightcurves.periods.points import Points

TINY = 1e-15  # a fit that leaves less is as good as perfect
SMALL = -30.0  # logarithm of a probability p below which log(1 - exp(-p)) is log p


@dataclass(frozen=True)
class SeriesNoise:
    """What noise makes of a Lomb-Scargle power: independent Gaussian noise of known relative errors.

    Attributes
    ----------
    terms : int
        Terms of the series, of all bands together: harmonics times bands.
    freedom : int
        Points less all coefficients.
    speed : float
        Mean rate at which the fitted subspace turns with frequency, sqrt(sum over terms of k^2 var(t) x_k^2) [d].
    """

    terms: int
    freedom: int
    speed: float

    @classmethod
    def of(cls, bands: list[Points], harmonics: int, free_mean: bool = True) -> SeriesNoise:
        """For series of so many harmonics with coefficients of their own in each band."""
        points = sum(band.time.size for band in bands)
        variance = [_variance(band, free_mean) for band in bands]
        freedom = points - len(bands) * (2 * harmonics + 1)
        speeds = tuple(k**2 * v for v in variance for k in range(1, harmonics + 1))
        return cls(harmonics * len(bands), freedom, _mean_root(speeds))

    def log_single(self, power: Values | float) -> Values:
        """Logarithm of the probability that noise reaches this power at one frequency (a beta distribution)."""
        power = np.clip(power, 0.0, 1.0 - TINY)
        half = 0.5 * self.freedom
        j = np.arange(self.terms).reshape(-1, *([1] * np.ndim(power)))
        with np.errstate(divide="ignore"):
            rising = np.where(j == 0, 0.0, j * np.log(np.maximum(power, 1e-300)))
        parts = gammaln(half + j) - gammaln(half) - gammaln(j + 1) + rising
        return np.asarray(half * np.log1p(-power) + logsumexp(parts, axis=0), np.float64)

    def log_fap(self, power: Values | float, highest: float) -> Values:
        """Logarithm of the probability that noise reaches this power anywhere up to `highest` [1/d].

        The bound by the mean number of crossings of the level: Baluev (2008), MNRAS 385, 1279, equation 6, and
        for more terms the same integral over the sphere (Baluev 2009, MNRAS 395, 1541). It does not know of
        aliases: where the times are regular it is too large. `NoiseLaw` measures what is independent.
        """
        power = np.clip(power, TINY, 1.0 - TINY)
        half = 0.5 * self.freedom
        log_crossings = (
            math.log(2 * math.pi * highest * self.speed)
            + math.log(2) + (self.terms - 0.5) * np.log(power)
            + (half - 0.5) * np.log1p(-power)
            - betaln(self.terms, half)
            + gammaln(half) - gammaln(half + 0.5)
            - math.log(2 * math.sqrt(math.pi))
        )  # fmt: skip
        crossings = np.exp(np.minimum(log_crossings, 700.0))
        log_any = np.where(
            log_crossings < SMALL, log_crossings, np.log(-np.expm1(-np.maximum(crossings, 1e-30)))
        )
        return np.asarray(np.minimum(np.logaddexp(log_any, self.log_single(power) - crossings), 0.0))


def variance_log_single(theta: Values | float, points: int, bins: int) -> Values:
    """Logarithm of the probability that noise reaches this ratio at one frequency (an F distribution)."""
    return np.asarray(fisher.logsf(theta, bins - 1, max(points - bins, 1)))


def of_many(log_single: Values | float, independent: float) -> Values:
    """Logarithm of the probability that any of so many independent values is as unlikely as that."""
    single = np.asarray(log_single, np.float64)
    expected = single + math.log(independent)
    with np.errstate(divide="ignore"):
        exact = np.log(-np.expm1(independent * np.log1p(-np.exp(np.minimum(single, -1e-300)))))
    return np.asarray(np.where(expected < SMALL, expected, exact))


def _variance(points: Points, weighted: bool) -> float:
    weight = points.weight if weighted else np.ones(points.time.size)
    mean = np.average(points.time, weights=weight)
    return float(np.average((points.time - mean) ** 2, weights=weight))


@lru_cache(maxsize=64)
def _mean_root(speeds: tuple[float, ...]) -> float:
    """Mean of sqrt(sum s_i d_i) for d uniform on the simplex.

    With gamma variables instead (their sum is independent of d), and sqrt(x) as an integral of 1 - exp(-a x).
    """
    largest = max(speeds)
    if min(speeds) == largest:
        return math.sqrt(largest)
    scaled = np.array(speeds) / largest

    def part(u: float) -> float:  # a = u^2
        return float(-np.expm1(-np.log1p(u * u * scaled).sum()) / (u * u)) if u > 0 else float(scaled.sum())

    integral = quad(part, 0, 1)[0] + quad(lambda v: part(1 / v) / v**2 if v > 0 else 1.0, 0, 1)[0]
    total = integral / math.sqrt(math.pi)
    return math.sqrt(largest) * float(total) / math.exp(gammaln(len(speeds) + 0.5) - gammaln(len(speeds)))
