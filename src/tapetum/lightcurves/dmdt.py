"""Histograms of the differences in magnitude and time of all pairs of points: the picture that a network looks at."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from tapetum.lightcurves import _dmdt_kernels as kernels
from tapetum.lightcurves.statistics import usable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tapetum.lightcurves.curves import LightCurves, Values, Whole

    Signed = NDArray[np.int8]

DT_EDGES = (
    0.0, 0.02759, 0.04, 0.08, 0.12, 0.3, 0.75, 1.0, 1.5, 2.5, 3.5, 4.5, 5.5, 7.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0,
    120.0, 180.0, 240.0, 360.0, 500.0, 650.0, 2000.0,
)  # fmt: skip
"""Edges of the 26 columns [d]."""
DM_EDGES = (
    -8.0, -4.5, -3.0, -2.5, -2.0, -1.5, -1.25, -0.75, -0.5, -0.3, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.3, 0.5,
    0.75, 1.25, 1.5, 2.0, 2.5, 3.0, 4.5, 8.0,
)  # fmt: skip
"""Edges of the 26 rows [mag]."""


MOST_EDGES = kernels.ROW - 1
LONGEST = 1 << 16  # [d] that the table reaches; longer curves are slower


def dmdt(
    curves: LightCurves, dt_edges: tuple[float, ...] = DT_EDGES, dm_edges: tuple[float, ...] = DM_EDGES
) -> NDArray[np.float32]:
    """Counts of m_j - m_i (rows) and t_j - t_i (columns) over all pairs i < j of a curve, divided by their norm.

    Parameters
    ----------
    curves
        Sorted by time; points of one time make a pair in the order in which they stand.
    dt_edges, dm_edges
        Rising edges [d, mag], at most 63 of each; a bin holds its lower edge, the last one also its upper.

    Returns
    -------
    ndarray of float32, shape (n_curves, n_dm, n_dt)
        The root of the sum of squares is one; zeros where no pair falls inside (as with a single point), NaN where
        the curve is not `usable`.

    Raises
    ------
    ValueError
        Edges do not rise, are fewer than two or too many, or times between points begin below zero.

    Notes
    -----
    Mahabal et al. (2017), arXiv:1709.06257, with the edges and the norm of the described pipeline. Time grows with
    the square of the number of points, memory in proportion to it.
    """
    edges = [_closed(dt_edges), _closed(dm_edges)]
    if edges[0][0] < 0:
        raise ValueError("times between points begin at zero")
    result = np.empty((len(curves), len(dm_edges) - 1, len(dt_edges) - 1), np.float32)
    tables = _tables(tuple(dt_edges), tuple(dm_edges))
    kernels.dmdt_of(curves.time, curves.mag, curves.offsets, usable(curves), *edges, *tables, result)
    return result


def _closed(edges: tuple[float, ...]) -> Values:
    """Edges as the kernels want them: the last one just above, so that the last bin holds it."""
    values = np.array(edges, np.float64)
    if not 2 <= len(values) <= MOST_EDGES or not (np.diff(values) > 0).all():
        raise ValueError(f"edges of dmdt must rise, and number 2 to {MOST_EDGES}")
    values[-1] = np.nextafter(values[-1], np.inf)
    return values


@lru_cache(maxsize=8)
def _tables(dt_edges: tuple[float, ...], dm_edges: tuple[float, ...]) -> tuple[Signed, Signed, Signed]:
    """Tables of the bins of near and far times and of magnitudes; all empty where a step may contain two edges."""
    reach = int(np.ceil(max(abs(dm_edges[0]), abs(dm_edges[-1])) * kernels.PER_MAG)) + 2
    near, far = np.arange(kernels.NEAR + 1), np.arange(int(LONGEST * kernels.FAR_PER_DAY))
    magnitude = np.arange(-reach, reach + 1)
    # no pair that looks at the far table is closer than this
    looked = far >= int(kernels.NEAR / kernels.PER_DAY * kernels.FAR_PER_DAY) - 1
    tables = [
        _table(near, kernels.PER_DAY, _closed(dt_edges), near >= 0),
        _table(far, kernels.FAR_PER_DAY, _closed(dt_edges), looked),
        _table(magnitude, kernels.PER_MAG, _closed(dm_edges), abs(magnitude) >= 0),
    ]
    if not all(fine for _, fine in tables):
        return np.empty(0, np.int8), np.empty(0, np.int8), np.empty(0, np.int8)
    return tables[0][0], tables[1][0], tables[2][0]


def _table(step: Whole, per_unit: float, edges: Values, looked: NDArray[np.bool_]) -> tuple[Signed, bool]:
    """Edges below differences of some steps, and whether none that is looked at may contain two edges.

    Both numbers were rounded down, so that their true difference may be a step more or less.
    """
    low, high = (step - 1.001) / per_unit, (step + 1.001) / per_unit
    below, upto = np.searchsorted(edges, low, "right"), np.searchsorted(edges, high, "right")
    values = np.where(below == upto, below, below - kernels.OPEN).astype(np.int8)
    return values, bool((upto - below)[looked].max(initial=0) <= 1)
