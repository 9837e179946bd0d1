"""The root of the command line and the options that every verb shares."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapetum.cli import alerts, demo, doctor, images, lightcurves, models, samples, store

app = typer.Typer(
    name="tapetum",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=True,
)
app.add_typer(alerts.app, name="alerts")
app.add_typer(images.app, name="images")
app.add_typer(lightcurves.app, name="lightcurves")
app.add_typer(models.app, name="models")
app.add_typer(store.app, name="store")
app.add_typer(samples.app, name="samples")
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        from tapetum import __version__

        typer.echo(f"tapetum {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings file instead of ./tapetum.toml.")
    ] = None,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Say more; twice for everything.")
    ] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log as JSON lines.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Night vision for sky surveys: images, alerts and light curves in, vetted discoveries out."""
    from tapetum.core.log import configure_logging

    del version
    configure_logging(-1 if quiet else verbose, as_json=json_log)
    context.obj = config
