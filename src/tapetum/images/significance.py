"""Significance of a star at each pixel of an image, and the segments in which it is high."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.images import _detect_kernels as kernels
from tapetum.images.shapes import FWHM_PER_SIGMA, WeightedPlane, gaussian_of, measure_shapes, over_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.images.frame import Image
    from tapetum.images.psf import PsfModel

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]
    Flags = NDArray[np.bool_]

TILE = 256  # the PSF is constant within a tile [pixel]
LEAST_HALF = 2  # of a stamp: light of the sharpest star, if it is not in the middle of its pixel
BOX = 128  # the significance map is calibrated in boxes [pixel]
PROMINENCE = 3.0  # a second peak in a segment must stand this much above the saddle [sigma] ...
CONTRAST = 0.12  # ... and this part of itself


@dataclass(frozen=True)
class PsfField:
    """The PSF on a grid of tiles."""

    kernels: Image  # (tiles in y, tiles in x, side, side)
    half: int
    typical_sigma: float  # of the Gaussian core [pixel]
    fwhm: Floats  # of each tile, adaptive moments [pixel]

    @classmethod
    def of(cls, psf: PsfModel, shape: tuple[int, ...]) -> PsfField:
        """Sample the PSF.

        Its stamps are cut where 99 % of its squared light is inside; the sharpest ones still hold what a star between
        two pixels lights up.
        """
        rows, columns = (
            np.minimum(
                (np.arange(-(-side // TILE)) + 0.5) * TILE, (side - 1) / 2 if side < TILE else side - 1
            )
            for side in shape
        )
        y, x = (np.floor(side.ravel()) for side in np.meshgrid(rows, columns, indexing="ij"))
        stamps = psf.stamps(x, y)
        middle = psf.size // 2
        inside = 0.0
        half, total = 0, float((stamps[0].astype(np.float64) ** 2).sum())
        while half < middle and (half < LEAST_HALF or inside < 0.99 * total):
            half += 1
            core = stamps[0][middle - half : middle + half + 1, middle - half : middle + half + 1]
            inside = float((core.astype(np.float64) ** 2).sum())
        cores = stamps[:, middle - half : middle + half + 1, middle - half : middle + half + 1]
        sigma = float(np.median([gaussian_of(stamp) for stamp in stamps[:: max(len(stamps) // 16, 1)]]))
        mosaic = np.ascontiguousarray(stamps.reshape(-1, psf.size))
        centres = np.arange(len(stamps)) * psf.size + middle
        shapes = measure_shapes(
            WeightedPlane(mosaic, np.ones_like(mosaic), 0),
            np.full(len(stamps), float(middle)),
            centres.astype(np.float64),
            np.ones(len(stamps), np.int64),
            np.full(len(stamps), sigma),
            np.full(len(stamps), float(middle)),
        )
        fwhm = np.where(np.isfinite(shapes.fwhm_pix), shapes.fwhm_pix, FWHM_PER_SIGMA * sigma)
        grid = (len(rows), len(columns))
        return cls(
            np.ascontiguousarray(cores.reshape(*grid, 2 * half + 1, 2 * half + 1)),
            half,
            sigma,
            fwhm.reshape(grid),
        )

    def fwhm_at(self, x: Floats, y: Floats) -> Floats:
        """Of the tile that each position lies in [pixel]."""
        return _looked_up(self.fwhm, x, y, TILE)

    @property
    def typical_fwhm(self) -> float:
        """Median over the field [pixel]."""
        return float(np.median(self.fwhm))


@dataclass(frozen=True)
class SignificanceMap:
    """Significance of a star (or of one `factor` times as wide) at each pixel of a (binned) plane."""

    snr: Image
    plane: WeightedPlane
    factor: int
    level: Image
    spread: Image
    box: int

    def correction(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Level and spread of the map before its calibration, nearest box to positions in its own pixels."""
        level = _looked_up(self.level, x, y, self.box)
        return level, _looked_up(self.spread, x, y, self.box)


