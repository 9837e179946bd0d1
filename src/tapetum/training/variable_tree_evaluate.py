"""Measure a classifier over a tree of classes on labelled light curves. Needs no torch."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tapetum.core.errors import InputError, UsageError
from tapetum.core.progress import Progress, no_progress
from tapetum.finders.variable_tree import is_tree, softmax
from tapetum.models.runtime import Model
from tapetum.training.variable_tree_card import logits_of, report_of
from tapetum.training.variable_tree_data import CurveSource
from tapetum.training.variable_tree_recipe import VariableTreeRecipe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tapetum.models.card import CardBody


def recipe_of(card: CardBody) -> VariableTreeRecipe:
    """The recipe that a classifier was made by, as its card has it.

    Raises
    ------
    InputError
        The card is of another kind.
    """
    words = {"title": card.title, "version": card.version, "description": card.training.description}
    try:
        return VariableTreeRecipe.model_validate({**card.training.recipe, "card": words})
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{card.name}: not a classifier over a tree of classes: {place}: {first['msg']}"
        ) from None


def evaluate_tree(
    spec: str, paths: Sequence[Path], part: str = "test", progress: Progress = no_progress
) -> dict[str, Any]:
    """Every figure of a classifier on labelled light curves.

    Parameters
    ----------
    spec
        Model: name, name@version or path.
    paths
        Labelled light curves; the card says what their labels mean.
    part
        Of the split: test.
    progress
        Told the curves whose periods were searched for.

    Returns
    -------
    dict
        Plain values: ``model``, ``version``, ``part``, ``metrics``, ``classes``, ``by_points``, ``by_survey``,
        ``reliability``.

    Raises
    ------
    UsageError
        The part is another one than test.
    InputError
        The model is of another kind, or no curve of the part has a label that is an answer.
    """
    if part != "test":
        raise UsageError(
            f"--part {part}: a classifier of light curves learned from all stars but those of test"
        )
    model = Model.load(spec)
    card = model.card
    if not is_tree(card):
        raise InputError(f"{spec}: not a classifier over a tree of classes of light curves")
    recipe = recipe_of(card)
    source = CurveSource(recipe, paths, answers=card.outputs[0].columns)
    source.progress = progress
    examples = source.examples("test")
    if not examples.sure.any():
        raise InputError(
            f"{paths[0]}: no light curve of the {part} part has a class that {card.name} answers with"
        )
    calibration = card.calibration
    temperature = calibration.temperature if calibration.method == "temperature" else 1.0
    probability = softmax(logits_of(model, examples) / temperature)
    report = report_of(probability, examples, card.outputs[0].columns, recipe.taxonomy, card.thresholds)
    metrics = {name: metric.model_dump(exclude_none=True) for name, metric in report.pop("metrics").items()}
    found = {"model": card.name, "version": card.version, "part": part, "metrics": metrics, **report}
    made: dict[str, Any] = json.loads(json.dumps(found, default=float), parse_constant=lambda _: None)
    return made


def as_text(report: dict[str, Any], *, plain: bool) -> str:
    """A report as JSON, or in Markdown."""
    if plain:
        return json.dumps(report, indent=1)
    lines = [f"{report['model']} {report['version']}, {report['part']} part", ""]
    lines += ["| figure | value | 95 % |", "|---|---|---|"]
    for name, metric in report["metrics"].items():
        ends = f"{metric['low']:.3f} to {metric['high']:.3f}" if "low" in metric else ""
        lines.append(f"| {name} | {metric['value']:.3f} | {ends} |")
    for title, rows in (
        ("Classes", report["classes"]), ("Number of points", report["by_points"]), ("Surveys", report["by_survey"]),
        ("Reliability", report["reliability"]),
    ):  # fmt: skip
        if rows:
            lines += ["", title, "", *_table(rows)]
    return "\n".join(lines)


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = list(rows[0])
    body = [[_cell(row[name]) for name in names] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (names, ["---"] * len(names), *body)]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
