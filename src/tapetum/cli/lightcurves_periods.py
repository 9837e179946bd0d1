"""`tapetum lightcurves periods`: periods of light curves, or of sources with all their light curves."""

from __future__ import annotations

from typing import Annotated, Literal

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
    BadFlagsOption,
    BrightestOption,
    CadenceOption,
    ColumnsOption,
    CurvesArgument,
    CyclesOption,
    DeviceOption,
    ErrorsOption,
    FaintestOption,
    FiniteOption,
    HarmonicsOption,
    KeepOption,
    LatestOption,
    MaximumOption,
    NestedOption,
    PointsOption,
    ProgramsOption,
    SamplesOption,
    ScaleOption,
    TerrestrialOption,
    TopOption,
    TrialsOption,
    check_device,
    checked,
    cleaning_of,
    comma_list,
    grid_of,
    opened,
    reading_of,
    tell_made,
)


def periods(
    context: typer.Context,
    curves: CurvesArgument,
    out: OutOption,
    algorithms: Annotated[
        str, typer.Option("--algorithms", metavar=ALGORITHMS, help="What to search with.")
    ] = "LS,CE,AOV",
    by: Annotated[
        Literal["curve", "source"],
        typer.Option("--by", help="A row per light curve; or per source, all bands together."),
    ] = "curve",
    nested: NestedOption = "lowest",
    samples_per_peak: SamplesOption = 10.0,
    max_frequency: MaximumOption = 48.0,
    min_cycles: CyclesOption = 2.0,
    scale_minimum_period: ScaleOption = False,
    remove_terrestrial: TerrestrialOption = False,
    harmonics: HarmonicsOption = 1,
    aov_harmonics: Annotated[
        int, typer.Option("--aov-harmonics", min=1, max=20, help="Terms of the series of AOV.")
    ] = 1,
    significance: Annotated[
        Literal["stdmean", "madmedian"], typer.Option(help="What a best value is compared with.")
    ] = "stdmean",
    top: TopOption = 50,
    device: DeviceOption = "cpu",
    best: Annotated[int, typer.Option("--best", min=1, max=100, help="Final periods to list.")] = 5,
    trials: TrialsOption = 0,
    periodograms: Annotated[
        str | None,
        typer.Option("--periodograms", metavar="FILE", help="Parquet or HDF5 file of whole periodograms."),
    ] = None,
    min_cadence_minutes: CadenceOption = 30.0,
    min_points: PointsOption = 50,
    bad_flags: BadFlagsOption = -1,
    finite: FiniteOption = True,
    positive_errors: ErrorsOption = True,
    brightest: BrightestOption = None,
    faintest: FaintestOption = None,
    max_time: LatestOption = None,
    keep: KeepOption = None,
    column: ColumnsOption = None,
    programs: ProgramsOption = None,
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Search light curves for periods; the final one is the best of all peaks and their aliases.

    Example: tapetum lightcurves periods lightcurves.parquet --algorithms LS,CE,AOV --by source -o periods.ecsv
    """
    from tapetum.lightcurves.periods.periodograms import StatisticRules
    from tapetum.lightcurves.periods.ranking import RankRules
    from tapetum.lightcurves.periods.search import PeriodRules
    from tapetum.pipelines.lightcurve_parts import make_once
    from tapetum.pipelines.lightcurve_periods import PeriodOptions, period_parts, period_recipe

    settings = settings_of(context, jobs=jobs, scheduler=scheduler)
    _check(out, periodograms)
    check_device(device, settings)
    rules = checked(
        PeriodRules,
        "--algorithms",
        algorithms=comma_list(algorithms),
        grid=grid_of(
            samples_per_peak=samples_per_peak, maximum=max_frequency, cycles=min_cycles,
            scale_minimum_period=scale_minimum_period, remove_terrestrial=remove_terrestrial,
        ),
        statistics=StatisticRules(harmonics=harmonics, aov_harmonics=aov_harmonics),
        nested=None if nested == "none" else nested,
        top=top,
        significance=significance,
        ranking=RankRules(top=best),
        trials=trials,
        seed=settings.seed,
    )  # fmt: skip
    cleaning = cleaning_of(
        cadence_minutes=min_cadence_minutes, min_points=min_points, bad_flags=bad_flags, finite=finite,
        positive_errors=positive_errors, brightest=brightest, faintest=faintest, max_time=max_time,
    )  # fmt: skip
    options = PeriodOptions(rules, by, cleaning, tuple(keep or ()), periodograms, device)
    sources, rejected = opened(curves, reading_of(column, programs, keep))
    recipe = period_recipe(curves, options, sources)
    parts = period_parts(sources, by)
    with progress_bar("searching for periods") as progress:
        report = make_once(
            parts, recipe, out, settings, overwrite=overwrite, rejected=rejected, progress=progress
        )
    tell_made(report, out, rows="light curves" if by == "curve" else "sources")


def _check(out: str, periodograms: str | None) -> None:
    from tapetum.core.errors import UsageError
    from tapetum.pipelines.outputs import check_output
    from tapetum.report.tables import table_format

    check_output(out)
    table_format(out)
    if periodograms is not None:
        check_output(periodograms)
        if table_format(periodograms) not in ("parquet", "hdf5"):
            raise UsageError(f"--periodograms {periodograms}: only .parquet and .h5 have a place for lists")
