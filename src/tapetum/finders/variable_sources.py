"""One row for each source of a classification of light curves.

A light curve is what one survey knows of a star in one band; a source is a position on the sky, which has several.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tapetum.core.columns import floats_of
from tapetum.core.errors import InputError
from tapetum.finders.variable_group import TREE, tree_sources
from tapetum.finders.variables import CLASSES, KEYS, WORD, given_classes
from tapetum.sky.match import match_sky

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Values = NDArray[np.float64]
    Whole = NDArray[np.int64]

Aggregate = Literal["mean", "median", "max"]
SourceKey = Literal["auto", "object_id", "catalogues"]
OBJECTS = ("object_id", "obj_id")
CATALOGUES = ("Gaia_EDR3___id", "AllWISE___id", "PS1_DR1___id")
SOURCE_KEYS: dict[SourceKey, tuple[str, ...]] = {
    "auto": (*OBJECTS, *CATALOGUES),
    "object_id": OBJECTS,
    "catalogues": CATALOGUES,
}
"""What tells that light curves are of one source: the first that a row has a value of."""
MADE = "object_id_made"
"""Column of a table of light curves: which names of sources were made here, since nobody gave one."""
NO_NAMES = ("", "nan")
NO_ENTRIES = (*NO_NAMES, "0", "0.0")  # the described tables have 0 where a catalogue has no counterpart
RADIUS_ARCSEC = 1.0  # bands of one star agree to some tenths of an arcsecond
_OF_CURVES = ("lc_id", "_id", "band", "filter", "separation_arcsec")  # of a light curve, not of its source


def per_source(
    table: pa.Table,
    how: Aggregate = "mean",
    by: SourceKey = "auto",
    radius_arcsec: float = RADIUS_ARCSEC,
    *,
    others: bool = True,
) -> pa.Table:
    """One row for each source of a classification of light curves.

    Parameters
    ----------
    table
        As `tapetum.finders.variables.Variables.find` gives it.
    how
        What becomes of the numbers of its light curves, of those that have one. Of the classes of a tree a source has
        the mean of its light curves, whatever this says, so that children still add up to their parents.
    by
        What tells sources apart. ``auto``: `object_id`, else the entry of Gaia, else of AllWISE, else of PS1;
        ``object_id`` or ``catalogues``: only these.
    radius_arcsec
        Rows without any of these are of one source if their positions are this close to each other, or to a third one
        that is; 0: each is a source of its own.
    others
        Whether sources are in the table that `by` does not tell, by position or one by one.

    Returns
    -------
    pyarrow.Table
        Sources in the order of their first light curves: `object_id`; `lc_id` and `bands` of its light curves, between
        spaces; what else of `KEYS` there is, of the first of them; ``n_light_curves``, of which ``n_classified`` have
        an answer; the numbers, classes above the thresholds, where the table has them, and the flags of all.

    Raises
    ------
    InputError
        The table is no classification.
    """
    table = as_made(table)
    about = about_of(table)
    where, told = source_of_rows(table, by, radius_arcsec)
    if not others:
        table, where = table.filter(pa.array(told)), where[told]
    first, where = _by_appearance(where)
    n = len(first)
    columns: dict[str, Any] = _keys(table, first, where)
    columns["n_light_curves"] = pa.array(np.bincount(where, minlength=n), pa.int64())
    names = [name for name in about["columns"] if name in table.column_names]
    numbers = {name: _grouped(floats_of(table[name]), where, n, how) for name in names}
    answered = _answered(table, [*names, *(["class"] if TREE in about else [])])
    columns["n_classified"] = pa.array(np.bincount(where[answered], minlength=n), pa.int64())
    columns |= {name: _rounded(values, about) for name, values in numbers.items()}
    columns |= _of_tree(table, where, n, about)
    if CLASSES in table.column_names:
        columns[CLASSES] = pa.array(given_classes(numbers, about), pa.string())
    columns["flags"] = pa.array(_flags(table, where, n), pa.int32())
    described = {name: table.schema.field(name).metadata for name in table.column_names}
    fields = [pa.field(name, column.type, metadata=described.get(name)) for name, column in columns.items()]
    metadata = {**table.schema.metadata, WORD.encode(): json.dumps({**about, "aggregate": how}).encode()}
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields, metadata=metadata))


def _answered(table: pa.Table, names: Sequence[str]) -> NDArray[np.bool_]:
    """Rows in which any of these columns has a value."""
    answered = np.zeros(table.num_rows, np.bool_)
    for name in names:
        answered |= table[name].is_valid().to_numpy()
    return answered


def with_source_names(
    table: pa.Table, by: SourceKey = "auto", radius_arcsec: float = RADIUS_ARCSEC
) -> pa.Table:
    """A classification of light curves in which each has an `object_id`: that of the source which `per_source` makes.

    Where some light curves had none of their own, the column `MADE` says of which it is made here: such names are no
    keys, and others as soon as `by` or `radius_arcsec` are. `as_made` takes them away again.

    Parameters
    ----------
    table, by, radius_arcsec
        As for `per_source`.
    """
    first, where = _by_appearance(source_of_rows(table, by, radius_arcsec)[0])
    names = _names(table.take(pa.array(first))).take(pa.array(where))
    key = OBJECTS[0]
    if key not in table.column_names:
        table = table.add_column(min(1, table.num_columns), key, pa.nulls(table.num_rows, pa.string()))
    own = table[key].cast(pa.string()).combine_chunks()
    own = pc.if_else(pc.is_in(own, pa.array(NO_NAMES)), None, own)
    place = table.column_names.index(key)
    named = table.set_column(place, key, pc.coalesce(own, names))
    return named.add_column(place + 1, MADE, pc.is_null(own)) if own.null_count else named


def as_made(table: pa.Table) -> pa.Table:
    """A classification of light curves without the names that `with_source_names` gave."""
    if MADE not in table.column_names:
        return table
    place = table.column_names.index(OBJECTS[0])
    made = pc.fill_null(table[MADE].cast(pa.bool_()), False)
    own = pc.if_else(made, None, table[OBJECTS[0]].cast(pa.string()))
    return table.set_column(place, OBJECTS[0], own).drop_columns([MADE])


def _of_tree(table: pa.Table, where: Whole, n: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of the tree for each source."""
    if TREE not in about:
        return {}
    means = {
        name: _grouped(floats_of(table[name]), where, n, "mean") for name in about[TREE]["columns"].values()
    }
    found = tree_sources(means, about[TREE])
    best = _rounded(floats_of(pa.chunked_array([found["class_probability"]])), about)
    return {name: _rounded(values, about) for name, values in means.items()} | {
        **found,
        "class_probability": best,
    }


