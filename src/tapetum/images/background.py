"""Sky level and noise maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tapetum.core.errors import InputError
from tapetum.core.robust import MAD_TO_SIGMA
from tapetum.images._psf_kernels import box_statistics, spline_rows
from tapetum.images.shapes import over_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.images.frame import Image, MaskPlane

    Mesh = NDArray[np.float64]

STEEP = 0.25  # rms of the slope within a box, in units of its noise: that of a box is then 3 % too high
ENOUGH = 0.3  # part of a box that must be good pixels; other boxes take the level of their neighbours


@dataclass(frozen=True)
class Background:
    """Sky of an image.

    Attributes
    ----------
    level : ndarray of float32, shape (n_y, n_x)
        Sky level [DN].
    noise : ndarray of float32, shape (n_y, n_x)
        Standard deviation of the sky [DN], without the photon noise of sources; > 0 everywhere.
    """

    level: Image
    noise: Image

    @property
    def typical_noise(self) -> float:
        """Median of the noise map [DN]."""
        return float(np.median(self.noise[::8, ::8]))


def estimate_background(
    data: Image, mask: MaskPlane | None = None, *, box: int = 64, filter_size: int = 3, threads: int = 1
) -> Background:
    """Smooth maps of sky level and noise.

    Each box gives the mode of its clipped histogram (2.5 median - 1.5 mean, or the median in crowded boxes: Da Costa
    1992; Bertin & Arnouts 1996, section 4.1) and the clipped standard deviation, where the sky is steep that about the
    map of the level. Boxes with too few good pixels, or
    whose noise stands far above that of the frame because a galaxy fills them, take the values of their neighbours;
    then a median filter, and a cubic spline through the centres of the boxes.

    Parameters
    ----------
    data : ndarray of float32, shape (n_y, n_x)
        Image [DN]; pixels that are not finite are left out.
    mask : ndarray of uint8, shape (n_y, n_x), optional
        Nonzero = not to be used.
    box
        Side of a box [pixel]; several times the size of the largest object that is to survive.
    filter_size
        Side of the median filter [box], odd; 1 = none.
    threads
        The result does not depend on it.

    Returns
    -------
    Background

    Raises
    ------
    InputError
        No box has enough good pixels, all pixels have one value, or shapes or sizes are impossible.
    """
    if data.ndim != 2 or box < 4 or filter_size < 1 or filter_size % 2 == 0:
        raise InputError(
            f"background: need a 2-D image, box >= 4 and an odd filter, got {data.shape}, {box}, {filter_size}"
        )
    if mask is not None and mask.shape != data.shape:
        raise InputError(f"background: image {data.shape} and mask {mask.shape} must have one shape")
    edges_y, edges_x = _edges(data.shape[0], box), _edges(data.shape[1], box)
    bad = None if mask is None else np.ascontiguousarray(mask, np.uint8)
    image = np.ascontiguousarray(data, np.float32)
    level, noise, part = _boxes(image, bad, edges_y, edges_x, threads)
    good = (part >= min(ENOUGH, 0.5 * float(part.max()))) & np.isfinite(level) & (noise > 0)
    if not good.any():
        raise InputError(
            "background: no part of the image has enough good pixels that differ from each other"
        )
    usable, good = good, good & ~_filled(noise, good)
    smooth = _smooth(level, good, filter_size)
    sky = _spread(smooth, edges_y, edges_x, -np.inf, threads)
    if _steep(smooth, noise, good):
        # a slope within a box widens its histogram: the noise is that about the map
        _, about, _ = _boxes(image - sky, bad, edges_y, edges_x, threads)
        if (usable & (about > 0)).any():
            noise, good = about, usable & (about > 0)
            good &= ~_filled(noise, good)
    noise = _smooth(noise, good, filter_size)
    return Background(
        sky,
        _spread(noise, edges_y, edges_x, float(noise.min()) / 2, threads),
    )


def _boxes(
    image: Image,
    bad: MaskPlane | None,
    edges_y: NDArray[np.int64],
    edges_x: NDArray[np.int64],
    threads: int,
) -> tuple[Mesh, Mesh, Mesh]:
    """Level, noise, and part of good pixels of every box."""
    level = np.empty((len(edges_y) - 1, len(edges_x) - 1))
    noise, part = np.empty_like(level), np.empty_like(level)
    none = np.zeros((1, 1), np.uint8)

    def work(a: int, b: int) -> None:
        top, end = edges_y[a], edges_y[b]
        own = none if bad is None else bad[top:end]
        box_statistics(
            image[top:end], own, edges_y[a : b + 1] - top, edges_x, level[a:b], noise[a:b], part[a:b]
        )

    over_rows(work, len(level), threads)
    return level, noise, part


def _steep(level: Mesh, noise: Mesh, good: NDArray[np.bool_]) -> bool:
    """Whether the sky changes so much within a tenth of the boxes that it adds to their noise."""
    across = sum(np.square(np.gradient(level, axis=axis)) for axis in (0, 1) if level.shape[axis] > 1)
    share = np.sqrt(across / 12) / np.where(good, noise, np.inf)  # rms of a ramp that rises by one: 12^-1/2
    return bool(np.mean(share[good] > STEEP) > 0.1)


def _edges(n: int, box: int) -> NDArray[np.int64]:
    """First pixel of each box, and the end: boxes of nearly equal size, none of them a sliver."""
    return np.linspace(0, n, max(1, round(n / box)) + 1).round().astype(np.int64)


def _filled(noise: Mesh, good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Boxes that an object fills: far noisier than the frame and than most of their surroundings."""
    from scipy.ndimage import percentile_filter

    value = np.where(good, noise, np.nan)
    middle = np.nanmedian(value)
    scatter = MAD_TO_SIGMA * np.nanmedian(np.abs(value - middle))
    around = percentile_filter(np.where(good, noise, np.inf), 25, size=7, mode="nearest")
    limit = np.maximum(middle + 5 * scatter, 1.5 * np.where(np.isfinite(around), around, middle))
    filled: NDArray[np.bool_] = good & (noise > limit)
    return filled if filled.sum() < good.sum() else np.zeros_like(filled)


