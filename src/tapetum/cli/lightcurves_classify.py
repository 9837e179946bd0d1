"""`tapetum lightcurves classify`: which kind of variable each light curve, and each source, is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tapetum.cli.common import (
    JobsOption,
    OverwriteOption,
    SchedulerOption,
    progress_bar,
    report_rejections,
    say,
    settings_of,
)
from tapetum.cli.lightcurves_common import (
    NO_CURVES,
    AlertsTableOption,
    AllwiseTableOption,
    BadFlagsOption,
    BrightestOption,
    BrightStarsOption,
    ColumnsOption,
    CyclesOption,
    ErrorsOption,
    FaintestOption,
    FiniteOption,
    GaiaTableOption,
    HarmonicsOption,
    LatestOption,
    MatchRadiusOption,
    MaximumOption,
    NestedOption,
    OtherTablesOption,
    PeriodColumnOption,
    ProgramsOption,
    Ps1TableOption,
    SamplesOption,
    ScaleOption,
    TerrestrialOption,
    TopOption,
    catalogues_of,
    checked,
    cleaning_of,
    comma_list,
    grid_of,
    number_range,
    opened,
    reading_of,
)
from tapetum.cli.lightcurves_server import (
    FEATURES,
    NONE,
    SOURCES,
    AlertsOption,
    ThreadsOption,
    UserOption,
    open_server,
)

if TYPE_CHECKING:
    from tapetum.lightcurves.clean import CleaningRules
    from tapetum.lightcurves.periods.search import PeriodRules
    from tapetum.pipelines.lightcurve_classify import ClassifyOptions
    from tapetum.pipelines.lightcurve_classify_job import Job
    from tapetum.pipelines.lightcurve_features import FeatureOptions
    from tapetum.surveys.kowalski import Kowalski

StatisticOption = Annotated[
    Literal["mean", "median", "max"],
    typer.Option("--statistic", "--consolidation-statistic", help="Of the light curves of a source."),
]
SourceKeyOption = Annotated[
    Literal["auto", "object_id", "catalogues"],
    typer.Option(
        "--source-key",
        help="What tells sources apart: object_id, entries of Gaia, AllWISE, PS1, or the first of all.",
    ),
]
SourceRadiusOption = Annotated[
    float,
    typer.Option(
        "--source-radius-arcsec", min=0, help="Without a key, positions so close are one source [arcsec]."
    ),
]
OnlyKeyedOption = Annotated[bool, typer.Option("--only-keyed", help="Leave out sources without a key.")]
CsvOption = Annotated[bool, typer.Option("--csv", "--write-csv", help="Write the tables as CSV as well.")]
FEW, MANY = 5, 50  # points that a tree of classes needs, and that the described features need
CADENCE = 30.0  # of the described features [min]


def classify(
    context: typer.Context,
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", help="Table, by suffix; a folder: a dated folder in it for all files; - is stdout."
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Light curves, features, or a table of positions or ids of what is wanted; folders of these.",
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--models",
            metavar="NAME|DIR",
            help="Models: names, paths, folders of models (groups); may be repeated. Default: ours, variables.",
        ),
    ] = None,
    kind: Annotated[
        Literal["auto", "curves", "features", "wanted"],
        typer.Option("--input", help="What FILE is; auto looks at its columns."),
    ] = "auto",
    by: Annotated[
        Literal["source", "curve"],
        typer.Option(
            "--by",
            help="Rows of the table; by source, there is a second table by light curve, F_lightcurves.",
        ),
    ] = "source",
    combine: Annotated[
        Literal["none", "mean", "max"],
        typer.Option("--combine", "--agg-method", help="A column per class: of its algorithms."),
    ] = "none",
    hierarchy: Annotated[
        Literal["none", "down", "up"],
        typer.Option(
            "--hierarchy", help="Lower classes to those that hold them, or raise these to those in them."
        ),
    ] = "none",
    taxonomy: Annotated[
        str, typer.Option("--taxonomy", metavar="NAME|FILE", help="Classes of the models of one class each.")
    ] = "scope",
    scores: Annotated[
        bool, typer.Option("--scores", help="Raw scores in place of calibrated probabilities.")
    ] = False,
    threshold: Annotated[
        str,
        typer.Option(
            "--threshold",
            "--p-threshold",
            metavar="none|card|P",
            help="Name the classes above it; card: each model's.",
        ),
    ] = "none",
    decimals: Annotated[
        int | None, typer.Option("--decimals", min=0, max=15, help="Round to so many.")
    ] = None,
    flag_ids: Annotated[
        bool, typer.Option("--flag-ids", help="A column with the names of features that were imputed.")
    ] = False,
    absent: Annotated[
        Literal["error", "missing"],
        typer.Option("--absent", help="A feature that nobody has: an error, or missing as in single rows."),
    ] = "error",
    coverage: Annotated[
        Literal["0.90", "0.95", "0.99"],
        typer.Option("--coverage", help="How often class_set is to have the true class."),
    ] = "0.95",
    statistic: StatisticOption = "mean",
    source_key: SourceKeyOption = "auto",
    source_radius: SourceRadiusOption = 1.0,
    only_keyed: OnlyKeyedOption = False,
    write_csv: CsvOption = False,
    save_features: Annotated[
        str | None, typer.Option("--save-features", metavar="FILE", help="Keep what is made of light curves.")
    ] = None,
    save_sources: Annotated[
        str | None,
        typer.Option(
            "--save-sources",
            "--save-sources-filepath",
            metavar="FILE",
            help="Keep which light curves a source has.",
        ),
    ] = None,
    curves: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Light curves or features of what is wanted; may be repeated. Default: a server.",
        ),
    ] = None,
    radius: Annotated[
        float,
        typer.Option(
            "--radius-arcsec", "--cone-radius-arcsec", min=0, help="Around wanted positions [arcsec]."
        ),
    ] = 2.0,
    field: Annotated[
        int | None, typer.Option("--field", help="All of this field of ZTF on the server.")
    ] = None,
    ccds: Annotated[str, typer.Option("--ccd", metavar="N|FIRST-LAST", help="CCD, or a range.")] = "1-16",
    quadrants: Annotated[
        str, typer.Option("--quadrant", "--quad", metavar="N|FIRST-LAST", help="Quadrant, or a range.")
    ] = "1-4",
    min_epochs: Annotated[
        int,
        typer.Option(
            "--min-epochs", "--minobs", min=0, help="Points that a light curve on the server needs."
        ),
    ] = 20,
    skip: Annotated[
        int, typer.Option("--skip", min=0, help="Leave out so many light curves of a quadrant, or of all.")
    ] = 0,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Take so many of a quadrant, or of all.")
    ] = None,
    catalogue: Annotated[
        str, typer.Option("--source-catalogue", "--source-catalog", help="Light curves on the server.")
    ] = SOURCES,
    stored: Annotated[
        bool, typer.Option("--stored-features", help="Take features from the server, not light curves.")
    ] = False,
    features_catalogue: Annotated[
        str, typer.Option("--features-catalogue", "--features-catalog", help="Where the server has features.")
    ] = FEATURES,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Light curves per question.")] = 1000,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL|settings",
            help="Kowalski server. Default: the settings'; named, it is also asked for what models list.",
        ),
    ] = None,
    user: UserOption = None,
    threads: ThreadsOption = None,
    alerts_catalogue: AlertsOption = "ZTF_alerts",
    period_column: PeriodColumnOption = None,
    nested: NestedOption = "lowest",
    samples_per_peak: SamplesOption = 10.0,
    max_frequency: MaximumOption = 48.0,
    min_cycles: CyclesOption = 2.0,
    scale_minimum_period: ScaleOption = False,
    remove_terrestrial: TerrestrialOption = False,
    harmonics: HarmonicsOption = 1,
    top: TopOption = 50,
    min_cadence_minutes: Annotated[
        float | None,
        typer.Option(
            "--min-cadence-minutes",
            min=0,
            help=f"Drop points closer to the last kept one [min]. Default: {CADENCE:g}; for a tree of classes 0.",
        ),
    ] = None,
    min_points: Annotated[
        int | None,
        typer.Option(
            "--min-points",
            "--min-n-lc-points",
            min=1,
            help=f"Good points that a curve needs. Default: {MANY}; for a tree of classes {FEW}.",
        ),
    ] = None,
    bad_flags: BadFlagsOption = -1,
    finite: FiniteOption = True,
    positive_errors: ErrorsOption = True,
    brightest: BrightestOption = None,
    faintest: FaintestOption = None,
    max_time: LatestOption = None,
    gaia: GaiaTableOption = None,
    ps1: Ps1TableOption = None,
    allwise: AllwiseTableOption = None,
    other: OtherTablesOption = None,
    alerts: AlertsTableOption = None,
    match_radius: MatchRadiusOption = 2.0,
    bright_stars: BrightStarsOption = True,
    column: ColumnsOption = None,
    programs: ProgramsOption = None,
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Classify light curves: a row per source and a row per light curve, a column per class and algorithm.

    Example: tapetum lightcurves classify lightcurves.parquet -o classes.parquet
    """
    from tapetum.core.errors import UsageError
    from tapetum.pipelines.lightcurve_classify_job import Job
    from tapetum.pipelines.lightcurve_classify_run import Outputs, Remote
    from tapetum.pipelines.lightcurve_features import FeatureOptions

    settings = settings_of(
        context,
        jobs=jobs,
        scheduler=scheduler,
        kowalski__url=None if server == "settings" else server,
        kowalski__user=user,
        kowalski__threads=threads,
    )
    if server == "settings" and settings.kowalski.url is None:
        raise UsageError("--server settings: kowalski.url is not set; give --server URL")
    rules = {
        "bad_flags": bad_flags, "finite": finite, "positive_errors": positive_errors, "brightest": brightest,
        "faintest": faintest, "max_time": max_time,
    }  # fmt: skip
    cleaning, tree_cleaning = (
        cleaning_of(
            min_points=min_points or points,
            cadence_minutes=cadence if min_cadence_minutes is None else min_cadence_minutes,
            **rules,
        )
        for points, cadence in ((MANY, CADENCE), (FEW, 0.0))
    )
    grid = {
        "samples_per_peak": samples_per_peak, "maximum": max_frequency, "cycles": min_cycles,
        "scale_minimum_period": scale_minimum_period, "remove_terrestrial": remove_terrestrial,
    }  # fmt: skip
    config = {
        "taxonomy": taxonomy, "calibrated": not scores, "combine": combine, "hierarchy": hierarchy,
        "name_imputed": flag_ids, "threshold": _threshold(threshold), "decimals": decimals, "absent": absent,
    }  # fmt: skip
    given = FeatureOptions(
        sets=(), given=tuple(period_column or ()), cleaning=cleaning,
        catalogues=catalogues_of(gaia, ps1, allwise, other or []), gaia=gaia if bright_stars else None, alerts=alerts,
        radius_arcsec=match_radius,
    )  # fmt: skip
    _carry_out(
        Job(
            inputs=tuple(inputs or ()),
            kind=None if kind == "auto" else kind,
            among=tuple(curves or ()),
            how=reading_of(column, programs, period_column),
            options=_options(models, config, coverage, given, tree_cleaning),
            rules=_search(grid, harmonics, nested, top, settings.seed),
            outputs=Outputs(
                out, by, statistic, source_key, source_radius, not only_keyed, write_csv, save_sources or "", "",
                save_features,
            ),
            remote=Remote(
                catalogue, features_catalogue if stored else None, field, number_range("--ccd", ccds),
                number_range("--quadrant", quadrants), min_epochs, skip, limit, batch, _programs(programs), max_time,
                radius,
            ),
            settings=settings,
            radius_arcsec=radius,
            ask=server is not None,
            alerts=None if alerts_catalogue == NONE else alerts_catalogue,
            overwrite=overwrite,
        )
    )  # fmt: skip


