"""Options of `tapetum models train` for classifiers of light curves, training of groups, and `tapetum models stats`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tapetum.cli.common import OutOption, progress_bar, say, settings_of, warn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from tapetum.training.groups import GroupPlan, Outcome
    from tapetum.training.recipe import RecipeBase
    from tapetum.training.variables_recipe import ClassifierOptions, WarmStart

EVERY = "variables"  # recipe of all classes
AlgorithmOption = Annotated[
    str | None, typer.Option(help="Of a classifier variables-CLASS: dnn (network) or xgb (boosted trees).")
]
TaxonomyOption = Annotated[
    str | None, typer.Option(help="Of classifiers: name or TOML file of the classes; default: scope.")
]
PeriodOption = Annotated[
    str | None,
    typer.Option("--period-suffix", help="Algorithm of the period, at the end of periodic columns."),
]
FeaturesOption = Annotated[
    Path | None,
    typer.Option("--features", help="TOML list of features, instead of the described ones.", exists=True),
]
StatisticsOption = Annotated[
    Path | None,
    typer.Option(
        "--feature-stats",
        help="TOML or JSON with min, max, median and std of features, instead of the training part's.",
        exists=True,
    ),
]
ScalingOption = Annotated[
    Literal["none", "min_max", "median_std"] | None,
    typer.Option("--scaling", "--scale-features", help="How features are scaled."),
]
SkipCvOption = Annotated[
    bool,
    typer.Option("--skip-cv", help="Take the numbers of boosted trees from the recipe, without a search."),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", "--random-state", min=0, help="Of a classifier; the first of --seeds.")
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--threshold", min=0, max=1, help="Confidence of a label above which a row is of the class."
    ),
]
BalanceOption = Annotated[
    float | None,
    typer.Option(
        "--balance", help="Most examples of the larger side for each of the smaller; default: all of them."
    ),
]
WeightedOption = Annotated[
    bool | None,
    typer.Option(
        "--weighted/--unweighted",
        "--weight-per-class/--no-weight-per-class",
        help="Both sides weigh the same; default: as the taxonomy has it.",
    ),
]
BatchOption = Annotated[
    int | None, typer.Option("--batch-size", min=2, help="Examples of a step of a network.")
]
RateOption = Annotated[float | None, typer.Option("--rate", "--lr", help="Of learning.")]
PatienceOption = Annotated[
    int | None, typer.Option(min=1, help="Epochs, or trees, without improvement after which the run ends.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any key of a classifier's recipe: optimiser.beta_1=0.8; may be repeated.",
    ),
]
WarmOption = Annotated[
    str | None,
    typer.Option(
        "--warm-start",
        "--pre-trained-model",
        metavar="MODEL|GROUP",
        help="Go on from this model, or the one of the class in this group.",
    ),
]
GroupOption = Annotated[
    Path | None,
    typer.Option(
        "--group",
        help="Folder for the best models of classifiers: of one class, or with the recipe `variables` of every class.",
    ),
]
MinCountOption = Annotated[
    int, typer.Option("--min-count", min=1, help="Fewest light curves of a class of a group.")
]
SeedsOption = Annotated[
    int, typer.Option("--seeds", min=1, help="Runs of each class of a group; the best on validation stays.")
]
SweepOption = Annotated[
    bool,
    typer.Option("--sweep", help="Runs of a group draw rate, epsilon and amsgrad of networks, too."),
]
AllOption = Annotated[
    bool,
    typer.Option("--all", "--train-all", help="Also classes that the group to go on from has no model of."),
]
ScriptOption = Annotated[
    str | None,
    typer.Option(
        "--script",
        help="Train nothing; write a command for each class of the group to this file (- is stdout).",
    ),
]
PlotsOption = Annotated[
    bool, typer.Option("--plots/--no-plots", help="Pictures beside the figures of a classifier.")
]


def require_group(recipe: str, others: Mapping[str, Any]) -> None:
    """Raise UsageError for what no group can be made of."""
    from tapetum.core.errors import UsageError
    from tapetum.training.variables_recipe import is_classifier

    if recipe != EVERY and not is_classifier(recipe):
        raise UsageError(f"--group is for the recipe {EVERY} or {EVERY}-CLASS, not for {recipe}")
    if given := [option for option, value in others.items() if value]:
        raise UsageError(f"{given[0]} does not go with --group")


def refuse_without_group(
    recipe: str, options: ClassifierOptions, of_group: Mapping[str, bool], scheduler: str | None
) -> None:
    """Raise UsageError for what only a group can be asked."""
    from tapetum.core.errors import UsageError
    from tapetum.training.recipe import recipe_names

    if recipe == EVERY and (options.given() or recipe not in recipe_names()):
        raise UsageError(f"{EVERY} trains every class into a group: name its folder with --group")
    given = [option for option, value in of_group.items() if value] + (["--scheduler"] if scheduler else [])
    if given:
        raise UsageError(f"{given[0]} needs --group")


def plan(
    group: Path,
    tables: Sequence[Path] | None,
    options: ClassifierOptions,
    today: date,
    *,
    warm: str | None,
    **how: Any,
) -> GroupPlan:
    """How a group is made, its files by paths that hold in any worker."""
    from tapetum.training.groups import GroupPlan

    paths = tuple(path.absolute() for path in tables or ())
    place = str(Path(warm).absolute()) if warm is not None and Path(warm).exists() else warm
    taxonomy = options.taxonomy
    own = taxonomy is not None and Path(taxonomy).suffix == ".toml"
    options = replace(
        options,
        taxonomy=str(Path(taxonomy).absolute()) if taxonomy and own else taxonomy,
        features=options.features and options.features.absolute(),
        statistics=options.statistics and options.statistics.absolute(),
    )
    return GroupPlan(group.absolute(), paths, options, today, warm=place, **how)


def warm_of(recipe: str, spec: str | None, algorithm: str | None, taxonomy: str | None) -> WarmStart | None:
    """The model that the training of one class goes on from, if it does."""
    if spec is None:
        return None
    from tapetum.core.errors import UsageError
    from tapetum.finders.taxonomy import load_taxonomy
    from tapetum.training.variables_recipe import is_classifier
    from tapetum.training.variables_warm import warm_start

    if not is_classifier(recipe):
        raise UsageError(f"--warm-start is for classifiers ({EVERY}-CLASS), not for the recipe {recipe}")
    if algorithm is None:
        raise UsageError(f"{recipe}: say how with --algorithm dnn or --algorithm xgb")
    code = load_taxonomy(taxonomy or "scope").of(recipe.removeprefix(f"{EVERY}-")).code
    return warm_start(spec, code, algorithm)


def is_judged(folder: Path) -> bool:
    """Whether there are figures beside a model."""
    from tapetum.training.variables_report import PLOTS

    return (folder / PLOTS).is_dir()


def judge(recipe: RecipeBase, tables: Sequence[Path], folder: Path, *, pictures: bool) -> None:
    """Write figures and pictures beside a classifier of one class; other models have their figures in the card."""
    from tapetum.models.runtime import Model
    from tapetum.training.variables_data import TableSource
    from tapetum.training.variables_recipe import ClassifierRecipe
    from tapetum.training.variables_report import write_report

    if isinstance(recipe, ClassifierRecipe):
        model = Model.load(str((folder / "model.onnx").absolute()))
        write_report(folder, model, TableSource(recipe, tables), pictures=pictures)


def train_into_group(
    context: typer.Context,
    plan: GroupPlan,
    recipe: str,
    min_count: int,
    jobs: int | None,
    scheduler: str | None,
    script: str | None,
) -> None:
    """Train one class or every class into a group, or write the commands that do."""
    from tapetum.core.settings import write_settings
    from tapetum.pipelines.outputs import check_folder
    from tapetum.training.groups import script_of, train_group

    settings = settings_of(context, jobs=jobs, scheduler=scheduler)
    check_folder(plan.group)
    codes = _classes_of(plan, recipe, min_count)
    if script is not None:
        _write_text(script, script_of(plan, codes, context.find_root().obj))
        return
    with progress_bar(f"training {len(codes)} classes") as progress:
        outcomes = train_group(plan, codes, settings, progress)
    command = {
        "verb": "models train",
        "recipe": recipe,
        "table": [str(path) for path in plan.paths],
        "algorithm": plan.algorithm,
        "classes": codes,
        "min_count": min_count,
        "seeds": plan.n_seeds,
        "sweep": plan.sweep,
        "warm_start": plan.warm,
        "all": plan.every,
    }
    if any(not outcome.failed for outcome in outcomes):
        write_settings(plan.group / "settings.toml", settings, command)
    _tell(outcomes)


def _classes_of(plan: GroupPlan, recipe: str, min_count: int) -> list[str]:
    """The class that was asked for, or every one with enough examples; says what is left out."""
    from tapetum.training.groups import choose_classes, silent_tables

    codes = [recipe.removeprefix(f"{EVERY}-")] if recipe != EVERY else []
    if not codes:
        chosen, left_out = choose_classes(plan, min_count)
        for reason in left_out:
            say(f"left out: {reason}")
        codes = [entry.code for entry in chosen]
        say("classes: " + ", ".join(f"{entry.code} ({entry.n})" for entry in chosen))
    plan.recipe(codes[0])  # a wrong class or option is said at once
    for line in silent_tables(plan, codes):
        say(f"left out: {line}")
    return codes


def _write_text(path: str, text: str) -> None:
    from tapetum.core.files import whole_file

    if path == "-":
        typer.echo(text, nl=False)
        return
    with whole_file(Path(path)) as part:
        part.write_text(text, encoding="utf-8")


def _tell(outcomes: list[Outcome]) -> None:
    """One line for each class, and the exit status of all.

    Raises
    ------
    PartialFailureError
        Some classes have no model, or not of every seed.
    InputError
        No class has a model.
    """
    from tapetum.core.errors import InputError, PartialFailureError

    for outcome in outcomes:
        for problem in () if outcome.failed and len(outcomes) == 1 else outcome.problems:
            warn(f"failed: {problem}")
        if not outcome.failed:
            say(outcome.said + (": finished already" if outcome.finished_before else ""))
    failed = [outcome.code for outcome in outcomes if outcome.failed]
    if failed and len(outcomes) == 1:
        raise InputError("; ".join(outcomes[0].problems))
    if len(failed) == len(outcomes):
        raise InputError(f"none of {len(outcomes)} classes could be trained")
    if failed:
        raise PartialFailureError(f"{len(failed)} of {len(outcomes)} classes failed: {', '.join(failed)}")
    if parts := [outcome.code for outcome in outcomes if outcome.problems]:
        raise PartialFailureError(f"some seeds failed of {', '.join(parts)}; the best of the others stays")


def stats(
    group: Annotated[Path, typer.Argument(help="Folder of models.", exists=True, file_okay=False)],
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            "--set-name",
            help="Of the split: training, validation or test; may be repeated. Default: validation.",
        ),
    ] = None,
    algorithm: Annotated[str | None, typer.Option(help="Only models by it: dnn or xgb.")] = None,
    seeds: Annotated[bool, typer.Option("--seeds", help="Every run, not only the chosen ones.")] = False,
    importance: Annotated[
        str | None,
        typer.Option("--importance", help="Also a table of what each feature is worth to each model."),
    ] = None,
    out: OutOption = "-",
) -> None:
    """Gather the figures of all models of a group into one table: accuracy, precision, recall, F1, areas, intervals.

    Example: tapetum models stats my-group --part test -o stats.ecsv
    """
    from tapetum.report.tables import table_format, write_table
    from tapetum.training.groups_table import DESCRIPTIONS, importance_table, stats_table

    for path in (out, importance):
        if path is not None:
            table_format(path)
    table, without = stats_table(group, part or ["validation"], algorithm=algorithm, seeds=seeds)
    for text in without:
        warn(text)
    write_table(table, out, {"group": group.name}, descriptions=DESCRIPTIONS)
    if importance is not None:
        write_table(importance_table(group, algorithm=algorithm), importance, {"group": group.name})
