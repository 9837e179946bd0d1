"""From a recipe to a model: train, export, calibrate, measure, write the card. Needs torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError, ModelError, UsageError
from tapetum.core.files import sha256_of, whole_file
from tapetum.core.progress import Progress, no_progress
from tapetum.models.card import (
    DataSet,
    Golden,
    ModelCard,
    Output,
    SyntheticStamps,
    Training,
    load_card,
    write_card,
)
from tapetum.models.card import Source as CardSource
from tapetum.models.golden import golden_inputs
from tapetum.models.inputs import prepare_images
from tapetum.models.registry import CARD_NAME, ONNX_NAME, find_model, list_models
from tapetum.models.runtime import Model
from tapetum.training.calibrate import fit_calibration
from tapetum.training.datasets import SOURCES, Examples, Key, Source, join, open_sources
from tapetum.training.evaluate import sure, threshold_at_tpr
from tapetum.training.networks import require_torch
from tapetum.training.recipe import PacketData
from tapetum.training.report import domain_of, metrics_of, reliability_of
from tapetum.training.scoring import known, logits_of_model, probabilities_of_model

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.training.recipe import Recipe
    from tapetum.training.split import Role

GOLDEN = SyntheticStamps(seed=20260, count=12, size=63)
THRESHOLD_TPR = (0.99, 0.97, 0.95, 0.90)
RECORD = "recipe.json"
CALIBRATED = "Calibration of version"  # how the note of a new calibration begins
OF_A_RUN = ("checkpoint.npz", "log.csv", RECORD, "settings.toml", ONNX_NAME, CARD_NAME)
USED_ROLES: tuple[Role, ...] = ("fit", "validation", "test")
CHECKED_ALERTS = 256  # on which ONNX and torch are compared
SPLIT = (
    "by object: int(sha1(object_id)[:8], 16) % 10 is 5 to 9 for training (of which int(sha1(object_id)[8:16], 16) % 10 "
    "0 and 1 for validation and calibration), 3 and 4 for test, 0 to 2 never read; simulated objects by their names too"
)


@dataclass(frozen=True)
class Trained:
    """Where a model was written and what its card says.

    Attributes
    ----------
    finished_before
        The folder held this very run, whole: nothing was done.
    """

    folder: Path
    card: ModelCard
    finished_before: bool = False


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
        Forget an earlier run in `folder`, and its model.

    Raises
    ------
    UsageError
        `folder` holds another run, no data source is left, torch has no such device, or another model has this
        name and version.
    MissingExtraError
        torch is not installed.
    InputError
        The sources have no examples to learn from, or no validation examples of both classes.
    ModelError
        The exported network does not agree with torch.
    """
    require_torch()
    from tapetum.training.export import check_onnx, export_onnx
    from tapetum.training.loop import fit, require_device

    require_device(device)
    recipe = _chosen(recipe, paths, without)
    finished = not overwrite and all((folder / name).is_file() for name in (RECORD, ONNX_NAME, CARD_NAME))
    if not finished:
        _require_own_name(recipe, folder)
    sources = open_sources(recipe, paths)
    keys = keys_of([source for source, _ in sources], recipe.optimiser.epochs)
    record = {**_settings(recipe), "data_sha256": fingerprint(keys)}
    if finished:
        return _found(folder, recipe, record)
    validation = _validation(sources, keys)
    _claim(folder, record, overwrite=overwrite)
    network = fit(recipe, sources, folder, device=device, progress=progress)
    onnx = folder / ONNX_NAME
    shape = (recipe.input.n_planes, recipe.input.size, recipe.input.size)
    export_onnx(network, onnx, recipe.input.name, shape, recipe.opset)
    rows = slice(0, CHECKED_ALERTS)
    check_onnx(onnx, network, prepare_images(validation.stamps[rows], validation.shapes[rows], recipe.input))
    test = known(join([source.examples("test") for source, _ in sources]))
    card = describe(recipe, onnx, {"validation": validation, "test": test}, keys, today)
    write_card(folder / CARD_NAME, card)
    Model.load(str(onnx))  # as a user will: hash, ports, golden vectors
    return Trained(folder, card)


def _chosen(recipe: Recipe, paths: Sequence[Path], without: Collection[str]) -> Recipe:
    _require_known("--without", without)
    data = [entry for entry in recipe.data if entry.source not in without]
    if not data:
        raise UsageError("no data source is left to train on")
    if paths and not any(isinstance(entry, PacketData) for entry in data):
        raise UsageError("--alerts names packets, but the recipe takes none, or --without leaves them out")
    return recipe.model_copy(update={"data": data})


def _require_known(option: str, sources: Collection[str]) -> None:
    if unknown := sorted(set(sources) - set(SOURCES)):
        raise UsageError(f"{option} {unknown[0]}: no such data source; known: {', '.join(SOURCES)}")


