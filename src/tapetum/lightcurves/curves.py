"""Many light curves at once: flat arrays of all their points, and where each curve begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Values = NDArray[np.float64]
Whole = NDArray[np.int64]
KEY = "lc_id"


@dataclass(frozen=True)
class LightCurves:
    """Light curves, one after the other; curve i has the points ``offsets[i]`` up to ``offsets[i + 1]``.

    A light curve is what one survey knows of one star in one band (`lc_id`); the light curves of one position on the
    sky share its `object_id`.

    Attributes
    ----------
    time : ndarray of float64, shape (n_points,)
        [d], of whatever origin and scale the source has.
    mag, magerr : ndarray of float64, shape (n_points,)
        Magnitudes and their standard deviations.
    offsets : ndarray of int64, shape (n_curves + 1,)
        From 0 to n_points.
    table
        What is known of each curve, one row per curve: at least `lc_id`.
    flags : ndarray of int32, shape (n_points,), optional
        0 = a good point; None: all are.
    """

    time: Values
    mag: Values
    magerr: Values
    offsets: Whole
    table: pa.Table
    flags: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        points = int(self.offsets[-1]) if len(self.offsets) else -1
        columns: list[NDArray[Any]] = [self.time, self.mag, self.magerr]
        if self.flags is not None:
            columns.append(self.flags)
        if points < 0 or self.offsets[0] != 0 or (np.diff(self.offsets) < 0).any():
            raise ValueError("offsets must rise from 0")
        if any(len(column) != points for column in columns):
            raise ValueError(f"every column needs {points} points, as the offsets say")
        if self.table.num_rows != len(self) or KEY not in self.table.column_names:
            raise ValueError(
                f"the table needs one row for each of the {len(self)} curves, with a column {KEY}"
            )

    @classmethod
    def of_lists(
        cls,
        time: Sequence[Any],
        mag: Sequence[Any],
        magerr: Sequence[Any],
        table: pa.Table | Mapping[str, Any] | None = None,
        flags: Sequence[Any] | None = None,
    ) -> Self:
        """Of one sequence per curve; without a table curves are numbered."""
        offsets = np.concatenate([[0], np.cumsum([len(times) for times in time])]).astype(np.int64)
        if table is None:
            table = {KEY: [str(i) for i in range(len(time))]}
        return cls(
            _flat(time, np.float64),
            _flat(mag, np.float64),
            _flat(magerr, np.float64),
            offsets,
            table if isinstance(table, pa.Table) else pa.table(dict(table)),
            None if flags is None else _flat(flags, np.int32),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_points(self) -> Whole:
        """Points of each curve."""
        return np.diff(self.offsets)

    @property
    def ids(self) -> list[Any]:
        """`lc_id` of each curve."""
        return list(self.table[KEY].to_pylist())

    def __iter__(self) -> Iterator[tuple[Values, Values, Values]]:
        """Time, magnitude and error of one curve after the other; for plots and tests, not for bulk work."""
        for first, last in pairwise(self.offsets.tolist()):
            yield self.time[first:last], self.mag[first:last], self.magerr[first:last]

    def take(self, which: NDArray[Any]) -> LightCurves:
        """Some curves, by number or by a mask of shape (n_curves,), in that order."""
        chosen = np.flatnonzero(which) if which.dtype == np.bool_ else np.asarray(which, np.int64)
        counts = self.n_points[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        points = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], counts)
        return replace(
            self, **self._columns(points), offsets=offsets, table=self.table.take(pa.array(chosen))
        )

    def where(self, keep: NDArray[np.bool_]) -> LightCurves:
        """Some of the points, by a mask of shape (n_points,); curves may become empty."""
        before = np.concatenate([[0], np.cumsum(keep)]).astype(np.int64)
        return replace(self, **self._columns(np.flatnonzero(keep)), offsets=before[self.offsets])

    def ordered(self) -> LightCurves:
        """Every curve by time; points of one time keep their order."""
        owner = np.repeat(np.arange(len(self)), self.n_points)
        return replace(self, **self._columns(np.lexsort((self.time, owner))))

    def _columns(self, points: Whole) -> dict[str, Any]:
        flags = None if self.flags is None else self.flags[points]
        return {
            "time": self.time[points],
            "mag": self.mag[points],
            "magerr": self.magerr[points],
            "flags": flags,
        }


def _flat(parts: Sequence[Any], kind: Any) -> NDArray[Any]:
    return np.concatenate([np.asarray(part, kind) for part in parts]) if len(parts) else np.empty(0, kind)
