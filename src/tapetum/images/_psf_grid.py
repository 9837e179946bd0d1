"""The grid of splines behind a PSF: its terms, its support, and profiles put on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tapetum.images.frame import Image

    Array = NDArray[np.float64]
    Flags = NDArray[np.bool_]

N_TERMS = {0: 1, 1: 3, 2: 6}
NODES_PER_FWHM = 5.6  # cubic splines then follow a Moffat core to 5e-4 of its peak


def grid_half(half: int, over: int) -> int:
    """Nodes between the centre and the edge of the grid of a PSF whose stamps are 2 half + 1 pixels wide."""
    return half * over + over + 3


def field_terms(x: ArrayLike, y: ArrayLike, shape: tuple[int, int], order: int) -> Array:
    """Polynomial terms of positions, shape (n, n_terms); outside the frame they hold the value of its edge."""
    n_y, n_x = shape
    u = np.clip((2 * np.atleast_1d(np.asarray(x, np.float64)) - (n_x - 1)) / n_x, -1, 1)
    v = np.clip((2 * np.atleast_1d(np.asarray(y, np.float64)) - (n_y - 1)) / n_y, -1, 1)
    return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v][: N_TERMS[order]], axis=1)


def default_half(fwhm_pix: float) -> int:
    """Pixels of a stamp on each side: 4.5 FWHM, beyond which a Moffat profile keeps less than 0.1 % of its light."""
    return int(np.clip(round(4.5 * fwhm_pix) + 2, 7, 31))


def default_over(fwhm_pix: float) -> int:
    """Nodes per pixel that this width needs."""
    return int(np.clip(np.ceil(NODES_PER_FWHM / fwhm_pix), 1, 4))


def to_spline(values: Array) -> Array:
    """B-spline coefficients that pass through values on the nodes."""
    from scipy.ndimage import spline_filter

    return np.asarray(spline_filter(values, order=3, mode="mirror"))


def support(half: int, over: int) -> Flags:
    """Nodes whose splines lie inside the stamp of a star at any place within its centre pixel."""
    middle = grid_half(half, over)
    away = np.abs(np.arange(2 * middle + 1) - middle)
    inside = away <= max((half + 0.5) * over - 2, half * over - over // 2)
    return np.asarray(inside[:, None] & inside[None, :])


def normalised(coefficients: Array, over: int) -> NDArray[np.float32]:
    """Unit sum of the first term and zero sum of the others, for a star at any phase of the pixel grid.

    B-splines add up to one everywhere, so the sum of a stamp depends on nothing but the sums of the coefficients of
    equal phase; making these equal makes every stamp exact.
    """
    middle = coefficients.shape[1] // 2
    half = (middle - 3) // over - 1
    c = np.where(support(half, over), coefficients, 0.0)
    shape = np.maximum(c[0], 0)
    for j in range(over):
        for i in range(over):
            at = (slice(j, None, over), slice(i, None, over))
            c[0][at] /= c[0][at].sum()
            shape[at] /= shape[at].sum()
            for term in c[1:]:
                term[at] -= term[at].sum() * shape[at]
    return np.asarray(c, np.float32)


def fitted_into(values: Array, half: int) -> Array:
    """Values cut or padded with zeros to 2 half + 1 on a side."""
    have = values.shape[0] // 2
    if have >= half:
        return values[have - half : have + half + 1, have - half : have + half + 1]
    return np.pad(values, half - have)


def moffat_grid(
    fwhm: float,
    beta: float,
    half: int,
    over: int,
    ellipticity: float = 0.0,
    angle_deg: float = 0.0,
    points: int = 5,
) -> Array:
    """A Moffat profile integrated over pixels (Gauss-Legendre, `points` per axis), at the nodes of a grid."""
    middle = grid_half(half, over)
    axis = np.arange(-middle, middle + 1) / over
    turn, q = np.deg2rad(angle_deg), 1 - ellipticity
    a2 = fwhm**2 / (4 * (2 ** (1 / beta) - 1))
    places, weights = np.polynomial.legendre.leggauss(points)
    values = np.zeros((axis.size, axis.size))
    for dy, wy in zip(places / 2, weights / 2, strict=True):
        for dx, wx in zip(places / 2, weights / 2, strict=True):
            px, py = axis[None, :] + dx, axis[:, None] + dy
            u, v = px * np.cos(turn) + py * np.sin(turn), py * np.cos(turn) - px * np.sin(turn)
            values += wx * wy * (1 + (u * u * q + v * v / q) / a2) ** -beta
    return values


def core_moments(values: Image, step: int, fwhm: float) -> tuple[float, float, float, float, float]:
    """Centre and second moments [pixel] of a PSF under a round Gaussian of its own width."""
    middle = values.shape[0] // 2
    axis = (np.arange(values.shape[0]) - middle) / step
    weight = np.exp(-0.5 * np.square(axis / (fwhm / 2.355)))
    w = np.asarray(values, np.float64) * weight[:, None] * weight[None, :]
    total = w.sum()
    x, y = (w.sum(0) @ axis) / total, (w.sum(1) @ axis) / total
    xx, yy = w.sum(0) @ axis**2 / total - x * x, w.sum(1) @ axis**2 / total - y * y
    return float(x), float(y), float(xx), float(yy), float(axis @ w @ axis / total - x * y)
