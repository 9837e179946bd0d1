"""`tapetum images simulate`: sources put into images, or whole scenes, with truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapetum.cli.common import (
    CatalogueOption,
    JobsOption,
    MaskOption,
    OverwriteOption,
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
    from collections.abc import Sequence

    from tapetum.pipelines.simulate import Simulated


def simulate(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the new images and their truth.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Images: files, file[ext], folders, .list files; none with --scene."),
    ] = None,
    number: Annotated[
        int, typer.Option("--number", min=0, help="Sources per image, shared evenly by the kinds.")
    ] = 100,
    magrange: Annotated[
        tuple[float, float] | None,
        typer.Option("--magrange", help="Brightest and faintest magnitude; 14 23, of scenes 15 21.5."),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            "--kinds",
            help="Comma-separated, streak:5 is exactly five: transient, streak, comet, satellite, bright_star, "
            "ghost, cosmic_ray, bad_column, hot_pixel, all. Default transient, of scenes a bit of everything.",
        ),
    ] = None,
    zero_point: Annotated[
        float | None, typer.Option("--zero-point", help="Magnitude of 1 DN instead of the image's own.")
    ] = None,
    catalogue: CatalogueOption = None,
    gain: Annotated[
        float | None, typer.Option("--gain", help="Electrons per DN instead of the image's own.")
    ] = None,
    saturation: Annotated[
        float | None, typer.Option("--saturation", help="Full pixel [DN] instead of the image's own.")
    ] = None,
    fwhm: Annotated[
        float | None,
        typer.Option("--fwhm", help="Seeing of an assumed Moffat PSF [pixel] instead of a measured PSF."),
    ] = None,
    on_galaxies: Annotated[
        float,
        typer.Option(
            "--on-galaxies", min=0, max=1, help="Share of the transients on galaxies, by their light."
        ),
    ] = 0.5,
    second_epoch: Annotated[
        bool,
        typer.Option(
            "--second-epoch",
            help="Put the sources into another exposure, simulated from the image, which then is its reference.",
        ),
    ] = False,
    telescope: TelescopeOption = None,
    mask: MaskOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="With an image's name it decides its sources.")
    ] = None,
    scene: Annotated[
        int, typer.Option("--scene", min=0, help="Make so many science/reference pairs without any input.")
    ] = 0,
    size: Annotated[tuple[int, int], typer.Option("--size", help="Rows and columns of a scene.")] = (
        3080,
        3072,
    ),
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Put sources with exact truth into real images, or make whole scenes.

    Example: tapetum images simulate night/*.fits.fz -o simulated --number 100 --magrange 16 21 --seed 7
    """
    from tapetum.core.errors import UsageError
    from tapetum.pipelines.simulate import SimulateOptions, scene_settings, simulate_images, simulate_scenes

    if bool(images) == bool(scene):
        raise UsageError("give images, or --scene N for scenes without any; not both")
    settings = settings_of(context, jobs=jobs, seed=seed, scheduler=scheduler)
    telescope_of(telescope)
    values: dict[str, Any] = {
        "mag_range": magrange, "kinds": kinds and tuple(filter(None, kinds.split(","))), "zero_point": zero_point,
        "gain": gain, "saturation": saturation, "fwhm_pix": fwhm, "telescope": telescope, "mask": mask and str(mask),
        "catalogue": catalogue, "another_epoch": second_epoch or None,
    }  # fmt: skip
    given = {name: value for name, value in values.items() if value is not None}
    options = SimulateOptions(number=number, on_galaxies=on_galaxies, seed=settings.seed, **given)
    complaints: list[str] = []
    with progress_bar("simulating") as progress:
        if scene:
            drawn = scene_settings(options, frozenset(given), size)
            done = simulate_scenes(scene, out, drawn, settings, overwrite=overwrite, progress=progress)
        else:
            from tapetum.images.fits import expand_sources

            sources = expand_sources(images or [], rejected=complaints.append)
            done = simulate_images(sources, out, options, settings, overwrite=overwrite, progress=progress)
    _report(done, complaints, out)


def _report(done: Sequence[Simulated], complaints: Sequence[str], out: Path) -> None:
    """Say what was made, and end with the exit status for some or for all failed."""
    from tapetum.pipelines.steps import told
    from tapetum.simulate.truth import TRUTH_NAME

    for result in done:
        for note in result.notes:
            warn(told(result.source, note))
    failed = [*complaints, *(result.problem for result in done if result.problem)]
    good = [result for result in done if result.problem is None]
    if good:
        n_skipped = sum(result.skipped for result in good)
        again = f"; {n_skipped} of them finished before, --overwrite makes them again" if n_skipped else ""
        n_sources = sum(result.n_sources for result in good)
        say(f"{len(good)} images, {n_sources} sources -> {out / TRUTH_NAME}{again}")
    end(failed, len(good), "used")
