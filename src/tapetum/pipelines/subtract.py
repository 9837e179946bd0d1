"""Differences of images, file by file: the reference aligned, both measured, one taken from the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tapetum.images.fits import read_frame, write_frame
from tapetum.images.psf_plane import NAME, psf_plane
from tapetum.pipelines.search_steps import PSF_STARS, WIDTH_STARS, compare, prepare
from tapetum.pipelines.steps import WARNING, Made, Step
from tapetum.surveys.telescopes import find_telescope

if TYPE_CHECKING:
    from tapetum.images.difference import Difference
    from tapetum.images.frame import Frame
    from tapetum.pipelines.references import References
    from tapetum.pipelines.steps import Work

SUFFIX = ".difference.fits.fz"
CARDS = {
    "n_stars": ("SUBNSTAR", "stars in the fit"),
    "n_clipped": ("SUBNCLIP", "stars left out as outliers"),
    "chi2": ("SUBCHI2", "reduced chi-square of fitted stars"),
    "chi2_held": ("SUBCHI2H", "the same of stars held out of the fit"),
    "relative_error": ("SUBRELER", "of the model in star cores, beyond noise"),
    "core_residual": ("SUBCORE", "rms in star cores over the peak, median"),
    "scale_expected": ("SUBSCEXP", "ratio of star fluxes in apertures"),
    "finite": ("SUBFINIT", "part of the common pixels that have a value"),
    "noise_ratio": ("SUBNOISE", "measured over expected noise"),
    "negative": ("SUBNEG", "negative part of the pixels beyond 5 sigma"),
    "richness": ("SUBRICH", "terms of the kernel"),
    "n_loud": ("SUBNLOUD", "pixels beyond 5 sigma, of those looked at"),
}
"""Header keys of the figures of `SubtractionQuality`."""


@dataclass(frozen=True)
class SubtractOptions:
    """What decides a difference beside the images.

    Attributes
    ----------
    method
        ``kernel`` or ``zogy``.
    convolve
        Which image the kernel blurs.
    telescope
        Profile to read the images with; None recognises it.
    mask
        Mask of the science images; None takes the one in the file or beside it.
    """

    method: Literal["kernel", "zogy"] = "kernel"
    convolve: Literal["auto", "reference", "science"] = "auto"
    telescope: str | None = None
    mask: str | None = None


def subtracter(references: References, options: SubtractOptions, threads: int) -> Work:
    """The function that takes the reference from an image and writes the difference; see `run_step`.

    Raises
    ------
    InputError
        There is no such telescope.
    """
    profile = None if options.telescope is None else find_telescope(options.telescope)

    def work(step: Step) -> Made:
        frame = read_frame(step.source, profile, mask=options.mask)
        said = [WARNING + text for text in frame.info.warnings]
        aligned = next(references.aligned(frame, say=said.append, threads=threads))
        said += [f"{WARNING}{aligned.source}: {text}" for text in aligned.info.warnings]
        n_stars = PSF_STARS if options.method == "zogy" else WIDTH_STARS
        science = prepare(frame, threads=threads, say=said.append)
        reference = prepare(aligned, n_stars=n_stars, threads=threads, say=said.append)
        compared = compare(
            science,
            reference,
            method=options.method,
            convolve=options.convolve,
            threads=threads,
            say=said.append,
        )
        assert compared.difference is not None  # there is a reference
        write_difference(Path(step.output), frame, compared.difference, aligned.source)
        return Made(tuple(said))

    return work


def write_difference(path: Path, frame: Frame, made: Difference, reference: str) -> None:
    """Write a difference with its noise, mask and PSF, so that `images detect --difference` needs nothing else.

    Parameters
    ----------
    frame
        The science image, whose header and coordinates the difference keeps.
    reference
        What was taken away, for the history.
    """
    planes: dict[str, Any] = {"NOISE": made.noise, "MASK": made.mask}
    headers: dict[str, Any] = {}
    if made.psf is not None:
        planes[NAME], headers[NAME] = psf_plane(made.psf)
    write_frame(
        path,
        made.data,
        wcs=frame.wcs,
        header=_header(frame, made),
        planes=planes,
        plane_headers=headers,
        history=[
            f"science: {frame.source}",
            f"reference: {reference}",
            f"difference: science minus reference, {made.method}, convolved: {made.convolved}",
            "background subtracted, in DN of the science image",
        ],
        product="difference",
    )


def _header(frame: Frame, made: Difference) -> Any:
    """The header of the science image, and how the difference was made."""
    header = frame.header.copy()
    header["SUBMETH"] = (made.method, "method of subtraction")
    header["SUBCONV"] = (made.convolved, "which image was convolved")
    header["SUBSCALE"] = (float(made.scale), "science DN of a source of 1 reference DN")
    for name, value in asdict(made.quality).items():
        key, comment = CARDS[name]
        if isinstance(value, (int, str)) or np.isfinite(value):  # FITS has no NaN
            header[key] = (value if isinstance(value, (int, str)) else round(float(value), 6), comment)
        else:
            header.remove(key, ignore_missing=True)
    return header
