"""Where the pixels of one image lie in another: WCS to WCS through a coarse grid that is checked against the truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tapetum.images._remap_kernels import interpolate_map
from tapetum.images.celestial import pixels_in_other, require_celestial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Plane = NDArray[np.float64]

TOLERANCE_PIX = 1e-5  # of the interpolated map at the centres of its cells, where it is worst
FINEST_STEP = 8
MANY_CELLS = 0.05  # of the cells being wrong makes a finer grid worth it
MOST_OVERSAMPLING = 12
DENSE = 0.8  # input pixels between two positions: no more, and the sums of Lanczos weights lose no flux
MATCHING = 0.01  # pixels of equal size and direction, to this precision, lose none with one position each
COVERAGE_NODES = 49  # along each axis, to see what an image covers
DERIVATIVE_REACH = 2  # nodes on each side that the five-point difference needs
STENCIL = 1  # nodes before a cell that the interpolation needs


def pixel_to_pixel(wcs_from: Any, wcs_to: Any) -> Callable[[Plane, Plane], tuple[Plane, Plane]]:
    """The function from pixels of `wcs_to` to pixels of `wcs_from`; NaN where there is none.

    Raises
    ------
    InputError
        A WCS is not celestial.
    """
    require_celestial(wcs_from)
    require_celestial(wcs_to)
    return partial(pixels_in_other, wcs_from, wcs_to)


@dataclass(frozen=True)
class PixelMap:
    """For every pixel of the output: its position in the input, and the area of the input that it covers.

    Attributes
    ----------
    shape : (n_y, n_x)
        Of the output [pixel].
    step
        Distance of the nodes [output pixel].
    node_x, node_y : ndarray of float64
        Positions of the nodes in the input, after binning [pixel]; node (1, 1) is the first output pixel.
    node_area : ndarray of float64
        Input pixels (before binning) per output pixel.
    binning
        Input pixels along one side of a square to be averaged before anything else.
    over
        Positions per output pixel along one axis.
    exact
        (row, column) of a cell -> x, y, area of all its positions, where interpolation is not good enough.
    """

    shape: tuple[int, int]
    step: int
    node_x: Plane
    node_y: Plane
    node_area: Plane
    binning: int = 1
    over: int = 1
    exact: dict[tuple[int, int], tuple[Plane, Plane, Plane]] = field(default_factory=dict)

    def block(self, row: int, x: Plane, y: Plane, area: Plane) -> None:
        """Fill arrays of shape (n_rows * over, n_x * over) with the positions of output rows from `row` on."""
        interpolate_map(self.node_x, self.node_y, self.node_area, self.step, self.over, row, x, y, area)
        over, step = self.over, self.step
        n_rows = x.shape[0] // over
        for (cell_y, cell_x), values in self.exact.items():
            first, last = max(cell_y * step, row), min((cell_y + 1) * step, row + n_rows)
            if first >= last:
                continue
            inside = slice((first - cell_y * step) * over, (last - cell_y * step) * over)
            rows = slice((first - row) * over, (last - row) * over)
            columns = slice(cell_x * step * over, cell_x * step * over + values[0].shape[1])
            for target, value in zip((x, y, area), values, strict=True):
                target[rows, columns] = value[inside]


def map_pixels(
    wcs_from: Any,
    wcs_to: Any,
    shape_from: tuple[int, int],
    shape_to: tuple[int, int],
    *,
    origin: tuple[int, int] = (0, 0),
    step: int = 64,
) -> PixelMap | None:
    """The map from the pixels of one image to those of another; None when they do not overlap.

    The WCS are evaluated at nodes every `step` pixels and interpolated by bicubic polynomials. Every cell is checked
    against the exact map at its centre, where the interpolation is worst: when many are off by more than 1e-5 pixel
    the step is halved (down to 8), and single cells that stay off, or have nodes that lie nowhere, are computed
    exactly for each pixel.

    Parameters
    ----------
    wcs_from, wcs_to
        `astropy.wcs.WCS` of input and output.
    shape_from, shape_to
        (n_y, n_x) of input and output [pixel].
    origin
        (x, y) of the first output pixel on the grid of `wcs_to` [pixel].
    step
        Distance of the nodes at first [output pixel].

    Raises
    ------
    InputError
        A WCS is not celestial.
    """
    plain = pixel_to_pixel(wcs_from, wcs_to)

    def convert(x: Plane, y: Plane) -> tuple[Plane, Plane]:
        return plain(x + origin[0], y + origin[1])

    while True:
        grid = _Grid(convert, shape_from, shape_to, step)
        if not grid.touches.any():
            return None
        wrong = grid.wrong_cells()
        if np.mean(wrong) <= MANY_CELLS or step // 2 < FINEST_STEP:
            break
        step //= 2
    binning, over = grid.sampling()
    shift = (binning - 1) / 2.0
    return PixelMap(
        shape_to,
        step,
        (grid.x - shift) / binning,
        (grid.y - shift) / binning,
        grid.area,
        binning,
        over,
        dict(_exact_cells(convert, wrong, shape_to, step, binning, over)),
    )


def covered(
    wcs_from: Any, wcs_to: Any, shape_from: tuple[int, int], shape_to: tuple[int, int]
) -> tuple[float, tuple[slice, slice] | None]:
    """How much of the output the input covers, told from the WCS alone.

    Returns
    -------
    fraction
        Of the output's area, 0 to 1, good to about 1/50 of a side.
    box
        Rows and columns of the output outside of which nothing comes from the input; None when nothing does.

    Raises
    ------
    InputError
        A WCS is not celestial.
    """
    rows, columns = _coverage_nodes(shape_to)
    x, y = pixels_in_other(wcs_from, wcs_to, *np.meshgrid(columns, rows))
    inside = _inside(x, y, shape_from, 0.0)
    gaps = [
        float(np.nanmax(np.abs(np.diff(each, axis=axis)), initial=0.0)) for each in (x, y) for axis in (0, 1)
    ]
    near = _inside(x, y, shape_from, max(gaps))  # what lies between two nodes is at most a gap away from one
    if not near.any():
        return 0.0, None
    box = []
    for axis, (places, n) in enumerate(((rows, shape_to[0]), (columns, shape_to[1]))):
        hit = np.flatnonzero(near.any(axis=1 - axis))
        first, last = max(hit[0] - 1, 0), min(hit[-1] + 1, len(places) - 1)
        box.append(slice(int(places[first]), min(int(np.ceil(places[last])) + 1, n)))
    return float(inside.mean()), (box[0], box[1])


def covered_nodes(
    wcs_from: Any, wcs_to: Any, shape_from: tuple[int, int], shape_to: tuple[int, int]
) -> NDArray[np.bool_]:
    """Which nodes of a grid over the output, up to 49 along each side, lie on the input; see `covered`.

    Raises
    ------
    InputError
        A WCS is not celestial.
    """
    rows, columns = _coverage_nodes(shape_to)
    x, y = pixels_in_other(wcs_from, wcs_to, *np.meshgrid(columns, rows))
    return _inside(x, y, shape_from, 0.0)


def _coverage_nodes(shape: tuple[int, int]) -> tuple[Plane, Plane]:
    """Rows and columns at which coverage is told, the outermost pixels among them."""
    rows, columns = (np.linspace(0.0, n - 1.0, min(n, COVERAGE_NODES)) for n in shape)
    return rows, columns


def _inside(x: Plane, y: Plane, shape: tuple[int, int], margin: float) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        inside: NDArray[np.bool_] = (x > -0.5 - margin) & (x < shape[1] - 0.5 + margin)
        inside &= (y > -0.5 - margin) & (y < shape[0] - 0.5 + margin)
    return inside


class _Grid:
    """The nodes of a map, one before and two after the image, and which cells may touch the input."""

    def __init__(
        self,
        convert: Callable[[Plane, Plane], tuple[Plane, Plane]],
        shape_from: tuple[int, int],
        shape_to: tuple[int, int],
        step: int,
    ) -> None:
        self.convert, self.step = convert, step
        self.cells = -(-shape_to[0] // step), -(-shape_to[1] // step)
        reach = STENCIL + DERIVATIVE_REACH
        rows, columns = (np.arange(-reach, n + reach + 1) * float(step) for n in self.cells)
        wide_x, wide_y = convert(*np.meshgrid(columns, rows))
        core = (slice(DERIVATIVE_REACH, -DERIVATIVE_REACH),) * 2
        self.x, self.y = wide_x[core], wide_y[core]
        x_x, y_x = _slope(wide_x, 1, step)[core], _slope(wide_y, 1, step)[core]
        x_y, y_y = _slope(wide_x, 0, step)[core], _slope(wide_y, 0, step)[core]
        self.area = np.abs(x_x * y_y - x_y * y_x)
        self.stretch_x, self.stretch_y = np.hypot(x_x, y_x), np.hypot(x_y, y_y)
        self.along_x, self.along_y = np.fmax(np.abs(x_x), np.abs(y_x)), np.fmax(np.abs(x_y), np.abs(y_y))
        self._look_at_centres(shape_from)

    def _look_at_centres(self, shape_from: tuple[int, int]) -> None:
        n_y, n_x = self.cells
        step = self.step
        centre_y, centre_x = np.meshgrid(
            (np.arange(n_y) + 0.5) * step, (np.arange(n_x) + 0.5) * step, indexing="ij"
        )
        true_x, true_y = self.convert(centre_x, centre_y)
        self.miss = np.hypot(_middle(self.x) - true_x, _middle(self.y) - true_y)
        nodes_x = np.stack([*_corners(self.x), true_x])
        nodes_y = np.stack([*_corners(self.y), true_y])
        with np.errstate(invalid="ignore"):
            stretch = np.fmax.reduce([*_corners(self.stretch_x), *_corners(self.stretch_y)])
            margin = 2.0 * step * np.fmax(np.nan_to_num(stretch, nan=1.0, posinf=1.0), 1.0)
            near = (nodes_x > -margin) & (nodes_x < shape_from[1] + margin)
            near &= (nodes_y > -margin) & (nodes_y < shape_from[0] + margin)
        self.touches: NDArray[np.bool_] = near.any(axis=0)

    def wrong_cells(self) -> NDArray[np.bool_]:
        """Cells near the input whose interpolation is off or impossible."""
        area = _middle(self.area)
        right: NDArray[np.bool_] = (self.miss < TOLERANCE_PIX) & np.isfinite(area) & (area > 0)
        return self.touches & ~right

    def sampling(self) -> tuple[int, int]:
        """(binning, over): how many input pixels to average first, and how many positions an output pixel needs.

        The weights that one input pixel gets from all positions sum to 1 when the positions lie as the input's pixels
        do, or closer than 0.8 pixel; in between and beyond, the sum varies with the phase, by up to 2 % of a star's
        flux. A large change of scale is halved or better by averaging blocks of input pixels first, which stay at
        most half an output pixel wide.
        """
        first = (slice(STENCIL, -STENCIL - 1),) * 2
        near = self.touches & np.isfinite(self.area[first])
        if not near.any():
            return 1, 1
        sides = np.stack([self.stretch_x[first][near], self.stretch_y[first][near]])
        along = np.stack([self.along_x[first][near], self.along_y[first][near]])
        stretch = np.percentile(sides, 90, axis=1)
        binning = max(1, int(stretch.min() / 2.0)) if stretch.min() >= 4.0 else 1
        if (np.abs(np.median(along, axis=1) - 1.0) < MATCHING).all():
            return 1, 1
        return binning, min(max(int(np.ceil(stretch.max() / binning / DENSE)), 1), MOST_OVERSAMPLING)


def _slope(values: Plane, axis: int, step: int) -> Plane:
    """Five-point derivative; NaN at two nodes of each end."""
    moved = np.moveaxis(values, axis, 0)
    slope = np.full(moved.shape, np.nan)
    slope[2:-2] = (moved[:-4] - 8.0 * moved[1:-3] + 8.0 * moved[3:-1] - moved[4:]) / (12.0 * step)
    return np.moveaxis(slope, 0, axis)


def _middle(nodes: Plane) -> Plane:
    """What bicubic interpolation gives at the centre of each cell."""
    weight = np.array([-1.0, 9.0, 9.0, -1.0]) / 16.0
    n = nodes.shape[0] - 3
    rows = sum(weight[k] * nodes[k : k + n] for k in range(4))
    m = nodes.shape[1] - 3
    middle: Plane = sum((weight[k] * rows[:, k : k + m] for k in range(4)), np.zeros((n, m)))
    return middle


def _corners(nodes: Plane) -> list[Plane]:
    """The 16 nodes of the stencil of each cell."""
    n, m = nodes.shape[0] - 3, nodes.shape[1] - 3
    return [nodes[j : j + n, i : i + m] for j in range(4) for i in range(4)]


def _exact_cells(
    convert: Callable[[Plane, Plane], tuple[Plane, Plane]],
    wrong: NDArray[np.bool_],
    shape: tuple[int, int],
    step: int,
    binning: int,
    over: int,
) -> Iterator[tuple[tuple[int, int], tuple[Plane, Plane, Plane]]]:
    shift = (binning - 1) / 2.0
    for cell_y, cell_x in np.argwhere(wrong).tolist():
        n_y, n_x = min(step, shape[0] - cell_y * step), min(step, shape[1] - cell_x * step)
        rows = cell_y * step + (np.arange(n_y * over) + 0.5) / over - 0.5
        columns = cell_x * step + (np.arange(n_x * over) + 0.5) / over - 0.5
        grid_x, grid_y = np.meshgrid(columns, rows)
        x, y = convert(grid_x, grid_y)
        left, right = convert(grid_x - 0.5, grid_y), convert(grid_x + 0.5, grid_y)
        low, high = convert(grid_x, grid_y - 0.5), convert(grid_x, grid_y + 0.5)
        area = np.abs((right[0] - left[0]) * (high[1] - low[1]) - (high[0] - low[0]) * (right[1] - left[1]))
        yield (cell_y, cell_x), ((x - shift) / binning, (y - shift) / binning, area)
