"""`tapetum models evaluate`; registered by `tapetum.cli.models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapetum.cli.common import OutOption, progress_bar, settings_of
from tapetum.cli.training import AlertsOption, FramesOption, TableOption


def evaluate(
    context: typer.Context,
    models: Annotated[
        list[str], typer.Argument(help="Models: names, name@version or paths, all on the same data.")
    ],
    alerts: AlertsOption = None,
    frames: FramesOption = None,
    table: TableOption = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Mask model that is run with the original tiling and normalisation; may be repeated."
        ),
    ] = None,
    each: Annotated[int, typer.Option(min=1, help="Contaminated frames made of each piece of a frame.")] = 4,
    labels: Annotated[
        Path | None,
        typer.Option(help="Table of labels instead of packet truth.", exists=True, dir_okay=False),
    ] = None,
    part: Annotated[str, typer.Option(help="Part of the split of alerts: test, validation or all.")] = "test",
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Also the recipe's simulated test alerts or frames.")
    ] = False,
    groups: Annotated[bool, typer.Option("--groups", help="Also by survey, edge and magnitude.")] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", help="Whose rules of truth and simulation are used; default: realbogus, contaminants."
        ),
    ] = None,
    diagram: Annotated[
        Path | None, typer.Option(help="Reliability diagram of the first model's card, .svg or .png.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of mask models.")] = 1,
    out: OutOption = "-",
) -> None:
    """Measure models against truth, with intervals: alerts by labels, masks by exact truth, variables by label.

    Example: tapetum models evaluate contaminants --against maximask --frames night/ -o masks.html
    """
    from tapetum.core.errors import UsageError
    from tapetum.core.files import whole_file
    from tapetum.pipelines.outputs import check_output, record_settings

    settings = settings_of(context)
    check_output(out)
    if diagram is not None:
        _draw(models[0], diagram)
    if not alerts and not frames and not table and not simulated:
        if diagram is None:
            raise UsageError("nothing to measure on: name --alerts, --frames or --table, or give --simulated")
        return
    command = {"verb": "models evaluate", "models": models, "simulated": simulated}
    if table:
        if alerts or frames or simulated or len(models) > 1:
            raise UsageError("--table is for one classifier of light curves, and nothing else with it")
        command |= {"table": _texts(table), "part": part}
        text = _curves(models[0], table, part, out)
    elif _judges_frames(models[0]):
        _check_for_frames(models[0], part, others=bool(alerts or labels or groups))
        recipe = recipe or "contaminants"
        command |= {"recipe": recipe, "frames": _texts(frames), "against": list(against or ()), "each": each}
        text = _masks(models, against or [], recipe, frames or [], each, simulated, threads, out)
    else:
        if frames or against:
            raise UsageError(f"{models[0]} judges alerts: it takes no --frames or --against")
        command |= {"alerts": _texts(alerts), "labels": None if labels is None else str(labels)}
        command |= {"part": part, "groups": groups, "recipe": recipe or "realbogus"}
        text = _alerts(models, recipe or "realbogus", alerts or [], part, labels, simulated, groups, out)
    if out == "-":
        typer.echo(text)
        return
    with whole_file(Path(out)) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    record_settings(Path(out), settings, command)


def _texts(paths: list[Path] | None) -> list[str]:
    return [str(path) for path in paths or []]


def _judges_frames(spec: str) -> bool:
    from tapetum.models.card import load_card
    from tapetum.models.registry import find_model

    return load_card(find_model(spec).card).frame is not None


def _check_for_frames(model: str, part: str, *, others: bool) -> None:
    """Raise UsageError for what only models of alerts can be asked."""
    from tapetum.core.errors import UsageError

    if others:
        raise UsageError(f"{model} judges frames: it takes no --alerts, --labels or --groups")
    if part != "test":
        raise UsageError(
            f"--part {part}: {model} judges frames, whose contaminants are always those of the test part"
        )


def _alerts(
    models: list[str],
    recipe: str,
    alerts: list[Path],
    part: str,
    labels: Path | None,
    simulated: bool,
    groups: bool,
    out: str,
) -> str:
    from tapetum.core.errors import UsageError
    from tapetum.training.compare import ROLES, compare, gather, read_labels
    from tapetum.training.recipe import load_recipe

    chosen = next((name for name in ROLES if name == part), None)
    if chosen is None:
        raise UsageError(f"--part {part}: choose one of {', '.join(ROLES)}")
    table = read_labels(labels) if labels else None
    sets = gather(load_recipe(recipe), alerts, chosen, table, simulated)
    result = compare(models, sets, groups=groups)
    return result.as_json() if out.endswith(".json") else result.as_markdown()


def _curves(model: str, table: list[Path], part: str, out: str) -> str:
    from tapetum.training.variable_tree_evaluate import as_text, evaluate_tree

    with progress_bar("periods of light curves") as progress:
        report = evaluate_tree(model, table, part, progress)
    return as_text(report, plain=out.endswith(".json"))


def _masks(
    models: list[str],
    against: list[str],
    recipe: str,
    frames: list[Path],
    each: int,
    simulated: bool,
    threads: int,
    out: str,
) -> str:
    from tapetum.training.mask_compare import report_of
    from tapetum.training.recipe import load_any_recipe

    with progress_bar("judging frames") as progress:
        return report_of(
            load_any_recipe(recipe),
            models,
            against,
            frames,
            each=each,
            simulated=simulated,
            form=Path(out).suffix,
            threads=threads,
            progress=progress,
        )


def _draw(spec: str, path: Path) -> None:
    from tapetum.core.errors import ModelError
    from tapetum.models.runtime import Model
    from tapetum.training.figures import draw_reliability

    card = Model.load(spec).card
    if card.reliability is None:
        raise ModelError(f"{spec}: the card has no reliability diagram; `tapetum models calibrate` makes one")
    draw_reliability(path, card.reliability.bins, f"{card.name} {card.version}", card.reliability.ece)
