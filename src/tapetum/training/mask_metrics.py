"""Figures of merit of masks against the truth of every pixel, with intervals from resampling frames.

A frame becomes a `Tally`: for every class how many pixels have which score, and how mask and truth overlap. All
figures follow from sums of tallies, so that thousands of resamplings of many frames cost little. Pixels of which the
truth of a class is not known count nowhere in that class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, label

from tapetum.images.contaminants import NAMES
from tapetum.models.calibration import sigmoid
from tapetum.training.evaluate import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Counts = NDArray[np.float64]
Bits = NDArray[np.uint16]
Flags = NDArray[np.bool_]

LIMIT, N_BINS = 24.0, 1200  # of the histograms of logits
EDGES = np.linspace(-LIMIT, LIMIT, N_BINS + 1)
CENTRES = (EDGES[1:] + EDGES[:-1]) / 2
TRAIL = NAMES.index("TRL")
NEAR = np.ones((3, 3), bool)  # within one pixel
TP, FP, FN, TN, NEAR_FLAGGED, FLAGGED, NEAR_TRUE, TRUE = range(8)
TRAILS, FOUND, PIECES, RIGHT = range(4)
ENOUGH = 0.5  # of a trail's pixels, for it to be found, and of a piece's, for it to be right
LEAST_PIECE = 20  # pixels of a piece of a mask that is worth being called a trail
RELIABILITY_BINS = 15
CANDIDATE = 0.01  # probability from which a pixel is one that a mask could have


@dataclass(frozen=True)
class Tally:
    """What one frame says of a model.

    Attributes
    ----------
    name
        Of the frame.
    group
        What is resampled: frames of one group are not independent of each other.
    histogram : ndarray of int64, shape (2, n_classes, N_BINS)
        Pixels out of (0) and in (1) a class, by the logit of its score.
    counts : ndarray of int64, shape (n_classes, 8)
        Pixels: true positives, false positives, false negatives, true negatives, flagged ones within a pixel of
        true ones, flagged ones, true ones within a pixel of flagged ones, true ones.
    trails : ndarray of int64, shape (4,)
        True trails, those found, pieces of the mask, those that are right.
    """

    name: str
    group: str
    histogram: NDArray[np.int64]
    counts: NDArray[np.int64]
    trails: NDArray[np.int64]


@dataclass(frozen=True)
class Truth:
    """What is known of a frame.

    Attributes
    ----------
    classes, unknown : ndarray of uint16, shape (n_y, n_x)
        Bit i is class i of `NAMES`: it holds; nobody knows.
    trails : ndarray of uint8, shape (n_y, n_x)
        Number of the trail that a pixel is of, from 1; 0 elsewhere.
    """

    classes: Bits
    unknown: Bits
    trails: NDArray[np.uint8]


def tally(name: str, group: str, logits: NDArray[np.floating], flagged: Bits, truth: Truth) -> Tally:
    """What one frame says of scores and mask.

    Parameters
    ----------
    name, group
        As in `Tally`.
    logits : ndarray, shape (n_classes, n_y, n_x)
        Of the scores.
    flagged : ndarray of uint16, shape (n_y, n_x)
        The mask: bit i is class i.
    truth
        Of the frame.
    """
    return Tally(
        name,
        group,
        histogram(logits, truth.classes, truth.unknown),
        overlap(flagged, truth.classes, truth.unknown, len(logits)),
        match_trails(_is(flagged, TRAIL), truth.trails, _is(truth.unknown, TRAIL)),
    )


def as_logits(probability: NDArray[np.floating]) -> NDArray[np.float32]:
    """Logits of probabilities, within `LIMIT` of zero; NaN counts as 0."""
    # a compiled sigmoid may exceed 1 by its last digit
    values = np.clip(np.nan_to_num(np.asarray(probability, np.float32)), 0, 1)
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(np.log(values) - np.log1p(-values), -LIMIT, LIMIT), np.float32)


def histogram(logits: NDArray[np.floating], truth: Bits, unknown: Bits) -> NDArray[np.int64]:
    """Pixels out of and in each class by logit, shape (2, n_classes, N_BINS).

    Parameters
    ----------
    logits : ndarray, shape (n_classes, n_y, n_x)
    truth, unknown : ndarray of uint16, shape (n_y, n_x)
        Bit i is class i: it holds; nobody knows.
    """
    found = np.zeros((2, len(logits), N_BINS), np.int64)
    for i, plane in enumerate(logits):
        inside = np.clip(plane, -LIMIT, LIMIT) + LIMIT
        place = np.minimum((inside * (N_BINS / (2 * LIMIT))).astype(np.int64), N_BINS - 1)
        known, there = _is(unknown, i) == 0, _is(truth, i)
        found[0, i] = np.bincount(place[known & ~there], minlength=N_BINS)
        found[1, i] = np.bincount(place[known & there], minlength=N_BINS)
    return found


def overlap(flagged: Bits, truth: Bits, unknown: Bits, n_classes: int = len(NAMES)) -> NDArray[np.int64]:
    """How a mask and the truth overlap, shape (n_classes, 8); columns as in `Tally.counts`.

    Parameters
    ----------
    flagged, truth, unknown : ndarray of uint16, shape (n_y, n_x)
        Bit i is class i.
    n_classes
        Classes that are looked at.
    """
    out = np.zeros((n_classes, 8), np.int64)
    for i in range(n_classes):
        known = ~_is(unknown, i)
        mask, real = _is(flagged, i), _is(truth, i) & known
        mine = mask & known
        n_both, n_mine, n_real = (int(np.count_nonzero(part)) for part in (mine & real, mine, real))
        near_flagged = np.count_nonzero(mine & _grown(real)) if n_mine and n_real else 0
        # what a mask has where nobody knows may still lie beside a true pixel and be its
        near_true = np.count_nonzero(real & _grown(mask)) if n_real else 0
        n_known = int(np.count_nonzero(known))
        out[i] = (
            n_both, n_mine - n_both, n_real - n_both, n_known - n_mine - n_real + n_both,
            near_flagged, n_mine, near_true, n_real,
        )  # fmt: skip
    return out


def match_trails(flagged: Flags, trails: NDArray[np.integer], unknown: Flags) -> NDArray[np.int64]:
    """True trails, those found, pieces of the mask, and those that are right, shape (4,).

    A trail is found where at least half of its pixels lie within a pixel of the mask. A piece of the mask is what
    hangs together by sides or corners and has at least `LEAST_PIECE` pixels of known truth; it is right where at
    least half of these lie within a pixel of a true trail.

    Parameters
    ----------
    flagged : ndarray of bool, shape (n_y, n_x)
    trails : ndarray of int, same shape
        Number of the trail that a pixel is of, from 1; 0 elsewhere.
    unknown : ndarray of bool, same shape
    """
    real = trails > 0
    sizes = np.bincount(trails.ravel())[1:]
    covered = np.bincount(trails[real & _grown(flagged)], minlength=len(sizes) + 1)[1:]
    there = sizes > 0
    pieces, n_pieces = label(flagged, NEAR)
    mine = flagged & ~unknown
    size = np.bincount(pieces[mine], minlength=n_pieces + 1)[1:]
    good = np.bincount(pieces[mine & _grown(real)], minlength=n_pieces + 1)[1:]
    worth = size >= LEAST_PIECE
    return np.array(
        [
            there.sum(),
            (covered >= ENOUGH * sizes)[there].sum(),
            worth.sum(),
            (good >= ENOUGH * size)[worth].sum(),
        ],
        np.int64,
    )


def _is(bits: Bits, i: int) -> Flags:
    return np.asarray(bits & np.uint16(1 << i), bool)


def _grown(flags: Flags) -> Flags:
    return np.asarray(binary_dilation(flags, NEAR), bool)


# figures from sums of tallies; all take arrays with any number of leading axes


def auc(out: Counts, inside: Counts) -> Counts:
    """Area under the ROC curve from histograms of scores, shape (..., N_BINS); ties counted half.

    NaN where one of the two is empty. Scores in one bin are ties.
    """
    below = np.cumsum(out, axis=-1) - out / 2
    pairs = inside.sum(-1) * out.sum(-1)
    return _ratio((inside * below).sum(-1), pairs)


def mcc(counts: Counts) -> Counts:
    """Matthews correlation of mask and truth, from counts of shape (..., 8).

    0 for a mask that is the same everywhere; NaN where the truth is.
    """
    tp, fp, fn, tn = (counts[..., i] for i in (TP, FP, FN, TN))
    return _correlation(tp, fp, fn, tn)


def _correlation(tp: Counts, fp: Counts, fn: Counts, tn: Counts) -> Counts:
    # root of each sum first: their product overflows
    scale = np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn)
    found = np.nan_to_num(_ratio(tp * tn - fp * fn, scale))
    return np.where((tp + fn > 0) & (tn + fp > 0), found, np.nan)


def precision(counts: Counts) -> Counts:
    """Share of the flagged pixels that lie within a pixel of a true one; NaN without any."""
    return _ratio(counts[..., NEAR_FLAGGED], counts[..., FLAGGED])


def recall(counts: Counts) -> Counts:
    """Share of the true pixels that lie within a pixel of a flagged one; NaN without any."""
    return _ratio(counts[..., NEAR_TRUE], counts[..., TRUE])


def calibration_error(out: Counts, inside: Counts, prior: float, *, least: float = 0.0) -> Counts:
    """Expected calibration error of pixels, of histograms of shape (..., N_BINS).

    Scores at the training prior are carried over to the share of the class that the pixels really have, so that
    networks of different priors can be compared; bins are of equal width in probability. NaN where the class has no
    pixel, or all.

    Parameters
    ----------
    out, inside
        As for `auc`.
    prior
        Share of the class at which the scores were made.
    least
        Only pixels of at least this probability.
    """
    n_in, n_all = inside.sum(-1), (inside + out).sum(-1)
    share = np.clip(np.nan_to_num(_ratio(n_in, n_all)), 1e-9, 1 - 1e-9)
    shift = np.log(share) - np.log1p(-share) - (math.log(prior) - math.log1p(-prior))
    probability = sigmoid(CENTRES + shift[..., None])
    place = np.minimum((probability * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
    kept = probability >= least
    gap = np.zeros(n_all.shape)
    for i in range(RELIABILITY_BINS):
        rows = (place == i) & kept
        gap += np.abs(np.where(rows, (inside + out) * probability - inside, 0).sum(-1))
    error = _ratio(gap, np.where(kept, inside + out, 0).sum(-1))
    return np.where((n_in > 0) & (n_in < n_all), error, np.nan)


def correlations(out: Counts, inside: Counts) -> Counts:
    """Matthews correlation of the masks of all pixels above each of `EDGES` but the last, shape (..., N_BINS)."""
    tp, fp = (np.cumsum(part[..., ::-1], axis=-1)[..., ::-1] for part in (inside, out))
    return _correlation(tp, fp, inside.sum(-1)[..., None] - tp, out.sum(-1)[..., None] - fp)


def best_cut(out: Counts, inside: Counts) -> float:
    """Logit above which a mask has the best Matthews correlation, of histograms of shape (N_BINS,).

    Raises
    ------
    ValueError
        All pixels are in the class, or none.
    """
    return float(EDGES[int(np.nanargmax(correlations(out, inside)))])


def _ratio(above: Counts, below: Counts) -> Counts:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)


# with intervals


def weights_of(groups: Sequence[str], n_bootstrap: int, seed: int) -> Counts:
    """How often each frame is taken: once in the first row, then in resamplings of the groups.

    Returns
    -------
    ndarray of float64, shape (1 + n_bootstrap, n_frames)
    """
    names, where = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), n_bootstrap)
    return np.concatenate([np.ones((1, len(groups))), times[:, where].astype(float)])


@dataclass(frozen=True)
class Draws:
    """A figure of all frames, then of every resampling, shape (1 + n_bootstrap,); of `n` pixels, trails or pieces."""

    values: Counts
    n: int

    def figure(self, confidence: float = 0.95) -> Figure:
        """The figure with its percentile interval."""
        drawn = self.values[1:][np.isfinite(self.values[1:])]
        ends = ((1 - confidence) / 2, (1 + confidence) / 2)
        low, high = np.quantile(drawn, ends) if drawn.size else (math.nan, math.nan)
        return Figure(float(self.values[0]), float(low), float(high), self.n)

    def minus(self, other: Draws) -> Draws:
        """Difference to the same figure of another model, resampling by resampling."""
        return Draws(self.values - other.values, self.n)


def draws_of(
    tallies: Sequence[Tally],
    priors: Sequence[float],
    *,
    names: Sequence[str] = NAMES,
    n_bootstrap: int = 400,
    seed: int = 0,
) -> dict[str, dict[str, Draws]]:
    """All figures of every class, of all frames and of resampled groups of frames.

    Parameters
    ----------
    tallies
        One per frame.
    priors
        Of each class, at which the scores were made.
    names
        Of the classes.
    n_bootstrap
        Resamplings.
    seed
        Of the resampling: the same for models that are compared.

    Returns
    -------
    dict of dict of Draws
        ``draws[class][figure]``: auc, mcc, mcc_best (of all cuts of the score), precision, recall, ece,
        ece_candidates; of TRL also trail_recall and trail_precision. `Draws.n` is the number of true pixels, of
        trails, or of pieces.
    """
    weights = weights_of([entry.group for entry in tallies], n_bootstrap, seed)
    counts = np.tensordot(weights, np.stack([entry.counts for entry in tallies]).astype(float), 1)
    result: dict[str, dict[str, Draws]] = {}
    for i, name in enumerate(names):
        out, inside = (
            weights @ np.stack([entry.histogram[k, i] for entry in tallies]).astype(float) for k in (0, 1)
        )
        values = {
            "auc": auc(out, inside),
            "mcc": mcc(counts[:, i]),
            "mcc_best": correlations(out, inside).max(-1),
            "precision": precision(counts[:, i]),
            "recall": recall(counts[:, i]),
            "ece": calibration_error(out, inside, priors[i]),
            "ece_candidates": calibration_error(out, inside, priors[i], least=CANDIDATE),
        }
        n_true = int(counts[0, i, TRUE])
        result[name] = {key: Draws(drawn, n_true) for key, drawn in values.items()}
        if name == NAMES[TRAIL]:
            trails = weights @ np.stack([entry.trails for entry in tallies]).astype(float)
            for key, hits, of in (("recall", FOUND, TRAILS), ("precision", RIGHT, PIECES)):
                result[name][f"trail_{key}"] = Draws(
                    _ratio(trails[:, hits], trails[:, of]), int(trails[0, of])
                )
    return result


def figures_of(draws: Mapping[str, Mapping[str, Draws]]) -> dict[str, dict[str, Figure]]:
    """The figures of `draws_of` with their intervals."""
    return {name: {key: each.figure() for key, each in figures.items()} for name, figures in draws.items()}
