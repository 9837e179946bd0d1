"""`tapetum lightcurves ids` and `fetch`: light curves out of a Kowalski server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tapetum.cli.common import OutOption, OverwriteOption, progress_bar, report_rejections, say
from tapetum.cli.lightcurves_common import comma_list, number_range
from tapetum.cli.lightcurves_impute import (
    ImputeFromOption,
    ImputeOption,
    ImputeRestOption,
    ImputerOption,
    ImputeRuleOption,
    SaveImputerOption,
    imputation_of,
)
from tapetum.cli.lightcurves_server import (
    FEATURES,
    SOURCES,
    ServerOption,
    ThreadsOption,
    UserOption,
    open_server,
    server_settings,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapetum.core.settings import Settings
    from tapetum.pipelines.lightcurve_fetch import FetchReport
    from tapetum.pipelines.lightcurve_impute import Imputation
    from tapetum.pipelines.lightcurve_plans import Plan

LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Take so many.")]
SkipOption = Annotated[int, typer.Option("--skip", min=0, help="Leave out so many of the first.")]


def ids(
    context: typer.Context,
    fields: Annotated[
        str, typer.Option("--field", metavar="N|FIRST-LAST,...", help="Fields of ZTF: one, a range, a list.")
    ],
    out: Annotated[
        str,
        typer.Option("--out", "-o", help="File, by suffix HDF5, Parquet, CSV, ...; a folder if --separate."),
    ],
    ccds: Annotated[str, typer.Option("--ccd", metavar="N|FIRST-LAST", help="CCD, or a range.")] = "1-16",
    quadrants: Annotated[
        str, typer.Option("--quadrant", "--quad", metavar="N|FIRST-LAST", help="Quadrant, or a range.")
    ] = "1-4",
    min_epochs: Annotated[
        int, typer.Option("--min-epochs", "--minobs", min=0, help="Points that a light curve needs.")
    ] = 20,
    skip: SkipOption = 0,
    limit: LimitOption = None,
    catalogue: Annotated[str, typer.Option("--catalogue", help="Where to look.")] = SOURCES,
    separate: Annotated[
        bool, typer.Option("--separate", help="A file per quadrant: field_F/data_ccd_CC_quad_Q.h5.")
    ] = False,
    count: Annotated[
        bool, typer.Option("--count", "--count-sources", help="No ids, but how many each quadrant has.")
    ] = False,
    server: ServerOption = None,
    user: UserOption = None,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Ids of the light curves of a quadrant, of several, of whole fields; or how many there are.

    --skip and --limit are of each quadrant. With --count the table is one that `tapetum lightcurves slurm` takes.

    Example: tapetum lightcurves ids --field 301 --ccd 2 --quadrant 1-4 -o ids.h5

    Example: tapetum lightcurves ids --count --field 0-1999 -o quadrants.csv
    """
    from tapetum.core.errors import UsageError
    from tapetum.lightcurves.remote import quadrants_of
    from tapetum.pipelines.lightcurve_plans import plan_counts, plan_ids, quadrant_path

    settings = server_settings(context, server, user, threads)
    ranges = number_range("--ccd", ccds), number_range("--quadrant", quadrants)
    wheres = [where for field in _fields(fields) for where in quadrants_of(field, *ranges)]
    if count:
        if separate or skip or limit is not None:
            raise UsageError("--count counts all of a quadrant; leave --separate, --skip and --limit away")
        plans = [(out, plan_counts(catalogue, wheres, min_epochs=min_epochs))]
    else:
        wanted = (
            [(str(quadrant_path(Path(out), where)), [where]) for where in wheres]
            if separate
            else [(out, wheres)]
        )
        plans = [
            (path, plan_ids(catalogue, places, min_epochs=min_epochs, skip=skip, limit=limit))
            for path, places in wanted
        ]
    _carry_out(plans, settings, None, overwrite=overwrite)


def _fields(text: str) -> list[int]:
    """Fields of a list of numbers and ranges, each once."""
    ranges = [number_range("--field", word) for word in comma_list(text)]
    return list(dict.fromkeys(field for first, last in ranges for field in range(first, last + 1)))


