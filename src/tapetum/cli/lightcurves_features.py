"""`tapetum lightcurves features`: one row of features per light curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapetum.cli.common import (
    JobsOption,
    OutOption,
    OverwriteOption,
    SchedulerOption,
    progress_bar,
    settings_of,
)
from tapetum.cli.lightcurves_common import (
    ALGORITHMS,
    AlertsTableOption,
    AllwiseTableOption,
    BadFlagsOption,
    BrightestOption,
    BrightStarsOption,
    CadenceOption,
    ColumnsOption,
    CurvesArgument,
    CyclesOption,
    DeviceOption,
    ErrorsOption,
    FaintestOption,
    FiniteOption,
    GaiaTableOption,
    HarmonicsOption,
    KeepOption,
    LatestOption,
    MatchRadiusOption,
    MaximumOption,
    NestedOption,
    OtherTablesOption,
    PeriodColumnOption,
    PointsOption,
    ProgramsOption,
    Ps1TableOption,
    SamplesOption,
    ScaleOption,
    TerrestrialOption,
    TopOption,
    catalogues_of,
    check_device,
    cleaning_of,
    comma_list,
    grid_of,
    opened,
    reading_of,
    tell_made,
)
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
    AlertsOption,
    AllwiseOption,
    AskOption,
    GaiaOption,
    MoreOption,
    Ps1Option,
    QueryOption,
    StarRadiusOption,
    ThreadsOption,
    UserOption,
    around_of,
    open_server,
    server_settings,
)

if TYPE_CHECKING:
    from tapetum.core.settings import Settings
    from tapetum.lightcurves.formats.sources import Source
    from tapetum.lightcurves.periods.search import PeriodRules
    from tapetum.pipelines.lightcurve_around import AroundOptions
    from tapetum.pipelines.lightcurve_features import FeatureOptions
    from tapetum.pipelines.lightcurve_parts import MadeReport, Recipe


def features(
    context: typer.Context,
    curves: CurvesArgument,
    out: OutOption,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="scope|tapetum|cesium", help="Set of features; may be repeated. Default: scope."
        ),
    ] = None,
    algorithms: Annotated[
        str,
        typer.Option(
            "--algorithms",
            metavar=f"{ALGORITHMS}|none",
            help="Periods to search for; none: features at a period of 1 d.",
        ),
    ] = "none",
    period_column: PeriodColumnOption = None,
    nested: NestedOption = "lowest",
    samples_per_peak: SamplesOption = 10.0,
    max_frequency: MaximumOption = 48.0,
    min_cycles: CyclesOption = 2.0,
    scale_minimum_period: ScaleOption = False,
    remove_terrestrial: TerrestrialOption = False,
    harmonics: HarmonicsOption = 1,
    top: TopOption = 50,
    device: DeviceOption = "cpu",
    min_cadence_minutes: CadenceOption = 30.0,
    min_points: PointsOption = 50,
    bad_flags: BadFlagsOption = -1,
    finite: FiniteOption = True,
    positive_errors: ErrorsOption = True,
    brightest: BrightestOption = None,
    faintest: FaintestOption = None,
    max_time: LatestOption = None,
    gaia: GaiaTableOption = None,
    ps1: Ps1TableOption = None,
    allwise: AllwiseTableOption = None,
    catalogue: OtherTablesOption = None,
    alerts: AlertsTableOption = None,
    radius: MatchRadiusOption = 2.0,
    bright_stars: BrightStarsOption = True,
    server: AskOption = None,
    user: UserOption = None,
    threads: ThreadsOption = None,
    gaia_catalogue: GaiaOption = "Gaia_EDR3",
    ps1_catalogue: Ps1Option = "PS1_DR1",
    allwise_catalogue: AllwiseOption = "AllWISE",
    alerts_catalogue: AlertsOption = "ZTF_alerts",
    server_catalogue: MoreOption = None,
    query_size_limit: QueryOption = 1000,
    star_radius: StarRadiusOption = 300.0,
    impute: ImputeOption = False,
    imputer: ImputerOption = None,
    impute_from: ImputeFromOption = None,
    impute_rule: ImputeRuleOption = None,
    impute_rest: ImputeRestOption = "keep",
    save_imputer: SaveImputerOption = None,
    keep: KeepOption = None,
    column: ColumnsOption = None,
    programs: ProgramsOption = None,
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Features of light curves, one row for each; those with too few good points say why they have none.

    Example: tapetum lightcurves features lightcurves.parquet --set scope --algorithms LS,CE,AOV -o features.parquet
    """
    from tapetum.pipelines.lightcurve_features import FeatureOptions, feature_recipe, feature_sets

    settings = (
        settings_of(context, jobs=jobs, scheduler=scheduler)
        if server is None
        else server_settings(
            context, None if server == "settings" else server, user, threads, jobs=jobs, scheduler=scheduler
        )
    )
    _check(out)
    check_device(device, settings)
    grid = {
        "samples_per_peak": samples_per_peak, "maximum": max_frequency, "cycles": min_cycles,
        "scale_minimum_period": scale_minimum_period, "remove_terrestrial": remove_terrestrial,
    }  # fmt: skip
    named = feature_sets(sets or ["scope"])
    asked = None
    if server is not None:
        here = {"gaia": gaia, "ps1": ps1, "allwise": allwise, "alerts": alerts}
        asked = around_of(
            {"gaia": gaia_catalogue, "ps1": ps1_catalogue, "allwise": allwise_catalogue, "alerts": alerts_catalogue},
            server_catalogue or [], there=[key for key, path in here.items() if path is not None],
            stars=bright_stars, radius_arcsec=radius, star_radius_arcsec=star_radius, batch=query_size_limit,
        )  # fmt: skip
    options = FeatureOptions(
        sets=named,
        periods=_search(
            algorithms, grid, harmonics, nested=nested, top=top, seed=settings.seed, ranked="tapetum" in named
        ),
        given=tuple(period_column or ()),
        cleaning=cleaning_of(
            cadence_minutes=min_cadence_minutes, min_points=min_points, bad_flags=bad_flags, finite=finite,
            positive_errors=positive_errors, brightest=brightest, faintest=faintest, max_time=max_time,
        ),
        catalogues=catalogues_of(gaia, ps1, allwise, catalogue or []),
        gaia=gaia if bright_stars else None,
        alerts=alerts,
        radius_arcsec=radius,
        star_radius_arcsec=star_radius,
        imputation=imputation_of(
            impute=impute, imputer=imputer, fit_on=impute_from, rules=impute_rule or [], rest=impute_rest,
            save=save_imputer,
        ),
        elsewhere={} if asked is None else asked.described(settings.kowalski.url or ""),
        keep=tuple(keep or ()),
        device=device,
    )  # fmt: skip
    sources, rejected = opened(curves, reading_of(column, programs, [*(keep or ()), *options.given]))
    recipe = feature_recipe(curves, options, sources)
    report = _made(sources, recipe, options, asked, out, settings, overwrite=overwrite, rejected=rejected)
    tell_made(report, out, rows="light curves")


