"""`tapetum images detect`: the catalogue of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tapetum.cli.common import (
    ImagesArgument,
    JobsOption,
    MaskOption,
    OverwriteOption,
    SchedulerOption,
    TelescopeOption,
    settings_of,
    telescope_of,
)
from tapetum.cli.images_common import carry_out, planned

if TYPE_CHECKING:
    from tapetum.pipelines.detect import Mode


def detect(
    context: typer.Context,
    images: ImagesArgument,
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", help="Folder for X.sources.ecsv; for one image also a table file, or - for stdout."
        ),
    ],
    difference: Annotated[
        bool, typer.Option("--difference", help="Images are differences: holes as well, trails, comets.")
    ] = False,
    psf: Annotated[
        bool, typer.Option("--psf", help="Matched filter with the measured PSF instead of joined pixels.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", min=0.1, help="[sigma]; 1.5 for joined pixels, 5 for the matched filter."
        ),
    ] = None,
    psf_of: Annotated[
        str | None,
        typer.Option(
            "--psf-of",
            help="With --difference: image on the same grid whose stars tell the PSF, if the file has none.",
        ),
    ] = None,
    fwhm: Annotated[
        float | None,
        typer.Option(
            "--fwhm", min=0.5, max=200, help="With --difference: assume a Moffat PSF of this FWHM [pixel]."
        ),
    ] = None,
    aperture: Annotated[
        float, typer.Option("--aperture", min=0.5, max=500, help="Diameter for joined pixels [pixel].")
    ] = 8.0,
    suffix: Annotated[str, typer.Option("--format", help="Suffix of the tables in a folder.")] = ".ecsv",
    telescope: TelescopeOption = None,
    mask: MaskOption = None,
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Find the sources of images: position, flux, magnitude and shape of each.

    Example: tapetum images detect night/*.fits.fz -o catalogues
    """
    from functools import partial

    from tapetum.core.errors import UsageError
    from tapetum.pipelines.detect import DetectOptions, detector, is_table_file
    from tapetum.pipelines.steps import Command

    if difference and psf:
        raise UsageError("--difference searches with the PSF already; leave --psf out")
    if not difference and (psf_of is not None or fwhm is not None):
        raise UsageError("--psf-of and --fwhm go with --difference; other images tell their PSF themselves")
    settings = settings_of(context, jobs=jobs, scheduler=scheduler)
    telescope_of(telescope)
    mode: Mode = "difference" if difference else "psf" if psf else "classical"
    options = DetectOptions(
        mode, threshold, telescope, psf_of, fwhm, aperture, None if mask is None else str(mask)
    )
    suffix = suffix if suffix.startswith(".") else f".{suffix}"
    product = "difference" if difference else "frame"
    carry_out(
        planned(images, out, f".sources{suffix}", single=is_table_file(out, suffix), product=product),
        Command(
            "images detect",
            {**vars(options), "threshold": options.sigma},
            images=tuple(image for image in (psf_of, options.mask) if image is not None),
        ),
        partial(detector, options),
        settings,
        title="searching images",
        done="searched",
        overwrite=overwrite,
    )
