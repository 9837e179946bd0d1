"""Several runs of one classifier from different seeds, and the best of them; all runs stay, with their figures."""

from __future__ import annotations

import json
import logging
import math
import shutil
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import FormatError, MissingExtraError, TapetumError, UsageError
from tapetum.core.files import whole_file
from tapetum.core.progress import Progress, no_progress
from tapetum.finders.variables import RUNS
from tapetum.models.card import ModelCard, load_card, write_card
from tapetum.models.registry import CARD_NAME, ONNX_NAME
from tapetum.models.runtime import Model
from tapetum.models.trees_onnx import BOOSTER
from tapetum.training.record import settings_of
from tapetum.training.run import RECORD, train
from tapetum.training.task import open_task
from tapetum.training.variables_data import TableSource
from tapetum.training.variables_recipe import VariablesRecipe
from tapetum.training.variables_report import write_report
from tapetum.training.variables_warm import CHOSEN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import date
    from pathlib import Path

    from tapetum.training.evaluate import Figure
    from tapetum.training.variables_recipe import ClassifierRecipe

log = logging.getLogger(__name__)
RUN_CARD, SEEDS = "run_card.json", "seeds.json"
CHOSEN_BY = "log_loss"  # of the validation part: it does not saturate, as an area under a curve does
OF_THE_BEST = (RECORD, "log.csv", CHOSEN, BOOSTER, ONNX_NAME)
SWEPT_RATE, SWEPT_EPSILON = (3e-4, 3e-2), (1e-9, 1e-7)


@dataclass(frozen=True)
class Best:
    """The model that was chosen.

    Attributes
    ----------
    folder, card
        Of the model.
    problems
        Of seeds that gave no model, and why.
    finished_before
        The folder held this very choice, whole: nothing was done.
    """

    folder: Path
    card: ModelCard
    problems: tuple[str, ...] = ()
    finished_before: bool = False


def train_best(
    recipe: ClassifierRecipe,
    paths: Sequence[Path],
    folder: Path,
    *,
    n_seeds: int = 1,
    sweep: bool = False,
    today: date,
    device: str = "cpu",
    progress: Progress = no_progress,
    pictures: bool = True,
    overwrite: bool = False,
) -> Best:
    """Train a classifier from several seeds and keep the one that does best on the validation part.

    Parameters
    ----------
    recipe
        Its seed is the first, the others follow it.
    paths
        Labelled feature tables.
    folder
        Gets the model with its report, ``seeds.json`` with the figures of every seed, and each run below ``seeds/``;
        those are no models of a group, since their card is ``run_card.json``.
    n_seeds
        Runs.
    sweep
        Every run but the first also draws rate, epsilon and amsgrad (networks only).
    today, device, progress, overwrite
        As `tapetum.training.run.train` takes them.
    pictures
        Draw those of the best one.

    Raises
    ------
    UsageError
        `folder` holds something else, or trees are to be swept.
    InputError
        There is nothing to learn from.
    TapetumError
        No seed gave a model.
    """
    if sweep:
        require_sweepable(recipe)
    recipes = [of_run(recipe, number, sweep=sweep) for number in range(n_seeds)]
    with closing(open_task(recipe, paths)) as task:
        data = task.fingerprint()
        record = {"runs": [settings_of(entry) for entry in recipes], "data_sha256": data}
        if not overwrite and (finished := _finished(folder, record)) is not None:
            return finished
        task.require_examples()
    if overwrite:
        _forget(folder)
    source = TableSource(recipe, paths)

    def run(one: ClassifierRecipe) -> dict[str, Any]:
        return _run(one, source, paths, folder, data, today, device)

    results, problems = _run_all(recipes, run, progress)
    card = _settle(folder, results, problems, record, source, pictures=pictures)
    return Best(folder, card, tuple(problems))


def _forget(folder: Path) -> None:
    """Take away the model of a folder and all its runs."""
    shutil.rmtree(folder / RUNS, ignore_errors=True)
    for name in (CARD_NAME, SEEDS, *OF_THE_BEST):
        (folder / name).unlink(missing_ok=True)


def _run_all(
    recipes: Sequence[ClassifierRecipe], run: Callable[[ClassifierRecipe], dict[str, Any]], progress: Progress
) -> tuple[list[dict[str, Any]], list[str]]:
    """Figures of every seed that gave a model, and why the others did not.

    Raises
    ------
    TapetumError
        None did.
    """
    results = []
    problems = []
    failure: TapetumError | None = None
    for number, recipe in enumerate(recipes):
        try:
            results.append(run(recipe))
        except (UsageError, MissingExtraError):
            raise  # so would every other seed
        except TapetumError as problem:
            failure = problem
            problems.append(f"seed {recipe.seed}: {problem}")
            log.warning("%s, seed %d: %s", recipe.name, recipe.seed, problem)
        progress(number + 1, len(recipes))
    if failure is not None and not results:
        raise failure
    return results, problems


def require_sweepable(recipe: ClassifierRecipe) -> None:
    """Refuse to draw numbers of the optimiser where there are none.

    Raises
    ------
    UsageError
        The recipe is for boosted trees.
    """
    if not isinstance(recipe, VariablesRecipe):
        raise UsageError("--sweep is for networks; boosted trees are searched by cross-validation")