def _made(
    sources: list[Source],
    recipe: Recipe,
    options: FeatureOptions,
    asked: AroundOptions | None,
    out: str,
    settings: Settings,
    *,
    overwrite: bool,
    rejected: list[str],
) -> MadeReport:
    """Ask the server, where there is one; then make the features."""
    from contextlib import ExitStack

    from tapetum.pipelines.lightcurve_features import PIECE, SEARCHED_PIECE
    from tapetum.pipelines.lightcurve_parts import make_once, parts_of

    parts = parts_of(sources, PIECE if options.periods is None else SEARCHED_PIECE)
    with ExitStack() as open_things:
        if asked is not None and sources:
            from tapetum.pipelines.lightcurve_around import with_server

            server = open_things.enter_context(open_server(settings.kowalski))
            with progress_bar("asking the server") as asking:
                around = with_server(
                    recipe, options, asked, server, sources, out, overwrite=overwrite,
                    threads=settings.kowalski.threads, progress=asking,
                )  # fmt: skip
                recipe = open_things.enter_context(around)
        with progress_bar("computing features") as progress:
            return make_once(
                parts, recipe, out, settings, overwrite=overwrite, rejected=rejected, progress=progress
            )


def _check(out: str) -> None:
    from tapetum.pipelines.outputs import check_output
    from tapetum.report.tables import table_format

    check_output(out)
    table_format(out)


def _search(
    algorithms: str,
    grid: dict[str, Any],
    harmonics: int,
    *,
    nested: str,
    top: int,
    seed: int,
    ranked: bool,
) -> PeriodRules | None:
    from tapetum.cli.lightcurves_common import checked
    from tapetum.lightcurves.periods.periodograms import StatisticRules
    from tapetum.lightcurves.periods.ranking import RankRules
    from tapetum.lightcurves.periods.search import PeriodRules

    names = comma_list(algorithms)
    if not names or names == ("none",):
        return None
    rules: PeriodRules = checked(
        PeriodRules, "--algorithms", algorithms=names, grid=grid_of(**grid),
        statistics=StatisticRules(harmonics=harmonics), nested=None if nested == "none" else nested, top=top,
        seed=seed, ranking=RankRules() if ranked else None,
    )  # fmt: skip
    return rules
