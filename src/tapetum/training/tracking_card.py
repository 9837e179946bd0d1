"""The card of a network for tracking errors: contract, golden vectors, calibration, figures. Without torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tapetum.core.errors import InputError
from tapetum.models.calibration import logit
from tapetum.models.card import (
    ClassSpec,
    Golden,
    Metric,
    ModelCard,
    Output,
    Reliability,
    ReliabilityBin,
    SyntheticFrames,
)
from tapetum.models.golden import golden_inputs
from tapetum.models.runtime import Model
from tapetum.training.calibrate import fit_calibration
from tapetum.training.evaluate import FIGURES, expected_calibration_error, measure, reliability
from tapetum.training.record import card_body, data_sets_of, join_keys
from tapetum.training.report import CONFIDENCE, as_metric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.training.datasets import Key
    from tapetum.training.split import Role
    from tapetum.training.tracking_data import TileExample
    from tapetum.training.tracking_recipe import TrackingRecipe

    Values = NDArray[np.float64]
    Rows = NDArray[np.bool_]

CLASS, SCORE, TRAIL = "tracking_error", "score", "trail"
GOLDEN = SyntheticFrames(seed=20260, count=4, size=256)
LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # pixel; figures are given about each, within a factor of sqrt(2)
PRIOR, THRESHOLD = 0.05, 0.5
AT_ONCE = 8


def require_both_classes(tiles: Sequence[TileExample]) -> None:
    """Refuse a validation part on which no calibration can be fitted.

    Raises
    ------
    InputError
        Says how many tiles it has.
    """
    errors = np.array([tile.target[0] for tile in tiles])
    if not ((errors == 1).any() and (errors == 0).any()):
        raise InputError(
            "nothing to calibrate on: the validation part needs trailed and tracked tiles, and has "
            f"{int((errors == 1).sum())} and {int((errors == 0).sum())}; the recipe's `validation` must be larger"
        )


def describe(
    recipe: TrackingRecipe,
    onnx: Path,
    sets: Mapping[str, Sequence[TileExample]],
    keys: Mapping[Role, Sequence[Sequence[Key]]],
    today: date,
) -> ModelCard:
    """The card of an exported network."""
    used = {role: join_keys(names) for role, names in keys.items()}
    body = {
        **card_body(recipe, onnx, data_sets_of(used, recipe.card.citations), today),
        "finder": "tracking",
        "inputs": (recipe.input,),
        "outputs": (
            Output(name=SCORE, columns=(CLASS,), activation="sigmoid"),
            Output(name=TRAIL, columns=("length_cos_2_angle", "length_sin_2_angle"), activation="none"),
        ),
        "classes": (
            ClassSpec(
                name=CLASS, title="Tracking error", training_prior=0.5, prior=PRIOR, threshold=THRESHOLD
            ),
        ),
    }
    model = Model(ModelCard(**body), onnx.read_bytes(), str(onnx))
    empty = ModelCard(
        **body, golden=Golden(frames=GOLDEN, outputs=tuple((0.0,) for _ in range(GOLDEN.count)))
    )
    golden = Golden(frames=GOLDEN, outputs=tuple(map(tuple, model.scores(golden_inputs(empty)).tolist())))
    return _measured(model.card.model_copy(update={"golden": golden}), onnx, sets, recipe.calibration.method)


def _measured(
    card: ModelCard, onnx: Path, sets: Mapping[str, Sequence[TileExample]], method: str
) -> ModelCard:
    """The card with a calibration from validation, figures and reliability from test."""
    score, _ = answers_of_model(Model(card, onnx.read_bytes(), str(onnx)), sets["validation"])
    error = np.array([tile.target[0] for tile in sets["validation"]], np.float64)
    known = np.isfinite(error)
    calibration = fit_calibration(method, logit(score[known]), error[known], balance(error[known]))
    card = card.model_copy(update={"calibration": calibration})
    test = sets["test"]
    model = Model(card, onnx.read_bytes(), str(onnx))
    score, trail = answers_of_model(model, test)
    probability = model.probability(score)
    update = {"metrics": metrics_of(test, probability, trail), "reliability": _reliability(test, probability)}
    return ModelCard.model_validate(card.model_copy(update=update).model_dump())


def balance(error: Values) -> Values:
    """Weights that make both classes equally frequent; they sum to the number of tiles."""
    share = float(error.mean())
    return np.where(error == 1, 0.5 / share, 0.5 / (1 - share))


def answers_of_model(model: Model, tiles: Sequence[TileExample]) -> tuple[Values, Values]:
    """Scores, shape (n,), and trail vectors, shape (n, 2) [pixel]."""
    assert model.card.frame is not None
    parts = [
        model.outputs(
            {model.card.frame.name: np.stack([tile.image for tile in part]).astype(np.float32)[:, None]}
        )
        for part in (tiles[start : start + AT_ONCE] for start in range(0, len(tiles), AT_ONCE))
    ]
    return np.concatenate([part[SCORE][:, 0] for part in parts]), np.concatenate(
        [part[TRAIL] for part in parts]
    )


def metrics_of(tiles: Sequence[TileExample], probability: Values, trail: Values) -> dict[str, Metric]:
    """Figures of test tiles: of all with a known truth, by length of the trail, and false alarms by content."""
    error = np.array([tile.target[0] for tile in tiles], np.float64)
    names = [tile.name for tile in tiles]
    known = np.isfinite(error)
    figures = measure(probability[known], error[known], [n for n, k in zip(names, known, strict=True) if k])
    out = {
        f"simulated_{name}": as_metric(figure, "test part, simulated tiles")
        for name, figure in figures.items()
    }
    out |= _by_length(tiles, error, probability, trail)
    out |= _false_alarms(tiles, error, probability)
    return {name: metric for name, metric in out.items() if math.isfinite(metric.value)}


def _by_length(
    tiles: Sequence[TileExample], error: Values, probability: Values, trail: Values
) -> dict[str, Metric]:
    """AUC against tracked tiles with stars, share called trailed at one half, and error of the trail vector."""
    length = np.array([tile.length_pix for tile in tiles])
    truth = np.array([tile.target[1:] for tile in tiles], np.float64)
    shown = np.isfinite(truth[:, 0])
    tracked = shown & (error == 0)
    out = {}
    for middle in LENGTHS:
        near = shown & (error != 0) & (np.abs(np.log2(np.maximum(length, 1e-3) / middle)) <= 0.5)
        rows = near | tracked
        if near.sum() < 20:
            continue
        data, key = f"test part, trails of {middle:g} pixel", f"{middle:g}_pix"
        objects = [str(number) for number in np.flatnonzero(rows)]
        figures = measure(
            probability[rows], near[rows].astype(np.float64), objects, names=("auc",), n_bootstrap=200
        )
        out[f"auc_{key}"] = as_metric(figures["auc"], data)
        part = measure(
            probability[near],
            np.ones(near.sum()),
            objects[: near.sum()],
            names=("accepted",),
            n_bootstrap=200,
        )
        out[f"called_{key}"] = as_metric(part["accepted"], data)
        out[f"trail_error_{key}"] = _median(np.hypot(*(trail[near] - truth[near]).T), data)
    return out


def _median(values: Values, data: str) -> Metric:
    """Median with its interval from order statistics, which needs no assumption about the distribution."""
    ordered, n = np.sort(values), len(values)
    off = 0.98 * math.sqrt(n)  # half of 1.96 standard deviations of a binomial of one half
    low, high = (ordered[int(np.clip(round(n / 2 + sign * off), 0, n - 1))] for sign in (-1, 1))
    return Metric(
        value=float(np.median(ordered)), low=float(low), high=float(high), confidence=CONFIDENCE, n=n, data=data,
        note="median distance between trail vectors (length times cos and sin of twice the angle) [pixel]",
    )  # fmt: skip


def _false_alarms(tiles: Sequence[TileExample], error: Values, probability: Values) -> dict[str, Metric]:
    """Share of the tracked tiles called trailed at one half, by what is in them."""
    groups: dict[str, Rows] = {"no_stars": np.array(["stars" not in tile.tags for tile in tiles])}
    for tag in sorted(set().union(*(tile.tags for tile in tiles)) - {"stars"}):
        groups[tag] = np.array([{tag, "stars"} <= tile.tags for tile in tiles])
    out = {}
    for name, rows in groups.items():
        part = rows & (error == 0)
        if part.sum() < 20:
            continue
        objects = [str(number) for number in range(int(part.sum()))]
        figure = measure(probability[part], error[part], objects, names=("accepted",), n_bootstrap=200)[
            "accepted"
        ]
        out[f"false_{name}"] = as_metric(figure, f"test part, tracked tiles: {name}")
    return out


def _reliability(tiles: Sequence[TileExample], probability: Values) -> Reliability:
    error = np.array([tile.target[0] for tile in tiles], np.float64)
    known = np.isfinite(error)
    bins = reliability(probability[known], error[known])
    bars = tuple(
        ReliabilityBin(low=b.low, high=b.high, n=b.n, mean_probability=b.mean, fraction_positive=b.fraction)
        for b in bins
    )
    n = int(known.sum())
    return Reliability(data=f"test part: {n} simulated", n=n, ece=expected_calibration_error(bins), bins=bars)


__all__ = ["FIGURES", "answers_of_model", "balance", "describe", "metrics_of", "require_both_classes"]