def _carry_out(job: Job) -> None:
    """Classify, say what became of it, and end with the exit status for some or for all."""
    from tapetum.core.errors import UsageError
    from tapetum.pipelines.lightcurve_classify_job import Doors, run

    def server() -> AbstractContextManager[Kowalski]:
        if job.settings.kowalski.url is None:
            raise UsageError(
                "say where the light curves are: --from FILE, or --server URL (kowalski.url in tapetum.toml)"
            )
        return open_server(job.settings.kowalski)

    report, outputs = run(job, Doors(lambda paths: opened(paths, job.how), server, progress_bar, say))
    made = report.made
    if made.finished:
        say(f"{outputs.table}: finished already; --overwrite makes it again")
        return
    if made.n_reused:
        say(f"{made.n_reused} of {made.n_parts} parts were there from an earlier run")
    if made.n_parts:
        sources = f" of {report.n_sources} sources" if report.n_sources else ""
        say(f"{made.n_rows} light curves{sources} -> {outputs.table}")
    if made.left_out:
        say(f"no place for {', '.join(made.left_out)} in these formats; Parquet and HDF5 have")
    for code, count in report.counts.items():
        say(f"  {code}: {count}")
    report_rejections(
        made.problems, len(made.problems), made.n_parts, things="parts", nothing=NO_CURVES, done="used"
    )


