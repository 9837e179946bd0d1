"""`tapetum models`: what networks there are, what their cards say, whether they are intact, and how others come in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapetum.cli import training, training_evaluate, training_variables
from tapetum.cli.common import JsonOption, progress_bar, say
from tapetum.cli.models_scope import (
    AlgorithmOption,
    ClassOption,
    FeatureStatsOption,
    PeriodSuffixOption,
    ScalingOption,
    ScopeConfigOption,
    TrainingSetOption,
    import_of_scope,
)

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Networks: list, show, verify, import, train."
)
app.command("train")(training.train)
app.command("evaluate")(training_evaluate.evaluate)
app.command("calibrate")(training.calibrate)
app.command("stats")(training_variables.stats)

NameArgument = Annotated[str, typer.Argument(help="Name, name@version, or path of a model.")]


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List every model of the package and every imported one, and the known ones that could be imported.

    Example: tapetum models list
    """
    import json

    from tapetum.core.errors import ModelError
    from tapetum.models.card import load_card
    from tapetum.models.registry import list_models, load_template, template_names

    rows: list[tuple[str, ...]] = []
    for files in list_models():
        try:
            card = load_card(files.card)
        except ModelError as problem:
            typer.echo(f"{files.name} {files.version}: {problem}", err=True)
            continue
        rows.append((card.name, card.version, files.origin, card.licence, card.title))
    there = {row[0] for row in rows}
    for name in template_names():
        template = load_template(name)
        if template is not None and name not in there:
            rows.append((name, template.version, "not imported", template.licence, template.title))
    keys = ("name", "version", "origin", "licence", "title")
    if as_json:
        typer.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=1))
        return
    widths = [max(len(row[column]) for row in [keys, *rows]) for column in range(len(keys))]
    for row in [keys, *rows]:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def show(name: NameArgument) -> None:
    """Print the card of a model as JSON.

    Example: tapetum models show realbogus
    """
    from tapetum.models.card import load_card
    from tapetum.models.registry import find_model

    typer.echo(load_card(find_model(name).card).model_dump_json(indent=1))


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names, name@version, or paths of models.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every model of the package and every imported one.")
    ] = False,
) -> None:
    """Check card, sha256 and golden vectors of models.

    Example: tapetum models verify --all
    """
    from tapetum.core.errors import ModelError, PartialFailureError
    from tapetum.models.registry import list_models
    from tapetum.models.runtime import Model

    if every == bool(names):
        raise typer.BadParameter("give names, or --all", param_hint="NAMES")
    specs = [f"{files.name}@{files.version}" for files in list_models()] if every else (names or [])
    failed = []
    for spec in specs:
        try:
            model = Model.load(spec)
            card = model.card
            if card.golden is None:
                raise ModelError(f"{card.name} {card.version}: the card has no golden vectors")
            typer.echo(
                f"{card.name} {card.version}  ok  sha256 {card.onnx_sha256[:12]}  "
                f"{len(card.golden.outputs)} golden vectors within {model.check_golden():.1e}"
            )
        except ModelError as problem:
            failed.append(spec)
            typer.echo(f"{spec}  FAILED  {problem}", err=True)
    if failed and len(specs) == 1:
        raise ModelError(f"{failed[0]} is not intact")
    if failed:
        raise PartialFailureError(f"{len(failed)} of {len(specs)} models are not intact: {', '.join(failed)}")


@app.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|maximask|maxitrack",
            help="Keras whole-model file (.h5); boosted trees of SCoPe (.json); for MaxiMask and MaxiTrack a "
            "SavedModel folder or the wheel. Or the word maximask or maxitrack alone: the published network, from the "
            "package index.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Name from now on; a known name needs no other option.")
    ] = None,
    normalisation: Annotated[
        str | None, typer.Option(help="row_l2, stamp_l2, stamp_l2_mean or background_noise.")
    ] = None,
    channel_order: Annotated[
        str | None, typer.Option(help="Order of the stamps; default science,template,difference.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of the input, if the network takes any [pixel].")
    ] = None,
    pad_side: Annotated[str | None, typer.Option(help="bottom_right (default) or centre.")] = None,
    pad_value: Annotated[float | None, typer.Option(help="What fills small stamps; default 0.")] = None,
    pad_when: Annotated[str | None, typer.Option(help="before or after (default) normalisation.")] = None,
    features: Annotated[str | None, typer.Option(help="Fields of a feature input, in order: a,b,c.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the network.")] = None,
    version: Annotated[str | None, typer.Option(help="Version to give it; default 1.0.0.")] = None,
    class_name: ClassOption = None,
    algorithm: AlgorithmOption = None,
    scope_config: ScopeConfigOption = None,
    feature_stats: FeatureStatsOption = None,
    training_set: TrainingSetOption = None,
    period_suffix: PeriodSuffixOption = None,
    scaling: ScalingOption = None,
) -> None:
    """Turn a foreign network into an ONNX model with a card, without TensorFlow; again the same file does nothing.

    Example: tapetum models import d6_m7.h5 --name braai-d6-m7

    Example: tapetum models import maximask

    Example: tapetum models import dscu.json --class dscu --algorithm xgb --training-set training.parquet
    """
    import datetime

    from tapetum.core.places import cache_dir
    from tapetum.models.importer import Contract
    from tapetum.models.maximask import import_published
    from tapetum.models.registry import PUBLISHED, imported_dir
    from tapetum.pipelines.import_model import import_model

    said = {
        "normalisation": normalisation,
        "channels": _split(channel_order),
        "size": size,
        "pad_side": pad_side,
        "pad_value": pad_value,
        "pad_when": pad_when,
        "features": _split(features),
        "licence": licence,
        "version": version,
    }
    given = {key: value for key, value in said.items() if value is not None}
    of_scope = {
        "config": scope_config, "statistics": feature_stats, "training_set": training_set,
        "period_suffix": period_suffix, "scaling": scaling,
    }  # fmt: skip
    if class_name is not None or algorithm is not None or any(of_scope.values()):
        import_of_scope(file, name, class_name, algorithm, of_scope, given)
        return
    if name is None or (name == str(file) and name in PUBLISHED and not file.exists()):
        if str(file) not in PUBLISHED:
            raise typer.BadParameter("give the network a name", param_hint="--name")
        if given:
            raise typer.BadParameter(f"{file} has its own input contract; leave the options away")
        with progress_bar(f"fetching {file}") as progress:
            done = import_published(str(file), imported_dir(), cache_dir() / "packages", progress)
    else:
        today = datetime.datetime.now(tz=datetime.UTC).date()
        contract = Contract(**given) if given else None  # type: ignore[arg-type]
        done = import_model(file, name, contract, imported_dir(), today)
    state = "imported" if done.new else "already imported"
    say(f"{done.card.name} {done.card.version} {state}: {done.folder}")


def _split(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())
