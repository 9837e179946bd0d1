"""Figures of merit of a classifier for one class, each with an interval from resampling sources. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tapetum.training.evaluate import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

Values = NDArray[np.float64]
CONFIDENCE = 0.95
FIGURES = (
    "accuracy", "precision", "recall", "f1_score", "roc_auc", "average_precision", "brier", "log_loss",
)  # fmt: skip
AT_THRESHOLD = FIGURES[:4]
LEAST_PROBABILITY = 1e-7  # in a logarithm


@dataclass(frozen=True)
class Ranking:
    """Rows from the most to the least probable, for figures under any weights of the rows.

    Attributes
    ----------
    probability, target : ndarray of float64, shape (n,)
        In this order; the truth is 1 or 0.
    source : ndarray of int64, shape (n,)
        Number of the source of each row.
    threshold
        A probability above it gives the class.
    """

    probability: Values
    target: Values
    source: NDArray[np.int64]
    threshold: float

    @classmethod
    def of(cls, probability: Values, target: Values, object_id: Sequence[str], threshold: float) -> Ranking:
        """Rows in any order, and the source of each."""
        _, source = np.unique(np.asarray(object_id, str), return_inverse=True)
        order = np.argsort(-probability, kind="stable")
        truth = np.asarray(target > 0.5, np.float64)
        return cls(probability[order], truth[order], source[order].astype(np.int64), threshold)

    @property
    def n_sources(self) -> int:
        """Sources that the rows belong to."""
        return int(self.source.max()) + 1 if self.source.size else 0

    @cached_property
    def ends(self) -> NDArray[np.intp]:
        """Last row of each distinct probability."""
        return np.flatnonzero(np.append(np.diff(self.probability) != 0, True))

    @cached_property
    def _loss(self) -> tuple[Values, Values]:
        sure = np.clip(self.probability, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        entropy = -np.where(self.target > 0.5, np.log(sure), np.log1p(-sure))
        return (self.probability - self.target) ** 2, entropy

    def curve(self, weight: Values | None = None) -> tuple[Values, Values]:
        """Weight of the right and of the wrong rows down to each distinct probability, both beginning with 0."""
        w = np.ones_like(self.probability) if weight is None else weight
        right, wrong = np.cumsum(w * self.target)[self.ends], np.cumsum(w * (1 - self.target))[self.ends]
        return np.append(0.0, right), np.append(0.0, wrong)

    def counts(self, weight: Values | None = None) -> tuple[tuple[float, float], tuple[float, float]]:
        """Confusion matrix: rows of the truth (not of the class, of it), columns of the answer (not given, given)."""
        right, wrong = self.curve(weight)
        last = int(np.searchsorted(-self.probability[self.ends], -self.threshold, "left"))
        given, false = float(right[last]), float(wrong[last])
        return (float(wrong[-1]) - false, false), (float(right[-1]) - given, given)

    def figures(self, weight: Values | None = None) -> Values:
        """`FIGURES` in their order, NaN where there is nothing to count, shape (8,)."""
        w = np.ones_like(self.probability) if weight is None else weight
        (quiet, false), (lost, found) = self.counts(weight)
        total, of, against = quiet + false + lost + found, lost + found, quiet + false
        right, wrong = self.curve(weight)
        brier, entropy = self._loss
        with np.errstate(divide="ignore", invalid="ignore"):
            # the area is by trapezoids: ties count half
            area = np.sum(np.diff(wrong) * (right[1:] + right[:-1])) / (2 * np.float64(of) * against)
            share = np.where(right + wrong > 0, right / (right + wrong), 0.0)
            return np.array(
                [
                    np.float64(quiet + found) / total,
                    np.float64(found) / (found + false),
                    np.float64(found) / of,
                    np.float64(2 * found) / (2 * found + false + lost),
                    area,
                    np.sum(np.diff(right) * share[1:]) / np.float64(of),
                    np.sum(w * brier) / total,
                    np.sum(w * entropy) / total,
                ]
            )


def figures_of(ranking: Ranking, *, n_bootstrap: int = 400, seed: int = 0) -> dict[str, Figure]:
    """Figures of merit with percentile intervals of 95 %, all light curves of a source resampled together.

    Parameters
    ----------
    ranking
        Rows, truth, threshold.
    n_bootstrap
        Resamplings.
    seed
        Of the resampling.

    Returns
    -------
    dict of Figure
        By `FIGURES`: at the threshold of the class accuracy, precision, recall and F1 score; without it the area under
        the ROC curve, the average precision (area under the steps of precision over recall), the mean squared
        distance from truth (Brier) and the mean cross-entropy [nat].
    """
    rng = np.random.default_rng(seed)
    n = ranking.n_sources
    drawn = np.full((n_bootstrap, len(FIGURES)), np.nan)
    for number in range(n_bootstrap if n else 0):
        times = np.bincount(rng.integers(0, n, n), minlength=n)
        drawn[number] = ranking.figures(times[ranking.source].astype(np.float64))
    ends = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    values = ranking.figures()
    out = {}
    for at, name in enumerate(FIGURES):
        known = drawn[np.isfinite(drawn[:, at]), at]
        low, high = np.quantile(known, ends) if known.size else (np.nan, np.nan)
        out[name] = Figure(float(values[at]), float(low), float(high), len(ranking.probability))
    return out
