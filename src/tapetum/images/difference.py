"""The difference of two images: what goes in, what comes out, and the gate that a difference must pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from tapetum.core.errors import InputError, TapetumError
from tapetum.core.robust import MAD_TO_SIGMA
from tapetum.images._subtract_kernels import fill_bad
from tapetum.images.frame import Bad
from tapetum.images.matching import LINEAR_PART, Side, find_stars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tapetum.images.frame import Image, MaskPlane
    from tapetum.images.matching import MatchingKernel
    from tapetum.images.psf import PsfModel

Method = Literal["kernel", "zogy"]

FILL_REACH = 2  # bad pixels take the mean of good ones so near [pixel]
FEW_STARS = 20  # fewer than this, and fainter ones are taken as well
FAINTER = 1 / 3  # of the usual level, where bright stars are few
SAMPLED = 200_000  # pixels from which the noise of a difference is judged

LOWEST_FINITE = 0.98  # part of the pixels that both images have
SCALE_TOLERANCE = 0.3  # of the kernel's sum against the ratio of star fluxes
NOISE_RANGE = (0.4, 2.0)  # of the measured over the expected noise
OVERFITTED = 3.0  # chi-square of stars left out over that of stars fitted
BADLY_FITTED = 3.0  # below this reduced chi-square no fit is called over-fitted
UNSUBTRACTED = 0.25  # of a star's light that may be left in its core


class SubtractionError(TapetumError):
    """The difference of two images is not usable; the message says why."""


@dataclass(frozen=True)
class Plane:
    """One of the two images.

    Attributes
    ----------
    data : ndarray of float32, shape (n_y, n_x)
        Background subtracted [DN].
    noise : ndarray of float32, shape (n_y, n_x)
        Standard deviation of the sky [DN].
    mask : ndarray of uint8, shape (n_y, n_x)
        Bits of `tapetum.images.frame.Bad`.
    gain
        Electrons per DN; inf where nothing says it: how stars scatter then tells it.
    saturation
        Level of `data` from which pixels are not linear [DN].
    psf
        Its PSF; needed by ZOGY and for the PSF of the difference.
    fwhm_pix
        Its seeing [pixel], where `psf` is None.
    """

    data: Image
    noise: Image
    mask: MaskPlane
    gain: float = np.inf
    saturation: float = np.inf
    psf: PsfModel | None = None
    fwhm_pix: float | None = None

    @property
    def seeing(self) -> float:
        """Full width at half maximum of stars [pixel].

        Raises
        ------
        InputError
            Neither a PSF nor a width is known.
        """
        width = self.psf.quality.fwhm_pix if self.psf is not None else self.fwhm_pix
        if width is None or not np.isfinite(width) or width <= 0:
            raise InputError("the seeing of an image is not known: measure its PSF, or say its width")
        return float(width)


@dataclass(frozen=True)
class SubtractionQuality:
    """Measured on the difference and its stars.

    Attributes
    ----------
    n_stars, n_clipped
        Stars in the fit, and left out as outliers.
    chi2, chi2_held
        Reduced chi-square of fitted stars, and of stars held out of the fit.
    relative_error
        Of the model in star cores, beyond noise.
    core_residual
        Median over stars of the root mean square of the difference in the core over the star's peak.
    scale_expected
        Ratio of star fluxes in apertures.
    finite
        Part of the pixels that both images have and the difference has.
    noise_ratio
        Measured over expected noise, away from stars.
    negative
        Part of the pixels beyond 5 sigma that are negative; one half is even.
    richness
        Which terms the kernel has.
    """

    n_stars: int
    n_clipped: int
    chi2: float
    chi2_held: float
    relative_error: float
    core_residual: float
    scale_expected: float
    finite: float
    noise_ratio: float
    negative: float
    richness: str


@dataclass(frozen=True)
class Difference:
    """Science minus matched reference.

    Attributes
    ----------
    data : ndarray of float32, shape (n_y, n_x)
        In DN of the science image, background 0; NaN where either image has no value.
    noise : ndarray of float32, shape (n_y, n_x)
        Standard deviation: sky, photons of both images, error of the model [DN].
    mask : ndarray of uint8, shape (n_y, n_x)
        Bits of `tapetum.images.frame.Bad`; what is bad in the convolved image has spread.
    psf
        Of the difference: a source of 1 DN in the science image; None when the science image's is not known.
    scale
        Flux in science DN of a source of 1 reference DN, in the middle of the field.
    method, convolved
        How it was made.
    quality
        How well.
    kernel
        The matching kernel, None for ZOGY.
    """

    data: Image
    noise: Image
    mask: MaskPlane
    psf: PsfModel | None
    scale: float
    method: Method
    convolved: Literal["reference", "science", "both"]
    quality: SubtractionQuality
    kernel: MatchingKernel | None = None


def filled(plane: Plane) -> Image:
    """Data of a plane with bad pixels (but not saturated ones) replaced by their good neighbours; free of NaN."""
    out = np.empty_like(plane.data)
    fill_bad(plane.data, plane.mask & np.uint8(~Bad.SATURATED & 0xFF), FILL_REACH, out)
    return out


def stars_of_both(moving: Plane, target: Plane, margin: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stars for a fit: bright ones, and fainter ones where these are few."""
    sides = [Side(p.data, p.noise, p.mask, LINEAR_PART * p.saturation, p.seeing) for p in (moving, target)]
    core = max(round(max(moving.seeing, target.seeing)), 2)
    for level in (1.0, FAINTER):
        x, y = find_stars(sides[0], sides[1], level, margin, core)
        if len(x) >= FEW_STARS:
            break
    return x, y


