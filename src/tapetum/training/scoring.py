"""Scores of a model, ours or an imported one, for examples; by card and onnxruntime, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tapetum.core.errors import ModelError
from tapetum.models.calibration import logit
from tapetum.models.inputs import prepare_images

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.models.runtime import Model
    from tapetum.training.datasets import Examples


def known(examples: Examples) -> Examples:
    """The examples whose truth is known at all."""
    return examples.take(np.isfinite(examples.target))


def scores_of_model(model: Model, examples: Examples) -> NDArray[np.float64]:
    """Raw scores, shape (n,).

    Raises
    ------
    ModelError
        The model takes more than stamps.
    """
    contract = model.card.images
    if contract is None or model.card.features is not None:
        raise ModelError(f"{model.card.name}: only networks that take stamps alone can be evaluated here")
    parts = [
        model.scores({contract.name: prepare_images(examples.stamps[at], examples.shapes[at], contract)})[
            :, 0
        ]
        for at in (slice(start, start + 512) for start in range(0, len(examples), 512))
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def logits_of_model(model: Model, examples: Examples) -> NDArray[np.float64]:
    """Logits of the raw scores, shape (n,)."""
    scores = scores_of_model(model, examples)
    return scores if model.card.outputs[0].activation == "none" else logit(scores)


def probabilities_of_model(model: Model, examples: Examples) -> NDArray[np.float64]:
    """Calibrated probabilities, or raw scores where the card has no calibration, shape (n,)."""
    scores = scores_of_model(model, examples)
    probability = model.probability(scores)
    return scores if np.isnan(probability).all() else probability
