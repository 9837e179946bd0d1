"""Arrow tables, nested or long, turned into `LightCurves`; everything by column, nothing by row."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapetum.core.errors import FormatError
from tapetum.lightcurves.curves import KEY, LightCurves
from tapetum.lightcurves.formats.columns import NEEDED, OF_CURVES, Layout, Reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Points = dict[str, pa.Array]

_ALWAYS_TEXT = (KEY, "object_id", "survey", "band")
_NUMBERS = ("ra", "dec")
IN_OTHER_UNITS = {"s": 1 / 86400, "min": 1 / 1440, "h": 1 / 24, "yr": 365.25, "mmag": 1e-3}
"""Unit of a column -> ours (d, mag) in it; others are taken for these."""
_NOT_WORDS = {b"pandas", b"ARROW:schema", OF_CURVES.encode()}  # of the file, not of its content


def from_nested(table: pa.Table, layout: Layout, how: Reading, name: str, first_row: int = 0) -> LightCurves:
    """Light curves of a table with one row per curve.

    A row whose points are of several bands becomes a curve for each, called ``<id>-<band>``.

    Parameters
    ----------
    name, first_row
        Of the file and of the first row in it: rows without any id are called ``<name>:<row>``.

    Raises
    ------
    FormatError
        The lists of a row differ in length, an id is missing, or a column has a type that cannot be what it should.
    """
    about = _about(table, layout, name, range(first_row, first_row + table.num_rows))
    points, counts = _points(table, layout, name)
    owner = np.repeat(np.arange(table.num_rows), counts)
    if "program" in points:
        wanted = np.isin(points["program"].to_numpy(zero_copy_only=False), how.programs)
        owner, points = (
            owner[wanted],
            {ours: values.filter(pa.array(wanted)) for ours, values in points.items()},
        )
        counts = np.bincount(owner, minlength=table.num_rows)
    bands = points.pop("band", None)
    curves = LightCurves(
        **_columns(points, table.schema, layout, name),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        table=about,
    )
    return curves if bands is None else _by_band(curves, owner, bands)


def from_long(table: pa.Table, layout: Layout, how: Reading, name: str) -> LightCurves:
    """Light curves of a table with one row per point, in the order of their first points.

    The rows of a curve may be anywhere; among themselves they keep their order. Rows of one id and several bands are
    several curves, called ``<id>-<band>``.

    Raises
    ------
    FormatError
        As `from_nested`.
    """
    if "program" in layout.points:
        programs = table[layout.points["program"]].to_numpy()
        table = table.filter(pa.array(np.isin(programs, how.programs)))
    whose, several = _whose(table, layout, name)
    order = np.argsort(whose, kind="stable")
    starts = np.flatnonzero(np.diff(whose[order], prepend=-1))
    rows = order[starts]
    about = _about(table.select(_of_curve(layout)).take(pa.array(rows)), layout, name, range(len(rows)))
    about = _named_by_band(about, several)
    return LightCurves(
        **{
            ours: values[order]
            for ours, values in _columns(_flat(table, layout), table.schema, layout, name).items()
        },
        offsets=np.append(starts, len(order)).astype(np.int64),
        table=about,
    )


def cut(curves: LightCurves, n: int) -> Iterator[LightCurves]:
    """Pieces of at most `n` curves."""
    for first in range(0, len(curves), n):
        yield piece(curves, first, min(first + n, len(curves)))


def piece(curves: LightCurves, first: int, last: int) -> LightCurves:
    """Curves `first` up to `last`, without copying points."""
    if first == 0 and last == len(curves):
        return curves
    begin, end = int(curves.offsets[first]), int(curves.offsets[last])
    return LightCurves(
        curves.time[begin:end],
        curves.mag[begin:end],
        curves.magerr[begin:end],
        curves.offsets[first : last + 1] - begin,
        curves.table.slice(first, last - first),
        None if curves.flags is None else curves.flags[begin:end],
    )


def joined(parts: Sequence[LightCurves]) -> LightCurves:
    """Light curves one after the other; columns that some do not have are null there, flags 0."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        none = np.empty(0)
        return LightCurves(
            none, none, none, np.zeros(1, np.int64), pa.table({KEY: pa.array([], pa.string())})
        )
    flagged = any(part.flags is not None for part in parts)
    flags = [np.zeros(len(part.time), np.int32) if part.flags is None else part.flags for part in parts]
    return LightCurves(
        np.concatenate([part.time for part in parts]),
        np.concatenate([part.mag for part in parts]),
        np.concatenate([part.magerr for part in parts]),
        np.concatenate([[0], np.cumsum(np.concatenate([part.n_points for part in parts]))]).astype(np.int64),
        pa.concat_tables([part.table for part in parts], promote_options="permissive"),
        np.concatenate(flags) if flagged else None,
    )


