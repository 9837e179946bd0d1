"""The card of the classifier over a tree: contract, calibration, sets of classes, figures. Without torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.finders.taxonomy import load_taxonomy
from tapetum.finders.variable_tree import FINDER, leaf_sums, softmax
from tapetum.models.card import (
    Golden,
    Metric,
    ModelCard,
    Output,
    PointsContract,
    Reliability,
    ReliabilityBin,
    SyntheticPoints,
    TemperatureCalibration,
)
from tapetum.models.golden import golden_inputs, uniforms
from tapetum.models.points import CHANNELS, prepare_points
from tapetum.models.runtime import Model
from tapetum.training.record import card_body, data_sets_of, join_keys
from tapetum.training.report import as_metric
from tapetum.training.variable_tree_data import FEATURES, POINTS
from tapetum.training.variable_tree_metrics import (
    accuracy,
    by_points,
    class_table,
    conformal_threshold,
    macro_f1,
    partial_loss,
    reliability_rows,
    temperature_of,
    with_intervals,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.models.card import TableContract
    from tapetum.training.datasets import Key
    from tapetum.training.split import Role
    from tapetum.training.variable_tree_data import CurveSource, Examples
    from tapetum.training.variable_tree_recipe import VariableTreeRecipe

    Values = NDArray[np.float64]

GOLDEN_SEED, N_GOLDEN, GOLDEN_TOLERANCE = 20261, 8, 1e-3
MICRO_BATCH = 64
SPLIT = (
    "by object: int(sha1(object_id)[:8], 16) % 10 is 5 to 9 for training, 3 and 4 for test, 0 to 2 never read. "
    "Training stars are in folds: weights of the halves, calibration and sets of classes follow from what is said of "
    "each star by those who did not learn from it"
)


def describe(
    recipe: VariableTreeRecipe,
    onnx: Path,
    source: CurveSource,
    learned: Examples,
    judged: Values,
    test: Examples,
    keys: Mapping[Role, Sequence[Sequence[Key]]],
    today: date,
) -> ModelCard:
    """The card: temperature and thresholds of the sets from `judged`, figures from test.

    Parameters
    ----------
    recipe, onnx, source
        Of the run.
    learned
        Curves that were learned from.
    judged
        Logits of these by members that did not learn from them.
    test
        Curves of the test part.
    keys
        Examples by role.
    today
        Date.
    """
    named = {role: join_keys(names) for role, names in keys.items()}
    used: dict[Role, list[Key]] = {"fit": [*named["fit"], *named["validation"]], "test": named["test"]}
    body: dict[str, Any] = {
        **card_body(recipe, onnx, data_sets_of(used, recipe.card.citations), today, split=SPLIT),
        "finder": FINDER,
        "algorithm": "tree",
        "micro_batch": MICRO_BATCH,
        "inputs": (PointsContract(name=POINTS, length=recipe.length, channels=CHANNELS), source.contract),
        "outputs": (Output(name="logits", columns=source.leaves, activation="none"),),
    }
    content = onnx.read_bytes()
    model = Model(ModelCard(**body), content, str(onnx))
    temperature = temperature_of(judged, learned.inside.astype(np.float64))
    body["calibration"] = TemperatureCalibration(temperature=temperature)
    true = true_probability(softmax(judged / temperature), learned)
    body["thresholds"] = {
        f"conformal_{coverage:.2f}": conformal_threshold(true, coverage) for coverage in recipe.coverages
    }
    if len(test):
        probability = softmax(logits_of(model, test) / temperature)
        report = report_of(probability, test, source.leaves, recipe.taxonomy, body["thresholds"])
        body["metrics"] = report["metrics"]
        body["reliability"] = _reliability(report, len(test))
    body["golden"] = _golden(ModelCard(**body), learned, source.contract, model)
    return ModelCard(**body)


def logits_of(model: Model, examples: Examples) -> Values:
    """What the file says, shape (n, n_leaves)."""
    points = model.card.points
    assert points is not None
    parts = [np.zeros((0, len(model.card.outputs[0].columns)))]
    for start in range(0, len(examples), 256):
        some = examples.take(np.arange(start, min(start + 256, len(examples))))
        parts.append(
            model.scores(
                {FEATURES: some.rows, points.name: prepare_points(some.curves, some.period, points.length)}
            )
        )
    return np.concatenate(parts)


def true_probability(probability: Values, examples: Examples) -> Values:
    """Probability of the true leaf, of one curve of each star whose label is a leaf."""
    sure = np.flatnonzero(examples.sure)
    names = np.asarray(examples.object_id, str)[sure]
    _, first = np.unique(names, return_index=True)
    rows = sure[first]
    return np.asarray(probability[rows, examples.inside[rows].argmax(axis=1)])


def report_of(
    probability: Values,
    examples: Examples,
    leaves: Sequence[str],
    taxonomy: str,
    thresholds: Mapping[str, float],
) -> dict[str, Any]:
    """Every figure of calibrated probabilities of leaves: of curves whose label is a leaf.

    Returns
    -------
    dict
        ``metrics`` (name -> Metric), ``classes``, ``by_points``, ``by_survey``, ``reliability``, ``ece``.
    """
    some = examples.take(examples.sure)
    chance = probability[examples.sure]
    truth, given = some.inside.argmax(axis=1), chance.argmax(axis=1)
    objects, n_leaves = some.object_id, len(leaves)
    figures = with_intervals({"accuracy": accuracy, "macro_f1": macro_f1}, truth, given, objects, n_leaves)
    tops, top_truth, top_given = _tops(chance, truth, leaves, taxonomy)
    figures |= with_intervals(
        {"accuracy_top_level": accuracy, "macro_f1_top_level": macro_f1},
        top_truth,
        top_given,
        objects,
        len(tops),
    )
    right = truth == given
    rows, ece = reliability_rows(chance[np.arange(len(given)), given], right)
    data = "test part, curves whose label is a leaf"
    metrics = {name: as_metric(figure, data) for name, figure in figures.items()}
    metrics["log_loss"] = Metric(
        value=partial_loss(np.log(np.maximum(chance, 1e-12)), some.inside.astype(np.float64)),
        n=len(some),
        data=data,
    )
    metrics["ece"] = Metric(value=ece, n=len(some), data=data, note="of the probability of the given class")
    covered = np.zeros(len(some), np.bool_)
    for name, threshold in thresholds.items():
        inside = chance >= threshold
        inside[np.arange(len(given)), given] = True
        covered = inside[np.arange(len(truth)), truth]
        hit = with_intervals(
            {"coverage": accuracy}, np.zeros_like(truth), (~covered).astype(np.int64), objects, 2
        )
        metrics[f"coverage_{name.removeprefix('conformal_')}"] = as_metric(hit["coverage"], data)
        metrics[f"set_size_{name.removeprefix('conformal_')}"] = Metric(
            value=float(inside.sum(axis=1).mean()), n=len(some), data=data
        )
    stated = thresholds.get("conformal_0.95", min(thresholds.values(), default=0.0))
    covered = (chance[np.arange(len(truth)), truth] >= stated) | right
    surveys = _surveys(some)
    return {
        "metrics": {name: metric for name, metric in metrics.items() if math.isfinite(metric.value)},
        "classes": class_table(truth, given, objects, leaves),
        "by_points": by_points(right, covered, some.curves.n_points),
        "by_survey": [
            {
                "survey": name,
                "curves": int((surveys == name).sum()),
                "accuracy": float(right[surveys == name].mean()),
            }
            for name in sorted(set(surveys.tolist()))
        ],
        "reliability": rows,
        "ece": ece,
    }


def _tops(
    chance: Values, truth: NDArray[np.int64], leaves: Sequence[str], taxonomy: str
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Roots of the tree, the true one of each curve and the most probable one."""
    known = load_taxonomy(taxonomy)
    codes, inside = leaf_sums(leaves, known)
    tops = [code for code in codes if known.of(code).parent is None]
    of_leaf = inside[:, [codes.index(code) for code in tops]]
    return tops, of_leaf[truth].argmax(axis=1), (chance @ of_leaf).argmax(axis=1)


