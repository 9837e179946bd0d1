"""`tapetum images mask`: what every pixel is contaminated by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tapetum.cli.common import (
    ImagesArgument,
    JobsOption,
    MaskOption,
    OverwriteOption,
    SchedulerOption,
    TelescopeOption,
    say,
    settings_of,
    telescope_of,
    warn,
)
from tapetum.cli.images_common import carry_out

if TYPE_CHECKING:
    from tapetum.finders.contaminants import Config
    from tapetum.pipelines.mask import Output


def mask(
    context: typer.Context,
    images: ImagesArgument,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="Folder for X.masks.fits. Default: beside each image."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME|PATH", help="Network; also maximask, once imported.")
    ] = "contaminants",
    single_mask: Annotated[
        bool, typer.Option("--single-mask", help="One mask of added codes instead of one per class.")
    ] = False,
    classes: Annotated[
        str | None, typer.Option("--classes", metavar="CR,TRL,...", help="Only these. Default: all.")
    ] = None,
    priors: Annotated[
        str | None,
        typer.Option("--priors", metavar="CR=1E-3,...|FILE", help="Shares of pixels that are expected."),
    ] = None,
    thresholds: Annotated[
        str | None,
        typer.Option("--thresholds", metavar="CR=0.4,...|FILE", help="Probabilities that count as found."),
    ] = None,
    config_dir: Annotated[
        Path | None,
        typer.Option("--config-dir", help="Folder of classes.flags, classes.priors, classes.thresh."),
    ] = None,
    prior_modif: Annotated[
        bool, typer.Option("--prior-modif/--no-prior-modif", help="Carry probabilities over to the priors.")
    ] = True,
    proba_thresh: Annotated[
        bool,
        typer.Option("--proba-thresh/--no-proba-thresh", help="Masks, or the probabilities themselves."),
    ] = True,
    tiling: Annotated[
        Literal["overlapping", "original"],
        typer.Option("--tiling", help="Large tiles without seams, or MaxiMask's of 400 pixels."),
    ] = "overlapping",
    normalisation: Annotated[
        Literal["tapetum", "original"],
        typer.Option("--normalisation", help="How the sky is taken off; original: as MaxiMask does it."),
    ] = "tapetum",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Tiles per run of the network.")
    ] = None,
    runtime: Annotated[
        Literal["onnxruntime", "openvino"],
        typer.Option("--runtime", help="openvino (extra) is faster, with bf16 numbers."),
    ] = "onnxruntime",
    compress: Annotated[
        Literal["none", "fz", "gz"], typer.Option("--compress", help="X.masks.fits.fz or X.masks.fits.gz.")
    ] = "none",
    preview: Annotated[
        bool,
        typer.Option("--preview", help="Also a picture: X.masks.png, the image with the classes in colours."),
    ] = False,
    telescope: TelescopeOption = None,
    mask: MaskOption = None,
    jobs: JobsOption = None,
    scheduler: SchedulerOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Mask contaminated pixels: cosmic rays, trails, hot and dead pixels, saturation, and nine classes more.

    Example: tapetum images mask night/*.fits.fz --single-mask
    """
    from functools import partial

    from tapetum.core.errors import UsageError
    from tapetum.pipelines.mask import MaskOptions, masker, plan_masks, previewer
    from tapetum.pipelines.steps import Command

    if single_mask and not proba_thresh:
        raise UsageError("--single-mask needs thresholds; leave --no-proba-thresh out")
    if priors is not None and not prior_modif:
        raise UsageError("--priors are not used with --no-prior-modif; leave one of them out")
    if thresholds is not None and not proba_thresh:
        raise UsageError("--thresholds are not used with --no-proba-thresh; leave one of them out")
    settings = settings_of(context, jobs=jobs, scheduler=scheduler)
    telescope_of(telescope)
    config = _config(
        classes, priors, thresholds, config_dir,
        {"prior_change": prior_modif, "tiling": tiling, "normalisation": normalisation, "batch_size": batch_size,
         "runtime": runtime},
    )  # fmt: skip
    output: Output = "codes" if single_mask else "planes" if proba_thresh else "probabilities"
    options = MaskOptions(model, config, output, telescope, None if mask is None else str(mask), preview)
    problems: list[str] = []
    suffix = "" if compress == "none" else compress
    steps = plan_masks(images, out, suffix, problems.append, say, overwrite=overwrite)
    carry_out(
        (steps, problems),
        Command("images mask", options.described(), images=() if options.mask is None else (options.mask,)),
        partial(masker, options),
        settings,
        title="masking images",
        done="masked",
        overwrite=overwrite,
        # probabilities are no masks that a picture could be made from
        further=partial(masker if output == "probabilities" else previewer, options) if preview else None,
    )


def _config(
    classes: str | None,
    priors: str | None,
    thresholds: str | None,
    folder: Path | None,
    rest: dict[str, object],
) -> Config:
    """Settings of the finder; what is named on the command line goes before what files of a folder say."""
    from tapetum.finders.contaminants import Config
    from tapetum.pipelines.mask import chosen_classes, chosen_values, read_class_folder

    found: dict[str, object] = {}
    if folder is not None:
        found, notes = read_class_folder(folder)
        for note in notes:
            warn(note)
    if classes is not None:
        found["classes"] = chosen_classes(classes)
    for name, text in (("priors", priors), ("thresholds", thresholds)):
        if text is not None:
            before = found.get(name, {})
            found[name] = {**(before if isinstance(before, dict) else {}), **chosen_values(text, f"--{name}")}
    return Config.model_validate({**found, **rest})
