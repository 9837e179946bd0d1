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
from tapetum.images.photometry import forced_photometry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tapetum.images.frame import Image, MaskPlane
    from tapetum.images.matching import MatchingKernel
    from tapetum.images.psf import PsfModel

Method = Literal["kernel", "zogy"]

NEAR = 1.5  # FWHM around a star that its photometry sees
SAME_STAR = 0.03  # by which the fluxes of one star may differ, beyond noise
FILL_REACH = 2  # bad pixels take the mean of good ones so near [pixel]
FEW_STARS = 20  # fewer than this, and fainter ones are taken as well
FAINTER = 1 / 3  # of the usual level, where bright stars are few
SAMPLED = 200_000  # pixels from which the noise of a difference is judged

LOWEST_FINITE = 0.98  # part of the pixels that both images have
SCALE_TOLERANCE = 0.3  # of the kernel's sum against the ratio of star fluxes
MOST_NOISE = 2.0  # of the measured over the expected noise
TOO_QUIET = (
    0.4  # below it the expected noise was too high, as in crowded fields, and the noise map is scaled down
)
SHARED_NOISE = 0.25  # of the measured over the expected: no smoothing makes that of two exposures
BRIGHTEST = 80  # stars that are looked for in the other image, where a subtraction fails
FEWEST = 8  # and with fewer nothing can be said
AGREEING = 0.5  # part of them that must be there
OVERFITTED = 3.0  # chi-square of stars left out over that of stars fitted
BADLY_FITTED = 3.0  # below this reduced chi-square no fit is called over-fitted
UNSUBTRACTED = 0.25  # of a star's light that may be left in its core
UNFITTED = 4.0  # reduced chi-square of stars left out, from which the kernel cannot make one image the other
MANY_LOUD = 50  # pixels beyond 5 sigma, so many that one sign of nearly all of them says something
ONE_SIGN = 0.9  # nearly all
WRONG_CORES = 0.15  # error of the model in star cores, beyond which they are rings and no new sources


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
    n_loud
        Pixels beyond 5 sigma among those that were looked at (`SAMPLED` or so).
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
    n_loud: int = 0


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


def stars_agreeing(one: Plane, other: Plane) -> tuple[int, int]:
    """(of them in the other image, stars of one): the brightest of that image of which the other has more.

    Stars that are saturated or masked in the other image do not count.
    """
    sides = [Side(p.data, p.noise, p.mask, LINEAR_PART * p.saturation, p.seeing) for p in (one, other)]
    core = max(round(max(one.seeing, other.seeing)), 2)
    found = (_shown(first, second, core) for first, second in (sides, sides[::-1]))
    return max(found, key=lambda counts: counts[0] / max(counts[1], 1))


def _shown(first: Side, second: Side, core: int) -> tuple[int, int]:
    x, y = find_stars(first, first, 1.0, core + 1, core)
    bright = np.argsort(-first.data[y, x], kind="stable")[:BRIGHTEST]
    x, y = x[bright], y[bright]
    steps = [(i, j) for i in range(-core, core + 1) for j in range(-core, core + 1)]
    usable = np.array([second.mask[y + j, x + i] == 0 for i, j in steps]).all(0)
    usable &= np.array([second.data[y + j, x + i] < second.ceiling for i, j in steps]).all(0)
    return int(second.shows_stars(x[usable], y[usable]).sum()), int(usable.sum())


def disagreement(science: Plane, reference: Plane) -> str:
    """What is said first when a subtraction fails because the images show other stars; empty where they do not."""
    n, of = stars_agreeing(science, reference)
    if of < FEWEST or n >= AGREEING * of:
        return ""
    return f"the stars of the two images do not match ({n} of {of} agree): another field, or a wrong WCS? "


def star_flux_ratio(
    target: Plane,
    moving: Plane,
    still: Image,
    image: Image,
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    half: int,
) -> float:
    """Flux of stars in the target over that in the other image.

    By PSF photometry where both PSFs are known, which neighbours disturb little; else by the light in boxes.

    Parameters
    ----------
    target, moving
        For noise, mask and PSF.
    still, image
        Their data without bad pixels.
    x, y
        Of the stars [pixel].
    half
        Half side of the boxes [pixel].
    """
    if target.psf is None or moving.psf is None or not len(x):
        return flux_ratio(still, image, x, y, half)
    radius = NEAR * max(target.seeing, moving.seeing)
    ours, theirs = (
        forced_photometry(data, p.noise, p.mask, psf, x, y, fit_position=True, radius_pix=radius)
        for data, p, psf in ((still, target, target.psf), (image, moving, moving.psf))
    )
    usable = (ours.flux > 0) & (theirs.flux > 0)
    if not usable.any():
        return flux_ratio(still, image, x, y, half)
    ratio = np.log(ours.flux[usable] / theirs.flux[usable])
    noise = np.hypot(ours.flux_err / ours.flux, theirs.flux_err / theirs.flux)[usable]
    return float(np.exp(weighted_median(ratio, np.hypot(noise, SAME_STAR) ** -2)))


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
        n_loud=len(loud),
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
    """The quality gate: a difference that may be used; its noise map scaled down where it is far too high.

    That is told by `quality.noise_ratio`, which stays as measured. Whether a fit follows the noise is not judged by
    it but by stars that the fit has not seen.

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
        (
            q.noise_ratio < SHARED_NOISE,
            (
                "science image and reference share their noise: they are the same, or one was made from the other; "
                "the reference must be another exposure"
            ),
        ),
        (finite < LOWEST_FINITE, f"only {finite:.1%} of the difference is finite"),
        (not np.isfinite(difference.scale) or difference.scale <= 0, f"flux scale {difference.scale:.3g}"),
        (
            abs(np.log(max(difference.scale, 1e-30) / q.scale_expected)) > np.log(1 + SCALE_TOLERANCE),
            f"flux scale {difference.scale:.3g}, but stars say {q.scale_expected:.3g}",
        ),
        (
            not q.noise_ratio < MOST_NOISE,
            f"its noise is {q.noise_ratio:.2f} times what it should be",
        ),
        (
            q.chi2_held > OVERFITTED * q.chi2 and q.chi2_held > BADLY_FITTED,
            f"over-fitted: reduced chi-square {q.chi2:.2f} of fitted stars, {q.chi2_held:.2f} of others",
        ),
        (
            q.chi2_held > UNFITTED,
            f"badly fitted: reduced chi-square {q.chi2_held:.2f} of stars; is the sharper image the one convolved?",
        ),
        (
            abs(q.negative - 0.5) > ONE_SIGN - 0.5
            and q.n_loud > MANY_LOUD
            and q.relative_error > WRONG_CORES,
            (
                f"badly fitted: {q.negative:.0%} of the pixels beyond 5 sigma are negative, and the model errs by"
                f" {q.relative_error:.0%} in star cores; is the sharper image the one convolved?"
            ),
        ),
        (
            not q.core_residual < UNSUBTRACTED,
            f"stars are not subtracted: {q.core_residual:.0%} of their peak is left",
        ),
    )
    for refused, reason in reasons:
        if refused:
            raise SubtractionError(reason)
    if q.noise_ratio < TOO_QUIET:
        return replace(difference, noise=difference.noise * np.float32(q.noise_ratio))
    return difference
