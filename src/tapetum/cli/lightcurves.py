"""`tapetum lightcurves`: from raw light curves to features and periods; each verb lies in a file of its own."""

from __future__ import annotations

import typer

from tapetum.cli import (
    lightcurves_classify,
    lightcurves_features,
    lightcurves_fetch,
    lightcurves_periods,
    lightcurves_slurm,
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Light curves: fetch them, find their periods, compute their features.",
)
app.command("ids")(lightcurves_fetch.ids)
app.command("fetch")(lightcurves_fetch.fetch)
app.command("features")(lightcurves_features.features)
app.command("periods")(lightcurves_periods.periods)
app.command("classify")(lightcurves_classify.classify)
app.command("combine")(lightcurves_classify.combine)
app.add_typer(lightcurves_slurm.app, name="slurm")
