"""One image on the pixel grid of another: coarse WCS grid, 6x6 Lanczos-3, masks and variances along."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError
from tapetum.images._remap_kernels import BEFORE, TAPS, resample
from tapetum.images.celestial import sky_of_pixels
from tapetum.images.frame import Bad, Frame, FrameInfo, Image, MaskPlane
from tapetum.images.pixelmap import PixelMap, map_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PHASES = 8192  # of the kernel's table per pixel: 1024 would miss by 1e-3 of a star's peak
EXCLUDED = Bad.NO_DATA | Bad.DEFECT | Bad.COSMIC  # such pixels know nothing of the sky
LEAST_WEIGHT = 0.5  # of the kernel must fall on usable pixels
MISSED_WEIGHT = 0.01  # of the kernel: a pixel left out that should have had so much of it hands its flags on
SPREAD_WEIGHT = (
    0.001  # the same of a pixel that is used: what spreads unflagged is below 0.1 % of a saturated star
)
BLOCK_ROWS = 32  # their coordinates stay in the cache of a core


@dataclass(frozen=True)
class Remapped:
    """An image on another grid.

    Attributes
    ----------
    data : ndarray of float32, shape (n_y, n_x)
        Pixel values; NaN where the input gives none.
    mask : ndarray of uint8, shape (n_y, n_x)
        Bits of `Bad`.
    variance : ndarray of float32, shape (n_y, n_x), or None
        Variance of each pixel; None when none was given. See `remap` for what it leaves out.
    area
        Median area of an output pixel [input pixel].
    """

    data: Image
    mask: MaskPlane
    variance: Image | None
    area: float = 1.0


def remap(
    data: Image,
    mask: MaskPlane | None,
    variance: Image | None,
    wcs_from: Any,
    wcs_to: Any,
    shape_to: tuple[int, int],
    *,
    step: int = 64,
    threads: int = 1,
    conserve_flux: bool = True,
    origin: tuple[int, int] = (0, 0),
) -> Remapped:
    """Resample an image onto the pixel grid of another WCS.

    Each output pixel is a weighted sum of the 6x6 input pixels around its position; the weights are those of a
    Lanczos-3 kernel (Duchon 1979), normalised to the sum 1, from a table of 8192 phases. It is multiplied by the area
    of the output pixel in input pixels, so that the flux of a source stays what it was. Output pixels wider than 1.25
    input pixels are the mean of several positions each; input more than four times finer is averaged in blocks first.
    An output pixel on the centre of an input pixel is its exact copy.

    Flags: pixels with NO_DATA, DEFECT or COSMIC, non-finite values or variances, and what lies beyond the border are
    left out, and the weights of the others scaled up; when less than half of the kernel is left, the output is NaN
    with NO_DATA. Other flagged pixels (SATURATED, ARTEFACT) are used. Either way input pixels hand their flags on,
    those left out from 1 % of the weight on, those used from 0.1 %: an output pixel that has a value and a flag was
    interpolated beside something bad.

    Parameters
    ----------
    data : ndarray of float32, shape (m_y, m_x)
        Input image [DN].
    mask : ndarray of uint8, shape (m_y, m_x), or None
        Bits of `Bad`; None: all good.
    variance : ndarray of float32, shape (m_y, m_x), or None
        Variance of the input [DN^2], pixels independent.
    wcs_from, wcs_to
        `astropy.wcs.WCS` of input and output.
    shape_to : (n_y, n_x)
        Output [pixel].
    step
        Distance of the nodes of the coordinate grid [output pixel]; made smaller where the WCS needs it.
    threads
        Threads to use; the result does not depend on it.
    conserve_flux
        False keeps the surface brightness instead: values per input pixel.
    origin
        (x, y) of the first output pixel on the grid of `wcs_to` [pixel].

    Returns
    -------
    Remapped
        Data, mask and variance of shape `shape_to`.

    Raises
    ------
    InputError
        No overlap, no usable pixel, planes of different shapes, or a WCS that is not celestial.

    Notes
    -----
    The variance is sum(w^2 var) of each pixel alone. Resampling correlates neighbours: white noise of variance 1 comes
    out with 1 on the input's grid points and 0.62 halfway between them along both axes (0.80 on average), and what is
    missing went into covariances. Sums over an aperture therefore need the variance of the input, not the sum of the
    output's variances, which is too small by that factor.

    References
    ----------
    Duchon (1979), J. Appl. Meteor. 18, 1016: the window; its use for images as in SWarp, Bertin et al. (2002).
    """
    flags = _flags(data, mask, variance)
    usable = _usable(data, flags)
    if np.isnan(usable).all():
        raise InputError("no pixel of the image has a usable value; there is nothing to align")
    shape_from = usable.shape
    pixels = map_pixels(wcs_from, wcs_to, shape_from, shape_to, origin=origin, step=step)
    if pixels is None:
        raise InputError(_no_overlap(wcs_from, shape_from, wcs_to, shape_to))
    if pixels.binning > 1:
        usable, flags, variance = _binned(usable, flags, variance, pixels.binning)
    result = _resample_all(usable, flags, variance, pixels, threads, conserve_flux)
    if np.isnan(result.data).all():
        raise InputError(_no_overlap(wcs_from, shape_from, wcs_to, shape_to))
    return result


def align(frame: Frame, onto: Frame, *, threads: int = 1) -> Frame:
    """Put a frame on the pixel grid of another, with its mask and variance; the flux of sources stays what it was.

    Two frames of which one has no WCS, but of equal shape, are taken as aligned, with a warning in ``info.warnings``.

    Returns
    -------
    Frame
        Of the shape and WCS of `onto`; pixel scale, seeing and saturation level follow the size of the pixels, and the
        header is the one that was read.

    Raises
    ------
    InputError
        The frames do not overlap, or one has no WCS and the shapes differ.
    """
    unplaced = [each.source for each in (frame, onto) if each.wcs is None or not each.wcs.has_celestial]
    if unplaced and frame.shape == onto.shape:
        warning = f"{unplaced[0]} has no celestial WCS: taken as aligned, because the shapes are equal"
        return replace(
            frame, wcs=onto.wcs, info=replace(frame.info, warnings=(*frame.info.warnings, warning))
        )
    if unplaced:
        raise InputError(
            f"{unplaced[0]}: has no celestial WCS, and the images differ in shape ({frame.source}, {onto.source}), so "
            "nothing says how they lie to each other; solve its astrometry first"
        )
    try:
        moved = remap(
            frame.data, frame.mask, frame.variance, frame.wcs, onto.wcs, onto.shape, threads=threads
        )
    except InputError as problem:
        raise InputError(f"{frame.source} onto {onto.source}: {problem}") from problem
    info = replace(resized_info(frame.info, moved.area), wcs_kind=onto.info.wcs_kind)
    return replace(frame, data=moved.data, mask=moved.mask, variance=moved.variance, wcs=onto.wcs, info=info)


def resized_info(info: FrameInfo, area: float) -> FrameInfo:
    """What is known of a frame after its pixels became `area` times larger, flux conserved."""
    side = area**0.5
    return replace(
        info,
        pixel_scale_arcsec=None if info.pixel_scale_arcsec is None else info.pixel_scale_arcsec * side,
        fwhm_pix=None if info.fwhm_pix is None else info.fwhm_pix / side,
        saturation=info.saturation * area,
    )


def _flags(data: Image, mask: MaskPlane | None, variance: Image | None) -> MaskPlane:
    """The mask, with NO_DATA where the values say so."""
    if data.ndim != 2:
        raise InputError(f"an image has two axes, this one has the shape {data.shape}")
    for name, plane in (("mask", mask), ("variance", variance)):
        if plane is not None and plane.shape != data.shape:
            raise InputError(
                f"the {name} of shape {plane.shape} does not belong to data of shape {data.shape}"
            )
    flags = np.zeros(data.shape, np.uint8) if mask is None else np.array(mask, np.uint8)
    flags[~np.isfinite(data)] |= np.uint8(Bad.NO_DATA)
    if variance is not None:
        flags[~(np.isfinite(variance) & (variance >= 0))] |= np.uint8(Bad.NO_DATA)
    return flags


def _usable(data: Image, flags: MaskPlane) -> Image:
    """The data with NaN wherever a pixel says nothing of the sky."""
    unusable = flags & np.uint8(EXCLUDED) != 0
    if not unusable.any():
        return np.ascontiguousarray(data, np.float32)
    usable = np.array(data, np.float32, order="C")
    usable[unusable] = np.nan
    return usable


@cache
def lanczos_table() -> NDArray[np.float32]:
    """Weights of the six taps and their squares, shape (2, 8193, 6).

    Row p belongs to a position p / 8192 right of the third tap's pixel. w(d) = sinc(d) sinc(d / 3), normalised to the
    sum 1, which keeps a constant constant.
    """
    distance = np.arange(TAPS) - BEFORE - np.arange(PHASES + 1)[:, None] / PHASES
    weight = np.where(np.abs(distance) < 3.0, np.sinc(distance) * np.sinc(distance / 3.0), 0.0)
    weight[np.abs(weight) < 1e-12] = 0.0  # sin(pi n) is not quite zero, and a copy should be one
    weight /= weight.sum(axis=1, keepdims=True)
    return np.stack([weight, weight**2]).astype(np.float32)


def _resample_all(
    data: Image,
    flags: MaskPlane,
    variance: Image | None,
    pixels: PixelMap,
    threads: int,
    conserve_flux: bool,
) -> Remapped:
    none = np.empty((0, 0), np.float32)
    source = none if variance is None else np.ascontiguousarray(variance, np.float32)
    out, out_mask = np.empty(pixels.shape, np.float32), np.empty(pixels.shape, np.uint8)
    out_variance = none if variance is None else np.empty(pixels.shape, np.float32)
    dirty = _dirty(flags)
    n_y, n_x = pixels.shape
    over = pixels.over
    block_rows = max(BLOCK_ROWS // over, 1)
    step_rows = block_rows * max(threads, 1)

    def work(thread: int) -> None:
        coordinates = np.empty((3, block_rows * over, n_x * over))
        for row in range(thread * block_rows, n_y, step_rows):
            rows = slice(row, min(row + block_rows, n_y))
            x, y, area = coordinates[:, : (rows.stop - row) * over]
            pixels.block(row, x, y, area)
            if not conserve_flux:
                area[np.isfinite(area)] = 1.0
            resample(
                data, source, flags, dirty, lanczos_table(), x, y, area, over,
                np.float32(LEAST_WEIGHT), np.float32(MISSED_WEIGHT), np.float32(SPREAD_WEIGHT),
                out[rows], out_variance[rows] if variance is not None else none, out_mask[rows],
            )  # fmt: skip

    if threads <= 1:
        work(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
    area = float(np.nanmedian(pixels.node_area))
    return Remapped(out, out_mask, None if variance is None else out_variance, area)


def _dirty(flags: MaskPlane) -> MaskPlane:
    """The flags of all pixels that a position in a pixel draws from (away from the border of the image)."""
    dirty = flags.copy()
    if not flags.any():
        return dirty
    for axis in (0, 1):
        plane = np.moveaxis(dirty, axis, 0)
        single = np.moveaxis(dirty.copy(), axis, 0)
        for offset in range(-BEFORE, TAPS - BEFORE):
            if 0 < abs(offset) < len(plane):
                to, of = (slice(-offset, None), slice(None, offset))
                if offset > 0:
                    to, of = (slice(None, -offset), slice(offset, None))
                plane[to] |= single[of]
    return dirty


def _binned(
    data: Image, flags: MaskPlane, variance: Image | None, n: int
) -> tuple[Image, MaskPlane, Image | None]:
    """Means of the usable pixels of blocks of n x n; what remains at the far border is left out.

    A block hands on all flags of its pixels, and is unusable (NaN) when more than half of them are.
    """
    n_y, n_x = data.shape[0] // n, data.shape[1] // n
    if not (n_y and n_x):
        raise InputError(
            f"the input of {data.shape[1]}x{data.shape[0]} pixels is smaller than an output pixel of the other image"
        )
    total, noise = np.zeros((n_y, n_x), np.float32), np.zeros((n_y, n_x), np.float32)
    count = np.zeros((n_y, n_x), np.float32)
    reasons = np.zeros((n_y, n_x), np.uint8)
    for j in range(n):
        for i in range(n):
            part = (slice(j, n_y * n, n), slice(i, n_x * n, n))
            usable = ~np.isnan(data[part])
            np.add(total, data[part], out=total, where=usable)
            count += usable
            reasons |= flags[part]
            if variance is not None:
                np.add(noise, variance[part], out=noise, where=usable)
    few = count * 2.0 < n * n
    count[few] = np.nan
    reasons[few] |= np.uint8(Bad.NO_DATA)
    total /= count
    noise /= count * count
    return total, reasons, None if variance is None else noise


def _no_overlap(wcs_from: Any, shape_from: Sequence[int], wcs_to: Any, shape_to: Sequence[int]) -> str:
    def centre(wcs: Any, shape: Sequence[int]) -> str:
        ra, dec = sky_of_pixels(wcs, (shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0)
        return f"RA {ra:.4f} Dec {dec:+.4f}"

    return (
        f"the images do not overlap on the sky: one is centred on {centre(wcs_from, shape_from)}, the other on "
        f"{centre(wcs_to, shape_to)}; give an image of the same field, or correct its astrometry"
    )
