"""Fluxes at given places, and the zero point that makes them magnitudes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tapetum.core.errors import InputError
from tapetum.core.robust import MAD_TO_SIGMA
from tapetum.images import _psf_kernels as kernels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tapetum.images.frame import Image, MaskPlane
    from tapetum.images.psf import PsfModel

    Array = NDArray[np.float64]

CHUNK = 4096  # positions whose stamps are held at a time


class PointFluxes(NamedTuple):
    """PSF fluxes; arrays of float64, shape (n,), NaN where nothing could be measured.

    Parameters
    ----------
    flux, flux_err
        [DN].
    x, y, x_err, y_err
        Position [pixel]; the given one, without errors (NaN), unless it was fitted.
    sky
        Constant fitted under the star [DN]; 0 when it was not.
    chi2
        Reduced chi-square of the stamp.
    coverage
        Part of the star's light that fell on good pixels.
    """

    flux: Array
    flux_err: Array
    x: Array
    y: Array
    x_err: Array
    y_err: Array
    sky: Array
    chi2: Array
    coverage: Array


def forced_photometry(
    data: Image,
    noise: Image,
    mask: MaskPlane | None,
    psf: PsfModel,
    x: ArrayLike,
    y: ArrayLike,
    *,
    gain: float = 0.0,
    fit_position: bool = False,
    sky_sigma: float = 0.0,
    radius_pix: float | None = None,
    min_coverage: float = 0.3,
) -> PointFluxes:
    """PSF flux at given positions: least squares over good pixels, weighted by the noise.

    Parameters
    ----------
    data : ndarray of float32, shape (n_y, n_x)
        Sky-free image [DN].
    noise : ndarray of float32, shape (n_y, n_x)
        Standard deviation of its pixels [DN].
    mask : ndarray of uint8, shape (n_y, n_x), or None
        Nonzero = bad.
    psf
        PSF of this image.
    x, y : array_like, shape (n,)
        Positions [pixel].
    gain
        Electrons per DN, to add the photon noise of the star; 0: `noise` already has it, or the star is faint.
    fit_position
        Let the position move, up to a pixel (Gauss-Newton).
    sky_sigma
        Above 0: fit a constant sky too, with a prior of this many times the noise of a pixel around 0.
    radius_pix
        Use only pixels this close to the position; None: the whole stamp. A radius of 1.5 FWHM or so keeps
        neighbours of a crowded field out.
    min_coverage
        Least part of the light on good pixels; below it the flux is NaN.

    Returns
    -------
    PointFluxes

    Raises
    ------
    InputError
        Image, noise and mask have different shapes, or x and y different lengths.
    """
    at_x, at_y = np.atleast_1d(np.asarray(x, np.float64)), np.atleast_1d(np.asarray(y, np.float64))
    if at_x.shape != at_y.shape or at_x.ndim != 1:
        raise InputError(
            f"photometry: x and y must be lists of one length, got {at_x.shape} and {at_y.shape}"
        )
    if data.shape != noise.shape or (mask is not None and mask.shape != data.shape):
        raise InputError(f"photometry: image {data.shape}, noise {noise.shape} and mask must have one shape")
    out = np.full((at_x.size, 10), np.nan)
    out[:, 0], out[:, 1] = at_x, at_y
    n_y, n_x = data.shape
    near = np.isfinite(at_x) & np.isfinite(at_y)
    near[near] &= (np.abs(at_x[near] - n_x / 2) < n_x / 2 + psf.half) & (
        np.abs(at_y[near] - n_y / 2) < n_y / 2 + psf.half
    )
    index = np.flatnonzero(near)
    for start in range(0, len(index), CHUNK):
        part = index[start : start + CHUNK]
        pixels, variance, centre = _windows(data, noise, mask, at_x[part], at_y[part], psf.half, radius_pix)
        found = np.empty((len(part), 10))
        kernels.fit_stars(
            pixels,
            variance,
            psf.coefficients,
            psf.order,
            psf.over,
            psf.half,
            psf.shape[1],
            psf.shape[0],
            at_x[part],
            at_y[part],
            np.ascontiguousarray(centre[:, 0]),
            np.ascontiguousarray(centre[:, 1]),
            float(gain),
            6 if fit_position else 0,
            float(sky_sigma),
            0.0,
            found,
        )
        poor = ~(found[:, 7] >= min_coverage)
        found[poor, 2:7] = np.nan
        found[poor, 0], found[poor, 1] = at_x[part][poor], at_y[part][poor]
        out[part] = found
    free = 1 + 2 * fit_position + (sky_sigma > 0)
    chi2 = out[:, 5] / np.maximum(out[:, 6] - free, 1)
    return PointFluxes(
        out[:, 2],
        out[:, 3],
        out[:, 0],
        out[:, 1],
        out[:, 8],
        out[:, 9],
        out[:, 4],
        chi2,
        np.nan_to_num(out[:, 7]),
    )


def _windows(
    data: Image, noise: Image, mask: MaskPlane | None, x: Array, y: Array, half: int, radius_pix: float | None
) -> tuple[Image, Image, Array]:
    """Stamps of data and variance (0 where a pixel is bad or outside) and their centre pixels."""
    n_y, n_x = data.shape
    centre = np.floor(np.column_stack([x, y]) + 0.5)
    reach = np.arange(-half, half + 1)
    rows = centre[:, 1].astype(np.intp)[:, None, None] + reach[:, None]
    columns = centre[:, 0].astype(np.intp)[:, None, None] + reach
    at = np.clip(rows, 0, n_y - 1), np.clip(columns, 0, n_x - 1)
    pixels = data[at].astype(np.float32)
    variance = np.square(noise[at], dtype=np.float32)
    good = (rows == at[0]) & (columns == at[1]) & np.isfinite(pixels) & np.isfinite(variance)
    if mask is not None:
        good &= mask[at] == 0
    if radius_pix is not None:
        good &= np.square(rows - y[:, None, None]) + np.square(columns - x[:, None, None]) <= radius_pix**2
    return (
        np.where(good, pixels, 0).astype(np.float32),
        np.where(good, variance, 0).astype(np.float32),
        centre,
    )


@dataclass(frozen=True)
class ZeroPoint:
    """mag = value - 2.5 log10(flux) + colour_term * colour.

    Attributes
    ----------
    value, error
        Magnitude of a source of 1 DN, and the error of that [mag].
    rms
        Scatter of the stars used [mag].
    intrinsic
        What the stars scatter beyond their errors [mag].
    colour_term, colour_error
        Coefficient and its error; 0 and 0 when it was not fitted.
    n_used, n_given
        Stars after and before clipping.
    used : ndarray of bool, shape (n,)
        Which of the given stars.
    """

    value: float
    error: float
    rms: float
    intrinsic: float
    colour_term: float
    colour_error: float
    n_used: int
    n_given: int
    used: NDArray[np.bool_]


def fit_zero_point(
    mag_instrumental: ArrayLike,
    mag_catalogue: ArrayLike,
    mag_err: ArrayLike | None = None,
    colour: ArrayLike | None = None,
    *,
    clip: float = 3.0,
) -> ZeroPoint:
    """Robust zero point of an image against catalogue magnitudes.

    Least squares with an intrinsic scatter added to the errors, found so that the stars scatter as they should; stars
    beyond `clip` standard deviations of the rest are left out in turns (variables, blends, wrong matches).

    Parameters
    ----------
    mag_instrumental : array_like, shape (n,)
        -2.5 log10(flux / DN).
    mag_catalogue : array_like, shape (n,)
        Catalogue magnitude [mag].
    mag_err : array_like, shape (n,), optional
        Error of the difference [mag]; None: all alike.
    colour : array_like, shape (n,), optional
        Colour of the stars [mag]; given, a colour term is fitted.
    clip
        Standard deviations.

    Returns
    -------
    ZeroPoint

    Raises
    ------
    InputError
        Fewer than 3 usable stars (5 with a colour term), or all of one colour.
    """
    instrumental, catalogue = np.asarray(mag_instrumental, np.float64), np.asarray(mag_catalogue, np.float64)
    error = np.zeros_like(catalogue) if mag_err is None else np.asarray(mag_err, np.float64)
    hue = np.zeros_like(catalogue) if colour is None else np.asarray(colour, np.float64)
    if not (instrumental.shape == catalogue.shape == error.shape == hue.shape and catalogue.ndim == 1):
        raise InputError("zero point: magnitudes, errors and colours must be lists of one length")
    difference = catalogue - instrumental
    usable = np.isfinite(difference) & np.isfinite(error) & (error >= 0) & np.isfinite(hue)
    least = 3 if colour is None else 5
    if usable.sum() < least:
        raise InputError(f"zero point: {int(usable.sum())} stars with magnitudes, need {least}")
    if colour is not None and np.ptp(hue[usable]) < 0.05:
        raise InputError("zero point: all stars have one colour; fit without the colour term")
    design = np.ones((len(hue), 1)) if colour is None else np.column_stack([np.ones_like(hue), hue])
    used, solution, covariance, intrinsic = _robust_line(design, difference, error, usable, clip, least)
    residual = (difference - design @ solution)[used]
    return ZeroPoint(
        value=float(solution[0]),
        error=float(np.sqrt(covariance[0, 0])),
        rms=float(np.sqrt(np.mean(residual**2))),
        intrinsic=intrinsic,
        colour_term=0.0 if colour is None else float(solution[1]),
        colour_error=0.0 if colour is None else float(np.sqrt(covariance[1, 1])),
        n_used=int(used.sum()),
        n_given=int(usable.sum()),
        used=used,
    )


def _robust_line(
    design: Array, value: Array, error: Array, usable: NDArray[np.bool_], clip: float, least: int
) -> tuple[NDArray[np.bool_], Array, Array, float]:
    """Weighted least squares in turns with clipping and the intrinsic scatter."""
    used, intrinsic = usable.copy(), 0.0
    solution = np.zeros(design.shape[1])
    solution[0] = np.median(value[usable])
    covariance = np.eye(design.shape[1])
    for turn in range(30):
        residual = value - design @ solution
        spread = MAD_TO_SIGMA * float(np.median(np.abs(residual[used] - np.median(residual[used]))))
        if turn:  # the first residuals still hold the colour term: they only start the clipping
            intrinsic = _intrinsic(residual[used], error[used], spread)
        sigma = np.maximum(np.sqrt(error**2 + intrinsic**2), 1e-6)
        limit = clip * (sigma if turn > 1 else np.maximum(sigma, max(spread, 1e-6)))
        now = usable & (np.abs(residual) <= limit)
        if now.sum() < least:
            now = usable & (np.abs(residual) <= np.sort(np.abs(residual[usable]))[least - 1])
        weight = 1 / sigma[now] ** 2
        normal = design[now].T @ (weight[:, None] * design[now])
        covariance = np.asarray(np.linalg.pinv(normal), np.float64)
        before, solution = solution, covariance @ (design[now].T @ (weight * value[now]))
        settled = turn > 2 and (now == used).all() and np.allclose(before, solution, atol=1e-7)
        used = now
        if settled:
            break
    return used, solution, covariance, intrinsic


def _intrinsic(residual: Array, error: Array, spread: float) -> float:
    """Scatter s with  median(r^2 / (e^2 + s^2)) = that of a normal distribution, by bisection."""
    if spread <= 0:
        return 0.0
    target = MAD_TO_SIGMA**-2
    low, high = 0.0, 3 * spread + 1e-9

    def excess(s: float) -> float:
        return float(np.median(residual**2 / np.maximum(error**2 + s * s, 1e-14))) - target

    if excess(low) <= 0:
        return 0.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return 0.5 * (low + high)
