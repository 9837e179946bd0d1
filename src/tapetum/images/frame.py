"""One image in memory, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Mapping

Image = NDArray[np.float32]
MaskPlane = NDArray[np.uint8]


class Bad(IntFlag):
    """Why a pixel cannot be used; several reasons may hold at once."""

    NO_DATA = 1  # NaN, outside the image, blanked
    DEFECT = 2  # dead, hot, bad column: the detector's fault
    SATURATED = 4  # at or above the saturation level, and what bled from there
    COSMIC = 8  # hit by a particle
    ARTEFACT = 16  # ghost, halo, satellite: light that is not where it seems to come from


@dataclass(frozen=True)
class FrameInfo:
    """What an image says of itself, what the profile of its telescope says, and what had to be guessed.

    Attributes
    ----------
    telescope
        Name of the profile.
    band
        sncosmo name, or ``clear`` for no filter in the beam; None when nothing says it.
    mjd
        Middle of the exposure [day, UTC].
    exposure_s
        Exposure time [s].
    gain
        Electrons per DN.
    read_noise
        Noise of a dark, short exposure [electron].
    saturation
        Level from which a pixel is not linear [DN]; inf when nothing says it.
    pixel_scale_arcsec
        Root of the area of the central pixel [arcsec].
    zero_point
        Magnitude of a source of 1 DN in this image.
    fwhm_pix
        Seeing as the header says it [pixel].
    mag_limit
        Depth as the header says it: 5 sigma, point source [mag].
    wcs_kind
        Projection of the WCS, for instance ``TPV`` or ``TAN-SIP``; None where there is no WCS.
    identity
        Which image of the survey it is: ``field``, ``ccd``, ``quadrant``, ... by file name or header.
    quality
        What the survey's own pipeline says against the image, in words.
    mask_source
        Where the mask comes from beside NaN and saturation; None where there is none.
    origin
        Name of a value -> where it comes from: ``header GAIN``, ``profile ztf``, ``WCS``, ``guessed: ...``,
        or ``unknown: ...`` when there is no value.
    warnings
        What the user should know of the file.
    """

    telescope: str = "generic"
    band: str | None = None
    mjd: float | None = None
    exposure_s: float | None = None
    gain: float = 1.0
    read_noise: float = 0.0
    saturation: float = np.inf
    pixel_scale_arcsec: float | None = None
    zero_point: float | None = None
    fwhm_pix: float | None = None
    mag_limit: float | None = None
    wcs_kind: str | None = None
    identity: Mapping[str, str | int] = field(default_factory=dict)
    quality: tuple[str, ...] = ()
    mask_source: str | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def guessed(self) -> tuple[str, ...]:
        """Names of the values that no source gave."""
        return tuple(name for name, source in self.origin.items() if source.startswith("guessed"))


@dataclass(frozen=True)
class Frame:
    """One two-dimensional image.

    Attributes
    ----------
    name
        What outputs are called after: the file's name without its suffixes (and ``_<ext>`` for other extensions).
    source
        Where it came from, for messages: ``path`` or ``path[ext]``.
    data : ndarray of float32, shape (n_y, n_x)
        Pixel values [DN], native byte order, C order; NaN where there is none.
    mask : ndarray of uint8, shape (n_y, n_x)
        Bits of `Bad`; 0 is a good pixel.
    wcs
        An `astropy.wcs.WCS` of two axes, or None.
    header
        The `astropy.io.fits.Header` as it was read.
    info
        What is known of it.
    variance : ndarray of float32, shape (n_y, n_x), or None
        Variance [DN^2] where the file or an earlier step gives it; None: it follows from sky noise and gain.
    """

    name: str
    source: str
    data: Image
    mask: MaskPlane
    wcs: Any
    header: Any
    info: FrameInfo
    variance: Image | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n_y, n_x) [pixel]."""
        n_y, n_x = self.data.shape
        return n_y, n_x

    @property
    def planes(self) -> dict[str, NDArray[Any]]:
        """What lies on the same pixels, by the names of the extensions from which it is read back."""
        mask: dict[str, NDArray[Any]] = {"MASK": self.mask}
        return mask if self.variance is None else {**mask, "VARIANCE": self.variance}