def free_version(recipe: Recipe, folder: Path) -> str:
    """The version of a network made by `recipe`: the next MINOR one where its name is taken, else the recipe's.

    A folder that has a model of this name already keeps its version: it is the same run.
    """
    if (folder / CARD_NAME).is_file() and (card := load_card(folder / CARD_NAME)).name == recipe.name:
        return card.version
    taken = [_numbers(model.version) for model in list_models() if model.name == recipe.name]
    wanted = _numbers(recipe.card.version)
    if not taken or wanted > max(taken):
        return recipe.card.version
    major, minor, _ = max(taken)
    return f"{major}.{minor + 1}.0"


def _numbers(version: str) -> tuple[int, int, int]:
    major, minor, patch = (int(number) for number in version.split("."))
    return major, minor, patch


def _require_own_name(recipe: Recipe, folder: Path) -> None:
    # scores are kept by name and version: two networks must not share both
    try:
        other = find_model(f"{recipe.name}@{recipe.card.version}").onnx
    except ModelError:
        return
    if other.parent.resolve() == folder.resolve():
        return
    onnx = folder / ONNX_NAME
    if onnx.is_file() and sha256_of(onnx) == sha256_of(other):
        return
    raise UsageError(
        f"there is a model {recipe.name} {recipe.card.version} already ({other.parent}); "
        "choose another --version, or another --name"
    )


def keys_of(sources: Sequence[Source], epochs: int) -> dict[Role, list[list[Key]]]:
    """Every example that a run uses, by role and source."""
    return {role: [source.keys(role, epochs) for source in sources] for role in USED_ROLES}


def fingerprint(keys: Mapping[Role, Sequence[Sequence[Key]]]) -> str:
    """Hash of the names of all examples, by role and source, in order."""
    digest = hashlib.sha256()
    for role, sources in keys.items():
        for number, names in enumerate(sources):
            for key in names:
                digest.update(json.dumps([role, number, *key]).encode() + b"\n")
    return digest.hexdigest()


def _validation(
    sources: Sequence[tuple[Source, int]], keys: Mapping[Role, Sequence[Sequence[Key]]]
) -> Examples:
    if not any(keys["fit"]):
        raise InputError(
            "no example to learn from: the sources have none of known truth in the training part"
        )
    validation = known(join([source.examples("validation") for source, _ in sources]))
    _require_both_classes(validation)
    return validation


def _require_both_classes(validation: Examples) -> None:
    if not len(validation) or not 0 < float(validation.target.mean()) < 1:
        raise InputError(
            "nothing to calibrate on: the validation part of the split needs real and bogus alerts of known truth, "
            f"and has {len(validation)} alerts, {int((validation.target > 0.5).sum())} of them real"
        )


def _settings(recipe: Recipe) -> dict[str, Any]:
    # the words of the card may change between the start and the end of a run
    settings: dict[str, Any] = recipe.model_dump(mode="json", exclude={"card"})
    return settings


def _require_same(folder: Path, record: Mapping[str, Any]) -> None:
    try:
        earlier = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except ValueError:
        earlier = {}
    if earlier == record:
        return
    same_recipe = isinstance(earlier, dict) and {**earlier, "data_sha256": record["data_sha256"]} == record
    what = "on other data, or on the same in another order" if same_recipe else "of another recipe"
    raise UsageError(f"{folder} holds a run {what}; choose another folder or give --overwrite")


def _found(folder: Path, recipe: Recipe, record: Mapping[str, Any]) -> Trained:
    _require_same(folder, record)
    card = load_card(folder / CARD_NAME)
    if card.version != recipe.card.version:
        raise UsageError(
            f"{folder} holds {card.name} {card.version}, not {recipe.card.version}; "
            "choose another folder or give --overwrite"
        )
    return Trained(folder, card, finished_before=True)


def _claim(folder: Path, record: Mapping[str, Any], *, overwrite: bool) -> None:
    # a checkpoint of another recipe or of other data must not become part of this model
    if overwrite:
        for name in OF_A_RUN:
            (folder / name).unlink(missing_ok=True)
    elif (folder / RECORD).is_file():
        _require_same(folder, record)
    elif there := [name for name in OF_A_RUN if (folder / name).exists()]:
        raise UsageError(
            f"{folder} holds {there[0]} of something else; choose another folder or give --overwrite"
        )
    with whole_file(folder / RECORD) as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def recalibrate(
    spec: str,
    recipe: Recipe,
    paths: Sequence[Path],
    folder: Path,
    *,
    method: str,
    today: date,
    also: Collection[str] = (),
) -> ModelCard:
    """Fit the calibration of a model again on validation examples; the next PATCH version.

    Parameters
    ----------
    spec
        Name, ``name@version`` or path of the model.
    recipe
        Has the rules of truth, and says what the sources in `also` are.
    paths
        Alerts of the user.
    folder
        Gets ``model.onnx``, unchanged, and ``card.json``: thresholds, metrics and reliability diagram are those
        of these alerts, and nothing is left of the earlier ones.
    method
        temperature, platt or isotonic.
    today
        Date for the card.
    also
        Kinds of data source of the recipe that are used besides `paths`.

    Raises
    ------
    ModelError
        No such model.
    UsageError
        There are neither `paths` nor `also`, or the recipe has no such source.
    InputError
        The sources have no validation examples of both classes.
    """
    files = find_model(spec)
    card = Model.load(spec).card
    recipe = _for_calibration(recipe, paths, also)
    sources = [source for source, _ in open_sources(recipe, paths)]
    sets: dict[str, Examples] = {
        role: known(join([source.examples(role) for source in sources])) for role in USED_ROLES[1:]
    }
    _require_both_classes(sets["validation"])
    card = measured(_renewed(card, recipe, keys_of(sources, 1), method, today), files.onnx, sets, method)
    with whole_file(folder / ONNX_NAME) as part:
        part.write_bytes(files.onnx.read_bytes())
    write_card(folder / CARD_NAME, card)
    return card


