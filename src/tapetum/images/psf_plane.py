"""A PSF model as a part of a FITS file: stamps on a grid over the field, and where they belong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import FormatError, InputError
from tapetum.core.limits import DEFAULT_LIMITS, Limits
from tapetum.images._fits_parts import find_parts, open_fits
from tapetum.images._fits_pixels import read_plane
from tapetum.images.fits import path_of
from tapetum.images.psf import PsfModel

if TYPE_CHECKING:
    from pathlib import Path

    from tapetum.images.frame import Image

NAME = "PSF"
GRID = 3  # stamps along each side of the field: what a polynomial of second order is known by
OVER_KEY, X_KEY, Y_KEY = "PSFOVER", "PSFX", "PSFY"


def psf_plane(psf: PsfModel) -> tuple[Image, Any]:
    """Stamps of a PSF, and the header that says what they are.

    Returns
    -------
    ndarray of float32, shape (GRID^2, side, side)
        Values per pixel, at PSFOVER points per pixel, the star in the middle; as `PsfModel.fine` gives them.
    astropy.io.fits.Header
        PSFXn, PSFYn: place of the n-th stamp in the frame [pixel], counted from 1 as FITS does.
    """
    from astropy.io import fits

    n_y, n_x = psf.shape
    rows, columns = np.linspace(0, n_y - 1, GRID), np.linspace(0, n_x - 1, GRID)
    places = [(float(x), float(y)) for y in rows for x in columns]
    header = fits.Header()
    header[OVER_KEY] = (psf.over, "points per pixel")
    header["PSFFWHM"] = (round(psf.quality.fwhm_pix, 4), "[pixel] FWHM in the middle of the field")
    for number, (x, y) in enumerate(places, 1):
        header[f"{X_KEY}{number}"] = (x + 1, "[pixel] column of this stamp's place")
        header[f"{Y_KEY}{number}"] = (y + 1, "[pixel] row of this stamp's place")
    return np.stack([psf.fine(x, y, psf.over) for x, y in places]), header


def read_psf(
    source: str | Path, shape: tuple[int, int], *, limits: Limits = DEFAULT_LIMITS
) -> PsfModel | None:
    """The PSF that `psf_plane` put into the file of an image; None where there is none.

    Parameters
    ----------
    source
        As `tapetum.images.fits.read_frame` takes it.
    shape
        (n_y, n_x) of the image [pixel].

    Raises
    ------
    InputError
        The file cannot be read.
    FormatError
        The PSF in it is damaged.
    """
    path = path_of(source)
    place = f"{path}: {NAME}"
    with open_fits(path, limits) as (handle, size):
        parts = [
            part for part in find_parts(handle, size, path, limits) if part.name == NAME and part.is_image
        ]
        if not parts or len(parts[0].shape) != 3:
            return None
        planes = [read_plane(handle, parts[0], plane, place, []) for plane in range(parts[0].n_planes)]
    header = planes[0][1]
    if OVER_KEY not in header:
        return None  # another program's
    try:
        x, y = ([float(header[f"{key}{n}"]) - 1 for n in range(1, len(planes) + 1)] for key in (X_KEY, Y_KEY))
        over = int(header[OVER_KEY])
        if over < 1:
            raise FormatError(f"{over} points per pixel")
        return PsfModel.from_stamps(x, y, np.stack([values for values, _ in planes]), shape, over=over)
    except (KeyError, ValueError, TypeError, InputError, FormatError) as problem:
        raise FormatError(f"{place}: is damaged: {problem}") from None
