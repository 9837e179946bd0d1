"""From a recipe to a model: train, export, calibrate, measure, write the card. Needs torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError, UsageError
from tapetum.core.files import sha256_of, whole_file
from tapetum.core.progress import Progress, no_progress
from tapetum.models.card import (
    DataSet,
    Golden,
    ModelCard,
    Output,
    Source,
    SyntheticStamps,
    Training,
    write_card,
)
from tapetum.models.golden import golden_inputs
from tapetum.models.inputs import prepare_images
from tapetum.models.registry import find_model
from tapetum.models.runtime import Model
from tapetum.training.calibrate import fit_calibration
from tapetum.training.datasets import Examples, join, open_sources
from tapetum.training.evaluate import sure, threshold_at_tpr
from tapetum.training.networks import require_torch
from tapetum.training.report import domain_of, metrics_of, reliability_of
from tapetum.training.scoring import known, logits_of_model, probabilities_of_model

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.training.recipe import Recipe
    from tapetum.training.split import Role

GOLDEN = SyntheticStamps(seed=20260, count=12, size=63)
THRESHOLD_TPR = (0.99, 0.97, 0.95, 0.90)
CHECKED_ALERTS = 256  # on which ONNX and torch are compared
SPLIT = (
    "by object: int(sha1(object_id)[:8], 16) % 10 is 5 to 9 for training (of which int(sha1(object_id)[8:16], 16) % 10 "
    "0 and 1 for validation and calibration), 3 and 4 for test, 0 to 2 never read; simulated objects by their names too"
)


@dataclass(frozen=True)
class Trained:
    """Where a model was written and what its card says."""

    folder: Path
    card: ModelCard


def train(
    recipe: Recipe,
    paths: Sequence[Path],
    folder: Path,
    *,
    today: date,
    device: str = "cpu",
    progress: Progress = no_progress,
    without: Collection[str] = (),
    overwrite: bool = False,
) -> Trained:
    """Make the model of a recipe in `folder`, going on where an interrupted run stopped.

    Parameters
    ----------
    recipe
        What to make.
    paths
        Files of the user for the data source ``packets``.
    folder
        Gets ``model.onnx``, ``card.json``, and the checkpoint and log of the run.
    today
        Date for the card.
    device
        A torch device.
    progress
        Told the epochs.
    without
        Kinds of data source of the recipe that are left out.
    overwrite
        Forget an earlier run in `folder`.

    Raises
    ------
    UsageError
        `folder` holds the run of another recipe, or no data source is left.
    MissingExtraError
        torch is not installed.
    InputError
        The sources have no validation examples of both classes.
    ModelError
        The exported network does not agree with torch.
    """
    require_torch()
    from tapetum.training.export import check_onnx, export_onnx
    from tapetum.training.loop import fit

    recipe = recipe.model_copy(update={"data": [data for data in recipe.data if data.source not in without]})
    if not recipe.data:
        raise UsageError("no data source is left to train on")
    _claim(folder, recipe, overwrite=overwrite)
    sources = open_sources(recipe, paths)
    network = fit(recipe, sources, folder, device=device, progress=progress)
    validation = known(join([source.examples("validation") for source, _ in sources]))
    if not len(validation):
        raise InputError(
            "no example to calibrate on: the recipe's sources have none in the validation part of the split"
        )
    onnx = folder / "model.onnx"
    shape = (recipe.input.n_planes, recipe.input.size, recipe.input.size)
    export_onnx(network, onnx, recipe.input.name, shape, recipe.opset)
    rows = slice(0, CHECKED_ALERTS)
    check_onnx(onnx, network, prepare_images(validation.stamps[rows], validation.shapes[rows], recipe.input))
    test = known(join([source.examples("test") for source, _ in sources]))
    fitted = join([known(source.examples("fit", 0)) for source, _ in sources])
    card = describe(recipe, onnx, {"training": fitted, "validation": validation, "test": test}, today)
    write_card(folder / "card.json", card)
    Model.load(str(onnx))  # as a user will: hash, ports, golden vectors
    return Trained(folder, card)


def _claim(folder: Path, recipe: Recipe, *, overwrite: bool) -> None:
    # a checkpoint of another recipe must not become part of this model; the words of the card may change
    record = folder / "recipe.json"
    if overwrite:
        for name in ("checkpoint.npz", "log.csv", record.name):
            (folder / name).unlink(missing_ok=True)
    settings = recipe.model_dump(mode="json", exclude={"card"})
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) != settings:
        raise UsageError(f"{folder} holds a run of another recipe; choose another folder or give --overwrite")
    with whole_file(record) as part:
        part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def recalibrate(
    spec: str,
    recipe: Recipe,
    paths: Sequence[Path],
    folder: Path,
    *,
    method: str,
    today: date,
    without: Collection[str] = (),
) -> ModelCard:
    """Fit the calibration of a model again on validation examples; the next PATCH version.

    Parameters
    ----------
    spec
        Name, ``name@version`` or path of the model.
    recipe
        Names the sources and the rules of truth.
    paths
        Files of the user for the data source ``packets``.
    folder
        Gets ``model.onnx``, unchanged, and ``card.json``.
    method
        temperature, platt or isotonic.
    today
        Date for the card.
    without
        Kinds of data source that are left out.

    Raises
    ------
    ModelError
        No such model.
    InputError
        The sources have no validation examples of both classes.
    """
    files = find_model(spec)
    card = Model.load(spec).card
    recipe = recipe.model_copy(update={"data": [data for data in recipe.data if data.source not in without]})
    sources = [source for source, _ in open_sources(recipe, paths)]
    roles: tuple[Role, ...] = ("validation", "test")
    sets: dict[str, Examples] = {
        role: known(join([source.examples(role) for source in sources])) for role in roles
    }
    major, minor, patch = (int(number) for number in card.version.split("."))
    card = card.model_copy(update={"version": f"{major}.{minor}.{patch + 1}", "created": today.isoformat()})
    card = measured(card, files.onnx, sets, method)
    with whole_file(folder / "model.onnx") as part:
        part.write_bytes(files.onnx.read_bytes())
    write_card(folder / "card.json", card)
    return card


def describe(recipe: Recipe, onnx: Path, sets: dict[str, Examples], today: date) -> ModelCard:
    """The card of an exported network, with golden vectors; the rest as `measured` says."""
    body: dict[str, Any] = {
        "name": recipe.name,
        "version": recipe.card.version,
        "title": recipe.card.title,
        "licence": "BSD-3-Clause",
        "authors": ("The Tapetum developers",),
        "source": Source(description=recipe.card.description),
        "created": today.isoformat(),
        "onnx_sha256": sha256_of(onnx),
        "inputs": (recipe.input,),
        "outputs": (Output(name="score", columns=("real",), activation="sigmoid"),),
        "surveys": tuple(sorted(set(sets["training"].origin) - {"simulated"})),
        "training": _training(recipe, sets),
        "notes": tuple(recipe.card.notes),
        "limitations": tuple(recipe.card.limitations),
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


def _training(recipe: Recipe, sets: dict[str, Examples]) -> Training:
    data = []
    for role, examples in sets.items():
        for origin in sorted(set(examples.origin)):
            n = examples.origin.count(origin)
            objects = len(
                {
                    name
                    for name, where in zip(examples.object_id, examples.origin, strict=True)
                    if where == origin
                }
            )
            data.append(
                DataSet(
                    name=origin,
                    n=n,
                    role=role,
                    description=f"{objects} objects",
                    citation=recipe.card.citations.get(origin),
                )
            )
    settings = recipe.model_dump(mode="json", exclude={"card"})
    return Training(description=recipe.card.description, data=tuple(data), split=SPLIT, recipe=settings)
