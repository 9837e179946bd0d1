"""From scores to probabilities: fits of the calibrations that a model card can hold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tapetum.core.errors import InputError
from tapetum.models.calibration import sigmoid
from tapetum.models.card import Calibration, IsotonicCalibration, PlattCalibration, TemperatureCalibration

Logits = NDArray[np.float64]
MAX_ITERATIONS = 100
MAX_KNOTS = 64


def fit_calibration(
    method: str, logits: Logits, target: NDArray[np.floating], weight: NDArray[np.floating] | None = None
) -> Calibration:
    """Fit a calibration on examples the network did not learn from.

    Parameters
    ----------
    method
        temperature, platt or isotonic.
    logits : ndarray of float64, shape (n,)
    target : ndarray of float, shape (n,)
        Truth, or its probability, in [0, 1].
    weight : ndarray of float, shape (n,), optional
        How much each example counts; equal without.

    Raises
    ------
    InputError
        Unknown method, or the examples are all of one class.
    """
    truth: NDArray[np.float64] = np.asarray(target, np.float64)
    weights: NDArray[np.float64] = np.ones_like(truth) if weight is None else np.asarray(weight, np.float64)
    if truth.size < 2 or not 0 < truth.mean() < 1:
        raise InputError(
            f"a calibration needs real and bogus examples, got {truth.size} with mean truth {truth.mean():.3g}"
        )
    if method == "temperature":
        return TemperatureCalibration(temperature=1 / _slope(logits, truth, weights))
    if method == "platt":
        a, b = fit_platt(logits, truth, weights)
        return PlattCalibration(a=a, b=b)
    if method == "isotonic":
        x, y = fit_isotonic(sigmoid(logits), truth, weights)
        return IsotonicCalibration(x=tuple(x.tolist()), y=tuple(y.tolist()))
    raise InputError(f"{method!r} is not a calibration; known: temperature, platt, isotonic")


def fit_platt(
    logits: Logits, target: NDArray[np.float64], weight: NDArray[np.float64], count: float | None = None
) -> tuple[float, float]:
    """Slope and offset of the logit that minimise the cross-entropy, by damped Newton steps.

    Parameters
    ----------
    logits, target, weight : ndarray of float64, shape (n,)
        Of each row, and how much it counts.
    count
        Examples that the rows stand for; None: one each.

    Notes
    -----
    The targets are drawn towards one half by one pseudo-example of each class (Platt 1999), so that separable
    examples still give a finite slope.
    """
    soft = target + (1 - 2 * target) / ((target.size if count is None else count) + 2)
    parameters = np.array([1.0, 0.0])
    design = np.column_stack([logits, np.ones_like(logits)])
    loss = _cross_entropy(design @ parameters, soft, weight)
    for _ in range(MAX_ITERATIONS):
        probability = sigmoid(design @ parameters)
        gradient = design.T @ (weight * (probability - soft))
        hessian = (design.T * (weight * probability * (1 - probability))) @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        scale = 1.0
        while (
            new := _cross_entropy(design @ (parameters - scale * step), soft, weight)
        ) > loss and scale > 1e-6:
            scale /= 2
        parameters = parameters - scale * step
        if loss - new < 1e-12 * max(loss, 1):
            break
        loss = new
    return float(parameters[0]), float(parameters[1])


def _cross_entropy(logits: Logits, target: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    return float(np.sum(weight * (np.logaddexp(0, logits) - target * logits)))


def _slope(logits: Logits, target: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    # one over the temperature: the minimum of a convex function, by golden-section search of its logarithm
    golden = (np.sqrt(5) - 1) / 2
    low, high = np.log(1e-3), np.log(1e3)
    while high - low > 1e-7:
        left, right = high - golden * (high - low), low + golden * (high - low)
        losses = [_cross_entropy(np.exp(slope) * logits, target, weight) for slope in (left, right)]
        if losses[0] < losses[1]:
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def fit_isotonic(
    score: NDArray[np.float64], target: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Knots of the non-decreasing curve closest to the targets (pool adjacent violators).

    Returns
    -------
    two ndarrays of float64, shape (n_knots,)
        Increasing scores and non-decreasing probabilities; straight lines between them.
    """
    order = np.argsort(score, kind="stable")
    blocks: list[list[float]] = []  # weighted sum of targets, sum of weights, weighted sum of scores
    for s, t, w in zip(score[order], target[order], weight[order], strict=True):
        blocks.append([float(t * w), float(w), float(s * w)])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    x = np.array([scores / weights for _, weights, scores in blocks])
    y = np.clip([targets / weights for targets, weights, _ in blocks], 0.0, 1.0)
    if x.size > MAX_KNOTS:
        keep = np.unique(np.linspace(0, x.size - 1, MAX_KNOTS).astype(int))
        x, y = x[keep], y[keep]
    if x.size == 1:
        return np.array([0.0, 1.0]), np.array([y[0], y[0]])
    increasing = np.concatenate([[True], np.diff(x) > 0])
    return x[increasing], y[increasing]
