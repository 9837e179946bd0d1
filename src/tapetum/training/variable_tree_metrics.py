"""How good a classifier over a tree of classes is: figures by star with bootstrap intervals, and their tables."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.training.evaluate import Figure, expected_calibration_error, reliability

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Values = NDArray[np.float64]
    Whole = NDArray[np.int64]

N_BOOTSTRAP = 1000
CONFIDENCE = 0.95
POINTS = (5, 30, 60, 100, 200, 400, 800)
"""Numbers of points that curves are told apart by, each group up to the next."""


def confusion(truth: Whole, given: Whole, n_classes: int, weight: Values | None = None) -> Values:
    """How often a star of the class of the row was given the class of the column, shape (n_classes, n_classes)."""
    counts = np.bincount(truth * n_classes + given, weight, minlength=n_classes * n_classes)
    return np.asarray(counts, np.float64).reshape(n_classes, n_classes)


def f1_scores(matrix: Values) -> Values:
    """F1 of each class, NaN for one that no star is of, shape (n_classes,)."""
    right, of, given = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(of > 0, 2 * right / (of + given), np.nan)


def accuracy(matrix: Values) -> float:
    """Share on the diagonal; NaN without examples."""
    total = float(matrix.sum())
    return float(np.trace(matrix)) / total if total else math.nan


def macro_f1(matrix: Values) -> float:
    """Mean of F1 over the classes that there are stars of; NaN without examples."""
    scores = f1_scores(matrix)
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else math.nan


def with_intervals(
    measures: Mapping[str, Callable[[Values], float]],
    truth: Whole,
    given: Whole,
    object_id: Sequence[str],
    n_classes: int,
    *,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, Figure]:
    """Figures of a confusion matrix with percentile intervals from resampling stars, all curves of a star together."""
    rng = np.random.default_rng(seed)
    _, owner = np.unique(np.asarray(object_id, str), return_inverse=True)
    n_objects = int(owner.max()) + 1 if owner.size else 0
    drawn: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(n_bootstrap if n_objects else 0):
        times = np.bincount(rng.integers(0, n_objects, n_objects), minlength=n_objects)[owner]
        matrix = confusion(truth, given, n_classes, times.astype(np.float64))
        for name, function in measures.items():
            drawn[name].append(function(matrix))
    whole = confusion(truth, given, n_classes)
    ends = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    out = {}
    for name, function in measures.items():
        values = np.array([value for value in drawn[name] if math.isfinite(value)])
        low, high = np.quantile(values, ends) if values.size else (math.nan, math.nan)
        out[name] = Figure(function(whole), float(low), float(high), int(truth.size))
    return out


def _f1_of(place: int, matrix: Values) -> float:
    return float(f1_scores(matrix)[place])


def class_table(
    truth: Whole, given: Whole, object_id: Sequence[str], names: Sequence[str]
) -> list[dict[str, Any]]:
    """One row for each class that there are stars of: curves, stars, precision, recall, F1 with interval."""
    n_classes = len(names)
    matrix = confusion(truth, given, n_classes)
    there = [place for place in range(n_classes) if matrix[place].sum()]
    measures = {names[place]: partial(_f1_of, place) for place in there}
    figures = with_intervals(measures, truth, given, object_id, n_classes)
    objects = np.asarray(object_id, str)
    rows = []
    for place in there:
        said = float(matrix[:, place].sum())
        figure = figures[names[place]]
        rows.append(
            {
                "class": names[place],
                "curves": int(matrix[place].sum()),
                "stars": len(set(objects[truth == place].tolist())),
                "precision": float(matrix[place, place]) / said if said else math.nan,
                "recall": float(matrix[place, place] / matrix[place].sum()),
                "f1": figure.value,
                "f1_low": figure.low,
                "f1_high": figure.high,
            }
        )
    return rows


def by_points(
    right: NDArray[np.bool_], covered: NDArray[np.bool_], n_points: Whole, edges: Sequence[int] = POINTS
) -> list[dict[str, Any]]:
    """Accuracy and coverage of the sets of classes for curves of few points and of many."""
    rows = []
    for low, high in zip(edges, (*edges[1:], None), strict=True):
        which = (n_points >= low) & (n_points < (np.inf if high is None else high))
        if which.any():
            rows.append(
                {
                    "from": low,
                    "below": high,
                    "curves": int(which.sum()),
                    "accuracy": float(right[which].mean()),
                    "coverage": float(covered[which].mean()),
                }
            )
    return rows


def conformal_threshold(true_probability: Values, coverage: float) -> float:
    """The threshold that the probability of the true class of the next star passes with this probability, or more.

    Split conformal prediction (Vovk et al. 2005) with one minus the probability of the true class as its strangeness:
    of n stars the ``floor((n + 1)(1 - coverage))``-th smallest probability; 0 where that is none.
    """
    rank = math.floor((true_probability.size + 1) * (1 - coverage) + 1e-9)
    return float(np.sort(true_probability)[rank - 1]) if rank >= 1 else 0.0


def temperature_of(logits: Values, inside: Values) -> float:
    """What logits are divided by for the likelihood of validation labels to be largest, 0.2 to 5."""
    grid = np.exp(np.linspace(np.log(0.2), np.log(5.0), 161))
    return float(grid[int(np.argmin([partial_loss(logits / each, inside) for each in grid]))])


def partial_loss(logits: Values, inside: Values) -> float:
    """Mean of minus the logarithm of the probability of all leaves that a star may be in."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    share = (powers * inside).sum(axis=1) / powers.sum(axis=1)
    return float(-np.log(np.maximum(share, 1e-12)).mean())


def reliability_rows(probability: Values, right: NDArray[np.bool_]) -> tuple[list[dict[str, float]], float]:
    """Reliability diagram of the probability of the class that is given, and its calibration error."""
    bins = reliability(probability, right)
    rows = [
        {"low": each.low, "high": each.high, "n": each.n, "probability": each.mean, "right": each.fraction}
        for each in bins
    ]
    return rows, expected_calibration_error(bins)