def flux_ratio(target: Image, image: Image, x: NDArray[np.int64], y: NDArray[np.int64], half: int) -> float:
    """Ratio of the light in the same boxes of two images, above their borders: median over stars, by brightness."""
    ours = np.array([_light(target, col, row, half) for col, row in zip(x, y, strict=True)])
    theirs = np.array([_light(image, col, row, half) for col, row in zip(x, y, strict=True)])
    lit = np.isfinite(ours) & np.isfinite(theirs)
    return weighted_median(ours[lit] / theirs[lit], np.sqrt(ours[lit])) if lit.any() else 1.0


def weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Value at which half of the weight is reached; `values` is not empty."""
    order = np.argsort(values)
    sums = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(sums, 0.5 * sums[-1])])


def _light(image: Image, col: int, row: int, half: int) -> float:
    box = image[row - half : row + half + 1, col - half : col + half + 1]
    border = np.concatenate([box[0], box[-1], box[1:-1, 0], box[1:-1, -1]])
    light = float(box.sum(dtype=float) - np.median(border) * box.size)
    return light if light > 0 else np.nan


def judged(
    quality: SubtractionQuality,
    data: Image,
    noise: Image,
    mask: MaskPlane,
    science: Plane,
    x: NDArray[np.int64],
    y: NDArray[np.int64],
) -> SubtractionQuality:
    """Figures of the finished difference."""
    wanted = (mask & np.uint8(Bad.NO_DATA)) == 0
    n_wanted = np.count_nonzero(wanted)
    finite = float(np.count_nonzero(wanted & np.isfinite(data)) / n_wanted) if n_wanted else 0.0
    step = max(int((data.size / SAMPLED) ** 0.5), 1)
    part = np.s_[::step, ::step]
    good = (mask[part] == 0) & np.isfinite(data[part])
    significance = (data[part] / noise[part])[good]
    spread = MAD_TO_SIGMA * float(np.median(np.abs(significance))) if len(significance) else np.nan
    loud = significance[np.abs(significance) > 5]
    return replace(
        quality,
        finite=finite,
        noise_ratio=spread,
        negative=float((loud < 0).mean()) if len(loud) else 0.5,
        core_residual=_core_residual(data, science.data, x, y),
    )


def _core_residual(data: Image, science: Image, x: NDArray[np.int64], y: NDArray[np.int64]) -> float:
    """Median over stars of the rms of the difference in the inner 5 x 5 pixels over the star's peak."""
    steps = [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
    core = np.array([data[y + j, x + i] for i, j in steps])
    peak = np.max([science[y + j, x + i] for i, j in steps], axis=0) if len(x) else np.zeros(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        left = np.sqrt((core**2).mean(0)) / peak
    left = left[np.isfinite(left)]
    return float(np.median(left)) if len(left) else float("nan")


def checked(difference: Difference, science: Plane, reference: Plane) -> Difference:
    """The quality gate: a difference that may be used, unchanged.

    Raises
    ------
    SubtractionError
        With the reason.
    """
    q = difference.quality
    both = np.isfinite(science.data) & np.isfinite(reference.data)
    n_both = np.count_nonzero(both)
    finite = float(np.count_nonzero(both & np.isfinite(difference.data)) / n_both) if n_both else 0.0
    reasons: Sequence[tuple[bool, str]] = (
        (not n_both, "the images have no pixel in common"),
        (finite < LOWEST_FINITE, f"only {finite:.1%} of the difference is finite"),
        (not np.isfinite(difference.scale) or difference.scale <= 0, f"flux scale {difference.scale:.3g}"),
        (
            abs(np.log(max(difference.scale, 1e-30) / q.scale_expected)) > np.log(1 + SCALE_TOLERANCE),
            f"flux scale {difference.scale:.3g}, but stars say {q.scale_expected:.3g}",
        ),
        (
            not NOISE_RANGE[0] < q.noise_ratio < NOISE_RANGE[1],
            f"its noise is {q.noise_ratio:.2f} times what it should be",
        ),
        (
            q.chi2_held > OVERFITTED * q.chi2 and q.chi2_held > BADLY_FITTED,
            f"over-fitted: reduced chi-square {q.chi2:.2f} of fitted stars, {q.chi2_held:.2f} of others",
        ),
        (
            not q.core_residual < UNSUBTRACTED,
            f"stars are not subtracted: {q.core_residual:.0%} of their peak is left",
        ),
    )
    for refused, reason in reasons:
        if refused:
            raise SubtractionError(reason)
    return difference
