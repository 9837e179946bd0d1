"""Images in units of their sky noise, as networks that look at whole frames take them.

Sky level and noise come from blocks of 200 pixels, each clipped at 3 sigma until nothing more goes, as in MaxiMask
(Paillassa, Bertin & Bouy 2020, A&A 634, A48). `normalise_original` repeats that program's numbers, with what is wrong
in them: blocks that leave out the borders, maps that fall off toward the corners of the image, missing pixels that
count as 0, values cut at -500 and 80000 whatever their unit. `normalise` has none of these.

Blocks are measured here, not by `tapetum.images.background`, whose boxes serve detection: networks were trained behind
this clipping about the median until nothing more goes, and results are compared with MaxiMask's; and maps must be right
into the corners of frames that have two or three blocks per axis. What both do with their meshes is in `_mesh`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.core.errors import InputError
from tapetum.images._filler import find_filler
from tapetum.images._mesh import ENOUGH, box_edges, filled_boxes, is_steep, smooth_mesh
from tapetum.images.shapes import over_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from tapetum.images.frame import Image

    Grid = NDArray[np.float64]

BLOCK = 200  # side of a block [pixel]
CLIP = 3.0  # from the median of a block [standard deviation]
GRID_ROUNDS = 5  # of clipping among the blocks
ENOUGH_BLOCKS = 12  # to tell which of them is far off a paraboloid, which has six terms
STEADY = (0.8, 1.2)  # clipped over unclipped deviation of a block without stars: its mean is the best level
LIMIT = 1e6  # of normalised values [sigma]: no star is brighter, and float32 holds what networks make of it
ORIGINAL_RANGE = (-500.0, 80000.0)  # MaxiMask cuts all values at these
LARGEST = 1e37  # absolute value of a pixel, so that float32 also holds differences
ROUNDING = 8 * np.finfo(np.float64).eps  # a deviation of this part of the values themselves is none
ROWS = 64  # that are normalised together, so that they stay in the processor's cache


@dataclass(frozen=True)
class SkyMesh:
    """Sky level and noise in blocks, and how they spread over the pixels.

    Attributes
    ----------
    level, noise : ndarray of float64, shape (n_down, n_across)
        Of each block [DN].
    down, across : ndarray of float64, shapes (n_y, n_down) and (n_x, n_across)
        Weights of the blocks in every row and column.
    least
        The noise is nowhere below this [DN].
    """

    level: Grid
    noise: Grid
    down: Grid
    across: Grid
    least: float

    def maps(self, first: int, last: int) -> tuple[Image, Image]:
        """Rows `first` to `last` of level and noise [DN], float32."""
        level = (self.down[first:last] @ self.level @ self.across.T).astype(np.float32)
        noise = (self.down[first:last] @ self.noise @ self.across.T).astype(np.float32)
        return level, np.maximum(noise, np.float32(self.least), out=noise)


@dataclass(frozen=True)
class Normalised:
    """An image in units of its sky noise.

    Attributes
    ----------
    data : ndarray of float32, shape (n_y, n_x)
        (value - sky level) / sky noise; 0 where a pixel has no value.
    missing : ndarray of bool, shape (n_y, n_x)
        Pixels without a value, those that only fill a place among them.
    mesh
        What level and noise are made of.
    """

    data: Image
    missing: NDArray[np.bool_]
    mesh: SkyMesh

    @cached_property
    def background(self) -> Image:
        """Sky level [DN], shape (n_y, n_x)."""
        return self.mesh.maps(0, len(self.data))[0]

    @cached_property
    def sigma(self) -> Image:
        """Standard deviation of the sky [DN], shape (n_y, n_x)."""
        return self.mesh.maps(0, len(self.data))[1]


def normalise(
    data: NDArray[Any], bad: NDArray[Any] | None = None, *, saturation: float = np.inf, threads: int = 1
) -> Normalised:
    """Subtract the sky and divide by its noise; what has no value counts nowhere, and becomes 0.

    Blocks of nearly equal size cover the whole image. Those with too few values, without any scatter, or far off the
    others take the level and noise of their neighbours; then a median of 3 x 3 blocks, and a cubic spline through
    their centres that goes on straight beyond the outer ones.

    Pixels that only fill a place count as missing, such as the zeros around a rotated frame or a blank overscan strip:
    those with a value that a tenth of all pixels share exactly, and that cannot be a level of the sky. That is, it
    stands alone (neighbouring levels of an integer image are not nearly as frequent), the image is not cut off at it,
    what remains is at least half of some cell of 100 pixels, and it is below the saturation level (`find_filler`).
    Without a known saturation level, a tenth of the image that is saturated counts as missing by this rule.

    Parameters
    ----------
    data : ndarray, shape (n_y, n_x)
        Image [DN], of any size and number type. Values are counted from a typical one before they become float32.
    bad : ndarray of bool or integers, shape (n_y, n_x), optional
        Not 0 = without a value, as NaN and infinity are anyway.
    saturation
        Pixels hold no more than this [DN]; asked whether there is anything else in the image, and what is no filler.
    threads
        The result does not depend on it.

    Raises
    ------
    InputError
        No pixel has a value, all have one value, more than half of them are saturated or have the highest value, no
        part of the image has any scatter, or shapes are impossible.
    """
    missing = _missing(data, bad)
    edges = [box_edges(n, BLOCK) for n in data.shape]
    filler, typical = find_filler(data, missing, saturation)
    if filler is not None:
        missing |= filler
    image, zero = _counted_from(typical, data, threads)
    _check(image, missing, saturation, zero)
    down, across = (
        _spline((edge[:-1] + edge[1:] - 1) / 2, n) for edge, n in zip(edges, image.shape, strict=True)
    )
    level, noise, good = _blocks(image, missing, edges, _clipped, threads)
    if not good.any():
        raise InputError("no part of the image has enough pixels that differ from each other: it has no sky")
    good &= ~filled_boxes(noise, good)
    smooth_level, smooth_noise = _smoothed(level, noise, good)
    mesh = SkyMesh(smooth_level, smooth_noise, down, across, _least(noise, good))
    if is_steep(level, noise, good):
        # a slope within a block widens its histogram: the noise is that about the map
        level, noise, about = _blocks(image - mesh.maps(0, len(image))[0], missing, edges, _clipped, threads)
        about &= good  # what is flat is not so any more
        if about.any():
            more, smooth_noise = _smoothed(level, noise, about)
            mesh = SkyMesh(smooth_level + more, smooth_noise, down, across, _least(noise, about))
    found = _apply(image, missing, mesh, threads)
    return Normalised(found, missing, replace(mesh, level=mesh.level + zero))


def _smoothed(level: Grid, noise: Grid, good: NDArray[np.bool_]) -> tuple[Grid, Grid]:
    """Both without the blocks that are not good or far off the others, filtered by a median."""
    kept = good & _near(level, good, _bowl) & _near(noise, good, _bowl)
    bowls = _bowl(level, kept), _bowl(noise, kept)  # a median would flatten what is curved
    return bowls[0] + smooth_mesh(level - bowls[0], kept, 3), bowls[1] + smooth_mesh(
        noise - bowls[1], kept, 3
    )


def normalise_original(
    data: NDArray[Any], bad: NDArray[Any] | None = None, *, threads: int = 1
) -> Normalised:
    """The same as MaxiMask 1.4.1 does it, to the last digits; for comparison with its results.

    Images below 400 pixels, which that program refuses, have at least one block per axis.

    Parameters
    ----------
    data : ndarray, shape (n_y, n_x)
        Image [DN]. NaN counts as 0, values are cut at -500 and 80000.
    bad : ndarray of bool or integers, shape (n_y, n_x), optional
        Only marks pixels as missing in the result.
    threads
        The result does not depend on it.

    Raises
    ------
    InputError
        As `normalise`, where that program would divide zero by zero.
    """
    from scipy.signal import medfilt2d

    with np.errstate(over="ignore"):
        image = np.ascontiguousarray(data, np.float32)
    missing = _missing(image, bad)
    _check(image, missing, np.inf, 0.0)
    image = np.clip(np.where(np.isnan(image), np.float32(0), image), *ORIGINAL_RANGE).astype(
        np.float32, copy=False
    )
    edges, centres = zip(*map(_original_blocks, image.shape), strict=True)
    level, noise, _ = _blocks(image, None, edges, _clipped_original, threads)
    if not noise.all():
        raise InputError(
            "a block of 200 pixels has but one value, which MaxiMask divides by; use the other way"
        )
    level, noise = (medfilt2d(np.pad(_mended(grid), 1, mode="edge"), 3) for grid in (level, noise))
    down, across = (_spline(at, n) for at, n in zip(centres, image.shape, strict=True))
    mesh = SkyMesh(level, noise, down, across, -np.inf)
    return Normalised(_apply(image, None, mesh, threads), missing, mesh)


def _missing(data: NDArray[Any], bad: NDArray[Any] | None) -> NDArray[np.bool_]:
    """Where an image has no values; not everywhere."""
    if data.ndim != 2 or 0 in data.shape or (bad is not None and bad.shape != data.shape):
        other = "none" if bad is None else f"{bad.shape}"
        raise InputError(f"need an image of two axes and a mask of its shape, got {data.shape} and {other}")
    missing: NDArray[np.bool_] = ~np.isfinite(data)
    if bad is not None:
        missing |= bad != 0
    if missing.all():
        raise InputError("no pixel has a value; there is nothing to judge")
    return missing


def _counted_from(typical: float, data: NDArray[Any], threads: int) -> tuple[Image, float]:
    """The image as float32, and what was subtracted before lest that rounds differences off."""
    if np.can_cast(data.dtype, np.float32):
        return np.ascontiguousarray(data, np.float32), 0.0
    image = np.empty(data.shape, np.float32)

    def work(first: int, last: int) -> None:
        for top in range(first, last, ROWS):
            part = np.s_[top : min(top + ROWS, last)]
            with np.errstate(over="ignore"):
                image[part] = np.clip(data[part].astype(np.float64) - typical, -LARGEST, LARGEST)

    over_rows(work, len(image), threads, ROWS)
    return image, typical


def _check(image: Image, missing: NDArray[np.bool_], saturation: float, zero: float) -> None:
    """Refuse what has no sky; `zero` was subtracted from the image."""
    n = image.size - int(np.count_nonzero(missing))
    low = float(image.min(where=~missing, initial=np.inf))
    high = float(image.max(where=~missing, initial=-np.inf))
    if low == high:
        raise InputError(f"every pixel is {low + zero:g}; a blank or unfinished image")
    full = min(saturation - zero, high)
    n_full = int(np.count_nonzero((image >= full) & ~missing))
    if n_full > n / 2:
        if saturation - zero <= high:
            said = f"{n_full} of {n} pixels are saturated (at {saturation:g} or above)"
        else:
            said = f"{n_full} of {n} pixels, more than half, have the value {high + zero:g}, the highest"
        raise InputError(f"{said}; there is no sky to tell")


def _original_blocks(n: int) -> tuple[NDArray[np.int64], Grid]:
    """Edges of the blocks of one axis, and where the spline has its knots: one more on either side."""
    count = n // BLOCK
    if not count:
        return np.array([0, n]), np.array([0.5 * n - BLOCK, 0.5 * n, 0.5 * n + BLOCK])
    first = n % BLOCK // 2
    return first + BLOCK * np.arange(count + 1), first - 0.5 * BLOCK + BLOCK * np.arange(count + 2.0)


def _blocks(
    image: Image,
    missing: NDArray[np.bool_] | None,
    edges: Sequence[NDArray[np.int64]],
    measure: Callable[[NDArray[np.float32]], tuple[float, float]],
    threads: int,
) -> tuple[Grid, Grid, NDArray[np.bool_]]:
    """Level and noise of every block, 0 and 1 where all is 0, and whether it has enough values with any scatter."""
    rows, columns = edges
    level = np.zeros((len(rows) - 1, len(columns) - 1))
    noise, good = np.ones_like(level), np.zeros(level.shape, bool)
    some = good.copy()

    def work(first: int, last: int) -> None:
        for j in range(first, last):
            for i in range(len(columns) - 1):
                part = np.s_[rows[j] : rows[j + 1], columns[i] : columns[i + 1]]
                block = image[part]
                values = block.ravel() if missing is None else block[~missing[part]]
                if values.any():
                    level[j, i], noise[j, i] = measure(np.sort(values))
                    some[j, i] = noise[j, i] > 0
                    good[j, i] = some[j, i] and values.size >= ENOUGH * block.size

    over_rows(work, len(level), threads)
    return level, noise, good if good.any() else some


def _clipped(values: NDArray[np.float32]) -> tuple[float, float]:
    """Level and noise of sorted values: what is within 3 sigma of the median, until nothing more goes.

    The noise is 0 where all that is left is one value.
    """
    middle = float(values[len(values) // 2])
    about = values.astype(np.float64) - middle
    start, end = 0, len(values)
    mean, sigma = _moments(about)
    whole = sigma
    while True:
        first, last, median = _within(about, start, end, sigma)
        if (first, last) == (start, end) or first >= last:
            return middle + _mode(median, mean, sigma, whole), sigma
        start, end = first, last
        mean, sigma = _moments(about[start:end])


def _moments(values: Grid) -> tuple[float, float]:
    """Mean and standard deviation of sorted values; 0 where that is but rounding."""
    mean = float(values.mean())
    sigma = float(np.sqrt(np.square(values - mean).mean()))
    return mean, sigma if sigma > ROUNDING * max(abs(values[0]), abs(values[-1])) else 0.0


def _clipped_original(values: NDArray[np.float32]) -> tuple[float, float]:
    """The same from running sums, whose last digits are MaxiMask's; values far from the others spoil those sums."""
    middle = float(np.median(values))
    about = values - middle if np.isfinite(middle) else values
    sums = np.concatenate([[0.0], np.cumsum(about, dtype=np.float64)])
    squares = np.concatenate([[0.0], np.cumsum(np.square(about, dtype=np.float64))])

    def spread(a: int, b: int) -> tuple[float, float]:
        mean = (sums[b] - sums[a]) / (b - a)
        return mean, float(np.sqrt(max((squares[b] - squares[a]) / (b - a) - mean**2, 0.0)))

    start, end = 0, len(values)
    whole = spread(start, end)[1]
    while True:
        mean, sigma = spread(start, end)
        first, last, median = _within(about, start, end, sigma)
        if (first, last) == (start, end) or first >= last:
            return middle + _mode(median, mean, sigma, whole), sigma
        start, end = first, last