def of_run(recipe: ClassifierRecipe, number: int, *, sweep: bool) -> ClassifierRecipe:
    """The recipe of one of several runs: its own seed, and where asked for its own numbers of the optimiser."""
    changes: dict[str, Any] = {"seed": recipe.seed + number}
    if sweep and number:
        rng = np.random.default_rng([recipe.seed, number, 3])
        rate, epsilon = (
            float(f"{math.exp(rng.uniform(*np.log(ends))):.3g}") for ends in (SWEPT_RATE, SWEPT_EPSILON)
        )
        drawn = {"rate": rate, "epsilon": epsilon, "amsgrad": bool(rng.random() < 0.5)}
        changes["optimiser"] = recipe.optimiser.model_copy(update=drawn)
    return recipe.model_copy(update=changes)


def _finished(folder: Path, record: dict[str, Any]) -> Best | None:
    """What the folder holds, if it is this very choice."""
    if not all((folder / name).is_file() for name in (SEEDS, CARD_NAME, ONNX_NAME)):
        if (folder / CARD_NAME).is_file() and not (folder / RUNS).is_dir():
            raise UsageError(
                f"{folder} holds a model of another run; choose another folder or give --overwrite"
            )
        return None
    try:
        content = json.loads((folder / SEEDS).read_text(encoding="utf-8"))
        same, problems = content["record"] == record, tuple(content["failed"])
    except (ValueError, KeyError, TypeError):
        same, problems = False, ()
    if not same:
        raise UsageError(
            f"{folder} holds the best of other runs (seeds, recipe or data differ); choose another group or give "
            "--overwrite"
        )
    return Best(folder, load_card(folder / CARD_NAME), problems, finished_before=True)


def _run(
    recipe: ClassifierRecipe,
    source: TableSource,
    paths: Sequence[Path],
    folder: Path,
    data: str,
    today: date,
    device: str,
) -> dict[str, Any]:
    """One seed, unless it is there, and its figures on every part."""
    place = folder / RUNS / str(recipe.seed)
    if not _run_is_there(place, {**settings_of(recipe), "data_sha256": data}):
        train(recipe, paths, place, today=today, device=device)
        model = Model.load(str(place / ONNX_NAME))
        figures = write_report(place, model, source, pictures=False, importance=False)
        with whole_file(place / "figures.json") as part:
            part.write_text(json.dumps(_plain(figures), indent=1) + "\n", encoding="utf-8")
        # from now on it is a finished run, and no model of the group
        (place / CARD_NAME).replace(place / RUN_CARD)
    figures_of_run = json.loads((place / "figures.json").read_text(encoding="utf-8"))
    changed = recipe.optimiser.model_dump(mode="json", include={"rate", "epsilon", "amsgrad"})
    return {
        "seed": recipe.seed,
        "sha256": load_card(place / RUN_CARD).onnx_sha256,
        "optimiser": changed,
        "figures": figures_of_run,
    }


def _run_is_there(place: Path, record: dict[str, Any]) -> bool:
    if not all((place / name).is_file() for name in (RUN_CARD, ONNX_NAME, RECORD, "figures.json")):
        return False
    try:
        earlier = json.loads((place / RECORD).read_text(encoding="utf-8"))
    except ValueError:
        raise FormatError(f"{place / RECORD}: not JSON; delete the folder to train this seed again") from None
    if earlier != record:
        raise UsageError(
            f"{place} holds a run of another recipe or on other data; choose another group or give --overwrite"
        )
    return True


def _plain(figures: dict[str, dict[str, Figure]]) -> dict[str, dict[str, dict[str, float | None]]]:
    return {
        part: {
            name: {key: value if math.isfinite(value) else None for key, value in asdict(figure).items()}
            for name, figure in entries.items()
        }
        for part, entries in figures.items()
    }


def _settle(
    folder: Path,
    results: list[dict[str, Any]],
    problems: Sequence[str],
    record: dict[str, Any],
    source: TableSource,
    *,
    pictures: bool,
) -> ModelCard:
    """Make the best run the model of the folder; its card comes last."""
    losses = [result["figures"]["validation"][CHOSEN_BY]["value"] for result in results]
    best = results[int(np.argmin(losses))]
    place = folder / RUNS / str(best["seed"])
    (folder / CARD_NAME).unlink(missing_ok=True)
    for name in OF_THE_BEST:
        (folder / name).unlink(missing_ok=True)
        if (place / name).is_file():
            with whole_file(folder / name) as part:
                shutil.copyfile(place / name, part)
    content = {
        "chosen": best["seed"],
        "chosen_by": f"{CHOSEN_BY} of the validation part, the smallest",
        "runs": results,
        "failed": list(problems),
        "record": record,
    }
    with whole_file(folder / SEEDS) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    card = load_card(place / RUN_CARD)
    if len(record["runs"]) > 1:
        note = _note(results, losses)
        card = card.model_copy(update={"notes": (*card.notes, note)})
    onnx = folder / ONNX_NAME
    write_report(folder, Model(card, onnx.read_bytes(), str(onnx)), source, pictures=pictures)
    write_card(folder / CARD_NAME, card)
    return card


def _note(results: Sequence[dict[str, Any]], losses: Sequence[float]) -> str:
    """What the card says of several runs."""
    n = len(results)
    if n > 1 and len({result["sha256"] for result in results}) == 1:
        return f"All {n} runs gave the same model: nothing in it depends on the seed."
    listed = ", ".join(f"{result['seed']}: {loss:.4f}" for result, loss in zip(results, losses, strict=True))
    return (
        f"Best of {n} runs, chosen by the mean cross-entropy of the validation part (seed {listed}); the test part had "
        "no say. Figures of every run are in seeds.json."
    )
