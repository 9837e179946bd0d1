"""Statistics of features that models are scaled by: read from files, or taken of a table."""

from __future__ import annotations

import json
import math
import tomllib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tapetum.core.columns import floats_of
from tapetum.core.errors import FormatError, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MOST_BYTES = 512 * 2**20
STATISTICS = ("min", "max", "median", "mean", "std")


def read_statistics(path: Path) -> dict[str, dict[str, float]]:
    """Statistics of features from JSON or TOML: column -> ``min``, ``max``, ``median``, ``mean``, ``std``.

    Other numbers are passed over.

    Raises
    ------
    FormatError
        The file cannot be read, or is something else.
    """
    text = read_text(path)
    try:
        content = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
        return statistics_in(content.get("feature_stats", content), path)
    except (ValueError, AttributeError, TypeError, RecursionError) as problem:
        raise FormatError(f"{path}: not statistics of features: {problem}") from None


def read_text(path: Path) -> str:
    """A text file of no unreasonable size.

    Raises
    ------
    FormatError
        It cannot be read.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise FormatError(f"{path}: larger than {MOST_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise FormatError(f"{path}: cannot be read: {problem}") from None


def statistics_in(content: Mapping[str, Any], path: Path) -> dict[str, dict[str, float]]:
    """The `STATISTICS` of each column in what a file holds, other numbers passed over.

    Raises
    ------
    FormatError
        One is not finite.
    """
    found = {
        str(column): {str(key): float(value) for key, value in values.items() if key in STATISTICS}
        for column, values in content.items()
    }
    wrong = [column for column, values in found.items() if not all(map(math.isfinite, values.values()))]
    if wrong:
        raise FormatError(f"{path}: the statistics of {wrong[0]} are not finite")
    return found


def statistics_of(table: pa.Table, columns: Sequence[str]) -> dict[str, dict[str, float]]:
    """Statistics of columns, as SCoPe takes them of its training set: without missing values.

    Raises
    ------
    InputError
        A column is not there, is no number, or has no value.
    """
    found = {}
    for name in columns:
        if name not in table.column_names:
            raise InputError(f"the training set has no column {name}, which the model takes")
        try:
            values = floats_of(table[name])
        except pa.ArrowException:
            raise InputError(f"column {name} of the training set does not hold numbers") from None
        known = values[np.isfinite(values)]
        if not known.size:
            raise InputError(f"column {name} of the training set has no value")
        found[name] = {
            "min": float(known.min()), "max": float(known.max()), "median": float(np.median(known)),
            "mean": float(known.mean()), "std": float(known.std()),
        }  # fmt: skip
    return found
