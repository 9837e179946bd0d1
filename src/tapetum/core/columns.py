"""Columns of Arrow tables as arrays of numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from numpy.typing import NDArray


def floats_of(column: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """A column of numbers as an array of its own, NaN for null, shape (n,).

    Raises
    ------
    pyarrow.ArrowException
        It holds something else.
    """
    numbers = pc.fill_null(column.cast(pa.float64()), float("nan"))
    return np.array(numbers.to_numpy(zero_copy_only=False), np.float64)


def holds_numbers(kind: pa.DataType) -> bool:
    """Whether a column of this type may be a feature: numbers, true and false, or nothing at all."""
    tests = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    return any(test(kind) for test in tests)
