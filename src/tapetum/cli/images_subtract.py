"""`tapetum images subtract`: what is new in images, against a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapetum.cli.common import (
    ConvolveOption,
    ImagesArgument,
    JobsOption,
    MaskOption,
    OverwriteOption,
    SchedulerOption,
    SubtractionOption,
    TelescopeOption,
    settings_of,
    telescope_of,
)
from tapetum.cli.images_common import carry_out, is_image_file, planned


def subtract(
    context: typer.Context,
    images: ImagesArgument,
    reference: Annotated[
        list[str],
        typer.Option(
            metavar="FILE|DIR|ps1|ztf|hips:ID",
            help="Reference: a file, a folder to choose from by sky and band, or an archive; may be repeated.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder for X.difference.fits.fz; or, for one image, a .fits(.fz|.gz) file."
        ),
    ],
    subtraction: SubtractionOption = "kernel",
    convolve: ConvolveOption = "auto",
    telescope: TelescopeOption = None,
    mask: MaskOption = None,
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Take a reference from images: it is aligned, both are measured, the sharper one is blurred like the other.

    A difference that is not usable is refused with the reason. Its file has noise, mask and PSF in it, so that
    `tapetum images detect --difference` can go on from there.

    Example: tapetum images subtract night/*.fits.fz --reference references/ -o differences
    """
    from functools import partial

    from tapetum.pipelines.references import References
    from tapetum.pipelines.steps import Command
    from tapetum.pipelines.subtract import SUFFIX, SubtractOptions, subtracter

    settings = settings_of(context, jobs=jobs, scheduler=scheduler)
    telescope_of(telescope)
    options = SubtractOptions(subtraction, convolve, telescope, None if mask is None else str(mask))
    references = References.open(reference, telescope, settings.archives)
    decisive = [*references.sources, *([] if mask is None else [str(mask)])]
    carry_out(
        planned(images, out, SUFFIX, single=is_image_file(out)),
        Command("images subtract", {"references": tuple(reference), **vars(options)}, images=tuple(decisive)),
        partial(subtracter, references, options),
        settings,
        title="subtracting",
        done="subtracted",
        overwrite=overwrite,
    )