def _smooth(mesh: Mesh, good: NDArray[np.bool_], size: int) -> Mesh:
    """Fill the boxes that are not good from their good neighbours, then filter by a median."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter, median_filter

    if not good.all():
        weight = gaussian_filter(good.astype(np.float64), 1.0, mode="constant", truncate=3)
        sums = gaussian_filter(np.where(good, mesh, 0.0), 1.0, mode="constant", truncate=3)
        nearest = distance_transform_edt(~good, return_distances=False, return_indices=True)
        near = weight > 1e-3
        filled = np.where(near, sums / np.where(near, weight, 1.0), mesh[tuple(nearest)])
        mesh = np.where(good, mesh, filled)
    if size == 1:
        return mesh
    # beyond the edge the mesh goes on as it came, so that the filter leaves a gradient alone there too
    margins = [min(size // 2, n - 1) for n in mesh.shape]
    padded = np.pad(mesh, [(margin, margin) for margin in margins], mode="reflect", reflect_type="odd")
    inside = tuple(slice(margin, margin + n) for margin, n in zip(margins, mesh.shape, strict=True))
    return np.asarray(median_filter(padded, size=size, mode="nearest")[inside])


def _spread(
    mesh: Mesh, edges_y: NDArray[np.int64], edges_x: NDArray[np.int64], least: float, threads: int
) -> Image:
    """Mesh to pixels by a separable cubic spline through the centres of the boxes; nothing below `least`."""
    rows, columns = _pieces(edges_y), _pieces(edges_x)
    at = np.arange(edges_y[-1])
    piece = np.searchsorted(rows.start, at, side="right") - 1
    powers = np.power.outer(at - rows.origin[piece], np.arange(3, -1, -1))
    down = np.einsum("yp,ypn->yn", powers, rows.weights[piece]) @ mesh
    pieces = np.einsum("kpn,yn->ykp", columns.weights, down, optimize=True)
    pieces = np.ascontiguousarray(pieces)
    out = np.empty((int(edges_y[-1]), int(edges_x[-1])), np.float32)

    def work(first: int, last: int) -> None:
        spline_rows(pieces, columns.origin, columns.start, least, first, last, out)

    over_rows(work, len(out), threads)
    return out


class _Pieces(NamedTuple):
    """A spline along one axis: cubic pieces, straight beyond the outer centres."""

    start: NDArray[np.int64]  # (n_pieces + 1,) first pixel of each, and the end
    origin: Mesh  # (n_pieces,) where the distance in a piece is counted from [pixel]
    weights: Mesh  # (n_pieces, 4, n_boxes) of the boxes in the coefficients, by falling power


def _pieces(edges: NDArray[np.int64]) -> _Pieces:
    from scipy.interpolate import CubicSpline

    centres = (edges[:-1] + edges[1:] - 1) / 2
    n, end = len(centres), int(edges[-1])
    if n == 1:
        return _Pieces(np.array([0, end]), np.zeros(1), np.array([[[0.0], [0.0], [0.0], [1.0]]]))
    boxes = np.eye(n)
    inner = CubicSpline(centres, boxes, bc_type="not-a-knot" if n > 3 else "natural").c.transpose(1, 0, 2)
    straight = np.zeros((2, 4, n))
    for side, (at, other) in enumerate(((0, 1), (n - 1, n - 2))):
        straight[side, 2] = (boxes[other] - boxes[at]) / (centres[other] - centres[at])
        straight[side, 3] = boxes[at]
    start = np.concatenate([[0], np.ceil(centres[:-1]), [np.floor(centres[-1]) + 1, end]]).astype(np.int64)
    return _Pieces(
        start,
        np.concatenate([centres[:1], centres[:-1], centres[-1:]]),
        np.concatenate([straight[:1], inner, straight[1:]]),
    )
