"""`tapetum store`: make a store, say what is in it, prove that it is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tapetum.cli.common import JsonOption, StoreOption, progress_bar, say, settings_of

if TYPE_CHECKING:
    from tapetum.core.settings import Settings
    from tapetum.store.store import Store

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Where alerts, light curves and scores are kept."
)


def open_named(settings: Settings, *, create: bool = False, forget_lost: bool = False) -> Store:
    """The store of ``--store`` or of the settings.

    Raises
    ------
    UsageError
        Neither names one.
    """
    from tapetum.core.errors import UsageError
    from tapetum.store.store import open_store

    if settings.store.url is None:
        raise UsageError("which store? name it with --store sqlite:///FILE, or as store.url in tapetum.toml")
    place = settings.store.segments_url
    return open_store(settings.store.url, create=create, segments_url=place, forget_lost=forget_lost)


@app.command()
def init(
    context: typer.Context,
    store: StoreOption = None,
    forget_lost: Annotated[
        bool,
        typer.Option(
            "--forget-lost",
            help="Go on although packets beside the database are not in its tables; ingest will write over them.",
        ),
    ] = False,
) -> None:
    """Make a store: its tables, its folder of segments, its secret. One that is there already stays as it is.

    Refused where packets lie whose database or write-ahead log is missing, unless --forget-lost gives them up.

    Example: tapetum store init --store sqlite:///night.db
    """
    from tapetum.core.errors import StoreError

    with open_named(settings_of(context, store__url=store), create=True, forget_lost=forget_lost) as opened:
        if lost := opened.lost():
            raise StoreError(lost)
        opened.segments.mkdir(parents=True, exist_ok=True)
        say(f"{opened.name}: ready, segments in {opened.segments}")


@app.command()
def info(context: typer.Context, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Say what is in a store.

    Example: tapetum store info --store sqlite:///night.db --json
    """
    import json

    with open_named(settings_of(context, store__url=store)) as opened:
        found, lost = opened.info(), opened.lost()
        models = [{"model": name, "version": version, "scores": n} for name, version, n in opened.models()]
    if lost is not None:
        typer.echo(f"problem: {lost}", err=True)
    if as_json:
        typer.echo(json.dumps({**found, "models": models}, indent=1))
        return
    for key, value in found.items():
        typer.echo(f"{key:16} {value}")
    for entry in models:
        typer.echo(f"{'scored by':16} {entry['model']} {entry['version']}: {entry['scores']}")


@app.command()
def check(
    context: typer.Context,
    store: StoreOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not read the packets, only look where they are.")
    ] = False,
    with_digest: Annotated[
        bool, typer.Option("--digest", help="Also a digest per table: equal content, equal digests.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Prove that a store is whole: every row has what it refers to, every packet has its checksum.

    Exit status 1 when anything is wrong; each problem is one line on stderr. A check may run while alerts come in.

    Example: tapetum store check --store sqlite:///night.db
    """
    import dataclasses
    import json

    from tapetum.store.check import check as check_store
    from tapetum.store.digest import digest

    with open_named(settings_of(context, store__url=store)) as opened, progress_bar("checking") as progress:
        report = check_store(opened, quick=quick, progress=progress)
        digests = digest(opened) if with_digest else {}
    if as_json:
        found = dataclasses.asdict(report) | ({"digest": digests} if with_digest else {})
        typer.echo(json.dumps(found, indent=1))
    else:
        for name, number in report.checked.items():
            typer.echo(f"{number:>12} {name.replace('_', ' ')}")
        for name, value in digests.items():
            typer.echo(f"{value} {name}")
        for note in report.notes:
            say(f"note: {note}")
        for problem in report.problems:
            typer.echo(f"problem: {problem}", err=True)
        typer.echo(
            "everything is in order" if not report.problems else f"{len(report.problems)} problems", err=True
        )
    if report.problems:
        raise typer.Exit(1)
