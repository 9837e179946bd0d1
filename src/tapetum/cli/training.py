"""`tapetum models train|calibrate`; registered by `tapetum.cli.models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapetum.cli import training_variables as of
from tapetum.cli.common import SchedulerOption, progress_bar, say, settings_of

AlertsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--alerts",
        help="Packets: files, folders, archives, Parquet, or .npz cubes; may be repeated.",
        exists=True,
    ),
]
FramesOption = Annotated[
    list[Path] | None,
    typer.Option("--frames", help="FITS images of a recipe for frames; may be repeated.", exists=True),
]
TableOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--table",
        help="Labelled feature tables of variables-CLASS, or light curves of `variables`; may be repeated.",
        exists=True,
    ),
]
RecipeOption = Annotated[
    str, typer.Option("--recipe", help="Recipe whose rules of truth and simulation are used.")
]
WithoutOption = Annotated[
    list[str] | None,
    typer.Option(
        "--without", help="Leave a data source of the recipe out: packets, sample, simulation, frames."
    ),
]
FolderOption = Annotated[Path, typer.Option("--out", "-o", help="Folder of the model.")]


def train(
    context: typer.Context,
    recipe: Annotated[
        str,
        typer.Argument(
            help="Name of a recipe, the path of a recipe.toml, variables-CLASS for a class of variable, or with "
            "--group variables for every class."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the model; default: its name, here.")
    ] = None,
    alerts: AlertsOption = None,
    frames: FramesOption = None,
    table: TableOption = None,
    algorithm: of.AlgorithmOption = None,
    taxonomy: of.TaxonomyOption = None,
    period: of.PeriodOption = None,
    features: of.FeaturesOption = None,
    statistics: of.StatisticsOption = None,
    scaling: of.ScalingOption = None,
    threshold: of.ThresholdOption = None,
    balance: of.BalanceOption = None,
    weighted: of.WeightedOption = None,
    skip_cv: of.SkipCvOption = False,
    batch: of.BatchOption = None,
    rate: of.RateOption = None,
    patience: of.PatienceOption = None,
    assignments: of.SetOption = None,
    seed: of.SeedOption = None,
    warm: of.WarmOption = None,
    group: of.GroupOption = None,
    min_count: of.MinCountOption = 100,
    seeds: of.SeedsOption = 1,
    sweep: of.SweepOption = False,
    every: of.AllOption = False,
    script: of.ScriptOption = None,
    plots: of.PlotsOption = True,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Instead of the number in the recipe; of trees, their largest number."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")] = "cpu",
    without: WithoutOption = None,
    name: Annotated[str | None, typer.Option(help="Name of the model, instead of the recipe's.")] = None,
    version: Annotated[str | None, typer.Option(help="Its version; default: the next free one.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", "-j", min=1, help="Processes that simulate frames, or train classes of a group."
        ),
    ] = None,
    scheduler: SchedulerOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Forget an earlier run in the folder, and its model.")
    ] = False,
) -> None:
    """Train a network, export it and write its card; an interrupted run goes on where it stopped.

    Example: tapetum models train realbogus --alerts night.tar.gz -o my-realbogus

    Example: tapetum models train variables --group my-group --algorithm xgb --table labelled.parquet --seeds 3
    """
    from datetime import UTC, datetime
    from functools import partial

    from tapetum.core.settings import write_settings
    from tapetum.training.run import files_for, free_version
    from tapetum.training.run import train as make
    from tapetum.training.variables_recipe import ClassifierOptions, any_recipe

    today = datetime.now(UTC).date()
    options = ClassifierOptions(
        algorithm, taxonomy, period, features, statistics, skip_cv, seed, threshold, balance, weighted, scaling,
        batch, rate, patience, tuple(assignments or ()),
    )  # fmt: skip
    of_group = {"--seeds": seeds > 1, "--sweep": sweep, "--all": every, "--script": script is not None}
    if group is not None:
        others = {"--out": out, "--alerts": alerts, "--frames": frames, "--without": without, "--name": name}
        of.require_group(recipe, others)
        plan_of_group = of.plan(
            group, table, options, today, epochs=epochs, version=version, n_seeds=seeds, sweep=sweep, warm=warm,
            every=every, pictures=plots, overwrite=overwrite, device=device,
        )  # fmt: skip
        of.train_into_group(context, plan_of_group, recipe, min_count, jobs, scheduler, script)
        return
    of.refuse_without_group(recipe, options, of_group, scheduler)
    settings = settings_of(context)
    planned = partial(
        any_recipe, recipe, epochs, model_name=name, options=options,
        warm_start=of.warm_of(recipe, warm, algorithm, taxonomy),
    )  # fmt: skip
    plan = planned(version=version)
    files = files_for(plan, {"--alerts": alerts or [], "--frames": frames or [], "--table": table or []})
    out = out or Path(plan.name)
    if version is None:
        plan = planned(version=free_version(plan, out))
    with progress_bar(f"training {plan.name}") as progress:
        trained = make(
            plan,
            files,
            out,
            today=today,
            device=device,
            progress=progress,
            without=without or (),
            overwrite=overwrite,
            jobs=jobs or 1,
        )
    if not trained.finished_before or not of.is_judged(out):
        of.judge(plan, files, out, pictures=plots)
    if trained.finished_before:
        say(f"{trained.card.name} {trained.card.version} in {out}: finished already")
        return
    command = {
        "verb": "models train",
        "recipe": recipe,
        plan.FILES[1].lstrip("-"): [str(path) for path in files],
        "algorithm": algorithm,
        "period_suffix": period,
        "features": str(features) if features else None,
        "skip_cv": skip_cv,
        "set": list(assignments or ()),
        "warm_start": warm,
        "epochs": plan.optimiser.epochs,
        "device": device,
        "without": list(without or ()),
        "name": trained.card.name,
        "version_of_model": trained.card.version,
    }
    write_settings(out / "settings.toml", settings, command)
    say(f"{trained.card.name} {trained.card.version} -> {trained.folder}")


def calibrate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model: a name, name@version or path.")],
    out: FolderOption,
    alerts: AlertsOption = None,
    method: Annotated[str, typer.Option(help="temperature, platt or isotonic.")] = "platt",
    recipe: RecipeOption = "realbogus",
    also: Annotated[
        list[str] | None,
        typer.Option("--with", help="Also a data source of the recipe: sample, simulation; may be repeated."),
    ] = None,
) -> None:
    """Fit the calibration of a model again, on your alerts alone; writes the next PATCH version.

    Example: tapetum models calibrate realbogus --alerts my_survey/ -o my-realbogus
    """
    from datetime import UTC, datetime

    from tapetum.core.settings import write_settings
    from tapetum.training.recalibrate import recalibrate
    from tapetum.training.recipe import load_recipe

    settings = settings_of(context)
    card = recalibrate(
        model,
        load_recipe(recipe),
        alerts or [],
        out,
        method=method,
        today=datetime.now(UTC).date(),
        also=also or (),
    )
    command = {
        "verb": "models calibrate",
        "model": model,
        "alerts": [str(path) for path in alerts or []],
        "method": method,
        "recipe": recipe,
        "with": list(also or ()),
    }
    write_settings(out / "settings.toml", settings, command)
    say(f"{card.name} {card.version} -> {out}")
