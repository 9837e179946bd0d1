"""Options of `tapetum models import` for classifiers that SCoPe trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tapetum.cli.common import say

if TYPE_CHECKING:
    from collections.abc import Mapping

ClassOption = Annotated[
    str | None,
    typer.Option("--class", metavar="CODE", help="SCoPe: class that the model is for, such as dscu."),
]
AlgorithmOption = Annotated[
    Literal["dnn", "xgb"] | None, typer.Option("--algorithm", help="SCoPe: network (.h5) or trees (.json).")
]
ScopeConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--scope-config", metavar="config.yaml", help="SCoPe: feature list, period, rules, statistics."
    ),
]
FeatureStatsOption = Annotated[
    Path | None,
    typer.Option(
        "--feature-stats",
        metavar="FILE|config",
        help="SCoPe: statistics of features (JSON, TOML), or those of its configuration.",
    ),
]
TrainingSetOption = Annotated[
    Path | None,
    typer.Option(
        "--training-set", metavar="TABLE", help="SCoPe: what it was trained on: scaling, missing values."
    ),
]
PeriodSuffixOption = Annotated[
    str | None, typer.Option("--period-suffix", help="SCoPe: algorithm of its period; default ELS_ECE_EAOV.")
]
ScalingOption = Annotated[
    Literal["min_max", "median_std", "none"] | None,
    typer.Option("--scaling", "--scale-features", help="SCoPe: how features were scaled; default min_max."),
]


def import_of_scope(
    file: Path,
    name: str | None,
    class_name: str | None,
    algorithm: Literal["dnn", "xgb"] | None,
    of_scope: Mapping[str, Any],
    given: Mapping[str, Any],
) -> None:
    """Import a classifier of SCoPe and say where it lies.

    Raises
    ------
    UsageError
        Options are missing, or belong to another kind of network.
    """
    import datetime

    from tapetum.core.errors import UsageError
    from tapetum.models.registry import imported_dir
    from tapetum.pipelines.import_scope import ScopeFiles, import_scope_model

    if class_name is None or algorithm is None:
        raise UsageError("a classifier of SCoPe needs --class CODE and --algorithm dnn or xgb")
    if other := [key for key in given if key not in ("features", "licence", "version")]:
        raise UsageError(f"--{other[0].replace('_', '-')} is for networks that take stamps")
    words: dict[str, Any] = {key: value for key, value in {**of_scope, **given}.items() if value is not None}
    if words.get("statistics") == Path("config"):
        if "config" not in words:
            raise UsageError("--feature-stats config needs --scope-config FILE")
        words = {key: value for key, value in words.items() if key != "statistics"}
        words["use_config_statistics"] = True
    today = datetime.datetime.now(tz=datetime.UTC).date()
    done = import_scope_model(
        file, class_name, algorithm, ScopeFiles(**words), imported_dir(), today, name=name
    )
    state = "imported" if done.new else "already imported"
    say(f"{done.card.name} {done.card.version} {state}: {done.folder}")
