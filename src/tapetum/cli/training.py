"""`tapetum models train|evaluate|calibrate`; registered by `tapetum.cli.models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapetum.cli.common import OutOption, progress_bar, say, settings_of

AlertsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--alerts",
        help="Packets: files, folders, archives, Parquet, or .npz cubes; may be repeated.",
        exists=True,
    ),
]
RecipeOption = Annotated[
    str, typer.Option("--recipe", help="Recipe whose rules of truth and simulation are used.")
]
WithoutOption = Annotated[
    list[str] | None,
    typer.Option("--without", help="Leave a data source of the recipe out: packets, sample, simulation."),
]
FolderOption = Annotated[Path, typer.Option("--out", "-o", help="Folder of the model.")]


def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or the path of a recipe.toml.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the model; default: its name, here.")
    ] = None,
    alerts: AlertsOption = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the number in the recipe.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.")] = "cpu",
    without: WithoutOption = None,
    name: Annotated[str | None, typer.Option(help="Name of the model, instead of the recipe's.")] = None,
    version: Annotated[str | None, typer.Option(help="Its version; default: the next free one.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Forget an earlier run in the folder, and its model.")
    ] = False,
) -> None:
    """Train a network, export it and write its card; an interrupted run goes on where it stopped.

    Example: tapetum models train realbogus --alerts night.tar.gz -o my-realbogus
    """
    from datetime import UTC, datetime

    from tapetum.core.settings import write_settings
    from tapetum.training.recipe import load_recipe
    from tapetum.training.run import free_version
    from tapetum.training.run import train as make

    settings = settings_of(context)
    plan = load_recipe(recipe, epochs, model_name=name, version=version)
    out = out or Path(plan.name)
    if version is None:
        plan = load_recipe(recipe, epochs, model_name=name, version=free_version(plan, out))
    with progress_bar(f"training {plan.name}") as progress:
        trained = make(
            plan,
            alerts or [],
            out,
            today=datetime.now(UTC).date(),
            device=device,
            progress=progress,
            without=without or (),
            overwrite=overwrite,
        )
    if trained.finished_before:
        say(f"{trained.card.name} {trained.card.version} in {out}: finished already")
        return
    command = {
        "verb": "models train",
        "recipe": recipe,
        "alerts": [str(path) for path in alerts or []],
        "epochs": plan.optimiser.epochs,
        "device": device,
        "without": list(without or ()),
        "name": trained.card.name,
        "version_of_model": trained.card.version,
    }
    write_settings(out / "settings.toml", settings, command)
    say(f"{trained.card.name} {trained.card.version} -> {trained.folder}")


def evaluate(
    context: typer.Context,
    models: Annotated[
        list[str], typer.Argument(help="Models: names, name@version or paths, all on the same alerts.")
    ],
    alerts: AlertsOption = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Table of labels instead of packet truth.", exists=True, dir_okay=False),
    ] = None,
    part: Annotated[str, typer.Option(help="Part of the split: test, validation or all.")] = "test",
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Also the recipe's simulated test alerts.")
    ] = False,
    groups: Annotated[bool, typer.Option("--groups", help="Also by survey, edge and magnitude.")] = False,
    recipe: RecipeOption = "realbogus",
    diagram: Annotated[
        Path | None, typer.Option(help="Reliability diagram of the first model's card, .svg or .png.")
    ] = None,
    out: OutOption = "-",
) -> None:
    """Measure models against truth, with intervals: ranking, false positives, calibration.

    Example: tapetum models evaluate realbogus braai-d6-m9 --alerts night.tar.gz --labels labels.parquet
    """
    from tapetum.core.errors import UsageError
    from tapetum.core.files import whole_file
    from tapetum.pipelines.outputs import check_output, record_settings
    from tapetum.training.compare import ROLES, compare, gather, read_labels
    from tapetum.training.recipe import load_recipe

    chosen = next((name for name in ROLES if name == part), None)
    if chosen is None:
        raise UsageError(f"--part {part}: choose one of {', '.join(ROLES)}")
    settings = settings_of(context)
    check_output(out)
    if diagram is not None:
        _draw(models[0], diagram)
    if not alerts and not simulated:
        if diagram is None:
            raise UsageError("nothing to measure on: name packets with --alerts, or give --simulated")
        return
    table = read_labels(labels) if labels else None
    result = compare(
        models, gather(load_recipe(recipe), alerts or [], chosen, table, simulated), groups=groups
    )
    text = result.as_json() if out.endswith(".json") else result.as_markdown()
    if out == "-":
        typer.echo(text)
        return
    with whole_file(Path(out)) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    command = {
        "verb": "models evaluate",
        "models": models,
        "alerts": [str(path) for path in alerts or []],
        "labels": None if labels is None else str(labels),
        "part": part,
        "simulated": simulated,
        "groups": groups,
        "recipe": recipe,
    }
    record_settings(Path(out), settings, command)


def _draw(spec: str, path: Path) -> None:
    from tapetum.core.errors import ModelError
    from tapetum.models.runtime import Model
    from tapetum.training.figures import draw_reliability

    card = Model.load(spec).card
    if card.reliability is None:
        raise ModelError(f"{spec}: the card has no reliability diagram; `tapetum models calibrate` makes one")
    draw_reliability(path, card.reliability.bins, f"{card.name} {card.version}", card.reliability.ece)


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
    from tapetum.training.recipe import load_recipe
    from tapetum.training.run import recalibrate

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
