"""`tapetum lightcurves ids` and `fetch`: light curves out of a Kowalski server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tapetum.cli.common import OutOption, OverwriteOption, progress_bar, report_rejections, say, settings_of
from tapetum.cli.lightcurves_common import comma_list, number_range

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapetum.core.settings import KowalskiSettings, Settings
    from tapetum.pipelines.lightcurve_fetch import FetchReport, Imputation
    from tapetum.pipelines.lightcurve_plans import Plan
    from tapetum.surveys.kowalski import Kowalski

SOURCES, FEATURES = "ZTF_sources_20230109", "ZTF_source_features_DR16"
ServerOption = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="Kowalski server. Default: the settings'.")
]
UserOption = Annotated[
    str | None,
    typer.Option("--user", help="Who asks; the password is in the environment: TAPETUM_KOWALSKI__PASSWORD."),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Questions asked at the same time.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Take so many.")]
SkipOption = Annotated[int, typer.Option("--skip", min=0, help="Leave out so many of the first.")]


def ids(
    context: typer.Context,
    field: Annotated[int, typer.Option("--field", help="Field of ZTF.")],
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
    server: ServerOption = None,
    user: UserOption = None,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Ids of the light curves of a quadrant, of several, or of a whole field.

    --skip and --limit are of each quadrant.

    Example: tapetum lightcurves ids --field 301 --ccd 2 --quadrant 1-4 -o ids.h5
    """
    from tapetum.lightcurves.remote import quadrants_of
    from tapetum.pipelines.lightcurve_plans import plan_ids, quadrant_path

    settings = _settings(context, server, user, threads)
    wheres = quadrants_of(field, number_range("--ccd", ccds), number_range("--quadrant", quadrants))
    wanted = (
        [(str(quadrant_path(Path(out), where)), [where]) for where in wheres] if separate else [(out, wheres)]
    )
    plans = [
        (path, plan_ids(catalogue, places, min_epochs=min_epochs, skip=skip, limit=limit))
        for path, places in wanted
    ]
    _carry_out(plans, settings, None, overwrite=overwrite)


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
    impute: Annotated[
        bool, typer.Option("--impute", help="Replace missing features, by what is fetched with them.")
    ] = False,
    imputer: Annotated[
        Path | None, typer.Option("--imputer", help="Replace them by this, fitted on a training set (JSON).")
    ] = None,
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

    settings = _settings(context, server, user, threads)
    if kind == "curves" and (impute or imputer):
        raise UsageError("--impute is for --kind features: light curves have nothing to impute")
    last = None if limit is None else skip + limit
    chosen = _ids(wanted, catalogue or SOURCES, settings, radius, min_epochs, matches)[skip:last]
    if kind == "curves":
        plan = plan_curves(
            catalogue or SOURCES, chosen, batch=batch, programs=_numbers(programs), latest_hjd=latest_hjd
        )
    else:
        plan = plan_features(catalogue or FEATURES, chosen, batch=batch, columns=comma_list(columns))
    _carry_out([(out, plan)], settings, _imputation(imputer, fit=impute), overwrite=overwrite)


def _settings(context: typer.Context, server: str | None, user: str | None, threads: int | None) -> Settings:
    from tapetum.core.errors import UsageError

    settings = settings_of(context, kowalski__url=server, kowalski__user=user, kowalski__threads=threads)
    if settings.kowalski.url is None:
        raise UsageError("no Kowalski server: give --server URL, or set kowalski.url in tapetum.toml")
    return settings


@contextmanager
def _open(about: KowalskiSettings) -> Iterator[Kowalski]:
    from tapetum.core.http import HttpClient, Patience
    from tapetum.surveys.kowalski import GRACE_SECONDS, Kowalski, Login

    password, token = (
        None if secret is None else secret.get_secret_value() for secret in (about.password, about.token)
    )
    with HttpClient(Patience(read_s=about.seconds + GRACE_SECONDS)) as client:
        yield Kowalski(about.url or "", client, Login(about.user, password, token), seconds=about.seconds)


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
    with _open(settings.kowalski) as server:
        found = find_curves(
            server, catalogue, table, radius, min_epochs=min_epochs, threads=settings.kowalski.threads
        )
    say(f"{wanted}: {found.num_rows} light curves around {table.num_rows} positions")
    if matches is not None:
        write_table(found, matches, units={"ra": "deg", "dec": "deg", "separation_arcsec": "arcsec"})
    return list(dict.fromkeys(found[KEY].to_pylist()))


def _imputation(path: Path | None, *, fit: bool) -> Imputation | None:
    from tapetum.core.errors import InputError
    from tapetum.lightcurves.impute import Imputer
    from tapetum.pipelines.lightcurve_fetch import Imputation

    if path is None:
        return Imputation() if fit else None
    if not path.is_file():
        raise InputError(f"--imputer {path}: no such file")
    return Imputation(Imputer.from_json(path.read_text(encoding="utf-8")))


def _carry_out(
    plans: Sequence[tuple[str, Plan]], settings: Settings, imputation: Imputation | None, *, overwrite: bool
) -> None:
    """Fetch all, then end with the exit status for some or for all."""
    from tapetum.pipelines.lightcurve_fetch import fetch_once

    problems: list[str] = []
    with _open(settings.kowalski) as server:
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