# ---- points --------------------------------------------------------------------------------------------------------


def _points(table: pa.Table, layout: Layout, name: str) -> tuple[Points, NDArray[np.int64]]:
    """Flat columns of the points, and how many each row has."""
    if layout.inside is None:
        lists = {ours: _whole(table[theirs]) for ours, theirs in layout.points.items()}
    else:
        holder = _whole(table[layout.inside])
        if not pa.types.is_struct(holder.type):
            counts, inner = _lengths(holder), pc.list_flatten(holder)
            return {ours: pc.struct_field(inner, theirs) for ours, theirs in layout.points.items()}, counts
        lists = {ours: pc.struct_field(holder, theirs) for ours, theirs in layout.points.items()}
    counts = _lengths(lists["time"])
    for ours, values in lists.items():
        other = _lengths(values)
        if (other != counts).any():
            row = int(np.flatnonzero(other != counts)[0])
            raise FormatError(
                f"{name}: a curve has {counts[row]} points in {layout.points['time']} and {other[row]} in "
                f"{layout.points[ours]} (row {row} of a batch); is the file damaged?"
            )
    return {ours: pc.list_flatten(values) for ours, values in lists.items()}, counts


def _lengths(lists: pa.Array) -> NDArray[np.int64]:
    """Length of each list; one that is null is empty."""
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0), np.int64)


def _flat(table: pa.Table, layout: Layout) -> Points:
    return {ours: _whole(table[theirs]) for ours, theirs in layout.points.items() if ours != "program"}


def _columns(points: Points, schema: pa.Schema, layout: Layout, name: str) -> dict[str, Any]:
    """The arrays that `LightCurves` wants; what is missing is NaN, a flag that is missing 0."""
    columns: dict[str, Any] = {}
    for ours in NEEDED:
        theirs = layout.points[ours]
        values = _cast(points[ours], pa.float64(), theirs, name).to_numpy(zero_copy_only=False)
        scale = None if layout.inside else IN_OTHER_UNITS.get(_unit(schema, theirs))
        if scale is not None:
            values = values * scale
        # Arrow's memory is read-only, and compiled kernels would be compiled once more for such arrays
        columns[ours] = values if values.flags.writeable else values.copy()
    if "flags" in points:
        flags = pc.fill_null(_cast(points["flags"], pa.int64(), layout.points["flags"], name), 0).to_numpy()
        # any bit set must stay set, also one beyond those that we keep
        lost = (flags != 0) & ((flags & 0x7FFFFFFF) == 0)
        columns["flags"] = np.where(lost, 1 << 30, flags & 0x7FFFFFFF).astype(np.int32)
    return columns


def _unit(schema: pa.Schema, column: str) -> str:
    return ((schema.field(column).metadata or {}).get(b"unit") or b"").decode("utf-8", "replace")