def fetch(
    context: typer.Context,
    wanted: Annotated[
        Path, typer.Argument(help="Table with ids of light curves (lc_id, ztf_id, _id), or with ra and dec.")
    ],
    out: OutOption,
    kind: Annotated[
        Literal["curves", "features"], typer.Option("--kind", help="Light curves, or features stored there.")
    ] = "curves",
    catalogue: Annotated[
        str | None, typer.Option("--catalogue", help=f"Default: {SOURCES}, or {FEATURES}.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", metavar="NAME,...", help="Features to fetch. Default: all.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Light curves per question.")] = 1000,
    skip: SkipOption = 0,
    limit: LimitOption = None,
    programs: Annotated[str, typer.Option("--programs", help="Programmes of ZTF to take.")] = "1,2,3",
    latest_hjd: Annotated[
        float | None, typer.Option("--latest-hjd", "--max-timestamp-hjd", help="Only points up to then [d].")
    ] = None,
    radius: Annotated[
        float,
        typer.Option("--radius-arcsec", min=0, help="Around positions, where there are no ids [arcsec]."),
    ] = 2.0,
    min_epochs: Annotated[
        int, typer.Option("--min-epochs", min=0, help="Points a light curve needs, where there are no ids.")
    ] = 0,
    matches: Annotated[
        str | None, typer.Option("--matches", metavar="FILE", help="Write which light curves a position has.")
    ] = None,
    impute: ImputeOption = False,
    imputer: ImputerOption = None,
    impute_from: ImputeFromOption = None,
    impute_rule: ImputeRuleOption = None,
    impute_rest: ImputeRestOption = "keep",
    save_imputer: SaveImputerOption = None,
    server: ServerOption = None,
    user: UserOption = None,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Fetch light curves or stored features; what was fetched before a stop is not asked for again.

    Example: tapetum lightcurves fetch ids.h5 --kind features -o features.parquet
    """
    from tapetum.core.errors import UsageError
    from tapetum.pipelines.lightcurve_plans import plan_curves, plan_features

    settings = server_settings(context, server, user, threads)
    imputation = imputation_of(
        impute=impute, imputer=imputer, fit_on=impute_from, rules=impute_rule or [], rest=impute_rest,
        save=save_imputer,
    )  # fmt: skip
    if kind == "curves" and imputation is not None:
        raise UsageError("--impute is for --kind features: light curves have nothing to impute")
    last = None if limit is None else skip + limit
    chosen = _ids(wanted, catalogue or SOURCES, settings, radius, min_epochs, matches)[skip:last]
    if kind == "curves":
        plan = plan_curves(
            catalogue or SOURCES, chosen, batch=batch, programs=_numbers(programs), latest_hjd=latest_hjd
        )
    else:
        plan = plan_features(catalogue or FEATURES, chosen, batch=batch, columns=comma_list(columns))
    _carry_out([(out, plan)], settings, imputation, overwrite=overwrite)


def _ids(
    wanted: Path, catalogue: str, settings: Settings, radius: float, min_epochs: int, matches: str | None
) -> list[str]:
    """Ids of a table, or those of the light curves around its positions."""
    from tapetum.core.errors import FormatError
    from tapetum.lightcurves.curves import KEY
    from tapetum.lightcurves.wanted import find_curves, read_ids, read_wanted
    from tapetum.report.tables import write_table

    try:
        return read_ids(wanted)
    except FormatError:
        table = read_wanted(wanted)  # says why, where it has neither
        if KEY in table.column_names:
            raise
    with open_server(settings.kowalski) as server:
        found = find_curves(
            server, catalogue, table, radius, min_epochs=min_epochs, threads=settings.kowalski.threads
        )
    say(f"{wanted}: {found.num_rows} light curves around {table.num_rows} positions")
    if matches is not None:
        write_table(found, matches, units={"ra": "deg", "dec": "deg", "separation_arcsec": "arcsec"})
    return list(dict.fromkeys(found[KEY].to_pylist()))


def _carry_out(
    plans: Sequence[tuple[str, Plan]], settings: Settings, imputation: Imputation | None, *, overwrite: bool
) -> None:
    """Fetch all, then end with the exit status for some or for all."""
    from tapetum.pipelines.lightcurve_fetch import fetch_once

    problems: list[str] = []
    with open_server(settings.kowalski) as server:
        for output, plan in plans:
            with progress_bar("fetching") as progress:
                report = fetch_once(
                    plan, server, output, settings, overwrite=overwrite, threads=settings.kowalski.threads,
                    imputation=imputation, progress=progress,
                )  # fmt: skip
            problems += report.problems
            _tell(report, output)
    n_batches = sum(len(plan.batches) for _, plan in plans)
    report_rejections(
        problems, len(problems), n_batches - len(problems), things="batches", nothing="", done="fetched"
    )


def _tell(report: FetchReport, output: str) -> None:
    if report.finished:
        say(f"{output}: finished already; --overwrite fetches it again")
        return
    if report.left_out:
        say(f"{output}: its format has no place for {', '.join(report.left_out)}; Parquet and HDF5 have")
    lacking = f", {report.n_missing} of {report.n_asked} are not there" if report.n_missing else ""
    dropped = f", {report.n_dropped} dropped for a missing value" if report.n_dropped else ""
    say(f"{report.n_rows} rows{lacking}{dropped} -> {output}")


def _numbers(text: str) -> tuple[int, ...]:
    from tapetum.core.errors import UsageError

    try:
        return tuple(int(word) for word in comma_list(text))
    except ValueError:
        raise UsageError(f"--programs {text}: whole numbers between commas") from None
