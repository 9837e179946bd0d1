"""How a classifier does on each part of the split, in files beside it: figures with intervals, pictures, importance."""

from __future__ import annotations

import json
import math
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.files import whole_file
from tapetum.training.variables_figures import draw_confusion, draw_importance, draw_recall, draw_roc
from tapetum.training.variables_metrics import CONFIDENCE, Ranking, figures_of
from tapetum.training.variables_recipe import DMDT, FEATURES
from tapetum.training.variables_warm import CHOSEN

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tapetum.models.runtime import Model
    from tapetum.training.evaluate import Figure
    from tapetum.training.split import Role
    from tapetum.training.variables_data import Rows, TableSource

PLOTS, STATS, IMPORTANCE = "plots", "stats.json", "importance.json"
PARTS: Mapping[str, Role] = {"training": "fit", "validation": "validation", "test": "test"}
GAIN, SHUFFLED = "share of the gain of all splits", "rise of the cross-entropy when shuffled"
SHUFFLED_ROWS = 1000  # of the validation part


def write_report(
    folder: Path, model: Model, source: TableSource, *, pictures: bool, importance: bool = True
) -> dict[str, dict[str, Figure]]:
    """Judge a finished classifier on the training, validation and test part.

    Parameters
    ----------
    folder
        Gets ``plots/PART/stats.json`` and, with `pictures`, the confusion matrix, precision over recall
        and the ROC curve of every part, and what each feature is worth.
    model
        The classifier; the numbers of boosted trees lie in `folder`.
    source
        That it was made from.
    pictures
        Draw them.
    importance
        Also ``plots/importance.json``.

    Returns
    -------
    dict
        ``[part][figure]``; parts without rows are not in it.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    plots = folder / PLOTS
    shutil.rmtree(plots, ignore_errors=True)
    out = {}
    for part, role in PARTS.items():
        rows = source.rows(role)
        if not len(rows):
            continue
        probability = model.probability(model.scores(rows.inputs)[:, 0])
        ranking = Ranking.of(probability, rows.target, rows.object_id, model.card.classes[0].threshold)
        figures = figures_of(ranking)
        (plots / part).mkdir(parents=True, exist_ok=True)
        _write(plots / part / STATS, _stats(model, part, ranking, figures))
        if pictures:
            _draw(plots / part, model, part, ranking, figures)
        out[part] = figures
    if importance:
        what, worth = _importance(folder, model, source)
        _write(plots / IMPORTANCE, {"what": what, "features": worth})
        if pictures:
            draw_importance(plots / "importance.svg", worth, what, _title(model))
    return out


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _title(model: Model) -> str:
    return f"{model.card.name} {model.card.version}"


def _stats(model: Model, part: str, ranking: Ranking, figures: Mapping[str, Figure]) -> dict[str, Any]:
    card = model.card
    return {
        "model": card.name,
        "version": card.version,
        "sha256": card.onnx_sha256,
        "class": card.classes[0].name,
        "label": card.classes[0].title,
        "algorithm": card.algorithm,
        "seed": card.training.recipe.get("seed"),
        "part": part,
        "n": len(ranking.target),
        "n_of_class": int(ranking.target.sum()),
        "n_sources": ranking.n_sources,
        "threshold": ranking.threshold,
        "confusion": [[int(count) for count in row] for row in ranking.counts()],
        **{name: _number(figure.value) for name, figure in figures.items()},
        "confidence": CONFIDENCE,
        "intervals": {name: [_number(entry.low), _number(entry.high)] for name, entry in figures.items()},
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _draw(folder: Path, model: Model, part: str, ranking: Ranking, figures: Mapping[str, Figure]) -> None:
    title = f"{_title(model)}, {part} part"
    draw_confusion(folder / "confusion.svg", ranking, model.card.classes[0].name, title)
    if 0 < ranking.target.sum() < len(ranking.target):
        draw_recall(folder / "recall.svg", ranking, figures, title)
        draw_roc(folder / "roc.svg", ranking, figures, title)


def _importance(folder: Path, model: Model, source: TableSource) -> tuple[str, dict[str, float]]:
    """What each feature is worth, the most important first, and in which sense."""
    trees = folder / CHOSEN
    if trees.is_file():
        gain: dict[str, float] = json.loads(trees.read_text(encoding="utf-8"))["importance"]
        return GAIN, gain
    rows = source.rows("validation")
    some = np.random.default_rng(0).permutation(len(rows))[:SHUFFLED_ROWS]
    names = [source.contract.column(feature) for feature in source.contract.included]
    return SHUFFLED, shuffled_importance(model, rows.take(some), names)


def shuffled_importance(model: Model, rows: Rows, names: list[str]) -> dict[str, float]:
    """How much larger the mean cross-entropy becomes when one feature is shuffled among the rows, largest first.

    Parameters
    ----------
    model
        The classifier.
    rows
        That it did not learn from.
    names
        Of the features, in the order of the input; a histogram of pairs is shuffled as a whole.

    Notes
    -----
    Breiman (2001, Machine Learning 45, 5), with the loss instead of the error rate.
    """
    order = np.random.default_rng(1).permutation(len(rows))

    def loss(inputs: Mapping[str, Any]) -> float:
        probability = model.probability(model.scores(inputs)[:, 0])
        return float(Ranking.of(probability, rows.target, rows.object_id, 0.5).figures()[-1])

    whole = loss(rows.inputs)
    rise = {}
    for at, name in enumerate(names):
        values = rows.values.copy()
        values[:, at] = values[order, at]
        rise[name] = loss({**rows.inputs, FEATURES: values}) - whole
    if rows.pictures is not None:
        rise[DMDT] = loss({**rows.inputs, DMDT: rows.pictures[order]}) - whole
    return dict(sorted(rise.items(), key=lambda entry: -entry[1]))