def _threshold(text: str) -> str | float:
    from tapetum.core.errors import UsageError

    if text in ("none", "card"):
        return text
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < 1:
        raise UsageError(f"--threshold {text}: none, card, or a probability, from 0 to below 1")
    return limit


def _programs(text: str | None) -> tuple[int, ...]:
    """Programmes of ZTF whose points are fetched; `reading_of` has looked at the words."""
    from tapetum.lightcurves.remote import PROGRAMS

    return tuple(map(int, comma_list(text))) or PROGRAMS


def _search(grid: dict[str, Any], harmonics: int, nested: str, top: int, seed: int) -> PeriodRules:
    from tapetum.lightcurves.periods.periodograms import StatisticRules
    from tapetum.lightcurves.periods.search import PeriodRules

    rules: PeriodRules = checked(
        PeriodRules, "periods", grid=grid_of(**grid), statistics=StatisticRules(harmonics=harmonics),
        nested=None if nested == "none" else nested, top=top, seed=seed,
    )  # fmt: skip
    return rules


def _options(
    models: list[str] | None,
    config: dict[str, Any],
    coverage: str,
    given: FeatureOptions,
    tree_cleaning: CleaningRules,
) -> ClassifyOptions:
    from tapetum.finders import variable_tree, variables
    from tapetum.pipelines.lightcurve_classify import ClassifyOptions

    return ClassifyOptions(
        tuple(models or [variable_tree.DEFAULT_MODEL]),
        checked(variables.Config, "classification", **config),
        checked(variable_tree.Config, "--coverage", coverage=coverage),
        given,
        tree_cleaning,
    )


