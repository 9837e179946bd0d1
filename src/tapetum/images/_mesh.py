"""Meshes of boxes, one value of the sky in each: what `background` and `normalise` have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tapetum.core.robust import MAD_TO_SIGMA

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mesh = NDArray[np.float64]

STEEP = 0.25  # rms of the slope within a box, in units of its noise: that of a box is then 3 % too high
ENOUGH = 0.3  # part of a box that must be good pixels; other boxes take the level of their neighbours


def box_edges(n: int, box: int) -> NDArray[np.int64]:
    """First pixel of each box, and the end: boxes of nearly equal size, none of them a sliver."""
    return np.linspace(0, n, max(1, round(n / box)) + 1).round().astype(np.int64)


def is_steep(level: Mesh, noise: Mesh, good: NDArray[np.bool_]) -> bool:
    """Whether the sky changes so much within a tenth of the boxes that it adds to their noise."""
    across = sum(np.square(np.gradient(level, axis=axis)) for axis in (0, 1) if level.shape[axis] > 1)
    share = np.sqrt(across / 12) / np.where(good, noise, np.inf)  # rms of a ramp that rises by one: 12^-1/2
    return bool(np.mean(share[good] > STEEP) > 0.1)


def filled_boxes(noise: Mesh, good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Boxes that an object fills: far noisier than the frame and than most of their surroundings."""
    from scipy.ndimage import percentile_filter

    value = np.where(good, noise, np.nan)
    middle = np.nanmedian(value)
    scatter = MAD_TO_SIGMA * np.nanmedian(np.abs(value - middle))
    around = percentile_filter(np.where(good, noise, np.inf), 25, size=7, mode="nearest")
    limit = np.maximum(middle + 5 * scatter, 1.5 * np.where(np.isfinite(around), around, middle))
    filled: NDArray[np.bool_] = good & (noise > limit)
    return filled if filled.sum() < good.sum() else np.zeros_like(filled)


def smooth_mesh(mesh: Mesh, good: NDArray[np.bool_], size: int) -> Mesh:
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
