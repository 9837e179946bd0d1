"""Images put on the pixel grid of one of them, file by file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapetum.images.fits import read_frame, write_frame
from tapetum.images.remap import align
from tapetum.pipelines.steps import WARNING, Made, Step
from tapetum.surveys.telescopes import find_telescope

if TYPE_CHECKING:
    from tapetum.images.frame import Frame, FrameInfo
    from tapetum.pipelines.steps import Work

SUFFIX = ".aligned.fits.fz"
SAME = 1e-6  # relative: a header that says what we understood


def aligner(onto: str, telescope: str | None, threads: int, *, mask: str | None = None) -> Work:
    """The function that puts an image, its mask and variance onto the grid of `onto`; see `run_step`.

    Parameters
    ----------
    onto
        Image whose grid is taken.
    telescope
        Name or file of the profile to read the images with; None recognises it.
    threads
        Of each image.
    mask
        Mask of the images; None takes the one in the file or beside it.

    Raises
    ------
    InputError
        `onto` cannot be read, or there is no such telescope.
    """
    target = read_frame(onto)
    profile = None if telescope is None else find_telescope(telescope)

    def work(step: Step) -> Made:
        frame = read_frame(step.source, profile, mask=mask)
        aligned = align(frame, target, threads=threads)
        write_aligned(Path(step.output), aligned, frame.info, onto)
        return Made(tuple(WARNING + text for text in aligned.info.warnings))

    return work


def write_aligned(path: Path, frame: Frame, before: FrameInfo, onto: str) -> None:
    """Write an aligned frame; header values that depend on the size of a pixel follow it."""
    write_frame(
        path,
        frame.data,
        wcs=frame.wcs,
        header=_header_of(frame, before),
        planes=frame.planes,
        history=[f"aligned: {frame.source} onto {onto}", "resampled by Lanczos-3, flux conserved"],
    )


def _header_of(frame: Frame, before: FrameInfo) -> Any:
    header = frame.header.copy()
    for name in ("saturation", "fwhm_pix", "pixel_scale_arcsec"):
        old, new = getattr(before, name), getattr(frame.info, name)
        words = before.origin.get(name, "").split()
        if old is None or len(words) < 2 or words[0] != "header" or words[1] not in header:
            continue
        if abs(float(header[words[1]]) - old) <= SAME * abs(
            old
        ):  # else it is in another unit, and stays true
            header[words[1]] = new
    return header
