"""Frames larger than a network can take at once: cut into tiles, run, put together again."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from tapetum.models.runtime import Model

CORE_INPUT = "core"  # by which a network is told what of a tile is asked for, where it can make use of that
CORE_MULTIPLE = 16  # what it is asked for has borders at multiples of it [pixel]
ORIGINAL_SIDE, ORIGINAL_STEP, ORIGINAL_MARGIN = 400, 200, 100  # of MaxiMask [pixel]


@dataclass(frozen=True)
class Tile:
    """What the network sees at once, and which pixels of the frame take its answer.

    Attributes
    ----------
    y, x
        First row and column that it sees.
    n_y, n_x
        Rows and columns that it sees; beyond the frame there are zeros.
    core
        Rows and columns of the frame that take the answer; inside the tile.
    """

    y: int
    x: int
    n_y: int
    n_x: int
    core: tuple[slice, slice]

    @property
    def inside(self) -> tuple[slice, slice]:
        """The core's place within the tile."""
        rows, columns = self.core
        return (
            slice(rows.start - self.y, rows.stop - self.y),
            slice(columns.start - self.x, columns.stop - self.x),
        )


@dataclass(frozen=True)
class _Span:
    """A tile along one axis: first pixel and number of pixels seen, first and last + 1 that take the answer."""

    start: int
    size: int
    first: int
    end: int


def plan_tiles(shape: tuple[int, int], *, side: int, margin: int = 0, multiple: int = 1) -> list[Tile]:
    """Large tiles that overlap, with the same answer wherever they lie.

    All tiles have the same size, and start at multiples of `multiple`, so that pooling cuts the frame at the same
    pixels in each. A pixel takes the answer of a tile whose border is at least `margin` away, unless it is the
    frame's border too. Of the grids with tiles of at most ``side**2`` pixels, and no more columns than that takes, it
    is the one in which the network sees the fewest pixels in total.

    Parameters
    ----------
    shape
        (n_y, n_x) of the frame.
    side
        A tile has at most the pixels of a square of this side, which bounds memory.
    margin
        How far a pixel's answer can depend on others [pixel].
    multiple
        Sides of tiles are multiples of it; the last tile then ends beyond the frame, in zeros.

    Returns
    -------
    list of Tile
        Their cores cover the frame once. Those with the largest cores come first, so that the memory they need serves
        for all, and equal ones in a row.

    Raises
    ------
    ValueError
        Tiles of this side have no room for the margin.
    """
    overlap = -(-2 * margin // multiple) * multiple
    across = _choices(shape[1], overlap, multiple)
    grids = []
    for rows, size_y in _choices(shape[0], overlap, multiple):
        fits = ((n, size) for n, size in across if size_y * size <= side * side)
        for columns, size_x in islice(fits, 1):
            seen = rows * size_y * columns * size_x
            grids.append((seen, rows * columns, rows, size_y, columns, size_x))
    if not grids:
        least = overlap + multiple
        raise ValueError(
            f"tiles of {side} x {side} pixels are too small; at least {least} x {least} are needed"
        )
    *_, rows, size_y, columns, size_x = min(grids)
    spans = _spans(shape[1], columns, size_x, multiple)
    tiles = [_tile(row, column) for row in _spans(shape[0], rows, size_y, multiple) for column in spans]
    return sorted(tiles, key=_work, reverse=True)


def _work(tile: Tile) -> tuple[int, int]:
    """Pixels and rows of the core."""
    n_y, n_x = (part.stop - part.start for part in tile.core)
    return n_y * n_x, n_y


def _choices(n: int, overlap: int, multiple: int) -> list[tuple[int, int]]:
    """Numbers and sizes of equal spans over `n` pixels with this overlap; of each size the smallest number."""
    total = -(-n // multiple) * multiple
    found = [(1, total)]
    while found[-1][1] > overlap + multiple:
        count, size = found[-1]
        while size == found[-1][1]:
            count += 1
            size = -(-(total + (count - 1) * overlap) // (count * multiple)) * multiple
        found.append((count, size))
    return found


def _spans(n: int, count: int, size: int, multiple: int) -> list[_Span]:
    """Evenly spread over `n` pixels, to the next multiple; borders of the answers in the middle of the overlaps."""
    spare = -(-n // multiple) * multiple - size
    starts = [spare * i // max(count - 1, 1) // multiple * multiple for i in range(count)]
    borders = [0, *((after + before + size) // 2 for before, after in pairwise(starts)), n]
    return [_Span(start, size, *ends) for start, ends in zip(starts, pairwise(borders), strict=True)]


def original_tiles(shape: tuple[int, int]) -> list[Tile]:
    """The tiles of MaxiMask, for the same answers: 400 pixels every 200, of which the central 200 count.

    At the frame's border the outer 100 pixels count as well. Where the sides are no multiples of the step, one more
    row and column of tiles end at the border; they come last and take the place of earlier answers. A frame with a
    side below 400, which MaxiMask refuses, is filled up with zeros.
    """
    rows, columns = (_original_spans(n) for n in shape)
    return [_tile(row, column) for row in rows for column in columns]


def _original_spans(n: int) -> list[_Span]:
    side = ORIGINAL_SIDE
    starts = list(range(0, max(n - side, 0) + 1, ORIGINAL_STEP))
    if n > side and starts[-1] != n - side:
        starts.append(n - side)
    return [
        _Span(
            start,
            side,
            start + ORIGINAL_MARGIN if start else 0,
            start + side - ORIGINAL_MARGIN if start + side < n else n,
        )
        for start in starts
    ]


def _tile(row: _Span, column: _Span) -> Tile:
    core = slice(row.first, row.end), slice(column.first, column.end)
    return Tile(row.start, column.start, row.size, column.size, core)


def run_tiles(
    model: Model,
    image: NDArray[np.float32],
    tiles: Sequence[Tile],
    consume: Callable[[tuple[slice, slice], NDArray[np.float32]], None],
    *,
    batch: int = 1,
) -> None:
    """Run a network over the tiles of a frame and hand over each answer as it comes; nothing else is kept.

    Parameters
    ----------
    model
        A network that gives maps.
    image : ndarray of float32, shape (n_y, n_x)
        Prepared as the network's card says.
    tiles
        In the order in which the answers are wanted.
    consume
        Called with the place in the frame and the maps there, float32 (n_columns, n_rows, n_columns of the place).
        The maps are only valid during the call.
    batch
        Tiles of one size, with the core at the same place, that go through the network together.

    Raises
    ------
    ModelError
        The network does not give maps of the tiles.
    """
    for group in _groups(tiles, batch):
        frames = np.zeros((len(group), 1, group[0].n_y, group[0].n_x), dtype=np.float32)
        for frame, tile in zip(frames, group, strict=True):
            seen = image[tile.y : tile.y + tile.n_y, tile.x : tile.x + tile.n_x]
            frame[0, : seen.shape[0], : seen.shape[1]] = seen
        for tile, maps in zip(group, model.maps(frames, group[0].inside), strict=True):
            consume(tile.core, maps)


def _groups(tiles: Sequence[Tile], batch: int) -> Iterable[list[Tile]]:
    """Up to `batch` tiles in a row that have one size and core."""
    group: list[Tile] = []
    for tile in tiles:
        alike = group and (tile.n_y, tile.n_x, tile.inside) == (group[0].n_y, group[0].n_x, group[0].inside)
        if group and (len(group) == batch or not alike):
            yield group
            group = []
        group.append(tile)
    if group:
        yield group
