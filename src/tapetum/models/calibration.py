"""From raw scores to probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tapetum.models.card import IsotonicCalibration, NoCalibration, PlattCalibration

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.models.card import Calibration

CLIP = 1e-7  # a float32 sigmoid says exactly 0 or 1 beyond; its logit would be infinite


def logit(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """``log(score / (1 - score))``, scores kept within 1e-7 of 0 and 1."""
    inside = np.clip(score, CLIP, 1 - CLIP)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def sigmoid(value: NDArray[np.float64]) -> NDArray[np.float64]:
    """``1 / (1 + exp(-value))``, without overflow."""
    small = np.exp(-np.abs(value))
    return np.where(value >= 0, 1 / (1 + small), small / (1 + small))


def calibrate(
    score: NDArray[np.float64], calibration: Calibration, *, scores_are_logits: bool = False
) -> NDArray[np.float64]:
    """Probability of each score; NaN for NaN, and NaN everywhere when the card has no calibration.

    Parameters
    ----------
    score : ndarray of float64
        Raw outputs of the network.
    calibration
        From the model card.
    scores_are_logits
        The network ends without a sigmoid.
    """
    if isinstance(calibration, NoCalibration):
        return np.full(score.shape, np.nan)
    if isinstance(calibration, IsotonicCalibration):
        return np.where(np.isnan(score), np.nan, np.interp(score, calibration.x, calibration.y))
    value = score if scores_are_logits else logit(score)
    if isinstance(calibration, PlattCalibration):
        return sigmoid(calibration.a * value + calibration.b)
    return sigmoid(value / calibration.temperature)
