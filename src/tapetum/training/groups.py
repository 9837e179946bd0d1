"""Every class that has enough examples, trained into one group: a folder with the best model of each."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tapetum.core.errors import InputError, TapetumError, UsageError
from tapetum.core.progress import Progress, no_progress
from tapetum.finders.taxonomy import load_taxonomy
from tapetum.pipelines.runner import run_over
from tapetum.training.run import free_version
from tapetum.training.split import role_of
from tapetum.training.variables_data import objects_of, read_once, says_of, schema_once, truth_of
from tapetum.training.variables_recipe import (
    PREFIX,
    ClassifierOptions,
    ClassifierRecipe,
    classifier_recipe,
)
from tapetum.training.variables_seeds import require_sweepable, train_best
from tapetum.training.variables_warm import in_group, warm_start

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import date
    from pathlib import Path

    from tapetum.core.settings import Settings

TROUBLE = (TapetumError, OSError, MemoryError)  # what one class may fail with, while the others go on


@dataclass(frozen=True)
class GroupPlan:
    """How the models of a group are made.

    Attributes
    ----------
    group
        Folder of the group.
    paths
        Labelled feature tables.
    options
        Of every classifier; names the algorithm.
    epochs, version
        Instead of those of the recipes.
    n_seeds, sweep, pictures, overwrite, device
        As `tapetum.training.variables_seeds.train_best` takes them.
    warm
        A group, or for one class a model, that training goes on from.
    every
        Also classes that the group to go on from has no model of.
    today
        Date of the cards.
    """

    group: Path
    paths: tuple[Path, ...]
    options: ClassifierOptions
    today: date
    epochs: int | None = None
    version: str | None = None
    n_seeds: int = 1
    sweep: bool = False
    warm: str | None = None
    every: bool = False
    pictures: bool = True
    overwrite: bool = False
    device: str = "cpu"

    @property
    def algorithm(self) -> str:
        """Of every model.

        Raises
        ------
        UsageError
            None was named.
        """
        if self.options.algorithm is None:
            raise UsageError(f"{PREFIX}CLASS: say how with --algorithm dnn or --algorithm xgb")
        return self.options.algorithm

    @property
    def taxonomy(self) -> str:
        """Name or file of the classes."""
        return self.options.taxonomy or "scope"

    def recipe(self, code: str, *, warm: bool = True) -> ClassifierRecipe:
        """The recipe of a class; where all are asked for, one that the group to go on from lacks begins from nothing.

        Raises
        ------
        UsageError
            There is no such class or algorithm, or trees are to be swept.
        InputError
            The options make no valid recipe.
        ModelError
            There is no model to go on from.
        """
        changes = self.options.changes(self.epochs, self.version)
        if (
            warm
            and self.warm is not None
            and not (self.every and code not in in_group(self.warm, self.algorithm))
        ):
            changes["warm_start"] = warm_start(self.warm, code, self.algorithm)
        made = classifier_recipe(PREFIX + code, self.algorithm, changes, self.taxonomy)
        if self.sweep:
            require_sweepable(made)
        return made

    def tables_of(self, code: str) -> tuple[Path, ...]:
        """The tables that say something of a class; all of them where none does, which training then refuses.

        Raises
        ------
        InputError
            A table cannot be read.
        """
        taxonomy = load_taxonomy(self.taxonomy)
        rules = self.recipe(code, warm=False).data[0]
        telling = (path for path in self.paths if says_of(schema_once(path), code, taxonomy, rules))
        return tuple(telling) or self.paths

    def folder(self, code: str) -> Path:
        """Of the model of a class."""
        return self.group / f"{code}-{self.algorithm}"


@dataclass(frozen=True)
class ClassCount:
    """Examples of a class, outside the part of the split that is never read.

    Attributes
    ----------
    n, n_sources
        Light curves, and sources that they are of.
    """

    code: str
    label: str
    n: int
    n_sources: int


def count_classes(plan: GroupPlan) -> list[ClassCount]:
    """Examples of every class that a table says something of, in the order of the taxonomy.

    Raises
    ------
    InputError
        A table cannot be read, or none says anything of any class.
    """
    if not plan.paths:
        raise InputError("no labelled feature table: name one with --table")
    taxonomy = load_taxonomy(plan.taxonomy)
    rules = plan.recipe(taxonomy.classes[0].code, warm=False).data[0]
    found: dict[str, list[str]] = {}
    for path in plan.paths:
        table = read_once(path)
        objects = np.array(objects_of(table, path.stem).to_pylist(), dtype=object)
        used = np.array([name is not None and role_of(name) != "held" for name in objects], bool)
        for entry in taxonomy.classes:
            if says_of(table.schema, entry.code, taxonomy, rules):  # a table of some classes is no fault
                truth = truth_of(table, entry.code, taxonomy, rules)
                found.setdefault(entry.code, []).extend(objects[used & (truth > 0.5)])
    if not found:
        raise InputError(
            f"{', '.join(map(str, plan.paths))}: nothing is said of any class: there is no column {rules.column}, and "
            "none named as a class of the taxonomy"
        )
    return [
        ClassCount(entry.code, entry.label, len(found[entry.code]), len(set(found[entry.code])))
        for entry in taxonomy.classes
        if entry.code in found
    ]


def silent_tables(plan: GroupPlan, codes: Sequence[str]) -> list[str]:
    """One line for each table that says nothing of some of the classes, whose training does without it."""
    telling = {code: plan.tables_of(code) for code in codes}
    without = {path: [code for code in codes if path not in telling[code]] for path in plan.paths}
    return [
        f"{path.name} for {', '.join(missed)}: it says nothing of them"
        for path, missed in without.items()
        if missed
    ]


def choose_classes(plan: GroupPlan, min_count: int) -> tuple[list[ClassCount], list[str]]:
    """The classes to train, and why others are not.

    Parameters
    ----------
    plan
        Of the group.
    min_count
        Fewest light curves of a class.

    Raises
    ------
    InputError
        No class is left.
    """
    chosen, left_out = [], []
    there: Collection[str] | None = None
    if plan.warm is not None and not plan.every:
        there = in_group(plan.warm, plan.algorithm)
    for entry in count_classes(plan):
        if entry.n < min_count:
            if entry.n:
                left_out.append(f"{entry.code}: {entry.n} light curves, fewer than {min_count}")
        elif there is not None and entry.code not in there:
            left_out.append(f"{entry.code}: no model of it in {plan.warm}; --all trains it too")
        else:
            chosen.append(entry)
    if not chosen:
        reasons = "; ".join(left_out[:5]) or "no class has an example"
        raise InputError(f"no class to train: {reasons}")
    return chosen, left_out


@dataclass(frozen=True)
class Outcome:
    """What became of one class.

    Attributes
    ----------
    said
        One line about the model.
    problems
        Why there is none, or of which seeds there is none.
    failed, finished_before
        There is no model; it was there already.
    """

    code: str
    said: str = ""
    problems: tuple[str, ...] = ()
    failed: bool = False
    finished_before: bool = False


def train_class(plan: GroupPlan, code: str, progress: Progress = no_progress) -> Outcome:
    """Train one class of a group; what goes wrong is told in the outcome.

    Parameters
    ----------
    plan
        Of the group.
    code
        Of the class.
    progress
        Told of every seed.
    """
    try:
        folder = plan.folder(code)
        recipe = plan.recipe(code)
        if plan.version is None:
            card = recipe.card.model_copy(update={"version": free_version(recipe, folder)})
            recipe = recipe.model_copy(update={"card": card})
        best = train_best(
            recipe,
            plan.tables_of(code),
            folder,
            n_seeds=plan.n_seeds,
            sweep=plan.sweep,
            today=plan.today,
            device=plan.device,
            progress=progress,
            pictures=plan.pictures,
            overwrite=plan.overwrite,
        )
    except TROUBLE as problem:
        return Outcome(code, problems=(f"{code}: {str(problem) or type(problem).__name__}",), failed=True)
    figure = best.card.metrics.get("f1_score")
    said = f"{best.card.name} {best.card.version}" + (
        f", F1 {figure.value:.3f} of the test part" if figure else ""
    )
    problems = tuple(f"{code}, {text}" for text in best.problems)
    return Outcome(code, said, problems, finished_before=best.finished_before)


def _worker(plan: GroupPlan) -> Callable[[str], Outcome]:
    return partial(train_class, plan)


def train_group(
    plan: GroupPlan, codes: Sequence[str], settings: Settings, progress: Progress = no_progress
) -> list[Outcome]:
    """Train classes into a group, several at a time; what is finished is not made again.

    Parameters
    ----------
    plan
        Of the group.
    codes
        Of the classes.
    settings
        Jobs and scheduler; workers of a cluster need the same folders and the extra `train`.
    progress
        Told of every class.

    Raises
    ------
    TapetumError
        A worker died; the same call goes on from there.
    """
    done = run_over(
        codes, partial(_worker, plan), settings.jobs, scheduler=settings.scheduler, cluster=settings.cluster
    )
    outcomes = []
    for number, (_, outcome) in enumerate(done, 1):
        outcomes.append(outcome)
        progress(number, len(codes))
    return outcomes


def script_of(plan: GroupPlan, codes: Sequence[str], config: Path | None = None) -> str:
    """One command for each class, that trains it into the group, for a shell or a job table.

    Parameters
    ----------
    plan, codes
        Of the group.
    config
        Settings file that every command is to read.
    """
    program = ["tapetum"] if config is None else ["tapetum", "--config", str(config.absolute())]
    return "".join(f"{shlex.join([*program, *_command(plan, code)])}\n" for code in codes)


def _command(plan: GroupPlan, code: str) -> list[str]:
    options = plan.options
    words = ["models", "train", PREFIX + code, "--group", str(plan.group)]
    named = {
        "--algorithm": plan.algorithm,
        "--taxonomy": options.taxonomy,
        "--period-suffix": options.period_suffix,
        "--features": options.features,
        "--feature-stats": options.statistics,
        "--seed": options.seed,
        "--threshold": options.threshold,
        "--balance": options.balance,
        "--scaling": options.scaling,
        "--batch-size": options.batch,
        "--rate": options.rate,
        "--patience": options.patience,
        "--epochs": plan.epochs,
        "--version": plan.version,
        "--seeds": plan.n_seeds,
        "--device": None if plan.device == "cpu" else plan.device,
        "--warm-start": plan.warm if plan.recipe(code).warm_start else None,
    }
    for table in plan.tables_of(code):
        words += ["--table", str(table)]
    for option, value in named.items():
        if value is not None:
            words += [option, str(value)]
    for text in options.assignments:
        words += ["--set", text]
    flags = {
        "--skip-cv": options.skip_cv,
        "--sweep": plan.sweep,
        "--no-plots": not plan.pictures,
        "--overwrite": plan.overwrite,
        "--weighted": options.weighted is True,
        "--unweighted": options.weighted is False,
    }
    return words + [flag for flag, said in flags.items() if said]