def _looked_up(mesh: NDArray[Any], x: Floats, y: Floats, box: int) -> Floats:
    """Value of the box that each position lies in."""
    rows = np.clip(y // box, 0, mesh.shape[0] - 1).astype(int)
    columns = np.clip(x // box, 0, mesh.shape[1] - 1).astype(int)
    return np.asarray(mesh[rows, columns], np.float64)


def significance_map(plane: WeightedPlane, field: PsfField, factor: int, threads: int) -> SignificanceMap:
    """Filter and calibrate; a PSF twice as wide is the same PSF on pixels of twice the size."""
    shape = plane.shape
    snr = np.empty(shape, np.float32)
    tile = TILE // factor

    def convolve(first: int, last: int) -> None:
        kernels.matched_filter(plane.weighted, plane.weight, field.kernels, tile, first, last, snr)

    over_rows(convolve, shape[0], threads)
    box = max(min(BOX // factor, *shape), 1)
    boxes = (-(-shape[0] // box), -(-shape[1] // box))
    level, spread = np.empty(boxes, np.float32), np.empty(boxes, np.float32)
    kernels.local_statistics(snr, box, 4 if factor == 1 else 2, level, spread)
    level, spread = _smoothed(level, 0.0), _smoothed(spread, 1.0)

    def scale(first: int, last: int) -> None:
        kernels.standardise(snr, level, spread, box, first, last)

    over_rows(scale, shape[0], threads)
    return SignificanceMap(snr, plane, factor, level, spread, box)


def _smoothed(mesh: Image, default: float) -> Image:
    """Median of the 3x3 neighbours that have a value; `default` where none has, or where it would be zero."""
    padded = np.pad(mesh, 1, constant_values=np.nan)
    near = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(*mesh.shape, 9)
    known = np.isfinite(near).any(axis=2)
    filled = np.full(mesh.shape, default, np.float32)
    filled[known] = np.nanmedian(near[known], axis=1)
    return np.where(filled > 0, filled, default).astype(np.float32) if default > 0 else filled


@dataclass(frozen=True)
class Segments:
    """Joined pixels of one sign around a peak, in pixels of their map."""

    x: Floats
    y: Floats
    snr: Floats
    sign: Integers
    n_low: Integers
    n_over: Integers
    moments: Floats  # (n, 6): sums of w, wx, wy, wxx, wxy, wyy about the origin of the image
    blended: Flags


def segments_of(significance: SignificanceMap, low: float, threshold: float, *, both_signs: bool) -> Segments:
    """Link the pixels beyond `low`."""
    snr, plane = significance.snr, significance.plane
    found = kernels.above(snr, np.float32(low), both_signs)
    values = np.abs(snr.ravel()[found])
    order = found[np.argsort(-values, kind="stable")]
    labels = np.zeros(snr.shape, np.int32)
    peaks = np.empty(len(order), np.int64)
    n, parent = kernels.link_pixels(snr, order, PROMINENCE, CONTRAST, labels, peaks)
    sums = np.zeros((n, kernels.SEGMENT_COLUMNS))
    kernels.segment_sums(
        snr, plane.weighted, plane.weight, plane.pad, order, labels, parent, peaks, threshold, sums
    )
    alone = parent == np.arange(n)
    y, x = (axis.astype(np.float64) for axis in np.divmod(peaks[:n][alone], snr.shape[1]))
    peak = snr.ravel()[peaks[:n][alone]].astype(np.float64)
    sums = sums[alone]
    return Segments(
        x,
        y,
        np.abs(peak),
        np.sign(peak).astype(np.int64),
        sums[:, 0].astype(np.int64),
        sums[:, 1].astype(np.int64),
        _moved(sums[:, 2:8], x, y),
        _touching(labels, parent, peaks[:n], alone, order, snr),
    )


def _touching(
    labels: NDArray[np.int32],
    parent: NDArray[np.int32],
    peaks: Integers,
    alone: Flags,
    order: Integers,
    snr: Image,
) -> Flags:
    """Which segments share a border with another one of their sign."""
    number = np.cumsum(alone) - 1
    touching = np.zeros(int(alone.sum()), bool)
    n_y, n_x = labels.shape
    y, x = np.divmod(order, n_x)
    mine = labels[y, x]
    for dy, dx in ((0, 1), (1, -1), (1, 0), (1, 1)):
        inside = (y + dy < n_y) & (x + dx >= 0) & (x + dx < n_x)
        here, other = mine[inside], labels[y[inside] + dy, x[inside] + dx]
        meet = (other > 0) & (other != here)
        here, other = number[here[meet] - 1], number[other[meet] - 1]
        same = np.sign(snr.ravel()[peaks[alone][here]]) == np.sign(snr.ravel()[peaks[alone][other]])
        touching[here[same]] = True
        touching[other[same]] = True
    return touching


def _moved(sums: Floats, x: Floats, y: Floats) -> Floats:
    """Sums of w, wx, wy, wxx, wxy, wyy about points at (x, y) -> about the origin."""
    w, wx, wy, wxx, wxy, wyy = sums.T
    return np.stack(
        [
            w,
            wx + w * x,
            wy + w * y,
            wxx + 2 * x * wx + w * x * x,
            wxy + x * wy + y * wx + w * x * y,
            wyy + 2 * y * wy + w * y * y,
        ],
        axis=1,
    )
