"""Sources of an image the classical way: pixels above the sky, joined, split and cleaned, as SExtractor does it.

The algorithm is that of Bertin & Arnouts (1996), A&AS 117, 393, in loops of our own: rows, components and sources are
shared by threads, and nothing depends on how many there are.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.images import _extract_kernels as kernels
from tapetum.images.shapes import FWHM_PER_SIGMA, axes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tapetum.images.frame import Image, MaskPlane

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int32]

SMOOTHING = ((1.0, 2.0, 1.0), (2.0, 4.0, 2.0), (1.0, 2.0, 1.0))
KRON_FACTOR, LEAST_KRON_RADIUS = 2.5, 3.5  # SExtractor's PHOT_AUTOPARAMS
SHARES = 8  # of the work per thread, because components differ in size
LEAST_WIDTH = 0.8  # standard deviation with which the fit of a width begins [pixel]


@dataclass(frozen=True)
class Sources:
    """Sources of one image, from its first row to its last. All arrays have shape (n,).

    Attributes
    ----------
    x, y
        0-based centre of light of the pixels above the threshold [pixel].
    flux, flux_err
        In the circular aperture [DN].
    snr
        Their ratio.
    flux_iso
        Of the pixels above the threshold [DN].
    flux_auto, flux_auto_err
        In Kron's ellipse; NaN unless asked for [DN].
    fwhm
        Of the Gaussian that fits the core best; NaN where none does [pixel].
    a, b
        Standard deviation along the axes of the pixels above the threshold [pixel].
    elongation
        a / b.
    angle_deg
        Of the long axis, from +x to +y, in [0, 180) [deg].
    peak
        Brightest pixel above the sky [DN].
    n_pix
        Pixels above the threshold.
    flags
        As SExtractor's: 2 was joined with another, 8 touches the edge of the image, 16 an aperture reaches beyond
        the edge, 32 an aperture has masked pixels.
    """

    x: Floats
    y: Floats
    flux: Floats
    flux_err: Floats
    snr: Floats
    flux_iso: Floats
    flux_auto: Floats
    flux_auto_err: Floats
    fwhm: Floats
    a: Floats
    b: Floats
    elongation: Floats
    angle_deg: Floats
    peak: Floats
    n_pix: Integers
    flags: Integers

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Sources:
        """Those of a mask, slice or array of indices."""
        return Sources(**{name: np.atleast_1d(value[index]) for name, value in self.columns().items()})

    @property
    def theta(self) -> Floats:
        """SExtractor's THETA_IMAGE: `angle_deg` in [-90, 90) [deg]."""
        return np.mod(self.angle_deg + 90.0, 180.0) - 90.0

    def columns(self) -> dict[str, NDArray[Any]]:
        """Name -> array, in the order of the attributes."""
        return {column.name: getattr(self, column.name) for column in fields(self)}


@dataclass(frozen=True)
class Objects:
    """Objects as they are found, before any photometry, from the first row to the last.

    Attributes
    ----------
    table : ndarray of float64, shape (n, 16)
        Columns by the names that begin `_extract_kernels`: centre and second moments of the smoothed light, light,
        peak, area, flags and so on.
    segments : ndarray of int32, shape (n_y, n_x), or None
        Row + 1 in the table of the object that each pixel belongs to, or 0.
    """

    table: Floats
    segments: Integers | None

    def __len__(self) -> int:
        return len(self.table)


def find_objects(
    data: Image,
    noise: Image | float,
    mask: MaskPlane | None = None,
    *,
    threshold: float = 1.5,
    min_area: int = 5,
    kernel: Any = SMOOTHING,
    deblend_levels: int = 32,
    deblend_contrast: float = 0.005,
    clean: float | None = 1.0,
    segments: bool = False,
    threads: int = 1,
) -> Objects:
    """Objects of an image.

    Parameters
    ----------
    data, noise, mask, threshold, min_area, kernel, deblend_levels, deblend_contrast, clean, threads
        As `extract_sources`.
    segments
        Say whose each pixel is.

    Raises
    ------
    ValueError
        As `extract_sources`.
    """
    _positive(threshold=threshold, min_area=min_area, deblend_levels=deblend_levels, threads=threads)
    planes = _planes(data, noise, mask)
    return _found(
        planes,
        float(threshold),
        min_area,
        _normalised(kernel),
        (deblend_levels, float(deblend_contrast)),
        clean,
        segments=segments,
        threads=threads,
    )


