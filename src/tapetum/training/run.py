"""From a recipe of any kind to a model: train, export, write the card. Needs torch."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tapetum.core.errors import ModelError, UsageError
from tapetum.core.files import sha256_of, whole_file
from tapetum.core.progress import Progress, no_progress
from tapetum.models.card import ModelCard, load_card, write_card
from tapetum.models.registry import CARD_NAME, ONNX_NAME, find_model, list_models
from tapetum.models.runtime import Model
from tapetum.training.networks import require_torch
from tapetum.training.record import settings_of
from tapetum.training.task import SelfTaught, open_task

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from tapetum.training.recipe import RecipeBase
    from tapetum.training.task import Task

RECORD = "recipe.json"
OF_A_RUN = ("checkpoint.npz", "log.csv", RECORD, "settings.toml", ONNX_NAME, CARD_NAME)


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
    recipe: RecipeBase,
    paths: Sequence[Path],
    folder: Path,
    *,
    today: date,
    device: str = "cpu",
    progress: Progress = no_progress,
    without: Collection[str] = (),
    overwrite: bool = False,
    jobs: int = 1,
) -> Trained:
    """Make the model of a recipe in `folder`, going on where an interrupted run stopped.

    Parameters
    ----------
    recipe
        What to make.
    paths
        Files of the user for the data source that takes them.
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
    jobs
        Processes that make examples while the network learns; the model does not depend on it.

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
    _require_means(recipe, device)
    recipe = _chosen(recipe, paths, without)
    finished = not overwrite and all((folder / name).is_file() for name in (RECORD, ONNX_NAME, CARD_NAME))
    if not finished:
        _require_own_name(recipe, folder)
    with closing(open_task(recipe, paths, jobs)) as task:
        record = {**settings_of(recipe), "data_sha256": task.fingerprint()}
        if finished:
            return _found(folder, recipe, record)
        task.require_examples()
        _claim(folder, record, overwrite=overwrite)
        onnx = folder / ONNX_NAME
        _learn(task, folder, device, progress)
        card = task.describe(onnx, today)
    write_card(folder / CARD_NAME, card)
    Model.load(str(onnx))  # as a user will: hash, ports, golden vectors
    return Trained(folder, card)


def _require_means(recipe: RecipeBase, device: str) -> None:
    """What is missing, or that torch has no such device, is said before data are read."""
    if not recipe.NETWORK:
        if device != "cpu":
            raise UsageError(f"--device {device}: a model of the task {recipe.task} is made on the cpu")
        return
    require_torch()
    from tapetum.training.loop import require_device

    require_device(device)


def _learn(task: Task | SelfTaught, folder: Path, device: str, progress: Progress) -> None:
    if isinstance(task, SelfTaught):
        task.learn(folder / ONNX_NAME, progress)
        return
    from tapetum.training.loop import fit

    task.export(fit(task, folder, device=device, progress=progress), folder / ONNX_NAME)


def _chosen(recipe: RecipeBase, paths: Sequence[Path], without: Collection[str]) -> RecipeBase:
    require_sources("--without", without, recipe)
    data = [entry for entry in recipe.data if entry.source not in without]
    if not data:
        raise UsageError("no data source is left to train on")
    source, option = recipe.FILES
    if paths and not any(entry.source == source for entry in data):
        raise UsageError(f"{option} names {source}, but the recipe takes none, or --without leaves them out")
    return recipe.model_copy(update={"data": data})


def files_for(recipe: RecipeBase, given: Mapping[str, Sequence[Path]]) -> list[Path]:
    """The files of the option that a recipe takes, of all that were given.

    Raises
    ------
    UsageError
        Files were given with another option.
    """
    _, option = recipe.FILES
    for other, paths in given.items():
        if paths and other != option:
            raise UsageError(
                f"the recipe {recipe.name} takes no {other}" + (f", but {option}" if option else "")
            )
    return list(given.get(option, ()))


def require_sources(option: str, sources: Collection[str], recipe: RecipeBase) -> None:
    """Refuse names of data sources that no recipe of this kind has.

    Raises
    ------
    UsageError
        Names the first.
    """
    if unknown := sorted(set(sources) - set(recipe.SOURCES)):
        raise UsageError(f"{option} {unknown[0]}: no such data source; known: {', '.join(recipe.SOURCES)}")


def free_version(recipe: RecipeBase, folder: Path) -> str:
    """The version of a network made by `recipe`: the next MINOR one where its name is taken, else the recipe's.

    A folder that has a model of this name already keeps its version: it is the same run.
    """
    if (folder / CARD_NAME).is_file() and (card := load_card(folder / CARD_NAME)).name == recipe.name:
        return card.version
    taken = [numbers_of(model.version) for model in list_models() if model.name == recipe.name]
    wanted = numbers_of(recipe.card.version)
    if not taken or wanted > max(taken):
        return recipe.card.version
    major, minor, _ = max(taken)
    return f"{major}.{minor + 1}.0"


def numbers_of(version: str) -> tuple[int, int, int]:
    """MAJOR, MINOR and PATCH of a version."""
    major, minor, patch = (int(number) for number in version.split("."))
    return major, minor, patch


def _require_own_name(recipe: RecipeBase, folder: Path) -> None:
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


def _found(folder: Path, recipe: RecipeBase, record: Mapping[str, Any]) -> Trained:
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
