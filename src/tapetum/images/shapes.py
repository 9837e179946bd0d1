"""Shapes of detections: second moments, and trails as lines smeared by the PSF."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tapetum.images import _detect_kernels as kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from tapetum.images.frame import Image, MaskPlane

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))


def over_rows(work: Callable[[int, int], Any], n_rows: int, threads: int, step: int = 1) -> None:
    """Call ``work(first, last)`` on shares of the rows, cut at multiples of `step`, in `threads` threads."""
    blocks = -(-n_rows // step)
    share = -(-blocks // max(threads, 1)) * step
    spans = [(first, min(first + share, n_rows)) for first in range(0, n_rows, share)]
    if len(spans) <= 1:
        work(0, n_rows)
        return
    with ThreadPoolExecutor(len(spans)) as pool:
        for done in [pool.submit(work, *span) for span in spans]:
            done.result()


@dataclass(frozen=True)
class WeightedPlane:
    """An image with the inverse of its variance, ready for sums.

    Attributes
    ----------
    weighted : ndarray of float32, shape (n_y + 2 pad, n_x + 2 pad)
        Data / noise^2; zero where a pixel cannot be used, and in the margin.
    weight : ndarray of float32, same shape
        1 / noise^2; zero likewise.
    pad
        Width of the margin [pixel].
    """

    weighted: Image
    weight: Image
    pad: int

    @property
    def shape(self) -> tuple[int, int]:
        """(n_y, n_x) without the margin [pixel]."""
        n_y, n_x = self.weight.shape
        return n_y - 2 * self.pad, n_x - 2 * self.pad

    def halved(self) -> WeightedPlane:
        """The same in pixels of twice the size."""
        n_y, n_x = (-(-side // 2) + 2 * self.pad for side in self.shape)
        coarse = WeightedPlane(np.zeros((n_y, n_x), np.float32), np.zeros((n_y, n_x), np.float32), self.pad)
        kernels.bin_by_two(self.weighted, self.pad, coarse.weighted)
        kernels.bin_by_two(self.weight, self.pad, coarse.weight)
        return coarse


def weighted_plane(
    data: Image, noise: Image, mask: MaskPlane | None, pad: int, *, threads: int = 1
) -> WeightedPlane:
    """Weigh an image; masked pixels and those without a finite value and a positive noise count nothing.

    Parameters
    ----------
    data : ndarray, shape (n_y, n_x)
        Pixel values [DN], background 0.
    noise : ndarray, shape (n_y, n_x)
        1 sigma [DN].
    mask : ndarray of uint8, shape (n_y, n_x), or None
        Nonzero is bad.
    pad
        Width of the margin, at least 1 [pixel].

    Raises
    ------
    ValueError
        The shapes differ.
    """
    if mask is None:
        mask = np.zeros(data.shape, np.uint8)
    if data.ndim != 2 or data.shape != noise.shape or data.shape != mask.shape:
        raise ValueError(
            f"need data, noise and mask of one shape, got {data.shape}, {noise.shape}, {mask.shape}"
        )
    data = np.ascontiguousarray(data, np.float32)
    noise = np.ascontiguousarray(noise, np.float32)
    mask = np.ascontiguousarray(mask, np.uint8)
    n_y, n_x = data.shape
    plane = WeightedPlane(
        np.zeros((n_y + 2 * pad, n_x + 2 * pad), np.float32),
        np.zeros((n_y + 2 * pad, n_x + 2 * pad), np.float32),
        pad,
    )

    def rows(first: int, last: int) -> None:
        kernels.weigh(data, noise, mask, pad, plane.weighted, plane.weight, first, last)

    over_rows(rows, n_y, threads)
    return plane


@dataclass(frozen=True)
class Shape:
    """Ellipses of sources.

    Attributes
    ----------
    fwhm_pix : ndarray, shape (n,)
        Of the circle with the area of the ellipse [pixel]; NaN where no ellipse fits.
    elongation : ndarray, shape (n,)
        Long over short axis, >= 1; NaN likewise.
    angle_deg : ndarray, shape (n,)
        Of the long axis, from +x to +y, in [0, 180) [deg]; NaN likewise.
    """

    fwhm_pix: Floats
    elongation: Floats
    angle_deg: Floats


def axes_of(xx: Floats, xy: Floats, yy: Floats) -> tuple[Floats, Floats, Floats]:
    """Long and short standard deviation, and angle of the long axis in [0, pi), from second moments."""
    mean, half = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    angle = np.mod(0.5 * np.arctan2(2 * xy, xx - yy), np.pi)
    return np.sqrt(np.maximum(mean + half, 0)), np.sqrt(np.maximum(mean - half, 0)), angle


def measure_shapes(
    plane: WeightedPlane, x: Floats, y: Floats, sign: Integers, sigma: Floats, radius: Floats
) -> Shape:
    """Adaptive Gaussian moments around given positions (Bernstein & Jarvis 2002).

    Parameters
    ----------
    x, y : ndarray, shape (n,)
        0-based positions [pixel].
    sign : ndarray, shape (n,)
        -1 measures a hole as if it were a source.
    sigma : ndarray, shape (n,)
        Where the iteration begins [pixel].
    radius : ndarray, shape (n,)
        Half side of the window; an ellipse that outgrows it is none [pixel].
    """
    moments = np.empty((len(x), 3))
    kernels.adaptive_moments(plane.weighted, plane.weight, plane.pad, x, y, sign, sigma, radius, moments)
    long, short, angle = axes_of(*moments.T)
    with np.errstate(divide="ignore"):
        return Shape(FWHM_PER_SIGMA * np.sqrt(long * short), long / short, np.degrees(angle))


def gaussian_of(stamp: Image) -> float:
    """Standard deviation of the circular Gaussian that fits a star best [pixel].

    Parameters
    ----------
    stamp : ndarray, shape (size, size)
        A star in the middle of the middle pixel.
    """
    half = stamp.shape[0] // 2
    offset = np.arange(-half, half + 1)
    distance2 = offset[:, None] ** 2 + offset**2
    star = stamp.astype(np.float64)
    best = (np.inf, 1.0)
    for sigma in np.geomspace(0.3, 1 + half / 2, 120):
        model = np.exp(-0.5 * distance2 / sigma**2)
        factor = float((star * model).sum() / (model**2).sum())
        best = min(best, (float(((star - factor * model) ** 2).sum()), float(sigma)))
    return best[1]


def ellipses_of(sums: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Centre x, y, long and short standard deviation and angle [rad] of weighted pixels.

    Parameters
    ----------
    sums : ndarray, shape (n, 6)
        Sums of w, w x, w y, w x^2, w x y, w y^2.
    """
    w, wx, wy, wxx, wxy, wyy = sums.T
    x, y = wx / w, wy / w
    return (x, y, *axes_of(wxx / w - x * x, wxy / w - x * y, wyy / w - y * y))