def extract_sources(
    data: Image,
    noise: Image | float,
    mask: MaskPlane | None = None,
    *,
    threshold: float = 1.5,
    min_area: int = 5,
    kernel: Any = SMOOTHING,
    deblend_levels: int = 32,
    deblend_contrast: float = 0.005,
    clean: float | None = 1.0,
    aperture: float = 8.0,
    gain: float | None = None,
    auto: bool = False,
    shapes: bool = True,
    threads: int = 1,
) -> Sources:
    """Find sources and measure them in an aperture.

    Parameters
    ----------
    data : ndarray of float32, shape (n_y, n_x)
        Background subtracted; pixels that are not finite are left out [DN].
    noise : ndarray of float32, shape (n_y, n_x), or float
        Standard deviation of the sky. A number is what SExtractor uses when it is given no weights [DN].
    mask : ndarray of uint8, shape (n_y, n_x), or None
        Nonzero is bad.
    threshold
        Of a pixel of the smoothed image, in units of `noise`.
    min_area
        Fewest joined pixels; the parts of what is taken apart may have fewer.
    kernel : array_like, shape (k, l), or None
        What the image is smoothed with.
    deblend_levels, deblend_contrast
        Number of levels between threshold and peak, and the least part of the light that makes a branch a source.
    clean
        Power of the wings (Moffat) that a neighbour is thought to have: what they explain is removed. None keeps it.
    aperture
        Diameter [pixel].
    gain
        Electrons per DN, for the photon noise of fluxes; None leaves it out.
    auto
        Measure fluxes in Kron ellipses, too.
    shapes
        Measure `fwhm`.
    threads
        How many threads share the work; the result is the same for any number.

    Returns
    -------
    Sources

    Raises
    ------
    ValueError
        Shapes differ, or the noise, the threshold, the aperture or another number is not positive.
    """
    _positive(
        threshold=threshold,
        min_area=min_area,
        deblend_levels=deblend_levels,
        aperture=aperture,
        threads=threads,
    )
    planes = _planes(data, noise, mask)
    deblend = (deblend_levels, float(deblend_contrast))
    found = _found(
        planes,
        float(threshold),
        min_area,
        _normalised(kernel),
        deblend,
        clean,
        segments=False,
        threads=threads,
    )
    table = found.table
    flux, flux_err, flags = _aperture(planes, table, aperture / 2, gain, threads)
    kron, kron_err, kron_flags = _kron(planes, table, gain, threads) if auto else _nothing(len(table))
    a, b, angle = axes_of(table[:, kernels.XX], table[:, kernels.XY], table[:, kernels.YY])
    with np.errstate(divide="ignore", invalid="ignore"):
        return Sources(
            x=table[:, kernels.X].copy(),
            y=table[:, kernels.Y].copy(),
            flux=flux,
            flux_err=flux_err,
            snr=flux / flux_err,
            flux_iso=table[:, kernels.FLUX].copy(),
            flux_auto=kron,
            flux_auto_err=kron_err,
            fwhm=_widths(planes, table, np.sqrt(a * b), threads) if shapes else np.full(len(table), np.nan),
            a=a,
            b=b,
            elongation=a / b,
            angle_deg=np.degrees(angle),
            peak=table[:, kernels.PEAK].copy(),
            n_pix=table[:, kernels.N_PIX].astype(np.int32),
            flags=table[:, kernels.FLAG].astype(np.int32) | flags | kron_flags,
        )


def _positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


@dataclass(frozen=True)
class _Planes:
    """What every loop begins with; a plane of one row holds for all rows."""

    data: Image
    noise: Image
    mask: MaskPlane


def _planes(data: Image, noise: Image | float, mask: MaskPlane | None) -> _Planes:
    image = np.require(
        data, np.float32, ["C", "W"]
    )  # the loops are compiled for arrays that can be written to
    if image.ndim != 2 or not image.size or (mask is not None and mask.shape != image.shape):
        raise ValueError(f"need an image and a mask of one shape, got {image.shape}")
    if np.ndim(noise) == 0:
        _positive(noise=float(noise))
        sigma = np.full((1, image.shape[1]), noise, np.float32)
    else:
        sigma = np.require(noise, np.float32, ["C", "W"])
        if sigma.shape != image.shape:
            raise ValueError(f"need data and noise of one shape, got {image.shape} and {sigma.shape}")
    bits = np.zeros((1, image.shape[1]), np.uint8) if mask is None else (mask != 0).view(np.uint8)
    return _Planes(image, sigma, bits)


def _normalised(kernel: Any) -> Image:
    if kernel is None:
        return np.ones((1, 1), np.float32)
    weights = np.ascontiguousarray(kernel, np.float32)
    total = float(np.abs(weights).sum())
    if weights.ndim != 2 or not total > 0:
        raise ValueError(f"need a kernel of two dimensions that is not zero, got shape {weights.shape}")
    return weights / np.float32(total)


def _cuts(n: int, shares: int) -> list[int]:
    return [n * k // shares for k in range(shares + 1)]


def _in_shares(work: Callable[[int, int], Any], cuts: list[int], threads: int) -> list[Any]:
    """``work(first, last)`` between neighbouring cuts, the results in their order."""
    spans = [(first, last) for first, last in pairwise(cuts) if last > first]
    if threads <= 1 or len(spans) <= 1:
        return [work(*span) for span in spans]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda span: work(*span), spans))


