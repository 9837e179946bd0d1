"""The slot arrays that the compiled walk fills."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.alerts import _kernels as k

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

POSITIVE_TEXTS = frozenset({b"t", b"T", b"1", b"y", b"Y", b"true", b"True", b"TRUE"})


@dataclass
class Rows:
    """Values of fields: one row per record, one column per slot; see `tapetum.alerts._kernels` for the kinds.

    Bytes and strings stay in their packet: `ints` has where they begin, `lengths` how long they are.
    """

    kinds: NDArray[np.uint8]
    ints: NDArray[np.int64]
    floats: NDArray[np.float64]
    lengths: NDArray[np.int64]

    @classmethod
    def empty(cls, n_rows: int, n_slots: int) -> Rows:
        """Rows in which everything is missing."""
        shape = (n_rows, n_slots)
        return cls(
            np.zeros(shape, np.uint8),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.float64),
            np.zeros(shape, np.int64),
        )

    def __len__(self) -> int:
        return int(self.kinds.shape[0])

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The four arrays, in the order the walk takes them."""
        return self.kinds, self.ints, self.floats, self.lengths

    def take(self, rows: NDArray[np.intp] | slice) -> Rows:
        """Some of the rows."""
        return Rows(*(array[rows] for array in self.arrays()))

    def doubled(self) -> Rows:
        """The same with as many empty rows after them."""
        return Rows(*(np.concatenate([array, np.zeros_like(array)]) for array in self.arrays()))

    def numbers(self, slot: int | None) -> NDArray[np.float64]:
        """A column as float64; NaN where it is missing or not a number."""
        if slot is None:
            return np.full(len(self), np.nan)
        kinds = self.kinds[:, slot]
        return np.where((kinds == k.MISSING) | (kinds == k.IS_BYTES), np.nan, self.floats[:, slot])

    def bytes_of(self, row: int, slot: int, bodies: Sequence[bytes]) -> bytes | None:
        """Bytes or string of one field, None where it is something else; `bodies` by row."""
        if self.kinds[row, slot] != k.IS_BYTES:
            return None
        start = int(self.ints[row, slot])
        return bodies[row][start : start + int(self.lengths[row, slot])]

    def is_true(self, slot: int, bodies: Sequence[bytes]) -> NDArray[np.bool_]:
        """A column read as yes or no, in all the ways surveys say it: ``t``, ``1``, true, 1.0."""
        kinds = self.kinds[:, slot]
        flag: NDArray[np.bool_] = (kinds != k.IS_BYTES) & (self.floats[:, slot] == 1)
        for row in np.flatnonzero(kinds == k.IS_BYTES):
            flag[row] = self.bytes_of(int(row), slot, bodies) in POSITIVE_TEXTS
        return flag
