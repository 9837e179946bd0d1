"""What contaminates the image of the demo: masked by the same road as everybody's images, and shown."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tapetum.core.errors import InputError
from tapetum.finders.contaminants import MODEL
from tapetum.images.contaminants import TITLES
from tapetum.images.fits import read_frame
from tapetum.images.mask_codes import class_counts, read_codes
from tapetum.images.mask_files import mask_name
from tapetum.models.registry import list_models
from tapetum.pipelines.mask import MaskOptions, masker
from tapetum.pipelines.mask_preview import LAYERS, interesting, legend
from tapetum.pipelines.outputs import finished_run
from tapetum.pipelines.search_report import PREVIEW_PIXELS, preview_step
from tapetum.pipelines.steps import Command, Step, run_step
from tapetum.report.overlay import beside_svg, overlay_svg, thinned_codes
from tapetum.report.page import Column, Figure, Rows, Section
from tapetum.report.stamps import thinned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from tapetum.core.settings import Settings
    from tapetum.images.frame import Image

ZOOMS, ZOOM_SIDE = 3, 160  # places shown in full, and their side [pixel]


@dataclass(frozen=True)
class MaskReport:
    """What the page shows of the masks of one image.

    Attributes
    ----------
    network
        Name and version.
    shape
        (n_y, n_x) of the image [pixel].
    counts
        Class -> pixels that have it.
    picture
        The whole image with its masks, and frames around the zooms, as SVG.
    zooms
        (classes, SVG) of places at full resolution: the image, and beside it with its masks.
    step
        Pixels of the image per pixel of the picture.
    seconds
        That masking took, in this run; None where it was finished before.
    file, preview
        The masks, and the picture beside them.
    command
        How the same is done by hand.
    """

    network: str
    shape: tuple[int, int]
    counts: Mapping[str, int]
    picture: str
    zooms: Sequence[tuple[Mapping[str, int], str]]
    step: int
    seconds: float | None
    file: Path
    preview: Path
    command: str


def mask_image(
    image: Path,
    folder: Path,
    settings: Settings,
    *,
    model: str = MODEL,
    overwrite: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> MaskReport | None:
    """Mask an image; None where the network is not installed.

    Parameters
    ----------
    folder
        Where the masks go.
    overwrite
        Make them again although they are there.

    Raises
    ------
    InputError
        The image cannot be masked.
    """
    if model == MODEL and all(files.name != MODEL for files in list_models()):
        return None
    options = MaskOptions(model=model, output="codes", preview=True)
    step = Step(str(image), str(folder / f"{mask_name(image)}.fits.fz"))
    command = Command("images mask", options.described())
    made_from = command.made_from(step)
    start = clock()
    done = finished_run(step.output, made_from) is not None and not overwrite
    if not done:
        folder.mkdir(parents=True, exist_ok=True)
        [result] = run_step([step], partial(masker, options), jobs=2)
        if result.problem is not None:
            raise InputError(result.problem)
        command.record(step, settings, made_from, result.made)
    return _report(step, model, None if done else clock() - start)


def _report(step: Step, model: str, seconds: float | None) -> MaskReport:
    codes, network = read_codes(step.output, step.source)
    data = read_frame(step.source).data
    boxes = interesting(codes, ZOOMS, ZOOM_SIDE)
    thin = preview_step(codes.shape)
    file = Path(step.output)
    named = "" if model == MODEL else f" --model {model}"
    return MaskReport(
        network=network,
        shape=codes.shape,
        counts=class_counts(codes),
        picture=overlay_svg(
            thinned(data, thin),
            thinned_codes(codes, thin),
            LAYERS,
            boxes,
            step=thin,
            title="image with its contaminants",
            width=PREVIEW_PIXELS,
        ),
        zooms=[_zoom(data[box.window], codes[box.window]) for box in boxes],
        step=thin,
        seconds=seconds,
        file=file,
        preview=file.with_name(f"{mask_name(step.source)}.png"),
        command=f"tapetum images mask {step.source} -o {file.parent} --single-mask --compress fz --preview{named}",
    )


def _zoom(data: Image, codes: NDArray[np.uint16]) -> tuple[Mapping[str, int], str]:
    return class_counts(codes), beside_svg(data, codes, LAYERS, title="zoom")


def mask_sections(report: MaskReport, title: str) -> list[Section]:
    """The overlay with its legend, the zooms, and a table of the classes."""
    took = "" if report.seconds is None else f" in {report.seconds:.1f} s"
    words = (
        f"What every pixel is contaminated by, found by the network {report.network}{took}. Means of {report.step} x "
        f"{report.step} pixels, coloured where one of them has the class; numbers of pixels: "
    )
    frames = "White frames are the places below." if report.zooms else ""
    sections: list[Section] = [Figure(title, report.picture, [words, *legend(report.counts), frames])]
    for number, (counts, svg) in enumerate(report.zooms, 1):
        text = ["Every pixel, as it is, and with its classes. ", *legend(counts)]
        sections.append(Figure(f"Place {number}", svg, text))
    return [*sections, _table(report)]


def _table(report: MaskReport) -> Rows:
    columns = [
        Column("class"),
        Column("contaminant"),
        Column("pixels", ",d"),
        Column("percent", ".4f", "of all pixels"),
    ]
    n = report.shape[0] * report.shape[1]
    rows = [(name, TITLES[name].lower(), count, 100 * count / n) for name, count in report.counts.items()]
    text = "A pixel may have several classes. The search says in the column contaminants what lies at a candidate."
    return Rows("Contaminants", columns, rows, text, nothing="No pixel is contaminated.")
