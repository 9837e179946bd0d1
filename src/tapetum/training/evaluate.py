"""Figures of merit of scores against truth, with bootstrap intervals over objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Truth = NDArray[np.bool_]
Target = NDArray[np.floating] | NDArray[np.bool_]
SURE = 0.8  # a truth beyond this, or below one minus it, counts as real or bogus where figures need one or the other
TPR_POINTS = (0.97, 0.95, 0.90)
FPR_POINT = 0.01
N_BINS = 15


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram: scores from `low` to `high`, their mean, the share that is real.

    Attributes
    ----------
    spread
        Standard error of `fraction`, above zero even where all examples agree.
    """

    low: float
    high: float
    n: int
    mean: float
    fraction: float
    spread: float


@dataclass(frozen=True)
class Figure:
    """A figure of merit and its interval."""

    value: float
    low: float
    high: float
    n: int


def auc(score: Scores, real: Truth) -> float:
    """Area under the ROC curve: how often a real example scores above a bogus one, ties counted half.

    Parameters
    ----------
    score : ndarray of float64, shape (n,)
    real : ndarray of bool, shape (n,)

    Returns
    -------
    float
        In [0, 1]; NaN when one class is missing.
    """
    n_real = int(real.sum())
    n_bogus = real.size - n_real
    if n_real == 0 or n_bogus == 0:
        return math.nan
    values, where, count = np.unique(score, return_inverse=True, return_counts=True)
    del values
    rank = np.cumsum(count) - (count - 1) / 2  # mean rank of each distinct score, from 1
    return float((rank[where[real]].sum() - n_real * (n_real + 1) / 2) / (n_real * n_bogus))


def threshold_at_tpr(score: Scores, real: Truth, tpr: float) -> float:
    """Largest threshold that this share of the real examples reaches; NaN without real examples."""
    kept = np.sort(score[real])
    if not kept.size:
        return math.nan
    needed = math.ceil(tpr * kept.size - 1e-9)  # 0.95 * 20 is a little more than 19 in floating point
    return float(kept[min(kept.size - needed, kept.size - 1)])


def fpr_at_tpr(score: Scores, real: Truth, tpr: float) -> float:
    """Share of the bogus examples that score at least `threshold_at_tpr`; NaN when one class is missing."""
    if not real.any() or real.all():
        return math.nan
    return float((score[~real] >= threshold_at_tpr(score, real, tpr)).mean())


def fnr_at_fpr(score: Scores, real: Truth, fpr: float) -> float:
    """Share of the real lost at the lowest threshold that at most `fpr` of the bogus pass; NaN as above."""
    if not real.any() or real.all():
        return math.nan
    bogus = np.sort(score[~real])[::-1]
    allowed = int(fpr * bogus.size)  # so many bogus may lie at or above the threshold
    return float((score[real] <= bogus[allowed]).mean()) if allowed < bogus.size else 0.0


def brier(probability: Scores, target: Target) -> float:
    """Mean squared distance of probability and truth; NaN without examples."""
    return float(np.mean((probability - target) ** 2)) if target.size else math.nan


def reliability(probability: Scores, target: Target, n_bins: int = N_BINS) -> list[Bin]:
    """Reliability diagram with bins of equal numbers of examples (fewer bins when there are few examples).

    Parameters
    ----------
    probability : ndarray of float64, shape (n,)
    target : ndarray of bool or float, shape (n,)
        Truth, or its probability where it is not certain: a bin is right when its means agree.
    n_bins
    """
    truth = np.asarray(target, np.float64)
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, min(n_bins, max(order.size, 1))) if part.size]
    return [_bin(probability[part], truth[part]) for part in parts]


def _bin(probability: Scores, truth: Scores) -> Bin:
    # one more example of each class (Laplace) keeps the error of a share of exactly 0 or 1 above zero
    n = truth.size
    mean, square = (truth.sum() + 1) / (n + 2), ((truth**2).sum() + 1) / (n + 2)
    return Bin(
        low=float(probability[0]),
        high=float(probability[-1]),
        n=n,
        mean=float(probability.mean()),
        fraction=float(truth.mean()),
        spread=math.sqrt((square - mean**2) / n),
    )


def expected_calibration_error(bins: Sequence[Bin], *, debiased: bool = True) -> float:
    r"""Mean over examples of \|mean probability - share of real\| in their bin.

    Notes
    -----
    The plug-in value is too large by chance alone: with a gap :math:`d` and the binomial error :math:`s` of the
    share, the mean of :math:`|d + s z|` exceeds :math:`|d|`. The debiased value takes that excess away, as
    Kumar, Liang & Ma (2019, NeurIPS) do by resampling; here with the closed form of the folded normal
    distribution. Never below zero.
    """
    total = sum(entry.n for entry in bins)
    error = 0.0
    for entry in bins:
        gap = abs(entry.mean - entry.fraction)
        excess = _folded_mean(gap, entry.spread) - gap if debiased else 0.0
        error += entry.n * (gap - excess)
    return max(error / total, 0.0) if total else math.nan


