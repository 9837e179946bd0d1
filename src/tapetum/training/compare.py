"""Models side by side on the same alerts, against packet truth, simulated truth, or a table of labels."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from tapetum.core.errors import InputError
from tapetum.models.registry import find_model
from tapetum.models.runtime import Model
from tapetum.training.datasets import Examples, PacketSource, SimulationSource, join
from tapetum.training.evaluate import FIGURES, Figure, measure
from tapetum.training.macs import count_macs
from tapetum.training.recipe import Recipe, SimulatedData
from tapetum.training.report import comparison, groups_of
from tapetum.training.scoring import known, probabilities_of_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tapetum.training.split import Role

REAL_WORDS = frozenset({"r", "real", "true", "1"})
BOGUS_WORDS = frozenset({"b", "bogus", "false", "0"})
Part = Literal["test", "validation", "all"]
ROLES: Mapping[Part, tuple[Role, ...]] = {
    "test": ("test",),
    "validation": ("validation",),
    "all": ("test", "validation", "fit"),
}
LEAST = 20  # alerts in a group that is worth a row


@dataclass(frozen=True)
class Comparison:
    """Models side by side.

    Attributes
    ----------
    figures
        Of every model on every set of alerts: ``figures[set][model][figure]``.
    macs
        Multiplications and additions that each model needs for one alert; 0 where its graph does not tell.
    """

    figures: dict[str, dict[str, dict[str, Figure]]]
    macs: dict[str, int]

    def as_markdown(self) -> str:
        """One table per set of alerts, and a line with the cost of each model."""
        parts = [f"## {name}\n\n{comparison(models, FIGURES)}\n" for name, models in self.figures.items()]
        costs = [f"{spec} {macs / 1e6:.1f} million" for spec, macs in self.macs.items() if macs]
        if costs:
            parts.append(f"Multiplications per alert: {', '.join(costs)}.")
        return "\n".join(parts)

    def as_json(self) -> str:
        """The same as JSON; an interval that could not be had is NaN."""
        tree = {
            name: {
                model: {key: asdict(value) for key, value in figures.items()}
                for model, figures in models.items()
            }
            for name, models in self.figures.items()
        }
        return json.dumps(tree, indent=1)


def read_labels(path: Path) -> dict[int, bool]:
    """Alert number -> real, from a Parquet or CSV table.

    The number is in the column `alert_id` or `candid`, the label in `label` or `label_1`: r/real/true/1 or
    b/bogus/false/0; any other label, and any row whose column `agreed` is not true, is left out.

    Raises
    ------
    InputError
        It is no such table, or the columns are not there.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    try:
        table = pyarrow.csv.read_csv(path) if path.suffix == ".csv" else pyarrow.parquet.read_table(path)
    except (OSError, pa.ArrowException) as problem:
        raise InputError(f"{path}: labels are a Parquet or .csv table, and this is not: {problem}") from None
    number = next((name for name in ("alert_id", "candid") if name in table.column_names), None)
    label = next((name for name in ("label", "label_1") if name in table.column_names), None)
    if number is None or label is None:
        raise InputError(f"{path}: labels need the columns alert_id (or candid) and label (or label_1)")
    rows = [row for row in table.to_pylist() if row.get("agreed", True)]
    words = {int(row[number]): str(row[label]).lower() for row in rows}
    return {key: word in REAL_WORDS for key, word in words.items() if word in REAL_WORDS | BOGUS_WORDS}


def with_labels(examples: Examples, labels: Mapping[int, bool]) -> Examples:
    """The examples that have a label, with it as their truth."""
    chosen = examples.take(np.array([int(number) in labels for number in examples.alert_id], bool))
    return replace(chosen, target=np.array([labels[int(number)] for number in chosen.alert_id], np.float32))


def gather(
    recipe: Recipe, paths: Sequence[Path], part: Part, labels: Mapping[int, bool] | None, simulated: bool
) -> dict[str, Examples]:
    """The sets of alerts to measure on, by name."""
    sets: dict[str, Examples] = {}
    if paths:
        source = PacketSource(paths, recipe.truth)
        by_role = {role: source.examples(role) for role in ROLES[part]}
        if labels is not None:
            by_role = {role: with_labels(examples, labels) for role, examples in by_role.items()}
        name = (
            "packets, truth by their own score and shape"
            if labels is None
            else "packets, labels of the table"
        )
        sets[f"{name} ({part} part)"] = join(list(by_role.values()))
        if labels is not None and part == "all":
            sets[f"{name} (test part)"] = by_role["test"]
    data = next((entry for entry in recipe.data if isinstance(entry, SimulatedData)), None)
    if simulated and data is not None:
        sets["simulated (test part)"] = SimulationSource(data).examples("test")
    return {name: known(examples) for name, examples in sets.items()}


def compare(
    models: Sequence[str], sets: Mapping[str, Examples], *, groups: bool = False, seed: int = 0
) -> Comparison:
    """Measure models on the same alerts.

    Parameters
    ----------
    models
        Names, ``name@version`` or paths.
    sets
        Alerts with known truth, as `gather` gives them.
    groups
        Also by survey, edge and magnitude.
    seed
        Of the bootstrap: all models see the same resampled objects.

    Raises
    ------
    ModelError
        A model is not there or takes more than stamps.
    InputError
        There is nothing to measure on.
    """
    if not any(len(examples) for examples in sets.values()):
        raise InputError("no alert with a known truth in this part of the split: nothing to measure on")
    loaded = {spec: Model.load(spec) for spec in models}
    figures: dict[str, dict[str, dict[str, Figure]]] = {}
    for name, examples in sets.items():
        for title, part in _divided(name, examples) if groups else [(name, examples)]:
            if not len(part):
                continue
            figures[title] = {
                spec: measure(probabilities_of_model(model, part), part.target, part.object_id, seed=seed)
                for spec, model in loaded.items()
            }
    return Comparison(figures, {spec: _macs(spec) for spec in models})


def _macs(spec: str) -> int:
    try:
        return count_macs(find_model(spec).onnx)
    except ValueError:  # sizes that are known only when it runs
        return 0


def _divided(name: str, examples: Examples) -> list[tuple[str, Examples]]:
    parts = [(name, examples)]
    for way, groups in groups_of(examples).items():
        labels = np.array(groups)
        for group in sorted(set(groups)):
            chosen = examples.take(labels == group)
            if len(chosen) >= LEAST:
                parts.append((f"{name}, {way}: {group}", chosen))
    return parts
