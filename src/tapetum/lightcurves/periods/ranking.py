"""Which of many candidate frequencies is the true one: fits of Fourier series, compared by their information.

A periodogram has its highest peak at an alias about as often as errors, gaps and the shape of the curve want it.
A candidate is therefore followed to all frequencies that it may be an alias of, and at each a series of every
order up to `orders` is fitted in every band. What is lowest in N ln chi2 + (coefficients) ln N (Schwarz 1978; the
scale of the errors unknown) wins: of a frequency and its half the half needs twice the coefficients and wins only
if the curve differs from one cycle to the next, and an alias loses as it folds the steep parts of a curve badly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tapetum.lightcurves.periods import _fit_kernels as kernels
from tapetum.lightcurves.periods.aliases import family, relation

if TYPE_CHECKING:
    from tapetum.lightcurves.periods.grid import Grid, Values, Whole
    from tapetum.lightcurves.periods.points import Points

REACH = 0.6  # how far around a candidate to look [1 / baseline]
STEPS = 10  # of the first look to 1 / baseline
GOLDEN = (math.sqrt(5) - 1) / 2
TURNS = 40  # of the golden section: the peak is then known to far below its error
CURVATURE = 0.05  # distance of the points that the curvature is taken from [1 / baseline / order]


class RankRules(BaseModel):
    """How candidates are compared.

    Attributes
    ----------
    orders
        Highest order of the series.
    softening
        Added in quadrature to every error, as a part of the scatter of the curve: what a series of few terms
        cannot follow must not make the brightest and most precise points decide alone.
    price
        Of a coefficient, in units of ln N. With independent errors it is 1; it is more here because bands that are
        seen together, and cycles that differ, share what a series misses.
    candidates
        Peaks of each periodogram that are followed.
    top
        Periods that are given, best first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    orders: int = Field(default=5, ge=1, le=20)
    softening: float = Field(default=0.1, ge=0, le=1)
    price: float = Field(default=1.5, ge=0.1, le=10)
    candidates: int = Field(default=20, ge=1, le=1000)
    top: int = Field(default=5, ge=1, le=100)


@dataclass(frozen=True)
class Ranked:
    """Frequencies, best first.

    Attributes
    ----------
    frequency, error : ndarray, shape (k,)
        [1/d]; the error is that of a local maximum with independent errors scaled to chi2 of one per degree of
        freedom: it does not know of aliases. For a sinusoid it is that of Montgomery & O'Donoghue (1999), Delta
        Scuti Star Newsletter 13, 28.
    order : ndarray of int, shape (k,)
        Terms of the series.
    power : ndarray, shape (k,)
        Part of chi2 that the series explains.
    information : ndarray, shape (k,)
        Less that of the best; a difference of 10 is strong.
    relation : tuple of str
        How each is made of the best frequency; "" if they have nothing to do with each other.
    """

    frequency: Values
    error: Values
    order: Whole
    power: Values
    information: Values
    relation: tuple[str, ...]


@dataclass(frozen=True)
class _Stacked:
    """Points of all bands one after the other."""

    time: Values
    mag: Values
    weight: Values
    offsets: Whole
    chi2: float
    price: float


def rank(bands: list[Points], candidates: Values, grid: Grid, rules: RankRules) -> Ranked:
    """Follow candidates and their aliases, as far as they are in the range of the grid, and put them in order."""
    data = _stack(bands, rules)
    baseline = float(np.ptp(data.time))
    trial = family(candidates, grid.first, grid.last, 1 / baseline)
    trial = trial[~grid.masked(trial)]
    found, order, information = np.zeros(trial.size), np.zeros(trial.size, np.int64), np.empty(trial.size)
    kernels.refine(
        data.time,
        data.mag,
        data.weight,
        data.offsets,
        data.chi2,
        data.price,
        trial,
        REACH / baseline,
        1 / (STEPS * baseline),
        rules.orders,
        found,
        order,
        information,
    )
    chosen = _distinct(found, information, 1 / baseline, rules.top)
    return _described(data, found[chosen], np.maximum(order[chosen], 1), baseline)


def _stack(bands: list[Points], rules: RankRules) -> _Stacked:
    mags, weights = [], []
    for band in bands:
        weight = 1 / (band.magerr**2 + rules.softening**2 * np.var(band.mag))
        mags.append(band.mag - np.average(band.mag, weights=weight))
        weights.append(weight)
    offsets = np.concatenate([[0], np.cumsum([band.time.size for band in bands])]).astype(np.int64)
    mag, weight = np.concatenate(mags), np.concatenate(weights)
    time = np.concatenate([band.time for band in bands])
    price = rules.price * math.log(time.size)
    return _Stacked(time, mag, weight, offsets, float((weight * mag**2).sum()), price)


def _distinct(frequency: Values, information: Values, width: float, top: int) -> Whole:
    """The best ones, at least a peak width apart."""
    chosen: list[int] = []
    for i in np.argsort(information, kind="stable"):
        if len(chosen) == top or not np.isfinite(information[i]):
            break
        if (np.abs(frequency[chosen] - frequency[i]) > width).all():
            chosen.append(int(i))
    return np.array(chosen, np.int64)


def _described(data: _Stacked, frequency: Values, order: Whole, baseline: float) -> Ranked:
    n, bands = data.time.size, data.offsets.size - 1
    best, error, power = np.empty(order.size), np.empty(order.size), np.empty(order.size)
    for i, terms in enumerate(order.tolist()):
        best[i] = _climb(data, float(frequency[i]), terms, 1 / (STEPS * baseline))
        step = CURVATURE / (baseline * terms)
        left, top, right = _gain(data, best[i] + step * np.array([-1.0, 0.0, 1.0]), terms)
        bend = (2 * top - left - right) / step**2
        freedom = max(n - bands * (2 * terms + 1), 1)
        error[i] = math.sqrt(2 * (data.chi2 - top) / freedom / bend) if bend > 0 else np.inf
        power[i] = top / data.chi2
    left_over = np.maximum(1 - power, 1e-12)
    information = n * np.log(data.chi2 * left_over) + (2 * order * bands + 1) * data.price
    turn = np.argsort(information, kind="stable")
    names = tuple(relation(float(best[turn[0]]), float(best[i]), 1 / baseline) for i in turn)
    lowest = information[turn[0]] if turn.size else 0.0
    return Ranked(best[turn], error[turn], order[turn], power[turn], information[turn] - lowest, names)


def _gain(data: _Stacked, frequencies: Values, order: int) -> Values:
    return np.asarray(
        kernels.gains_at(data.time, data.mag, data.weight, data.offsets, frequencies, order), np.float64
    )


def _climb(data: _Stacked, frequency: float, order: int, spacing: float) -> float:
    """The local maximum within one step, by golden section."""
    low, high = frequency - spacing, frequency + spacing
    inner = np.array([high - GOLDEN * (high - low), low + GOLDEN * (high - low)])
    gain = _gain(data, inner, order)
    for _ in range(TURNS):
        if gain[0] > gain[1]:
            high, inner[1], gain[1] = inner[1], inner[0], gain[0]
            inner[0] = high - GOLDEN * (high - low)
            gain[0] = _gain(data, inner[:1], order)[0]
        else:
            low, inner[0], gain[0] = inner[0], inner[1], gain[1]
            inner[1] = low + GOLDEN * (high - low)
            gain[1] = _gain(data, inner[1:], order)[0]
    return float(0.5 * (low + high))
