"""Changes to triplets that leave the truth as it is: what surveys, nights and detector edges do to stamps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tapetum.core.robust import MAD_TO_SIGMA

if TYPE_CHECKING:
    from tapetum.training.recipe import Augmentation

Stamps = NDArray[np.float32]  # (3, ny, nx), all of one shape
SMALLEST_STAMP = 25  # [pixel]
KEEP_PIX = 4  # what goes missing stays this far from the source [pixel]


def augment(
    stamps: NDArray[np.float32],
    shapes: NDArray[np.int16],
    real: bool,
    settings: Augmentation,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """Change one triplet at random.

    Parameters
    ----------
    stamps : ndarray of float32, shape (3, side, side)
        Each at the array origin, NaN elsewhere; not changed.
    shapes : ndarray of int16, shape (3, 2)
        A triplet whose stamps differ in shape is only flipped and rotated.
    real
        From a telescope: its zoom and place in the pixel grid may change. Simulated alerts have all of these
        already.
    settings
        Shares of each change.
    rng
        Source of every choice.

    Returns
    -------
    ndarray of float32, shape (3, side, side), and ndarray of int16, shape (3, 2)
    """
    turn, mirror = int(rng.integers(4)), bool(rng.integers(2))
    parts = [_turned(stamps[c, : shapes[c, 0], : shapes[c, 1]], turn, mirror) for c in range(3)]
    if len({part.shape for part in parts}) == 1:
        triplet = _changed(np.stack(parts), real, settings, rng)
        parts = list(triplet)
    out = np.full_like(stamps, np.nan)
    new = np.empty_like(shapes)
    for c, part in enumerate(parts):
        out[c, : part.shape[0], : part.shape[1]] = part
        new[c] = part.shape
    return out, new


def _turned(stamp: NDArray[np.float32], turn: int, mirror: bool) -> NDArray[np.float32]:
    turned = np.rot90(stamp, turn)
    return turned[:, ::-1] if mirror else turned


def _changed(triplet: Stamps, real: bool, settings: Augmentation, rng: np.random.Generator) -> Stamps:
    full = triplet.shape[1] == triplet.shape[2]  # otherwise cut already: the source is not in the middle
    if full and real and rng.random() < settings.resample:
        shift = rng.uniform(-settings.shift_pix, settings.shift_pix, 2)
        triplet = resampled(
            triplet, float(np.exp(rng.uniform(*np.log(settings.zoom)))), float(shift[0]), float(shift[1])
        )
    if rng.random() < settings.swap:
        triplet = triplet[[1, 0, 2]]
    if rng.random() < settings.noise:
        triplet = noisier(triplet, rng)
    if rng.random() < settings.gradient:
        triplet = sloped(triplet, rng)
    if rng.random() < settings.holes:
        triplet = with_holes(triplet, rng)
    if full and rng.random() < settings.crop:
        triplet = cropped(triplet, rng)
    if full and rng.random() < settings.band:
        triplet = without_band(triplet, rng)
    if full and rng.random() < settings.block:
        triplet = without_block(triplet, rng)
    if full and rng.random() < settings.cut:
        triplet = cut_at_edge(triplet, rng)
    return triplet


def resampled(triplet: Stamps, zoom: float, shift_y: float, shift_x: float) -> Stamps:
    """Bilinear zoom about the middle, then shift [pixel]; `zoom` > 1 makes sources wider. Outside is NaN."""
    n_y, n_x = triplet.shape[1:]
    y = (np.arange(n_y) - n_y // 2 - shift_y) / zoom + n_y // 2
    x = (np.arange(n_x) - n_x // 2 - shift_x) / zoom + n_x // 2
    rows = _interpolated(triplet, y, 1)
    return _interpolated(rows, x, 2)


def _interpolated(values: Stamps, at: NDArray[np.float64], axis: int) -> Stamps:
    n = values.shape[axis]
    low = np.floor(at).astype(int)
    part = (at - low).astype(np.float32)
    shape = [1, 1, 1]
    shape[axis] = -1
    first = np.take(values, np.clip(low, 0, n - 1), axis)
    second = np.take(values, np.clip(low + 1, 0, n - 1), axis)
    outside = ((at < 0) | (at > n - 1)).reshape(shape)
    mixed = first * (1 - part.reshape(shape)) + second * part.reshape(shape)
    return np.asarray(np.where(outside, np.float32(np.nan), mixed), np.float32)


def _spread(stamp: NDArray[np.float32]) -> np.float32:
    finite = stamp[np.isfinite(stamp)]
    if finite.size == 0:
        return np.float32(0)
    return np.float32(MAD_TO_SIGMA * np.median(np.abs(finite - np.median(finite))))


def noisier(triplet: Stamps, rng: np.random.Generator) -> Stamps:
    """Add up to half of the noise again, the same to science and difference."""
    noise = rng.standard_normal(triplet.shape[1:], np.float32) * np.float32(rng.uniform(0.1, 0.5))
    out = triplet.copy()
    out[0] += noise * _spread(triplet[0])
    out[2] += noise * _spread(triplet[2])
    return out


def sloped(triplet: Stamps, rng: np.random.Generator) -> Stamps:
    """Tilt the background of science or template by a few sigma from side to side."""
    n_y, n_x = triplet.shape[1:]
    slope = rng.normal(0, 2, 2)
    plane = np.linspace(-1, 1, n_y)[:, None] * slope[0] + np.linspace(-1, 1, n_x)[None, :] * slope[1]
    out = triplet.copy()
    which = int(rng.integers(2))
    out[which] += plane.astype(np.float32) * _spread(triplet[which])
    return out


def _which(rng: np.random.Generator) -> list[int]:
    # masks are mostly those of all three; now and then one image alone has lost pixels
    return [0, 1, 2] if rng.random() < 0.75 else [int(rng.integers(3))]


def with_holes(triplet: Stamps, rng: np.random.Generator) -> Stamps:
    """Take the values of a few pixels away, anywhere but in the middle."""
    n_y, n_x = triplet.shape[1:]
    count = int(rng.integers(1, 40))
    y, x = rng.integers(0, n_y, count), rng.integers(0, n_x, count)
    away = np.maximum(np.abs(y - n_y // 2), np.abs(x - n_x // 2)) > 2
    out = triplet.copy()
    for c in _which(rng):
        out[c, y[away], x[away]] = np.nan
    return out


def cropped(triplet: Stamps, rng: np.random.Generator) -> Stamps:
    """The middle of the stamps alone, as of a survey that sends smaller ones; the source stays in the middle.

    Stamps that are no larger than the smallest that a survey sends stay as they are.
    """
    if triplet.shape[1] // 2 < SMALLEST_STAMP // 2:
        return triplet
    lost = int(rng.integers(0, triplet.shape[1] // 2 - SMALLEST_STAMP // 2 + 1))
    kept = slice(lost, triplet.shape[1] - lost)
    return triplet[:, kept, kept]


def without_band(triplet: Stamps, rng: np.random.Generator) -> Stamps:
    """A ragged band along a side has no values; the stamp keeps its size. Not where none fits beside the source."""
    n_y, n_x = triplet.shape[1:]
    if n_y // 2 - KEEP_PIX < 2:
        return triplet
    depth = int(rng.integers(1, n_y // 2 - KEEP_PIX))
    steps = np.repeat(rng.integers(0, 4, n_x // 6 + 1), 6)[:n_x] if rng.random() < 0.5 else np.zeros(n_x, int)
    missing = np.arange(n_y)[:, None] < np.maximum(depth - steps, 0)[None, :]
    missing = _turned(missing, int(rng.integers(4)), mirror=False)
    out = triplet.copy()
    for c in _which(rng):
        out[c][missing] = np.nan
    return out


def without_block(triplet: Stamps, rng: np.random.Generator) -> Stamps:
    """A rectangle off the middle has no values."""
    n_y, n_x = triplet.shape[1:]
    height, width = rng.integers(4, 24, 2)
    top, left = int(rng.integers(0, n_y)), int(rng.integers(0, n_x))
    missing = np.zeros((n_y, n_x), bool)
    missing[top : top + height, left : left + width] = True
    rows, columns = (slice(max(n // 2 - KEEP_PIX, 0), n // 2 + KEEP_PIX + 1) for n in (n_y, n_x))
    missing[rows, columns] = False
    out = triplet.copy()
    for c in _which(rng):
        out[c][missing] = np.nan
    return out


def cut_at_edge(triplet: Stamps, rng: np.random.Generator) -> Stamps:
    """A detector edge takes rows, columns or both; what is left is smaller, as surveys send it.

    A stamp without rows to lose beside the source stays as it is.
    """
    n_y, n_x = triplet.shape[1:]
    if min(n_y, n_x) // 2 <= KEEP_PIX:
        return triplet
    sides = [0, 1] if rng.random() < 0.15 else [int(rng.integers(2))]
    window = [slice(0, n_y), slice(0, n_x)]
    for axis in sides:
        size = (n_y, n_x)[axis]
        lost = int(rng.integers(1, size // 2 - KEEP_PIX + 1))
        window[axis] = slice(lost, size) if rng.random() < 0.5 else slice(0, size - lost)
    return triplet[:, window[0], window[1]]
