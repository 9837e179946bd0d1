"""The card of a network that judges stamps: data, golden vectors, calibration, thresholds, figures. Without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError
from tapetum.models.card import Golden, ModelCard, Output, SyntheticStamps
from tapetum.models.golden import golden_inputs
from tapetum.models.runtime import Model
from tapetum.training.calibrate import fit_calibration
from tapetum.training.evaluate import sure, threshold_at_tpr
from tapetum.training.record import card_body, data_sets_of, join_keys
from tapetum.training.report import domain_of, metrics_of, reliability_of
from tapetum.training.scoring import logits_of_model, probabilities_of_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.training.datasets import Examples, Key
    from tapetum.training.recipe import Recipe
    from tapetum.training.split import Role

GOLDEN = SyntheticStamps(seed=20260, count=12, size=63)
THRESHOLD_TPR = (0.99, 0.97, 0.95, 0.90)


def require_both_classes(validation: Examples) -> None:
    """Refuse a validation part on which no calibration can be fitted.

    Raises
    ------
    InputError
        Says how many alerts it has.
    """
    if not len(validation) or not 0 < float(validation.target.mean()) < 1:
        raise InputError(
            "nothing to calibrate on: the validation part of the split needs real and bogus alerts of known truth, "
            f"and has {len(validation)} alerts, {int((validation.target > 0.5).sum())} of them real"
        )


def describe(
    recipe: Recipe,
    onnx: Path,
    sets: dict[str, Examples],
    keys: Mapping[Role, Sequence[Sequence[Key]]],
    today: date,
) -> ModelCard:
    """The card of an exported network, with golden vectors; the rest as `measured` says."""
    used = {role: join_keys(names) for role, names in keys.items()}
    body = {
        **card_body(recipe, onnx, data_sets_of(used, recipe.card.citations), today),
        "inputs": (recipe.input,),
        "outputs": (Output(name="score", columns=("real",), activation="sigmoid"),),
        "surveys": tuple(sorted({key.origin for key in used["fit"]} - {"simulated"})),
    }
    model = Model(ModelCard(**body), onnx.read_bytes(), str(onnx))
    empty = ModelCard(
        **body, golden=Golden(stamps=GOLDEN, outputs=tuple((0.0,) for _ in range(GOLDEN.count)))
    )
    golden = Golden(stamps=GOLDEN, outputs=tuple(map(tuple, model.scores(golden_inputs(empty)).tolist())))
    return measured(model.card.model_copy(update={"golden": golden}), onnx, sets, recipe.calibration.method)


def measured(card: ModelCard, onnx: Path, sets: dict[str, Examples], method: str) -> ModelCard:
    """The card with calibration and thresholds from validation, metrics and reliability from test."""
    validation, test = sets["validation"], sets["test"]
    model = Model(card, onnx.read_bytes(), str(onnx))
    logits = logits_of_model(model, validation)
    weight = balance(validation)
    card = card.model_copy(update={"calibration": fit_calibration(method, logits, validation.target, weight)})
    model = Model(card, onnx.read_bytes(), str(onnx))
    probability = probabilities_of_model(model, validation)
    real = validation.target > 0.5
    thresholds = {
        f"{domain}_tpr_{tpr:.2f}": threshold_at_tpr(probability[rows], real[rows], tpr)
        for domain in sorted(set(domain_of(validation)))
        for rows in [sure(validation.target) & (np.array(domain_of(validation)) == domain)]
        if real[rows].any()
        for tpr in THRESHOLD_TPR
    }
    update: dict[str, Any] = {"thresholds": thresholds}
    if len(test):
        probability = probabilities_of_model(model, test)
        update |= {"metrics": metrics_of(test, probability), "reliability": reliability_of(test, probability)}
    return ModelCard.model_validate(card.model_copy(update=update).model_dump())


def balance(examples: Examples) -> NDArray[np.float64]:
    """Weights that give packets and simulation the same say; they sum to the number of examples."""
    domains = np.array(domain_of(examples))
    names, count = np.unique(domains, return_counts=True)
    share = {name: len(domains) / (len(names) * n) for name, n in zip(names, count, strict=True)}
    return np.array([share[name] for name in domains])
