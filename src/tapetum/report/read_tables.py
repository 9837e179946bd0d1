"""Tables as `tapetum.report.tables` writes them, read again with types, units and metadata."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapetum.core.errors import FormatError, InputError
from tapetum.report.tables import HDF5_LISTS, HDF5_TABLE, about_column, sidecar_of, table_format

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pyarrow as pa
    from astropy.table import Table

ASTROPY = {"ecsv": "ascii.ecsv", "votable": "votable", "fits": "fits", "hdf5": "hdf5"}  # its names of formats


def read_table(path: str | Path) -> pa.Table:
    """Read a table that `write_table` wrote, or another one of the same formats.

    Parameters
    ----------
    path
        Its suffix says the format. Of an HDF5 file without our table, the one table at its root is taken.

    Returns
    -------
    pyarrow.Table
        Words about the table in the metadata of its schema (`words_of`), units and descriptions in those of its
        columns. What CSV, FITS or VOTable cannot say comes back as well as it can.

    Raises
    ------
    InputError
        The file is not there or cannot be read.
    FormatError
        It is not what its suffix says.
    UsageError
        Unknown suffix.
    """
    import pyarrow as pa

    place = Path(path)
    kind = table_format(str(path))
    if not place.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return _READERS.get(kind, _read_through_astropy)(place)
    except (pa.ArrowException, ValueError, TypeError, KeyError, IndexError, OSError) as problem:
        if isinstance(problem, OSError) and problem.errno is not None:
            raise InputError(f"{path}: cannot be read: {problem.strerror}") from None
        reason = str(problem).strip().partition("\n")[0] or type(problem).__name__
        raise FormatError(f"{path}: not a {kind} table: {reason}") from None


def words_of(table: pa.Table) -> dict[str, str]:
    """What is said of a whole table."""
    return {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}


def units_of(table: pa.Table) -> dict[str, str]:
    """Units of columns, by name; as `read_table` leaves them."""
    return {name: unit for name in table.column_names if (unit := about_column(table, name).get("unit"))}


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(path)


def _read_csv(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv as pacsv

    beside = sidecar_of(path)
    about = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    columns = {entry["name"]: entry for entry in about.get("tableSchema", {}).get("columns", [])}
    types = {name: kind for name, entry in columns.items() if (kind := _type(entry.get("arrow"))) is not None}
    options = pacsv.ConvertOptions(
        column_types=types,
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=[""]
        if types
        else None,  # ours writes NaN as nan; others mean by it that there is nothing
    )
    table = pacsv.read_csv(path, convert_options=options)
    fields = []
    for column in table.schema:
        entry = columns.get(column.name, {})
        said = {"unit": entry.get("unit"), "description": entry.get("dc:description")}
        fields.append(column.with_metadata({key: text for key, text in said.items() if text}))
    notes = about.get("notes") or [{}]
    return table.cast(pa.schema(fields, metadata=_as_words(notes[0])))


def _type(alias: str | None) -> pa.DataType | None:
    """Arrow's type of this name, where CSV can be read as it; else the reader guesses."""
    import pyarrow as pa

    try:
        return None if alias in (None, "null") else pa.type_for_alias(alias)
    except ValueError:
        return None


def _as_words(meta: Mapping[str, Any]) -> dict[str, str]:
    return {
        str(key): value if isinstance(value, str) else json.dumps(value, default=str)
        for key, value in meta.items()
    }


def _read_through_astropy(path: Path) -> pa.Table:
    from astropy.table import Table

    kind = table_format(str(path))
    options = {"path": HDF5_TABLE} if kind == "hdf5" and _has_our_table(path) else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of units that astropy does not know; they stay as they are
        table = from_astropy(Table.read(path, format=ASTROPY[kind], **options))
    return _with_lists(table, path) if kind == "hdf5" else table


def _has_our_table(path: Path) -> bool:
    import h5py

    with h5py.File(path) as file:
        return HDF5_TABLE in file


def from_astropy(table: Table) -> pa.Table:
    """Astropy's Table -> Arrow, with units, descriptions and metadata; what is masked is null."""
    import pyarrow as pa

    arrays, fields = [], []
    for name in table.colnames:
        array = _array(table[name])
        said = {"unit": str(table[name].unit or ""), "description": str(table[name].info.description or "")}
        arrays.append(array)
        fields.append(pa.field(name, array.type, metadata={key: text for key, text in said.items() if text}))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=_as_words(table.meta)))


def _array(column: Any) -> pa.Array:
    """A column, its vectors as lists of one length."""
    import numpy as np
    import pyarrow as pa

    mask = getattr(column, "mask", None)
    missing = None if mask is None else np.broadcast_to(np.asarray(mask), column.shape)
    plain = np.asarray(column)
    if plain.ndim > 1:
        flat = pa.array(plain.astype(plain.dtype.newbyteorder("=")).ravel())
        for size in reversed(plain.shape[1:]):
            flat = pa.FixedSizeListArray.from_arrays(flat, size)
        if missing is None or not missing.any():
            return flat
        gone = np.atleast_1d(missing.reshape(len(plain), -1).all(axis=1))
        return pa.array(
            [None if hidden else item for item, hidden in zip(flat.to_pylist(), gone, strict=True)], flat.type
        )
    if plain.dtype.kind == "S":
        plain = np.char.decode(plain, "utf-8")
    if plain.dtype.kind in "UO":
        words = [None if item is None else str(item) for item in plain.tolist()]
        return pa.array(words, pa.string(), mask=missing)
    return pa.array(plain.astype(plain.dtype.newbyteorder("=")), mask=missing)


def _with_lists(table: pa.Table, path: Path) -> pa.Table:
    import h5py
    import pyarrow as pa

    with h5py.File(path) as file:
        if HDF5_LISTS not in file:
            return table
        lists = file[HDF5_LISTS]
        order = [str(name) for name in lists.attrs["columns"]]
        for name in lists:
            said = {key: str(text) for key, text in lists[name].attrs.items()}
            values = _read_lists(lists[name])
            table = table.append_column(pa.field(name, values.type, metadata=said), values)
    return table.select(order)


def _read_lists(group: Any) -> pa.Array:
    import pyarrow as pa

    inner = group["values"]
    values = _read_lists(inner) if hasattr(inner, "keys") else pa.array(inner[:])
    missing = pa.array(group["missing"][:]) if "missing" in group else None
    return pa.LargeListArray.from_arrays(pa.array(group["offsets"][:]), values, mask=missing)


_READERS: dict[str, Callable[[Path], Any]] = {"parquet": _read_parquet, "csv": _read_csv}
