"""The card of a classifier for one class of variable, network or trees: contract, threshold, figures. Without torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError
from tapetum.finders.taxonomy import load_taxonomy
from tapetum.models.calibration import logit
from tapetum.models.card import (
    ClassSpec,
    Golden,
    Metric,
    ModelCard,
    Output,
    Reliability,
    ReliabilityBin,
    SyntheticDmdt,
)
from tapetum.models.golden import golden_inputs, uniforms
from tapetum.models.runtime import Model
from tapetum.models.tables import gather_table
from tapetum.training.calibrate import fit_calibration
from tapetum.training.evaluate import expected_calibration_error, measure, reliability
from tapetum.training.record import card_body, data_sets_of, join_keys
from tapetum.training.report import as_metric
from tapetum.training.variables_metrics import AT_THRESHOLD, Ranking, figures_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.training.datasets import Key
    from tapetum.training.split import Role
    from tapetum.training.variables_data import Rows, TableSource
    from tapetum.training.variables_recipe import ClassifierRecipe

    Values = NDArray[np.float64]

SCORE = "score"
GOLDEN_SEED, N_GOLDEN = 20260, 8
MICRO_BATCH = 256


def require_both_classes(role: str, rows: Rows, code: str) -> None:
    """Refuse a part without examples and counter-examples.

    Raises
    ------
    InputError
        Says how many it has.
    """
    of = int((rows.target > 0.5).sum())
    if not 0 < of < len(rows):
        raise InputError(
            f"the {role} part of the split has {of} complete rows of the class {code} and {len(rows) - of} others; "
            "both are needed"
        )


def describe(
    recipe: ClassifierRecipe,
    onnx: Path,
    source: TableSource,
    keys: Mapping[Role, Sequence[Sequence[Key]]],
    today: date,
) -> ModelCard:
    """The card of an exported classifier: calibration and threshold from validation, figures from test."""
    fit, validation, test = (source.rows(role) for role in ("fit", "validation", "test"))
    used = {role: join_keys(names) for role, names in keys.items()}
    share = float(np.clip(fit.target.mean(), 1e-6, 1 - 1e-6))
    title = load_taxonomy(recipe.taxonomy).of(recipe.of).label
    body: dict[str, Any] = {
        **card_body(recipe, onnx, data_sets_of(used, recipe.card.citations), today),
        "finder": "variables",
        "algorithm": recipe.algorithm,
        "micro_batch": MICRO_BATCH,
        "inputs": tuple(entry for entry in (source.contract, source.dmdt) if entry is not None),
        "outputs": (Output(name=SCORE, columns=(recipe.of,), activation="sigmoid"),),
        "classes": (
            ClassSpec(name=recipe.of, title=title, training_prior=share, prior=share, threshold=0.5),
        ),
    }
    content = onnx.read_bytes()
    model = Model(ModelCard(**body), content, str(onnx))
    score = model.scores(validation.inputs)[:, 0]
    body["calibration"] = fit_calibration(recipe.calibration.method, logit(score), validation.target)
    model = Model(ModelCard(**body), content, str(onnx))
    chosen = best_threshold(model.probability(score), validation.target)
    body["classes"] = (
        ClassSpec(name=recipe.of, title=title, training_prior=share, prior=share, threshold=chosen),
    )
    body["thresholds"] = {"best_f1": chosen}
    if len(test):
        probability = model.probability(model.scores(test.inputs)[:, 0])
        body |= {
            "metrics": metrics_of(test, probability, chosen),
            "reliability": _reliability(test, probability),
        }
    body["golden"] = _golden(ModelCard(**body), source, model)
    return ModelCard(**body)


def _golden(card: ModelCard, source: TableSource, model: Model) -> Golden:
    """Rows that are no star's, drawn from the range of each feature, the first with all that may be missing missing."""
    contract = source.contract
    values = gather_table(source.part("fit"), contract, card.name)
    columns = []
    for at, feature in enumerate(contract.included):
        known = values[np.isfinite(values[:, at]), at]
        low, high = np.quantile(known, (0.05, 0.95)) if known.size else (0.0, 1.0)
        drawn = low + (high - low) * uniforms(GOLDEN_SEED, at, N_GOLDEN)
        rounded: list[float | None] = [
            float(round(value)) if feature.dtype == "int64" else float(f"{value:.6g}")
            for value in drawn.tolist()
        ]
        if feature.missing != "drop":
            rounded[0] = None
        columns.append(rounded)
    table = tuple(zip(*columns, strict=True))
    dmdt = SyntheticDmdt(seed=GOLDEN_SEED, count=N_GOLDEN) if card.dmdt is not None else None
    empty = Golden(table=table, dmdt=dmdt, outputs=((0.0,),) * N_GOLDEN)
    inputs = golden_inputs(card.model_copy(update={"golden": empty}))
    return empty.model_copy(update={"outputs": tuple(map(tuple, model.scores(inputs).tolist()))})


def best_threshold(probability: Values, target: Values) -> float:
    """The probability from which on the F1 score is largest, between that row and the next lower one."""
    order = np.argsort(-probability, kind="stable")
    ordered, right = probability[order], np.cumsum(target[order])
    f1 = 2 * right / (np.arange(1, len(order) + 1) + target.sum())
    last = np.append(np.diff(ordered) != 0, True)  # rows of one probability are given together
    best = int(np.argmax(np.where(last, f1, -1.0)))
    below = ordered[best + 1] if best + 1 < len(ordered) else 0.0
    return float((ordered[best] + below) / 2)


def metrics_of(rows: Rows, probability: Values, threshold: float) -> dict[str, Metric]:
    """Figures of the test part, with intervals from resampling sources."""
    data = "test part"
    ranked = measure(probability, rows.target, rows.object_id)
    out = {name: as_metric(figure, data) for name, figure in ranked.items()}
    others = figures_of(Ranking.of(probability, rows.target, rows.object_id, threshold))
    for name, figure in others.items():
        if name not in ("brier", "roc_auc"):  # which are there, the latter as auc
            note = f"given above {threshold:.3f}" if name in AT_THRESHOLD else None
            out[name] = as_metric(figure, data).model_copy(update={"note": note})
    return {name: metric for name, metric in out.items() if math.isfinite(metric.value)}


def _reliability(rows: Rows, probability: Values) -> Reliability:
    bins = reliability(probability, rows.target)
    bars = tuple(
        ReliabilityBin(low=b.low, high=b.high, n=b.n, mean_probability=b.mean, fraction_positive=b.fraction)
        for b in bins
    )
    n = len(rows)
    return Reliability(
        data=f"test part: {n} light curves", n=n, ece=expected_calibration_error(bins), bins=bars
    )