def _found(
    planes: _Planes,
    threshold: float,
    min_area: int,
    kernel: Image,
    deblend: tuple[int, float],
    clean: float | None,
    *,
    segments: bool,
    threads: int,
) -> Objects:
    n_y, n_x = planes.data.shape
    level = np.float32(threshold)

    def cut(first: int, last: int) -> Any:
        return kernels.bright_runs(planes.data, planes.noise, planes.mask, kernel, level, first, last)

    strips = _in_shares(cut, _cuts(n_y, threads), threads)
    row, left, right, values = (np.concatenate(parts) for parts in zip(*strips, strict=True))
    runs, start = kernels.join_runs(row, left, right, min_area)
    at = np.concatenate([[0], np.cumsum(right - left + 1, dtype=np.int64)])[:-1]
    area = np.concatenate([[0], np.cumsum((right - left + 1)[runs], dtype=np.int64)])[start]
    owner = np.zeros((n_y, n_x) if segments else (0, 0), np.int32)

    def apart(first: int, last: int) -> Any:
        return kernels.take_apart(
            first, last, runs, start, row, left, right, at, values, planes.data, planes.noise, level,
            min_area, *deblend, int(area[first]) if segments else 0, owner,
        )  # fmt: skip

    shares = threads * SHARES if threads > 1 else 1
    cuts = np.searchsorted(area, np.linspace(0, area[-1], shares + 1)).tolist()
    tables = _in_shares(apart, cuts, threads)
    table = np.concatenate([np.empty((0, kernels.COLUMNS)), *tables])
    kept = np.arange(len(table))
    if clean is not None and len(table):
        falling = np.argsort(-table[:, kernels.LIGHT], kind="stable")
        kept = np.flatnonzero(kernels.clean(table, falling, float(clean), n_y, n_x))
    kept = kept[np.lexsort((table[kept, kernels.PEAK_X], table[kept, kernels.PEAK_Y]))]
    if not segments:
        return Objects(table[kept], None)
    first_of = [int(area[first]) for first, last in pairwise(cuts) if last > first]
    return Objects(table[kept], _renumbered(owner, first_of, [len(part) for part in tables], kept))


def _renumbered(owner: Integers, first_of: list[int], counts: list[int], kept: NDArray[np.intp]) -> Integers:
    """Rows + 1 of the objects that are kept, 0 for others.

    The objects of a share are numbered from the count of pixels before it: there are no more objects than pixels.
    """
    names = [begin + 1 + np.arange(count) for begin, count in zip(first_of, counts, strict=True)]
    number = np.zeros(int(owner.max()) + 1, np.int32)
    number[np.concatenate([np.empty(0, np.int64), *names])[kept]] = np.arange(1, len(kept) + 1)
    taken = np.flatnonzero(owner)  # few pixels of a large image
    owner.ravel()[taken] = number[owner.ravel()[taken]]
    return owner


def _nothing(n: int) -> tuple[Floats, Floats, Integers]:
    return np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, np.int32)


def _aperture(
    planes: _Planes, table: Floats, radius: float, gain: float | None, threads: int
) -> tuple[Floats, Floats, Integers]:
    flux, error, flags = _nothing(len(table))
    x, y = table[:, kernels.X].copy(), table[:, kernels.Y].copy()

    def work(first: int, last: int) -> None:
        kernels.circle_sums(
            planes.data, planes.noise, planes.mask, x, y, radius, gain or 0.0, first, last, flux, error, flags
        )

    _in_shares(work, _cuts(len(table), threads), threads)
    return flux, error, flags


def _kron(
    planes: _Planes, table: Floats, gain: float | None, threads: int
) -> tuple[Floats, Floats, Integers]:
    """Flux in Kron's ellipse, or in the smallest one that is allowed (SExtractor's FLUX_AUTO)."""
    flux, error, flags = _nothing(len(table))

    def work(first: int, last: int) -> None:
        kernels.kron_sums(
            planes.data, planes.noise, planes.mask, table, KRON_FACTOR, LEAST_KRON_RADIUS, gain or 0.0,
            first, last, flux, error, flags,
        )  # fmt: skip

    _in_shares(work, _cuts(len(table), threads), threads)
    return flux, error, flags


def _widths(planes: _Planes, table: Floats, width: Floats, threads: int) -> Floats:
    """FWHM of the Gaussian that fits each core best."""
    moments = np.empty((len(table), 3))
    x, y = table[:, kernels.X].copy(), table[:, kernels.Y].copy()
    begin, reach = np.maximum(width, LEAST_WIDTH), np.clip(np.ceil(4 * width), 4, 20)

    def work(first: int, last: int) -> None:
        kernels.core_moments(planes.data, planes.noise, planes.mask, x, y, begin, reach, first, last, moments)

    _in_shares(work, _cuts(len(table), threads), threads)
    long, short, _ = axes_of(*moments.T)
    fwhm = FWHM_PER_SIGMA * np.sqrt(long * short)
    return np.where(fwhm < FWHM_PER_SIGMA * 4 * begin, fwhm, np.nan)