def _within(about: NDArray[Any], start: int, end: int, sigma: float) -> tuple[int, int, float]:
    """What of a piece of sorted values is within 3 sigma of its median, which is a piece again; and that median."""
    median = 0.5 * (float(about[(start + end - 1) // 2]) + float(about[(start + end) // 2]))
    first = int(np.searchsorted(about[start:end], median - CLIP * sigma, side="left")) + start
    last = int(np.searchsorted(about[start:end], median + CLIP * sigma, side="right")) + start
    return first, last, median


def _mode(median: float, mean: float, sigma: float, whole: float) -> float:
    """Of clipped values: their mean where clipping changed little, else 2.5 median - 1.5 mean."""
    steady = sigma > 0 and STEADY[0] < sigma / whole < STEADY[1]
    return mean if steady else 2.5 * median - 1.5 * mean


def _least(noise: Grid, good: NDArray[np.bool_]) -> float:
    """What no spline may fall below [DN]."""
    return float(noise[good].min()) / 2


def _near(
    grid: Grid, good: NDArray[np.bool_], middle: Callable[[Grid, NDArray[np.bool_]], Any]
) -> NDArray[np.bool_]:
    """Blocks within 3 sigma of what is usual among the good ones."""
    kept = good.copy()
    for _ in range(GRID_ROUNDS):
        off = grid - middle(grid, kept)
        sigma = off[kept].std() if middle is _bowl else grid[kept].std()
        inside = kept & (np.abs(off) <= CLIP * sigma)
        if (inside == kept).all() or not inside.any():
            break
        kept = inside
    return kept


def _median(grid: Grid, kept: NDArray[np.bool_]) -> Any:
    return np.median(grid[kept])


def _bowl(grid: Grid, kept: NDArray[np.bool_]) -> Any:
    """A paraboloid through the grid, as vignetting makes one; else its corners would count as far off."""
    if kept.sum() < ENOUGH_BLOCKS:
        return np.full_like(grid, np.median(grid[kept]))
    y, x = (np.linspace(-1, 1, n) for n in grid.shape)
    v, u = np.meshgrid(y, x, indexing="ij")
    terms = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=-1)
    found = np.linalg.lstsq(terms[kept], grid[kept], rcond=None)[0]
    return terms @ found


def _mended(grid: Grid) -> Grid:
    """The grid with each block that is far off made the mean of its good neighbours, mended ones among them."""
    kept, mended = _near(grid, np.ones(grid.shape, bool), _median), grid.copy()
    for j, i in np.argwhere(~kept):
        around = np.s_[max(j - 1, 0) : j + 2, max(i - 1, 0) : i + 2]
        if kept[around].any():
            mended[j, i] = mended[around][kept[around]].mean()
        kept[j, i] = True
    return mended


def _spline(at: Grid, n: int) -> Grid:
    """Weights of knots at `at` in the pixels 0 to n - 1: a cubic spline, straight beyond the outer knots."""
    from scipy.interpolate import CubicSpline

    unit = np.eye(len(at))
    if len(at) == 1:
        return np.ones((n, 1))
    pixel = np.arange(n, dtype=np.float64)
    inside = np.clip(pixel, at[0], at[-1])
    weights = CubicSpline(at, unit, bc_type="not-a-knot" if len(at) > 3 else "natural")(inside)
    for outer, inner in ((0, 1), (-1, -2)):
        slope = (unit[inner] - unit[outer]) / (at[inner] - at[outer])
        beyond = np.minimum(pixel - at[0], 0) if outer == 0 else np.maximum(pixel - at[-1], 0)
        weights += np.outer(beyond, slope)
    return np.asarray(weights)


def _apply(image: Image, missing: NDArray[np.bool_] | None, mesh: SkyMesh, threads: int) -> Image:
    """(image - level) / noise; 0 where there is no value."""
    out = np.empty_like(image)

    def work(first: int, last: int) -> None:
        for top in range(first, last, ROWS):
            part = np.s_[top : min(top + ROWS, last)]
            level, noise = mesh.maps(part.start, part.stop)
            with np.errstate(over="ignore", invalid="ignore"):
                np.subtract(image[part], level, out=out[part])
                np.divide(out[part], noise, out=out[part])
            if missing is not None:
                np.clip(out[part], -LIMIT, LIMIT, out=out[part])
                out[part][missing[part]] = 0

    over_rows(work, len(image), threads, ROWS)
    return out
