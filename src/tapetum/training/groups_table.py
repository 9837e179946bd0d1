"""What the reports of a group's models say, in one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tapetum.core.errors import FormatError, InputError, UsageError
from tapetum.finders.variables import RUNS, members
from tapetum.models.card import load_card
from tapetum.models.registry import CARD_NAME
from tapetum.training.variables_metrics import FIGURES
from tapetum.training.variables_report import IMPORTANCE, PARTS, PLOTS, STATS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WORDS = ("class", "label", "algorithm", "model", "version", "part")
COUNTS = ("seed", "n", "n_of_class", "n_sources")
DESCRIPTIONS = {
    "class": "short code in the taxonomy",
    "part": "of the split",
    "seed": "of the run; in a row of a model, of the run that was chosen",
    "chosen": "the run is the model of the group",
    "n": "light curves",
    "n_of_class": "of which are of the class",
    "threshold": "probability above which the class is given",
    "roc_auc": "area under the ROC curve",
    "average_precision": "area under the steps of precision over recall",
    "brier": "mean squared distance of probability and truth",
    "log_loss": "mean cross-entropy [nat]",
}


def _models(group: Path, algorithm: str | None) -> Iterator[Path]:
    for folder in map(Path, members(group)):
        card = load_card(folder / CARD_NAME)
        if card.table is not None and algorithm in (None, card.algorithm):
            yield folder


def stats_table(
    group: Path, parts: Sequence[str] = ("validation",), *, algorithm: str | None = None, seeds: bool = False
) -> tuple[pa.Table, list[str]]:
    """Figures of every model of a group, with their intervals.

    Parameters
    ----------
    group
        Folder of models.
    parts
        Of the split: keys of `tapetum.training.variables_report.PARTS`.
    algorithm
        Only models by it.
    seeds
        Every run, not only the chosen ones.

    Returns
    -------
    pyarrow.Table
        One row for each model (run) and part: `WORDS`, `COUNTS`, ``threshold``, each figure with ``_low`` and
        ``_high``, ``chosen``.
    list of str
        Models without a report of a part.

    Raises
    ------
    ModelError
        There is no model in the folder.
    UsageError
        There is no such part.
    InputError
        No model has a report of these parts.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"{unknown[0]!r} is no part of the split; there are {', '.join(PARTS)}")
    rows: list[dict[str, Any]] = []
    without = []
    for folder in _models(group, algorithm):
        runs = sorted((folder / RUNS).glob("*")) if seeds and (folder / RUNS).is_dir() else [folder]
        for part in parts:
            found = [_row(path) for run in runs if (path := run / PLOTS / part / STATS).is_file()]
            rows += [row | {"chosen": row["seed"] == _chosen(folder, row)} for row in found]
            if not found:
                without.append(f"{folder}: no {PLOTS}/{part}/{STATS}")
    if not rows:
        raise InputError(
            f"{group}: no model with a report of the part {', '.join(parts)}; models of `tapetum models train` have one"
        )
    columns: dict[str, pa.Array] = {
        name: pa.array([row[name] for row in rows], pa.string()) for name in WORDS
    }
    columns |= {name: pa.array([row[name] for row in rows], pa.int64()) for name in COUNTS}
    for name in ("threshold", *(f"{figure}{end}" for figure in FIGURES for end in ("", "_low", "_high"))):
        columns[name] = pa.array([row[name] for row in rows], pa.float64())
    columns["chosen"] = pa.array([row["chosen"] for row in rows], pa.bool_())
    return pa.table(columns), without


def _chosen(folder: Path, row: dict[str, Any]) -> int:
    found = load_card(folder / CARD_NAME).training.recipe.get("seed")
    return found if isinstance(found, int) else int(row["seed"])


def _row(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        row = {name: content[name] for name in (*WORDS, *COUNTS, "threshold", *FIGURES)}
        for name in FIGURES:
            row[f"{name}_low"], row[f"{name}_high"] = content["intervals"][name]
    except (ValueError, KeyError, TypeError) as problem:
        raise FormatError(
            f"{path}: not figures of a classifier: {type(problem).__name__}: {problem}"
        ) from None
    return row


def importance_table(group: Path, *, algorithm: str | None = None) -> pa.Table:
    """What each feature is worth to each model of a group.

    Returns
    -------
    pyarrow.Table
        One row for each model and feature: class, algorithm, feature, rank (1: the most important), importance, and
        what that is.

    Raises
    ------
    ModelError
        There is no model in the folder.
    InputError
        No model has such a file.
    """
    columns: dict[str, list[Any]] = {
        name: [] for name in ("class", "algorithm", "feature", "rank", "importance", "what")
    }
    for folder in _models(group, algorithm):
        path = folder / PLOTS / IMPORTANCE
        if not path.is_file():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        card = load_card(folder / CARD_NAME)
        for rank, (feature, value) in enumerate(content["features"].items(), 1):
            row = (card.outputs[0].columns[0], card.algorithm, feature, rank, value, content["what"])
            for name, entry in zip(columns, row, strict=True):
                columns[name].append(entry)
    if not columns["class"]:
        raise InputError(f"{group}: no model with {PLOTS}/{IMPORTANCE}")
    return pa.table(columns)
