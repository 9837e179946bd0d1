"""Points of many curves in rising order, by numpy's sort of whole blocks: several times faster than curve by curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tapetum.lightcurves._statistics_kernels import draw, pour

if TYPE_CHECKING:
    from tapetum.lightcurves.curves import Values, Whole

Numbers = TypeVar("Numbers", "Values", "Whole")

STEP = 32  # curves share a block when their lengths, rounded up to this many points, are equal
BLOCK = 1 << 17  # values of a block: 1 MiB


def ordered_values(values: Numbers, offsets: Whole) -> Numbers:
    """The values of each curve in rising order, NaN last.

    Parameters
    ----------
    values : ndarray of float64 or int64, shape (n_points,)
    offsets : ndarray of int64, shape (n_curves + 1,)

    Returns
    -------
    ndarray, shape (n_points,)
        Of the same type.
    """
    result = np.empty_like(values)
    beyond = np.nan if values.dtype.kind == "f" else np.iinfo(np.int64).max
    width = -(-np.diff(offsets) // STEP) * STEP
    by_width = np.argsort(width, kind="stable")
    for group in np.split(by_width, np.flatnonzero(np.diff(width[by_width])) + 1):
        columns = int(width[group[0]]) if len(group) else 0
        rows = max(1, BLOCK // max(columns, 1))
        for first in range(0, len(group) if columns else 0, rows):
            some = group[first : first + rows]
            block = np.empty((len(some), columns), values.dtype)
            pour(values, offsets, some, beyond, block)
            block.sort(axis=1)
            draw(block, offsets, some, result)
    return result
