"""Sky level and noise maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tapetum.core.errors import InputError
from tapetum.images._mesh import ENOUGH, box_edges, filled_boxes, is_steep, smooth_mesh
from tapetum.images._psf_kernels import box_statistics, spline_rows
from tapetum.images.shapes import over_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.images.frame import Image, MaskPlane

    Mesh = NDArray[np.float64]


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
    edges_y, edges_x = box_edges(data.shape[0], box), box_edges(data.shape[1], box)
    bad = None if mask is None else np.ascontiguousarray(mask, np.uint8)
    image = np.ascontiguousarray(data, np.float32)
    level, noise, part = _boxes(image, bad, edges_y, edges_x, threads)
    good = (part >= min(ENOUGH, 0.5 * float(part.max()))) & np.isfinite(level) & (noise > 0)
    if not good.any():
        raise InputError(
            "background: no part of the image has enough good pixels that differ from each other"
        )
    usable, good = good, good & ~filled_boxes(noise, good)
    smooth = smooth_mesh(level, good, filter_size)
    sky = _spread(smooth, edges_y, edges_x, -np.inf, threads)
    if is_steep(smooth, noise, good):
        # a slope within a box widens its histogram: the noise is that about the map
        _, about, _ = _boxes(image - sky, bad, edges_y, edges_x, threads)
        if (usable & (about > 0)).any():
            noise, good = about, usable & (about > 0)
            good &= ~filled_boxes(noise, good)
    noise = smooth_mesh(noise, good, filter_size)
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