def about_of(table: pa.Table) -> dict[str, Any]:
    """What a classification says of its models.

    Raises
    ------
    InputError
        The table is no classification.
    """
    about = json.loads((table.schema.metadata or {}).get(WORD.encode(), b"null"))
    if not isinstance(about, dict) or "models" not in about:
        raise InputError("the table is no classification: it says nothing of its models")
    return about


def source_of_rows(
    table: pa.Table, by: SourceKey = "auto", radius_arcsec: float = RADIUS_ARCSEC
) -> tuple[Whole, NDArray[np.bool_]]:
    """A number for each row, the same for rows of one source; and which rows a key tells it of.

    Parameters
    ----------
    table, by, radius_arcsec
        As for `per_source`.
    """
    n = table.num_rows
    where = np.full(n, -1, np.int64)
    for name in SOURCE_KEYS[by]:
        if name not in table.column_names:
            continue
        text = table[name].cast(pa.string()).combine_chunks()
        no_name = pc.fill_null(pc.is_in(text, pa.array(NO_ENTRIES if name in CATALOGUES else NO_NAMES)), True)
        new = (where < 0) & text.is_valid().to_numpy(zero_copy_only=False)
        new &= ~no_name.to_numpy(zero_copy_only=False)
        code = text.dictionary_encode().indices.fill_null(0).to_numpy().astype(np.int64)
        where[new] = where.max(initial=-1) + 1 + code[new]
    told = where >= 0
    rest = np.flatnonzero(~told)
    where[rest] = where.max(initial=-1) + 1 + _by_position(table.take(pa.array(rest)), radius_arcsec)
    return where, told


