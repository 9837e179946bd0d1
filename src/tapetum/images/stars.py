"""Which objects of an image are stars that show its PSF."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from tapetum.core.errors import InputError
from tapetum.core.robust import MAD_TO_SIGMA
from tapetum.images import _extract_kernels as objects
from tapetum.images import _psf_kernels as kernels
from tapetum.images._psf_grid import field_terms
from tapetum.images.extract import find_objects
from tapetum.images.shapes import axes_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.images.background import Background
    from tapetum.images.frame import FrameInfo, Image, MaskPlane

    Array = NDArray[np.float64]
    Flags = NDArray[np.bool_]

DETECT_SIGMA = 5.0  # per pixel
LEAST_AREA = 4  # pixels above it
SATURATION_PART = 0.8  # of the saturation level: detectors bend before they clip
NARROWEST = 0.42  # standard deviation [pixel] below which nothing went through a telescope: a particle
UNDERSAMPLED = (
    0.9  # standard deviation [pixel] below which the size of a star depends on its place in the pixel
)
LOCUS_FLOOR = 0.025  # half width of the stellar locus in ln(size), at least
CROWDING = 0.02  # part of a star's flux that neighbours may add under its core


@dataclass(frozen=True)
class Stars:
    """Stars fit for measuring the PSF.

    Attributes
    ----------
    x, y : ndarray of float64, shape (n,)
        Windowed centres [pixel].
    flux, peak : ndarray of float64, shape (n,)
        Light under a matched Gaussian and brightest pixel, above the sky [DN].
    fwhm : ndarray of float64, shape (n,)
        From adaptive moments [pixel].
    snr : ndarray of float64, shape (n,)
        Flux over its sky noise.
    segments : ndarray of int32, shape (n_y, n_x)
        Which object owns a pixel; 0 = sky.
    label : ndarray of int32, shape (n,)
        The stars' own numbers in it.
    """

    x: Array
    y: Array
    flux: Array
    peak: Array
    fwhm: Array
    snr: Array
    segments: NDArray[np.int32] = field(repr=False)
    label: NDArray[np.int32] = field(repr=False)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: NDArray[np.bool_] | NDArray[np.intp]) -> Stars:
        columns = ("x", "y", "flux", "peak", "fwhm", "snr", "label")
        return replace(self, **{name: getattr(self, name)[index] for name in columns})


def select_stars(
    data: Image,
    background: Background,
    mask: MaskPlane | None,
    info: FrameInfo,
    *,
    n_max: int = 400,
    min_snr: float = 30.0,
    threads: int = 1,
) -> Stars:
    """Isolated, unsaturated point sources, spread over the frame.

    Objects above 5 sigma per pixel are measured by adaptive moments. Stars of one frame share one size, slowly varying
    over the field: they are the densest ridge in the plane of size and signal-to-noise. Galaxies lie above it, particle
    hits below. Of the ridge the brightest stars of each part of the frame are taken.

    Parameters
    ----------
    data : ndarray of float32, shape (n_y, n_x)
        Image with its sky [DN].
    background
        Its sky and noise.
    mask : ndarray of uint8, shape (n_y, n_x), or None
        Nonzero = bad.
    info
        For the saturation level [DN].
    n_max
        Most stars to return.
    min_snr
        Least signal-to-noise; lowered down to 10 while there are fewer than 25 stars.
    threads
        The result does not depend on it.

    Returns
    -------
    Stars
        Possibly none.
    """
    sky_free, bad = without_sky(data, background, mask)
    found = find_objects(
        sky_free,
        background.noise,
        bad,
        threshold=DETECT_SIGMA,
        min_area=LEAST_AREA,
        kernel=None,
        clean=None,
        segments=True,
        threads=threads,
    )
    assert found.segments is not None  # they were asked for
    table = _measure_objects(sky_free, bad, found.table)
    noise = background.noise[_pixel(table["y"], data.shape[0]), _pixel(table["x"], data.shape[1])]
    snr = table["flux"] / (noise * table["sigma"] * np.sqrt(4 * np.pi))  # under a Gaussian of that size
    level = background.level[_pixel(table["y"], data.shape[0]), _pixel(table["x"], data.shape[1])]
    usable = (
        (table["good"] > 0)
        & (table["n_bad"] == 0)
        & (table["peak"] + level < SATURATION_PART * info.saturation)
        & (table["sigma"] > NARROWEST)
    )
    chosen = np.zeros(len(usable), bool)
    for least in (min_snr, 20.0, 10.0):
        chosen = _locus(table, usable & (snr > min(least, min_snr)), data.shape, info.fwhm_pix)
        chosen &= ~_crowded(table, found.table[:, objects.FLUX], chosen)
        if chosen.sum() >= 25:
            break
    picked = _spread_out(np.flatnonzero(chosen), table, snr, data.shape, n_max)
    return Stars(
        x=table["x"][picked],
        y=table["y"][picked],
        flux=table["flux"][picked],
        peak=table["peak"][picked],
        fwhm=table["sigma"][picked] * 2.3548,
        snr=snr[picked],
        segments=found.segments,
        label=(picked + 1).astype(np.int32),
    )


def _pixel(value: Array, n: int) -> NDArray[np.intp]:
    return np.clip(np.rint(value), 0, n - 1).astype(np.intp)


def without_sky(data: Image, background: Background, mask: MaskPlane | None) -> tuple[Image, MaskPlane]:
    """Image less its sky with 0 where there is no value, and the pixels that cannot be used (0 or 1)."""
    if data.shape != background.level.shape or (mask is not None and mask.shape != data.shape):
        raise InputError(
            f"image {data.shape}, background {background.level.shape} and mask"
            f" {None if mask is None else mask.shape} must have one shape"
        )
    sky_free = np.asarray(data - background.level, np.float32)
    bad = ~np.isfinite(sky_free)
    sky_free[bad] = 0
    if mask is not None:
        bad |= mask != 0
    return sky_free, bad.view(np.uint8)


def _measure_objects(sky_free: Image, bad: MaskPlane, table: Array) -> dict[str, Array]:
    """Adaptive moments of all objects."""
    out = np.zeros((len(table), 8))
    x, y, light = (table[:, column].copy() for column in (objects.X, objects.Y, objects.FLUX))
    sigma = 1.0
    if len(table):
        bright = light >= np.percentile(light, 50)
        long, short, _ = axes_of(table[:, objects.XX], table[:, objects.XY], table[:, objects.YY])
        sigma = float(np.clip(np.median(np.sqrt(long * short)[bright]), 0.7, 10))
    half = int(np.clip(np.ceil(4.5 * sigma), 4, 40))
    kernels.moments(sky_free, bad, x, y, sigma, half, 40, out)
    names = ("x", "y", "sigma", "ellipticity", "flux", "peak", "n_bad", "good")
    return {name: out[:, k] for k, name in enumerate(names)}


def _locus(table: dict[str, Array], usable: Flags, shape: tuple[int, int], fwhm_pix: float | None) -> Flags:
    """Objects on the ridge of stars in the plane of size and signal-to-noise."""
    chosen = np.zeros(len(usable), bool)
    at = np.flatnonzero(usable)
    if len(at) == 0:
        return chosen
    size, shape_e = np.log(table["sigma"][at]), table["ellipticity"][at]
    ridge = _ridge(size, shape_e, fwhm_pix)
    # stars narrower than two pixels look wider when they fall between pixels
    phases = _phase_terms(table, at) if np.exp(ridge) < UNDERSAMPLED else np.zeros((len(at), 0))
    kept = np.abs(size - ridge) < (0.2 if phases.shape[1] else 0.12)
    for _ in range(8):
        order = 2 if kept.sum() > 60 else 1 if kept.sum() > 20 else 0
        terms = np.column_stack([field_terms(table["x"][at], table["y"][at], shape, order), phases])
        away = size - terms @ np.linalg.lstsq(terms[kept], size[kept], rcond=None)[0]
        shift = float(np.median(away[kept]))
        below = away[kept & (away <= shift)]  # galaxies only widen the other side
        width = max(LOCUS_FLOOR, 3 * MAD_TO_SIGMA * float(np.median(np.abs(below - shift))))
        now = np.abs(away - shift) < width
        if (now == kept).all() or not now.any():
            break
        kept = now
    typical = float(np.median(shape_e[kept]))
    scatter = MAD_TO_SIGMA * float(np.median(np.abs(shape_e[kept] - typical)))
    chosen[at[kept & (np.abs(shape_e - typical) < max(0.05, 4 * scatter))]] = True
    return chosen


def _phase_terms(table: dict[str, Array], at: NDArray[np.intp]) -> Array:
    """First harmonic of the position within the pixel, per axis."""
    return np.column_stack([np.cos(2 * np.pi * table[axis][at]) for axis in ("x", "y")])


def _ridge(size: Array, ellipticity: Array, fwhm_pix: float | None) -> float:
    """ln(size) of the stars: a dense place with few objects below it, since nothing in the sky is smaller.

    Particle hits are smaller, but long and of all sizes; what the header says of the seeing weighs a little.
    """
    step, width = 0.008, 5  # [ln(size)], and standard deviation of the smoothing [step]
    edges = np.arange(size.min() - 20 * step, size.max() + 20 * step, step)
    counts, _ = np.histogram(size, bins=edges, weights=np.clip(1 - ellipticity, 0, 1) ** 4)
    kernel = np.exp(-0.5 * np.square(np.arange(-15, 16) / width))
    smooth = np.convolve(counts, kernel, mode="same")
    below = np.concatenate([np.zeros(15), np.cumsum(counts)[:-15]])
    middle = (edges[1:] + edges[:-1]) / 2
    score = smooth / (below + max(5.0, 0.05 * counts.sum()))
    if fwhm_pix is not None and fwhm_pix > 0:
        score = score * (0.2 + np.exp(-0.5 * np.square((middle - np.log(fwhm_pix / 2.355)) / 0.3)))
    return float(middle[np.argmax(score)])


def _crowded(table: dict[str, Array], flux: Array, stars: Flags) -> Flags:
    """Objects under whose core neighbours add more than `CROWDING` of their light, by a Moffat wing."""
    from scipy.spatial import cKDTree

    crowded = np.zeros(len(flux), bool)
    if not stars.any():
        return crowded
    fwhm = 2.355 * float(np.median(table["sigma"][stars]))
    pairs = cKDTree(np.column_stack([table["x"], table["y"]])).query_pairs(6 * fwhm, output_type="ndarray")
    if len(pairs) == 0:
        return crowded
    apart = np.hypot(*(table[k][pairs[:, 0]] - table[k][pairs[:, 1]] for k in ("x", "y")))
    wing = (
        1 + 1.04 * (2 * apart / fwhm) ** 2 * 0.26
    ) ** -3.0 * 4  # beta 3, light within one FWHM of the core
    added = np.zeros(len(flux))
    ratio = np.maximum(flux[pairs[:, 1]], 0) / np.maximum(flux[pairs[:, 0]], 1e-9)
    np.add.at(added, pairs[:, 0], wing * ratio)
    np.add.at(added, pairs[:, 1], wing / np.maximum(ratio, 1e-9))
    near = pairs[apart < 2 * fwhm]
    crowded = added > CROWDING
    small = np.where(flux[near[:, 0]] < flux[near[:, 1]], near[:, 0], near[:, 1])
    crowded[small] = True
    return crowded


def _spread_out(
    index: NDArray[np.intp], table: dict[str, Array], snr: Array, shape: tuple[int, int], n_max: int
) -> NDArray[np.intp]:
    """At most `n_max` of them: by turns the best of each cell of a grid, then the second best..."""
    if len(index) <= n_max:
        return index
    n_cells = max(2, int(np.sqrt(n_max / 5)))
    cell = (table["y"][index] * n_cells // shape[0]) * n_cells + table["x"][index] * n_cells // shape[1]
    by_cell = np.lexsort((-snr[index], cell))
    start = np.searchsorted(cell[by_cell], cell[by_cell])
    rank = np.arange(len(index)) - start
    turns = by_cell[np.lexsort((-snr[index[by_cell]], rank))]
    return np.sort(index[turns[:n_max]])
