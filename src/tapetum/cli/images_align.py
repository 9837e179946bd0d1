"""`tapetum images align`: images on the pixel grid of one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from tapetum.cli.images_common import carry_out, is_image_file, planned


def align(
    context: typer.Context,
    images: ImagesArgument,
    onto: Annotated[str, typer.Option("--onto", help="Image whose pixel grid the others get.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder for X.aligned.fits.fz; or, for one image, a .fits(.fz|.gz) file."
        ),
    ],
    telescope: TelescopeOption = None,
    mask: MaskOption = None,
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Put images on the pixel grid of another one, with their masks and variances; the flux of sources is conserved.

    Example: tapetum images align night/*.fits.fz --onto reference.fits -o aligned
    """
    from functools import partial

    from tapetum.pipelines.align import SUFFIX, aligner
    from tapetum.pipelines.steps import Command

    settings = settings_of(context, jobs=jobs, scheduler=scheduler)
    telescope_of(telescope)
    masks = [] if mask is None else [str(mask)]
    carry_out(
        planned(images, out, SUFFIX, single=is_image_file(out)),
        Command("images align", {"onto": onto, "telescope": telescope, "mask": mask}, images=(onto, *masks)),
        partial(aligner, onto, telescope, mask=None if mask is None else str(mask)),
        settings,
        title="aligning images",
        done="aligned",
        overwrite=overwrite,
    )