def _for_calibration(recipe: Recipe, paths: Sequence[Path], also: Collection[str]) -> Recipe:
    _require_known("--with", also)
    if missing := sorted(set(also) - {entry.source for entry in recipe.data}):
        raise UsageError(f"--with {missing[0]}: the recipe {recipe.name} has no such data source")
    packets = [PacketData(source="packets")] if paths else []
    others = [entry for entry in recipe.data if entry.source in also and not isinstance(entry, PacketData)]
    if not packets and not others:
        raise UsageError(
            "nothing to calibrate on: name alerts with --alerts, or give --with sample or simulation"
        )
    return recipe.model_copy(update={"data": [*packets, *others]})


def _renewed(
    card: ModelCard, recipe: Recipe, keys: Mapping[Role, Sequence[Sequence[Key]]], method: str, today: date
) -> ModelCard:
    # the card of the same network with nothing left that the earlier calibration made true
    major, minor, patch = _numbers(card.version)
    version = f"{major}.{minor}.{patch + 1}"
    learned = tuple(entry for entry in card.training.data if entry.role == "training")
    # the recipe's other citations are of its own packets, not of the user's
    simulated = {name: text for name, text in recipe.card.citations.items() if name == "simulated"}
    used = {role: join_keys(keys[role]) for role in USED_ROLES[1:]}
    data = learned + _data_sets(used, simulated)
    fitted = ", ".join(f"{entry.n} {entry.name}" for entry in data if entry.role == "validation")
    note = (
        f"{CALIBRATED} {version}: {method}, fitted on {fitted} (validation part of the split); any mix named above is "
        "that of an earlier version."
    )
    kept = [text for text in card.notes if not text.startswith(CALIBRATED)]
    return card.model_copy(
        update={
            "version": version,
            "created": today.isoformat(),
            "metrics": {},
            "reliability": None,
            "thresholds": {},
            "training": card.training.model_copy(update={"data": data}),
            "notes": (*kept, note),
        }
    )


def join_keys(sources: Sequence[Sequence[Key]]) -> list[Key]:
    """The examples of all sources, in order."""
    return [key for names in sources for key in names]


def describe(
    recipe: Recipe,
    onnx: Path,
    sets: dict[str, Examples],
    keys: Mapping[Role, Sequence[Sequence[Key]]],
    today: date,
) -> ModelCard:
    """The card of an exported network, with golden vectors; the rest as `measured` says."""
    used = {role: join_keys(names) for role, names in keys.items()}
    body: dict[str, Any] = {
        "name": recipe.name,
        "version": recipe.card.version,
        "title": recipe.card.title,
        "licence": "BSD-3-Clause",
        "authors": ("The Tapetum developers",),
        "source": CardSource(description=recipe.card.description),
        "created": today.isoformat(),
        "onnx_sha256": sha256_of(onnx),
        "inputs": (recipe.input,),
        "outputs": (Output(name="score", columns=("real",), activation="sigmoid"),),
        "surveys": tuple(sorted({key.origin for key in used["fit"]} - {"simulated"})),
        "training": Training(
            description=recipe.card.description,
            data=_data_sets(used, recipe.card.citations),
            split=SPLIT,
            recipe=_settings(recipe),
        ),
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


def _data_sets(used: Mapping[Role, Sequence[Key]], citations: Mapping[str, str]) -> tuple[DataSet, ...]:
    data = []
    for role, keys in used.items():
        for origin in sorted({key.origin for key in keys}):
            objects = [key.object_id for key in keys if key.origin == origin]
            data.append(
                DataSet(
                    name=origin,
                    n=len(objects),
                    role="training" if role == "fit" else "validation" if role == "validation" else "test",
                    description=f"{len(set(objects))} objects",
                    citation=citations.get(origin),
                )
            )
    return tuple(data)