def _by_position(table: pa.Table, radius_arcsec: float) -> Whole:
    """A number for each row: of its group of positions, or its own."""
    n = table.num_rows
    own = np.arange(n, dtype=np.int64)
    if not n or not radius_arcsec or not {"ra", "dec"} <= set(table.column_names):
        return own
    ra, dec = (floats_of(table[name]) for name in ("ra", "dec"))
    placed = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    one, other, _ = match_sky(ra[placed], dec[placed], ra[placed], dec[placed], radius_arcsec)
    near = coo_array((np.ones(one.size, np.int8), (placed[one], placed[other])), shape=(n, n))
    return np.asarray(connected_components(near, directed=False)[1], np.int64)


def _by_appearance(where: Whole) -> tuple[Whole, Whole]:
    """First row of each source, sources in the order of these; and the number of the source of each row."""
    _, first, inverse = np.unique(where, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(order.size)
    return first[order].astype(np.int64), place[inverse.reshape(-1)].astype(np.int64)


def _keys(table: pa.Table, first: Whole, where: Whole) -> dict[str, Any]:
    """What is known of each source."""
    rows = table.take(pa.array(first))
    ids = _joined(table["lc_id"] if "lc_id" in table.column_names else None, where)
    columns: dict[str, Any] = {"object_id": _names(rows), "lc_id": ids}
    bands = next((table[name] for name in ("band", "filter") if name in table.column_names), None)
    if bands is not None:
        columns["bands"] = _joined(bands, where, once=True)
    periods = [name for name in rows.column_names if name.startswith("period_")]
    for name in (*KEYS, *periods):
        if name in rows.column_names and name not in (*columns, *_OF_CURVES):
            columns[name] = rows[name].combine_chunks()
    return columns


def _names(rows: pa.Table) -> pa.Array:
    """`object_id` of each source; of one without, the id of its first light curve."""
    names = pa.nulls(rows.num_rows, pa.string())
    for name in (*OBJECTS, "lc_id", "_id"):
        if name in rows.column_names:
            text = rows[name].cast(pa.string()).combine_chunks()
            names = pc.coalesce(names, pc.if_else(pc.equal(text, ""), None, text))
    return names


def _joined(column: pa.ChunkedArray | None, where: Whole, *, once: bool = False) -> pa.Array:
    """The values of each source between spaces, in the order of the rows or, each once, sorted."""
    if column is None:
        return pa.nulls(len(np.unique(where)), pa.string())
    pairs = pa.table({"source": where, "text": column.cast(pa.string())})
    if once:
        pairs = (
            pairs.group_by(["source", "text"])
            .aggregate([])
            .sort_by([("source", "ascending"), ("text", "ascending")])
        )
    lists = pairs.group_by("source", use_threads=False).aggregate([("text", "list")]).sort_by("source")
    return pc.binary_join(_without_nulls(lists["text_list"].combine_chunks()), " ")


def _without_nulls(lists: pa.ListArray) -> pa.ListArray:
    owner = pc.list_parent_indices(lists).to_numpy()
    values = lists.flatten()
    there = values.is_valid().to_numpy(zero_copy_only=False)
    counts = np.bincount(owner[there], minlength=len(lists))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values.drop_null())


def _rounded(values: Values, about: Mapping[str, Any]) -> pa.Array:
    decimals = about["settings"].get("decimals")
    numbers = values if decimals is None else values.round(decimals)
    return pa.array(numbers, pa.float64(), mask=np.isnan(numbers))


def _flags(table: pa.Table, where: Whole, n: int) -> NDArray[np.int32]:
    flags = np.zeros(n, np.int32)
    np.bitwise_or.at(flags, where, table["flags"].fill_null(0).to_numpy().astype(np.int32))
    return flags


def _grouped(values: Values, where: Whole, n: int, how: Aggregate) -> Values:
    there = np.isfinite(values)
    groups, numbers = where[there], values[there]
    count = np.bincount(groups, minlength=n)
    out = np.full(n, np.nan)
    if how == "mean":
        out[count > 0] = (np.bincount(groups, numbers, minlength=n) / np.maximum(count, 1))[count > 0]
        return out
    order = np.lexsort((numbers, groups))
    ordered, ends = numbers[order], np.cumsum(count)
    some = np.flatnonzero(count)
    last = ends[some] - 1
    if how == "max":
        out[some] = ordered[last]
    else:
        begin = ends[some] - count[some]
        out[some] = (ordered[begin + (count[some] - 1) // 2] + ordered[begin + count[some] // 2]) / 2
    return out