def _folded_mean(mean: float, spread: float) -> float:
    ratio = mean / spread
    return spread * math.sqrt(2 / math.pi) * math.exp(-0.5 * ratio**2) + mean * math.erf(ratio / math.sqrt(2))


def accepted(probability: Scores, target: Target) -> float:
    """Share of the examples, real or not, with a probability of at least one half; NaN without examples."""
    del target
    return float((probability >= 0.5).mean()) if probability.size else math.nan


def sure(target: Target) -> Truth:
    """Where the truth is all but certain, so that it can be called real or bogus, shape (n,)."""
    return np.asarray((target >= SURE) | (target <= 1 - SURE), bool)


Measure = Callable[[Scores, Target], float]
Ranking = Callable[[Scores, Truth], float]


def _among_sure(ranking: Ranking) -> Measure:
    def measured(score: Scores, target: Target) -> float:
        rows = sure(target)
        return ranking(score[rows], np.asarray(target[rows] > 0.5, bool))

    return measured


def _fpr_at(tpr: float) -> Measure:
    return _among_sure(lambda score, real: fpr_at_tpr(score, real, tpr))


MEASURES: Mapping[str, Measure] = {
    "auc": _among_sure(auc),
    **{f"fpr_at_tpr_{point:.2f}": _fpr_at(point) for point in TPR_POINTS},
    f"fnr_at_fpr_{FPR_POINT:.2f}": _among_sure(lambda score, real: fnr_at_fpr(score, real, FPR_POINT)),
    "brier": brier,
    "ece": lambda score, target: expected_calibration_error(reliability(score, target)),
    "accepted": accepted,
}
"""Every figure by its name in cards and reports: those that rank take the examples of certain truth only."""
FIGURES = tuple(name for name in MEASURES if name != "accepted")
OF_ALL = frozenset({"brier", "ece", "accepted"})  # these take uncertain truth as well


def measure(
    score: Scores,
    target: Target,
    object_id: Sequence[str],
    *,
    names: Sequence[str] = FIGURES,
    n_bootstrap: int = 400,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Figure]:
    """Figures of merit with percentile intervals from resampling objects, all alerts of an object together.

    Parameters
    ----------
    score : ndarray of float64, shape (n,)
        Calibrated probabilities; for the ranking figures any monotonic score will do.
    target : ndarray of bool or float, shape (n,)
        Truth, or its probability.
    object_id : sequence of str, length n
    names
        Keys of `MEASURES`.
    n_bootstrap
        Resamplings; 0 gives no interval (NaN).
    confidence
        Of the interval.
    seed
        Of the resampling.

    Returns
    -------
    dict of Figure
    """
    rng = np.random.default_rng(seed)
    rows = _rows_by_object(object_id)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(n_bootstrap):
        chosen = rng.integers(0, len(rows), len(rows)) if rows else np.zeros(0, int)
        index = np.concatenate([rows[j] for j in chosen]) if rows else np.zeros(0, int)
        for name in names:
            samples[name].append(MEASURES[name](score[index], target[index]))
    ends = ((1 - confidence) / 2, (1 + confidence) / 2)
    out = {}
    for name in names:
        drawn = np.array([value for value in samples[name] if np.isfinite(value)])
        low, high = np.quantile(drawn, ends) if drawn.size else (math.nan, math.nan)
        n = int(target.size if name in OF_ALL else sure(target).sum())
        out[name] = Figure(MEASURES[name](score, target), float(low), float(high), n)
    return out


def _rows_by_object(object_id: Sequence[str]) -> list[NDArray[np.intp]]:
    if not len(object_id):
        return []
    _, where = np.unique(np.asarray(object_id, dtype=str), return_inverse=True)
    order = np.argsort(where, kind="stable")
    return list(np.split(order, np.cumsum(np.bincount(where))[:-1]))


def by_group(
    score: Scores,
    target: Target,
    object_id: Sequence[str],
    group: Sequence[str],
    *,
    names: Sequence[str] = FIGURES,
    least: int = 20,
    seed: int = 0,
) -> dict[str, dict[str, Figure]]:
    """`measure` within each group that has at least `least` examples, real and bogus together."""
    labels = np.asarray(group, dtype=str)
    objects = np.asarray(object_id, dtype=str)
    return {
        name: measure(score[rows], target[rows], list(objects[rows]), names=names, n_bootstrap=200, seed=seed)
        for name in sorted(set(labels.tolist()))
        for rows in [labels == name]
        if rows.sum() >= least
    }


def magnitude_bands(
    mag: NDArray[np.floating], edges: Sequence[float] = (17.0, 18.0, 19.0, 20.0)
) -> list[str]:
    """Name of the magnitude band of each alert, for `by_group`."""
    names = [
        f"< {edges[0]:g} mag",
        *(f"{a:g} to {b:g} mag" for a, b in pairwise(edges)),
        f"> {edges[-1]:g} mag",
    ]
    return [
        names[int(np.searchsorted(edges, value))] if np.isfinite(value) else "no magnitude" for value in mag
    ]
