"""Light curves as Arrow tables: one row per curve, or one row per point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tapetum.core.errors import UsageError
from tapetum.lightcurves.formats.assemble import ztf_bands
from tapetum.lightcurves.formats.columns import KNOWN_OF_CURVES, OF_CURVES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.lightcurves.curves import LightCurves

DIALECTS = ("tapetum", "ztf-dr")
UNITS = {"time": "d", "mag": "mag", "magerr": "mag", "ra": "deg", "dec": "deg"}

# names in ZTF's public light curves (DR bulk files), and their types; times there are HJD - 2400000.5
_ZTF_DR = {
    "lc_id": ("objectid", pa.int64()),
    "band": ("filterid", pa.uint8()),
    "field": ("fieldid", pa.int16()),
    "rcid": ("rcid", pa.uint8()),
    "ra": ("objra", pa.float64()),
    "dec": ("objdec", pa.float64()),
}
_ZTF_POINTS = {"time": "hmjd", "mag": "mag", "magerr": "magerr", "flags": "catflags"}
HMJD_FROM = {"hmjd": 0.0, "hjd": 2_400_000.5}


def lists_of(curves: LightCurves) -> dict[str, pa.ListArray]:
    """The points, one list per curve: time, mag, magerr and, if there are any, flags."""
    offsets = pa.array(curves.offsets.astype(np.int32 if curves.offsets[-1] < 2**31 else np.int64))
    kind: Any = pa.ListArray if offsets.type == pa.int32() else pa.LargeListArray
    columns: dict[str, NDArray[Any]] = {"time": curves.time, "mag": curves.mag, "magerr": curves.magerr}
    if curves.flags is not None:
        columns["flags"] = curves.flags
    return {name: kind.from_arrays(offsets, pa.array(values)) for name, values in columns.items()}


def nested_table(curves: LightCurves, dialect: str, metadata: Mapping[str, str]) -> pa.Table:
    """One row per curve, with lists of points.

    Parameters
    ----------
    dialect
        ``tapetum``: the columns of `curves.table`, then time, mag, magerr, flags. ``ztf-dr``: those of ZTF's public
        light curves; other columns follow under their names.

    Raises
    ------
    UsageError
        `dialect` is ``ztf-dr`` and something that ZTF's files have is missing.
    """
    if dialect == "ztf-dr":
        return _as_ztf(curves, metadata)
    words = {**_words(curves.table), **{key.encode(): value.encode() for key, value in metadata.items()}}
    fields, arrays = list(curves.table.schema), list(curves.table.columns)
    for name, values in lists_of(curves).items():
        fields.append(pa.field(name, values.type, metadata={"unit": UNITS[name]} if name in UNITS else None))
        arrays.append(values)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=words))


def long_table(curves: LightCurves, metadata: Mapping[str, str]) -> pa.Table:
    """One row per point; curves without points are not in it.

    Columns of curves whose names do not say so are listed in the metadata, where `recognise` finds them again.
    """
    owner = pa.array(np.repeat(np.arange(len(curves)), curves.n_points))
    flat = [entry.name for entry in curves.table.schema if not pa.types.is_nested(entry.type)]
    table = curves.table.select(flat).take(owner)
    for name, values in (("time", curves.time), ("mag", curves.mag), ("magerr", curves.magerr)):
        table = table.append_column(
            pa.field(name, pa.float64(), metadata={"unit": UNITS[name]}), pa.array(values)
        )
    if curves.flags is not None:
        table = table.append_column("flags", pa.array(curves.flags))
    words = {**_words(curves.table), **{key.encode(): value.encode() for key, value in metadata.items()}}
    others = [name for name in flat if name not in KNOWN_OF_CURVES]
    return table.replace_schema_metadata({**words, OF_CURVES.encode(): " ".join(others).encode()})


def aligned(table: pa.Table, schema: pa.Schema, path: Path) -> pa.Table:
    """The table with the columns of `schema`; nulls where it has none.

    Raises
    ------
    UsageError
        It has others.
    """
    if table.schema.equals(schema):
        return table
    more = [name for name in table.column_names if name not in schema.names]
    if more:
        raise UsageError(
            f"{path}: light curves with the column {', '.join(more)} follow others without; write them to two files"
        )
    columns = [
        table[entry.name].cast(entry.type)
        if entry.name in table.column_names
        else pa.nulls(table.num_rows, entry.type)
        for entry in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _words(table: pa.Table) -> dict[bytes, bytes]:
    return dict(table.schema.metadata or {})


def _as_ztf(curves: LightCurves, metadata: Mapping[str, str]) -> pa.Table:
    missing = [name for name in _ZTF_DR if name not in curves.table.column_names]
    if missing:
        raise UsageError(f"ZTF's light curves need the column {', '.join(missing)}")
    systems = (
        set(curves.table["time_system"].to_pylist()) if "time_system" in curves.table.column_names else {None}
    )
    if len(systems) > 1 or (curves.table.num_rows and not systems <= set(HMJD_FROM)):
        raise UsageError(
            f"ZTF's light curves have heliocentric times (time_system hjd or hmjd), these {sorted(map(str, systems))}"
        )
    numbers = {band: int(code) for code, band in ztf_bands().items()}
    columns: dict[str, Any] = {}
    for ours, (theirs, kind) in _ZTF_DR.items():
        values = curves.table[ours]
        if ours == "band":
            values = pa.array([numbers.get(band) for band in values.to_pylist()], kind)
            if values.null_count:
                raise UsageError("ZTF's light curves have bands ztfg, ztfr, ztfi")
        columns[theirs] = values.cast(kind)
    columns["nepochs"] = pa.array(curves.n_points)
    begin = HMJD_FROM[str(systems.pop())] if curves.table.num_rows else 0.0
    lists = lists_of(curves)
    if begin:
        lists["time"] = type(lists["time"]).from_arrays(lists["time"].offsets, pa.array(curves.time - begin))
    columns |= {_ZTF_POINTS[ours]: values for ours, values in lists.items()}
    words = {**_words(curves.table), **{key.encode(): value.encode() for key, value in metadata.items()}}
    return pa.table(columns).replace_schema_metadata(words)