def _surveys(examples: Examples) -> NDArray[np.str_]:
    table = examples.curves.table
    names = table["survey"].to_pylist() if "survey" in table.column_names else [""] * len(examples)
    return np.asarray([name or "" for name in names], str)


def _reliability(report: Mapping[str, Any], count: int) -> Reliability:
    bars = tuple(
        ReliabilityBin(
            low=row["low"], high=row["high"], n=row["n"], mean_probability=row["probability"],
            fraction_positive=row["right"],
        )
        for row in report["reliability"]
    )  # fmt: skip
    return Reliability(
        data=f"test part: probability of the given class, {count} light curves",
        n=count,
        ece=report["ece"],
        bins=bars,
    )


def _golden(card: ModelCard, examples: Examples, contract: TableContract, model: Model) -> Golden:
    """Rows that are no star's, drawn from the range of each feature, the first with everything missing."""
    columns: list[list[float | None]] = []
    for place in range(len(contract.included)):
        values = examples.rows[:, place]
        known = values[np.isfinite(values)]
        low, high = np.quantile(known, (0.05, 0.95)) if known.size else (0.0, 1.0)
        drawn = low + (high - low) * uniforms(GOLDEN_SEED, place, N_GOLDEN)
        columns.append([None, *(float(f"{value:.5g}") for value in drawn[1:].tolist())])
    empty = Golden(
        table=tuple(zip(*columns, strict=True)),
        points=SyntheticPoints(seed=GOLDEN_SEED, count=N_GOLDEN),
        outputs=((0.0,) * len(card.outputs[0].columns),) * N_GOLDEN,
        tolerance=GOLDEN_TOLERANCE,
    )
    inputs = golden_inputs(card.model_copy(update={"golden": empty}))
    answers = tuple(tuple(float(f"{value:.7g}") for value in row) for row in model.scores(inputs).tolist())
    return empty.model_copy(update={"outputs": answers})