def _by_band(curves: LightCurves, owner: NDArray[np.int64], bands: pa.Array) -> LightCurves:
    """A curve for each band of each row."""
    codes, names = _codes(bands)
    whose = owner * max(len(names), 1) + codes
    order = np.argsort(whose, kind="stable")
    starts = np.flatnonzero(np.diff(whose[order], prepend=-1))
    rows = order[starts]
    table = curves.table.take(pa.array(owner[rows]))
    table = _with(table, "band", band_names(names).take(pa.array(codes[rows])))
    table = _named_by_band(table, np.ones(len(rows), bool))
    flags = None if curves.flags is None else curves.flags[order]
    offsets = np.append(starts, len(order)).astype(np.int64)
    return LightCurves(curves.time[order], curves.mag[order], curves.magerr[order], offsets, table, flags)


# ---- what is known of each curve -----------------------------------------------------------------------------------


def _about(table: pa.Table, layout: Layout, name: str, rows: range) -> pa.Table:
    """The table of the curves, which have these numbers: columns under our names first, then the rest."""
    columns: dict[str, pa.Array] = {}
    for ours, theirs in layout.about.items():
        values = _whole(table[theirs])
        if ours == "band":
            values = band_names(values)
        elif ours in _ALWAYS_TEXT:
            values = _text(values)
        elif ours in _NUMBERS:
            values = _cast(values, pa.float64(), theirs, name)
        columns[ours] = values
    if KEY not in columns:
        columns = {KEY: _made_up(columns, layout, name, rows), **columns}
    _refuse_missing(columns, name)
    _fill_in(columns, layout)
    columns |= {theirs: _whole(table[theirs]) for theirs in layout.rest}
    words = {key: value for key, value in (table.schema.metadata or {}).items() if key not in _NOT_WORDS}
    fields = [_field(table, layout, ours, values) for ours, values in columns.items()]
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields, metadata=words))


def _field(table: pa.Table, layout: Layout, ours: str, values: pa.Array) -> pa.Field:
    """The field of a column, with the unit and description that it had."""
    theirs = layout.about.get(ours, ours)
    about = table.schema.field(theirs).metadata if theirs in table.column_names else None
    kept = {key: value for key, value in (about or {}).items() if not key.startswith(b"PARQUET:")}
    return pa.field(ours, values.type, metadata=kept or None)


def _made_up(columns: dict[str, pa.Array], layout: Layout, name: str, rows: range) -> pa.Array:
    """Names of curves of a table without an id: of the object and band, else of the file and row."""
    if "object_id" in columns:
        if "band" not in columns or not layout.nested:  # of a long table, `_named_by_band` appends the band
            return columns["object_id"]
        return _join(columns["object_id"], columns["band"])
    stem = name.rsplit("/", 1)[-1].split(".")[0]
    if not layout.nested:
        return pa.array([stem] * len(rows), pa.string())
    return pa.array([f"{stem}:{row}" for row in rows], pa.string())


def _refuse_missing(columns: dict[str, pa.Array], name: str) -> None:
    if columns[KEY].null_count:
        row = int(np.flatnonzero(np.asarray(columns[KEY].is_null()))[0])
        raise FormatError(f"{name}: a curve has no {KEY} (row {row} of a batch); give every row an id")


def _fill_in(columns: dict[str, pa.Array], layout: Layout) -> None:
    """What follows from other columns: CCD and quadrant of a ZTF channel, the survey, the system of times."""
    if "rcid" in columns and "ccd" not in columns and "quadrant" not in columns:
        channel = columns["rcid"].cast(pa.int64())  # 0..63 = 4 (ccd - 1) + (quadrant - 1)
        columns["ccd"] = pc.add(pc.divide(channel, 4), 1)
        columns["quadrant"] = pc.add(pc.bit_wise_and(channel, 3), 1)
    if "survey" not in columns and "rcid" in columns and "field" in columns:
        columns["survey"] = pa.array(["ztf"] * len(columns[KEY]), pa.string())
    if "time_system" not in columns and layout.time_system is not None:
        columns["time_system"] = pa.array([layout.time_system] * len(columns[KEY]), pa.string())


