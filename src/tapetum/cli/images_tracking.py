"""`tapetum images tracking`: how probable it is that the telescope did not follow the sky."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tapetum.cli.common import (
    ImagesArgument,
    JobsOption,
    SchedulerOption,
    TelescopeOption,
    progress_bar,
    say,
    settings_of,
    telescope_of,
    warn,
)
from tapetum.cli.images_common import end

if TYPE_CHECKING:
    from tapetum.pipelines.tracking import JudgedExposure


def tracking(
    context: typer.Context,
    images: ImagesArgument,
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", help="File that gets a line per exposure, added at its end; - is stdout."
        ),
    ] = "maxitrack.out",
    model: Annotated[
        str, typer.Option("--model", metavar="NAME|PATH", help="Network; also maxitrack, once imported.")
    ] = "tracking",
    prior: Annotated[
        float, typer.Option("--prior", help="Share of the exposures that are expected to be trailed.")
    ] = 0.05,
    frac: Annotated[
        float | None,
        typer.Option(
            "--frac",
            help="Judge only some HDUs of a file: below 1 this share of them, from 1 on this many. Default: all.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the choice among the HDUs.")] = 0,
    tiles: Annotated[
        str | None,
        typer.Option("--tiles", help="Table of all tiles; its suffix decides the format."),
    ] = None,
    tiling: Annotated[
        Literal["covering", "original"],
        typer.Option("--tiling", help="Tiles that cover the frame, or MaxiTrack's of 400 pixels."),
    ] = "covering",
    normalisation: Annotated[
        Literal["tapetum", "original"],
        typer.Option("--normalisation", help="How the sky is taken off; original: as MaxiTrack does it."),
    ] = "tapetum",
    fewest_stars: Annotated[int, typer.Option("--fewest-stars", min=0, help="In a tile that is judged.")] = 3,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Tiles per run of the network.")] = 4,
    telescope: TelescopeOption = None,
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
) -> None:
    """Say how probable a tracking error is: one line per exposure, appended to maxitrack.out at every run.

    Example: tapetum images tracking night/*.fits.fz --tiles tiles.ecsv
    """
    from tapetum.finders.tracking import checked_prior
    from tapetum.images.fits import expand_sources
    from tapetum.images.mask_files import without_masks
    from tapetum.pipelines.tracking import TrackingOptions, judge_exposures, n_chosen
    from tapetum.report.tables import table_format

    checked_prior(prior)
    n_chosen(1, frac)
    if tiles is not None:
        table_format(tiles)
    settings = settings_of(context, jobs=jobs, scheduler=scheduler)
    options = TrackingOptions(model, prior, fewest_stars, tiling, normalisation, batch_size, frac, seed)
    problems: list[str] = []
    sources = without_masks(expand_sources(images, rejected=problems.append), say)
    kept: list[JudgedExposure] = []
    n_done = 0
    with progress_bar("judging exposures") as progress:
        results = judge_exposures(
            sources, options, telescope=telescope_of(telescope), jobs=settings.jobs,
            scheduler=settings.scheduler, cluster=settings.cluster,
        )  # fmt: skip
        for number, (_, judged, problem) in enumerate(results, 1):
            progress(number, len(sources))
            if problem is not None:
                problems.append(problem)
            n_done += sum(_tell(one, out, problems) for one in judged)
            kept += judged if tiles is not None else []
    if tiles is not None and n_done:
        _write_tiles(kept, tiles, options.model)
    end(problems, n_done, "judged")


def _tell(judged: JudgedExposure, out: str, problems: list[str]) -> bool:
    """Write the line of an exposure and say what there is to say; whether there was a line."""
    import math

    from tapetum.pipelines.tracking import append_lines

    exposure = judged.exposure
    if not judged.verdicts:
        problems += judged.failures
        return False
    for failure in judged.failures:
        warn(f"{failure}; left out of the mean")
    if out == "-":
        typer.echo(judged.line, nl=False)
    else:
        append_lines(Path(out), judged.line)
    speak = say if math.isfinite(judged.probability) else warn
    chosen = len(exposure.images)
    some = f" [{chosen} of {exposure.n_images} HDUs]" if chosen < exposure.n_images else ""
    speak(f"{exposure.name}: {judged.summary}{some}")
    return True


def _write_tiles(judged: list[JudgedExposure], path: str, model: str | None) -> None:
    from tapetum.pipelines.tracking import DESCRIPTIONS, UNITS, tile_table
    from tapetum.report.tables import write_table

    write_table(tile_table(judged), path, {"model": model}, UNITS, DESCRIPTIONS)
    say(f"tiles -> {path}")