def combine(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Classifications by light curve; or folders, whose tables of one name are joined."
        ),
    ],
    context: typer.Context,
    out: Annotated[
        str, typer.Option("--out", "-o", help="Table, by suffix; for folders a folder; - is stdout.")
    ],
    how: Annotated[
        Literal["none", "mean", "max"],
        typer.Option("--combine", "--agg-method", help="A column per class: of its algorithms."),
    ] = "mean",
    by: Annotated[
        Literal["source", "curve"],
        typer.Option("--by", help="Rows of the table; by source, there is a second table by light curve."),
    ] = "source",
    threshold: Annotated[
        str,
        typer.Option(
            "--threshold", "--p-threshold", metavar="none|card|P", help="Name the classes above it."
        ),
    ] = "none",
    decimals: Annotated[
        int | None, typer.Option("--decimals", min=0, max=15, help="Round to so many.")
    ] = None,
    statistic: StatisticOption = "mean",
    source_key: SourceKeyOption = "auto",
    source_radius: SourceRadiusOption = 1.0,
    only_keyed: OnlyKeyedOption = False,
    write_csv: CsvOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Join classifications by several models, or of several fields, into one; those of the described system as well.

    Example: tapetum lightcurves combine preds_dnn.parquet preds_xgb.parquet --combine mean -o both.parquet
    """
    from tapetum.pipelines.lightcurve_classify_run import Outputs, is_folder
    from tapetum.pipelines.lightcurve_combine import by_name, combine_once, write_fields

    settings = settings_of(context)
    limit = _threshold(threshold)
    whole = is_folder(out)
    jobs = {out: inputs}
    if whole:
        tables_by_name, others = by_name(inputs)
        jobs = {str(Path(out) / name): paths for name, paths in tables_by_name.items()}
        if others:
            say(f"no classifications, left out: {', '.join(others)}")
    rows = {}
    for path, tables in jobs.items():
        outputs = Outputs(path, by, statistic, source_key, source_radius, not only_keyed, write_csv)
        report = combine_once(
            tables, outputs, settings, combine=how, threshold=limit, decimals=decimals, overwrite=overwrite
        )
        rows[Path(path).name] = report.made.n_rows
        done = (
            "finished already; --overwrite makes it again"
            if report.made.finished
            else f"{report.made.n_rows} light curves"
        )
        say(f"{path}: {done}")
    if whole:
        write_fields(out, rows)