def _named_by_band(table: pa.Table, several: NDArray[np.bool_]) -> pa.Table:
    """Curves of a source that has several bands are called after both; the source keeps the name."""
    if not several.any() or "band" not in table.column_names:
        return table
    source = table[KEY]
    if "object_id" not in table.column_names:
        table = table.append_column("object_id", source)
    named = pc.if_else(pa.array(several), _join(_whole(source), _whole(table["band"])), _whole(source))
    return _with(table, KEY, named)


# ---- whose point a row is ------------------------------------------------------------------------------------------


def _of_curve(layout: Layout) -> list[str]:
    return list(dict.fromkeys([*layout.about.values(), *layout.rest]))


def _whose(table: pa.Table, layout: Layout, name: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Number of the curve of each row, in the order of first rows; whether that curve has to be called by its band."""
    n_rows = table.num_rows
    ids, n_ids = np.zeros(n_rows, np.int64), min(n_rows, 1)
    if layout.key is not None:
        if table[layout.key].null_count:
            raise FormatError(
                f"{name}: {table[layout.key].null_count} rows have no {layout.key}; give each an id"
            )
        ids, values = _codes(_whole(table[layout.key]))
        n_ids = len(values)
    if "band" not in layout.about:
        return ids, np.zeros(n_ids, bool)
    bands, names = _codes(_whole(table[layout.about["band"]]))
    pairs, first, whose = np.unique(ids * max(len(names), 1) + bands, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    source = pairs // max(len(names), 1)
    several = np.bincount(source, minlength=n_ids)[source] > 1
    if layout.key is not None and "lc_id" not in layout.about:
        several[:] = True  # the id is that of the source
    ordered = np.empty(len(pairs), bool)
    ordered[rank] = several
    return rank[whose], ordered


def _codes(values: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """A number for each value, in the order of appearance, and the values; null is a value like others."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    encoded = pc.dictionary_encode(values, null_encoding="encode")
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary


# ---- values --------------------------------------------------------------------------------------------------------


def band_names(values: pa.Array) -> pa.Array:
    """Bands as text, ZTF's numbers (1 2 3) and codes (zg zr zi) under the names that everybody knows (ztfg ...)."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    ztf = ztf_bands()
    codes, names = _codes(values)
    known = names.to_pylist()
    numbered = pa.types.is_integer(values.type) and all(
        str(name) in ztf for name in known if name is not None
    )
    coded = {f"z{band[-1]}": band for band in ztf.values()}
    new = [
        None if name is None else ztf[str(name)] if numbered else coded.get(str(name), str(name))
        for name in known
    ]
    return pa.array(new, pa.string()).take(pa.array(codes))


@lru_cache(maxsize=1)
def ztf_bands() -> dict[str, str]:
    """ZTF's number of a filter, as text -> name of the band."""
    from tapetum.surveys.profile import load_alert_profile

    return dict(load_alert_profile("ztf").alert.band.names)


def _text(values: pa.Array) -> pa.Array:
    """Ids and names as text; whole numbers that a file keeps as floats without a point."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_floating(values.type) and not pc.any(pc.not_equal(values, pc.round(values))).as_py():
        values = values.cast(pa.int64())
    if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        values = pc.utf8_rtrim(values.cast(pa.string()), "\x00 ")
    return values.cast(pa.string())


def _join(left: pa.Array, right: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(
        left, pc.fill_null(right, ""), "-", null_handling="replace", null_replacement=""
    )


def _with(table: pa.Table, name: str, values: Any) -> pa.Table:
    if name in table.column_names:
        number = table.column_names.index(name)
        return table.set_column(number, table.schema.field(number).with_type(values.type), values)
    return table.append_column(name, values)


def _whole(column: Any) -> pa.Array:
    """A column as one array."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return (
        column.chunk(0)
        if column.num_chunks == 1
        else pa.concat_arrays(column.chunks)
        if column.num_chunks
        else (pa.array([], column.type))
    )


def _cast(values: pa.Array, kind: pa.DataType, column: str, name: str) -> pa.Array:
    try:
        return values.cast(kind, safe=False) if values.type != kind else values
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as problem:
        raise FormatError(f"{name}: column {column} holds {values.type}, not numbers: {problem}") from None
