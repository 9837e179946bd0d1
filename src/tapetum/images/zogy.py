"""The proper difference image, with the PSFs of each part of the field.

Zackay, Ofek & Gal-Yam (2016, ApJ 830, 27): equation 13 gives the difference, 15 its PSF, 16 its flux scale; the noise
follows equations 26 to 28 (photons of both images) and 30 to 33 (registration). Each tile of the field is done with
its own PSFs, noise and registration, and overlaps its neighbours by more than a PSF so that no edge is seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tapetum.core.errors import InputError
from tapetum.core.robust import MAD_TO_SIGMA
from tapetum.images._subtract_kernels import spread_mask
from tapetum.images.difference import (
    NEAR,
    SAME_STAR,
    Difference,
    SubtractionError,
    SubtractionQuality,
    filled,
    judged,
    star_flux_ratio,
    stars_of_both,
    weighted_median,
)
from tapetum.images.matching import ENOUGH_STARS, polynomial
from tapetum.images.photometry import PointFluxes, forced_photometry
from tapetum.images.psf import PsfModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.images.difference import Plane
    from tapetum.images.frame import Image

    Vector = NDArray[np.float64]
    Spectrum = NDArray[np.complex64]

CORE = 192  # side of the part of a tile that is kept [pixel]
MARGIN = 32  # overlap on each side: ringing of the PSFs' ratio dies out in it [pixel]
SIDE = CORE + 2 * MARGIN
MASK_RADIUS = 3.0  # by which bad pixels of the reference spread [pixel]
REGISTRATION_ORDER = 1  # of the polynomial that the remaining shift is in the field
FEWEST_FOR_SLOPE = 12
CLIP = 4.0  # sigma
ROBUST_ROUNDS = 5
BOX_HALF = 7  # of the boxes whose light gives the expected flux scale [pixel]


@dataclass(frozen=True)
class Registration:
    """How the stars of the reference lie, and how bright they are, against those of the science image.

    Attributes
    ----------
    scale
        Science DN per reference DN.
    shift_x, shift_y : ndarray of float64, shape (n_poly,)
        Polynomials of science minus reference position [pixel].
    error
        Scatter of the stars about them, beyond noise, per axis [pixel].
    n_stars
        Stars used.
    """

    scale: float
    shift_x: Vector
    shift_y: Vector
    error: float
    n_stars: int


@dataclass(frozen=True)
class _Tile:
    """What one tile gives: its difference and noise, in science DN, and PSF."""

    data: Image
    variance: Image
    psf: Image


def proper_difference(science: Plane, reference: Plane, *, threads: int = 1) -> Difference:
    """Proper difference of two images on the same pixel grid, in DN of the science image.

    Parameters
    ----------
    science, reference
        With their PSFs.
    threads
        Of the Fourier transforms.

    Raises
    ------
    InputError
        A PSF is missing.
    """
    if science.psf is None or reference.psf is None:
        raise InputError("ZOGY needs the PSFs of both images: measure them, or use the kernel method")
    n_y, n_x = science.data.shape
    image, other = filled(science), filled(reference)
    margin = max(science.psf.half, reference.psf.half) + 1
    x, y = stars_of_both(reference, science, margin)
    registration = _register(science, reference, image, other, x.astype(np.float64), y.astype(np.float64))
    data, noise = np.empty((n_y, n_x), np.float32), np.empty((n_y, n_x), np.float32)
    places, psfs = [], []
    for y0 in range(0, n_y, CORE):
        for x0 in range(0, n_x, CORE):
            tile = _tile(science, reference, image, other, registration, x0, y0, threads)
            keep = np.s_[: min(CORE, n_y - y0), : min(CORE, n_x - x0)]
            data[y0 : y0 + CORE, x0 : x0 + CORE] = tile.data[keep]
            noise[y0 : y0 + CORE, x0 : x0 + CORE] = np.sqrt(tile.variance[keep])
            places.append((min(x0 + CORE / 2, n_x - 1), min(y0 + CORE / 2, n_y - 1)))
            psfs.append(tile.psf)
    mask = science.mask.copy()
    spread_mask(reference.mask, MASK_RADIUS, mask)
    data[np.isnan(science.data) | np.isnan(reference.data)] = np.nan
    where = np.array(places, np.float64)
    order = 2 if len(places) >= 9 else 1 if len(places) >= 4 else 0
    psf = PsfModel.from_stamps(where[:, 0], where[:, 1], np.array(psfs, np.float32), (n_y, n_x), order=order)
    nan = float("nan")
    expected = star_flux_ratio(science, reference, image, other, x, y, BOX_HALF)
    quality = SubtractionQuality(
        registration.n_stars, len(x) - registration.n_stars, nan, nan, registration.error, nan, expected, nan, nan, nan,
        "proper difference",
    )  # fmt: skip
    quality = judged(quality, data, noise, mask, science, x, y)
    return Difference(data, noise, mask, psf, registration.scale, "zogy", "both", quality)


def _register(
    science: Plane, reference: Plane, image: Image, other: Image, x: Vector, y: Vector
) -> Registration:
    """Flux scale and remaining shift from PSF photometry of the same stars on both images."""
    assert science.psf is not None
    assert reference.psf is not None
    if len(x) < ENOUGH_STARS:
        raise SubtractionError(
            f"{len(x)} stars can be used and {ENOUGH_STARS} are needed: is the reference of the same field?"
        )
    radius = NEAR * max(science.seeing, reference.seeing)
    ours, theirs = (
        forced_photometry(data, p.noise, p.mask, psf, x, y, fit_position=True, radius_pix=radius)
        for data, p, psf in ((image, science, science.psf), (other, reference, reference.psf))
    )
    usable = (ours.flux > 0) & (theirs.flux > 0) & np.isfinite(ours.x - theirs.x)
    if not usable.any():
        raise SubtractionError("no star can be measured on both images")
    ours, theirs = (PointFluxes(*(column[usable] for column in fluxes)) for fluxes in (ours, theirs))
    ratio = np.log(ours.flux / theirs.flux)
    error = np.hypot(np.hypot(ours.flux_err / ours.flux, theirs.flux_err / theirs.flux), SAME_STAR)
    # galaxies are wider than the PSF, by another factor on each image: by their number they could win, not by weight
    middle = weighted_median(ratio, error**-2)
    stars = np.abs(ratio - middle) < CLIP * error
    shape = (science.data.shape[0], science.data.shape[1])
    order = REGISTRATION_ORDER if stars.sum() >= FEWEST_FOR_SLOPE else 0
    terms = polynomial(x[usable][stars], y[usable][stars], shape, order)
    dx, dy = (ours.x - theirs.x)[stars], (ours.y - theirs.y)[stars]
    (shift_x, left_x), (shift_y, left_y) = (_robust_fit(terms, d, 1 / error[stars]) for d in (dx, dy))
    bright = error[stars] <= np.median(error[stars])
    scatter = MAD_TO_SIGMA * float(np.median(np.abs([left_x[bright], left_y[bright]])))
    scale = float(np.exp(weighted_median(ratio[stars], error[stars] ** -2)))
    return Registration(scale, shift_x, shift_y, scatter, int(stars.sum()))


def _robust_fit(terms: Vector, values: Vector, weight: Vector) -> tuple[Vector, Vector]:
    """Weighted least squares in which far values lose their weight; (coefficients, residuals)."""
    down = np.ones(len(values))
    for _ in range(ROBUST_ROUNDS):
        root = weight * np.sqrt(down)
        found = np.linalg.lstsq(terms * root[:, None], values * root, rcond=None)[0]
        left = values - terms @ found
        spread = max(MAD_TO_SIGMA * float(np.median(np.abs(left))), 1e-3)
        down = np.minimum(1, 2 * spread / np.maximum(np.abs(left), 1e-12))  # Huber
    return np.asarray(found, np.float64), np.asarray(left, np.float64)


def _tile(
    science: Plane,
    reference: Plane,
    image: Image,
    other: Image,
    registration: Registration,
    x0: int,
    y0: int,
    threads: int,
) -> _Tile:
    from scipy import fft

    assert science.psf is not None
    assert reference.psf is not None
    n_y, n_x = image.shape
    x, y = min(x0 + CORE / 2, n_x - 1), min(y0 + CORE / 2, n_y - 1)
    box = (slice(y0 - MARGIN, y0 + CORE + MARGIN), slice(x0 - MARGIN, x0 + CORE + MARGIN))
    order = {1: 0, 3: 1}[len(registration.shift_x)]
    terms = polynomial(np.array([x]), np.array([y]), (n_y, n_x), order)[0]
    turn = _shift_phase(float(terms @ registration.shift_x), float(terms @ registration.shift_y))
    p_n = fft.rfft2(_wrapped(science.psf.centred(x, y)), workers=threads)
    p_r = fft.rfft2(_wrapped(reference.psf.centred(x, y)), workers=threads)
    f_r = 1 / registration.scale  # with the science image's own flux scale as 1
    sigma_n = float(np.median(_cut(science.noise, box)))
    sigma_r = float(np.median(_cut(reference.noise, box)))
    root = np.sqrt(sigma_n**2 * f_r**2 * np.abs(p_r) ** 2 + sigma_r**2 * np.abs(p_n) ** 2 + 1e-30)
    f_d = f_r / np.sqrt(sigma_n**2 * f_r**2 + sigma_r**2)
    to_new, to_ref = f_r * p_r / root / f_d, p_n / root / f_d * turn
    new = fft.rfft2(_cut(image, box), workers=threads)
    ref = fft.rfft2(_cut(other, box), workers=threads)
    size = (SIDE, SIDE)
    data = fft.irfft2(to_new * new - to_ref * ref, size, workers=threads)
    variance = _variance(science, image, box, to_new, threads) + _variance(
        reference, other, box, to_ref, threads
    )
    if registration.error > 0:
        moved = fft.irfft2(to_ref * ref, size, workers=threads)
        slope_y, slope_x = np.gradient(moved)
        variance += registration.error**2 * (slope_x**2 + slope_y**2)
    psf = fft.fftshift(fft.irfft2(p_n * to_new, size, workers=threads))
    half = max(science.psf.half, reference.psf.half)
    middle = SIDE // 2
    stamp = psf[middle - half : middle + half + 1, middle - half : middle + half + 1]
    inner = np.s_[MARGIN : MARGIN + CORE, MARGIN : MARGIN + CORE]
    return _Tile(
        data[inner].astype(np.float32),
        np.maximum(variance[inner], (0.1 / f_d) ** 2).astype(np.float32),
        (stamp / stamp.sum()).astype(np.float32),
    )


def _variance(plane: Plane, image: Image, box: tuple[slice, slice], kernel: Spectrum, threads: int) -> Image:
    """Variance that an image leaves in the difference: its own through the square of its kernel."""
    from scipy import fft

    size = (SIDE, SIDE)
    squared = fft.rfft2(fft.irfft2(kernel, size, workers=threads) ** 2, workers=threads)
    own = _cut(plane.noise, box) ** 2 + np.maximum(_cut(image, box), 0) / plane.gain
    spread: Image = fft.irfft2(squared * fft.rfft2(own, workers=threads), size, workers=threads)
    return spread


def _cut(image: Image, box: tuple[slice, slice]) -> Image:
    """A tile; beyond the edges the image is mirrored."""
    n_y, n_x = image.shape
    rows, cols = np.arange(box[0].start, box[0].stop), np.arange(box[1].start, box[1].stop)
    return image[np.ix_(_mirrored(rows, n_y), _mirrored(cols, n_x))]


def _mirrored(index: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    period = index % (2 * n)
    return np.where(period < n, period, 2 * n - 1 - period)


def _wrapped(stamp: Image) -> Image:
    """A centred PSF on the grid of a tile, its centre at (0, 0)."""
    half = stamp.shape[0] // 2
    grid = np.zeros((SIDE, SIDE), np.float32)
    grid[: stamp.shape[0], : stamp.shape[1]] = stamp / stamp.sum()
    return np.roll(grid, (-half, -half), (0, 1))


def _shift_phase(dx: float, dy: float) -> Spectrum:
    """Fourier factor that moves an image by (dx, dy) [pixel]."""
    ky, kx = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None, :]
    phase: Spectrum = np.exp(-2j * np.pi * (kx * dx + ky * dy)).astype(np.complex64)
    return phase
