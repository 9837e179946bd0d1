"""The one table writer: the file's suffix decides the format; `tapetum.report.read_tables` reads them again.

Parquet and CSV leave Arrow directly; ECSV, VOTable, FITS and HDF5 go through `astropy.table.Table`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tapetum.core.errors import UsageError
from tapetum.core.files import whole_file

if TYPE_CHECKING:
    import pyarrow as pa
    from astropy.table import Table

STDOUT = "-"
HDF5_TABLE, HDF5_LISTS = (
    "table",
    "lists",
)  # where an HDF5 file has the columns, and those of lists of any length
CSVW = "http://www.w3.org/ns/csvw"
FITS_WORDS, FITS_LINE = 60, 72  # letters that a card of a FITS header has room for, and one of HISTORY
FITS_QUOTED = "%%"  # before and after words in HISTORY that are percent-encoded, in which it cannot be
NOT_QUOTED = "!\"#$&'()*+,-./:;<=>?@[]^_`{|}~"


def table_format(path: str) -> str:
    """The format that `path` asks for; ``-`` is CSV on stdout.

    Call it before the work, so that a wrong suffix is found at once.

    Raises
    ------
    UsageError
        The suffix is not one of ours; the message names those that are.
    """
    if path == STDOUT:
        return "csv"
    suffix = Path(path).suffix.lower()
    if suffix not in TABLE_FORMATS:
        raise UsageError(
            f"{path}: unknown table suffix {suffix!r}; known: {' '.join(TABLE_FORMATS)}, or - for CSV on stdout"
        )
    return TABLE_FORMATS[suffix]


def write_table(
    table: pa.Table | pa.RecordBatchReader,
    path: str,
    metadata: Mapping[str, Any] | None = None,
    units: Mapping[str, str] | None = None,
    descriptions: Mapping[str, str] | None = None,
    *,
    sidecar: bool = False,
) -> None:
    """Write a table; the file appears whole.

    Parameters
    ----------
    table
        Any Arrow table, or a reader of one: into Parquet, that is never held as a whole. Lists of one length
        (``pa.list_(type, length)``) fit everywhere but into CSV, lists of any length into Parquet and HDF5, structs
        into Parquet only.
    path
        File whose suffix decides the format, or ``-`` for CSV on stdout.
    metadata
        About the whole table, beside the words that `table.schema` carries: words, and for ECSV and HDF5 also numbers,
        lists and mappings, which the others get as JSON. CSV has no place for them.
    units
        Unit of a column by its name, as astropy spells it (``"deg"``, ``"mag"``, ``"d"``); others have none.
    descriptions
        What a column means, by its name; ECSV, VOTable, HDF5 and Parquet have a place for it.
    sidecar
        Beside ``F.csv`` write ``F.csv-metadata.json`` (W3C "CSV on the Web"), which has types, units, descriptions and
        metadata; `read_table` heeds it.

    Raises
    ------
    UsageError
        Unknown suffix, or a nested column in a format that cannot hold it.
    OSError
        The file cannot be written.
    """
    kind = table_format(path)
    words: dict[str, Any] = {
        key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()
    }
    words |= dict(metadata or {})
    if kind not in ("ecsv", "hdf5"):
        words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in words.items()}
    if kind != "parquet" and not hasattr(table, "num_rows"):
        table = table.read_all()
    table = _described(table, descriptions or {})
    if path == STDOUT:
        _write_csv(table, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    if kind == "csv":
        sidecar_of(path).unlink(missing_ok=True)  # it would describe another file
    with whole_file(Path(path)) as part:
        _WRITERS[kind](table, part, words, units or {})
    if kind == "csv" and sidecar:
        with whole_file(sidecar_of(path)) as part:
            part.write_text(json.dumps(_csvw(table, Path(path).name, words, units or {}), indent=1) + "\n")


def sidecar_of(path: str | Path) -> Path:
    """Where the metadata of a CSV file lie."""
    return Path(f"{path}-metadata.json")


def _described(table: Any, descriptions: Mapping[str, str]) -> Any:
    """The table with descriptions in the metadata of its columns."""
    import pyarrow as pa

    fields = [
        column.with_metadata({**(column.metadata or {}), b"description": descriptions[column.name].encode()})
        if column.name in descriptions
        else column
        for column in table.schema
    ]
    return table.cast(pa.schema(fields, metadata=table.schema.metadata))


def rounded(table: pa.Table, decimals: Mapping[str, int], significant: int = 6) -> pa.Table:
    """Floating-point columns with as many digits as they are worth.

    Parameters
    ----------
    decimals
        Digits after the point, by the name of a column.
    significant
        Digits of all other columns, in all.
    """
    import numpy as np
    import pyarrow as pa

    for number, column in enumerate(table.schema):
        if not pa.types.is_floating(column.type):
            continue
        values = table[column.name].to_numpy()
        if column.name in decimals:
            short = np.round(values, decimals[column.name])
        else:
            size = np.abs(np.where(np.isfinite(values) & (values != 0), values, 1.0))
            left = significant - 1 - np.floor(np.log10(size)).astype(int)
            up, down = 10.0 ** np.maximum(left, 0), 10.0 ** np.maximum(-left, 0)
            short = np.round(values * up / down) * down / up
        missing = np.asarray(table[column.name].is_null())
        new = pa.array(short.astype(values.dtype), column.type, mask=missing)
        table = table.set_column(number, column, new)
    return table


def to_astropy(table: pa.Table, metadata: Mapping[str, Any], units: Mapping[str, str]) -> Table:
    """Arrow table -> astropy Table with units and metadata; nulls are masked.

    Raises
    ------
    UsageError
        A column is nested.
    """
    from astropy.table import Table

    out = Table(meta=dict(metadata))
    for name in table.column_names:
        out[name] = _column(name, table[name])
        if name in units:
            out[name].unit = units[name]
        about = table.schema.field(name).metadata or {}
        if b"description" in about:
            out[name].description = about[b"description"].decode()
    return out


def _column(name: str, values: pa.ChunkedArray) -> Any:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    from astropy.table import Column, MaskedColumn

    if pa.types.is_fixed_size_list(values.type):
        return _vectors(name, values.combine_chunks())
    if pa.types.is_nested(values.type):
        raise _nested(name, values.type)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    missing = np.asarray(values.is_null())
    text = (
        pa.types.is_string(values.type)
        or pa.types.is_large_string(values.type)
        or pa.types.is_null(values.type)
    )
    if text:
        plain = np.array(["" if item is None else item for item in values.to_pylist()], dtype=str)
    elif missing.any():
        zero = pa.scalar(0).cast(values.type)
        plain = pc.fill_null(values, zero).to_numpy()
    else:
        plain = values.to_numpy()
    if not missing.any():
        return Column(plain, name=name)
    # formats that mark a null by a value get one that is no number of ours (astropy's 999999 could be)
    null = np.iinfo(plain.dtype).min if plain.dtype.kind == "i" else None
    return MaskedColumn(plain, name=name, mask=missing, fill_value=null)


def _nested(name: str, kind: Any) -> UsageError:
    import pyarrow as pa

    where = (
        "only .parquet and .h5"
        if _is_list(kind) and not pa.types.is_fixed_size_list(kind)
        else "only .parquet"
    )
    return UsageError(f"column {name!r} is {kind}: {where} can hold it")


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _vectors(name: str, values: pa.Array) -> Any:
    """A column of lists of one length, as an array of one more dimension; a missing list is all NaN, or masked."""
    import numpy as np
    from astropy.table import Column, MaskedColumn

    shape, kind, there = [len(values)], values.type, values.drop_null()
    while (size := getattr(kind, "list_size", None)) is not None:
        if there.null_count:
            raise UsageError(f"column {name!r} has missing lists in its lists: only .parquet can hold them")
        shape, kind, there = [*shape, size], kind.value_type, there.flatten()
    flat = there.to_numpy(zero_copy_only=False)
    if flat.dtype.kind not in "biuf":
        raise _nested(name, values.type)
    missing = np.asarray(values.is_null())
    full = np.full(shape, np.nan if flat.dtype.kind == "f" else 0, flat.dtype)
    full[~missing] = flat.reshape(-1, *shape[1:])
    if not missing.any() or flat.dtype.kind == "f":
        return Column(full, name=name)
    return MaskedColumn(
        full, name=name, mask=np.broadcast_to(missing.reshape(-1, *[1] * (len(shape) - 1)), shape)
    )


def _write_csv(table: pa.Table, target: Any) -> None:
    import pyarrow as pa
    import pyarrow.csv as pacsv

    for number, column in enumerate(table.schema):
        if pa.types.is_nested(column.type):
            raise UsageError(f"column {column.name!r} is {column.type}: CSV cannot hold it, .parquet can")
        if pa.types.is_dictionary(column.type):
            table = table.set_column(number, column.name, table[column.name].cast(column.type.value_type))
    header = ",".join(f'"{name}"' if re.search(r'[",\n]', name) else name for name in table.column_names)
    target.write((header + "\n").encode())
    pacsv.write_csv(table, target, pacsv.WriteOptions(include_header=False, quoting_style="needed"))


def _csv_file(table: pa.Table, part: Path, words: Mapping[str, str], units: Mapping[str, str]) -> None:
    del words, units
    with part.open("wb") as handle:
        _write_csv(table, handle)


def _parquet_file(table: pa.Table, part: Path, words: Mapping[str, str], units: Mapping[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [
        column.with_metadata({**(column.metadata or {}), b"unit": units[column.name].encode()})
        if column.name in units
        else column
        for column in table.schema
    ]
    table = table.cast(pa.schema(fields, metadata=dict(words)))
    if isinstance(table, pa.Table):
        pq.write_table(table, part, compression="zstd")
        return
    with pq.ParquetWriter(part, table.schema, compression="zstd") as writer:
        for batch in table:
            writer.write_batch(batch)


def _ecsv_file(table: pa.Table, part: Path, words: Mapping[str, str], units: Mapping[str, str]) -> None:
    to_astropy(table, words, units).write(part, format="ascii.ecsv")


def _votable_file(table: pa.Table, part: Path, words: Mapping[str, str], units: Mapping[str, str]) -> None:
    from astropy.io.votable import from_table
    from astropy.io.votable.tree import Info

    document = from_table(to_astropy(table, {}, units))
    for number, (key, value) in enumerate(words.items()):
        document.resources[0].infos.append(Info(ID=f"meta_{number}", name=key, value=value))
    document.to_xml(str(part))


def _fits_file(table: pa.Table, part: Path, words: Mapping[str, str], units: Mapping[str, str]) -> None:
    import numpy as np
    from astropy.io import fits
    from astropy.table import MaskedColumn

    plain = to_astropy(table, {}, units)
    for name in plain.colnames:
        column = plain[name]
        if hasattr(column, "mask") and column.dtype.kind == "b":
            # a FITS logical has no null: keep the three states as 0, 1 and null integers
            plain[name] = MaskedColumn(column.astype(np.int16), fill_value=np.iinfo(np.int16).min)
    hdu = fits.table_to_hdu(plain)
    hdu.name = "TABLE"
    for key, value in words.items():
        line = value.replace("\n", " ").encode("ascii", "backslashreplace").decode()
        in_card = re.fullmatch(r"[A-Za-z0-9_-]{1,8}", key) and key.upper() not in hdu.header
        if in_card and len(line) <= FITS_WORDS:
            hdu.header[key.upper()] = line
        if not in_card or (key, line.rstrip()) != (key.upper(), value) or len(line) > FITS_WORDS:
            hdu.header.add_history(_fits_history(key, value))
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(part, overwrite=True, checksum=True)


def _fits_history(key: str, value: str) -> str:
    """Words that no card of a FITS header can hold as they are, for HISTORY, whose lines are cut at 72 letters."""
    plain = f"{key} = {value}"
    one_line = len(plain) <= FITS_LINE and plain.isascii() and plain.isprintable()
    if one_line and not re.search(r"\s", key) and not key.startswith(FITS_QUOTED) and value == value.strip():
        return plain
    return f"{FITS_QUOTED}{quote(key, safe='')}={quote(value, safe=NOT_QUOTED)}{FITS_QUOTED}"


def _hdf5_file(table: pa.Table, part: Path, words: Mapping[str, str], units: Mapping[str, str]) -> None:
    import h5py
    import pyarrow as pa

    ragged = [
        column.name
        for column in table.schema
        if _is_list(column.type) and not pa.types.is_fixed_size_list(column.type)
    ]
    to_astropy(table.drop_columns(ragged), words, units).write(
        part, format="hdf5", path=HDF5_TABLE, serialize_meta=True, overwrite=True
    )
    if not ragged:
        return
    with h5py.File(part, "a") as file:
        lists = file.create_group(HDF5_LISTS)
        lists.attrs["columns"] = table.column_names
        for name in ragged:
            group = lists.create_group(name)
            about = {"unit": units.get(name), "description": about_column(table, name).get("description")}
            group.attrs.update({key: text for key, text in about.items() if text is not None})
            _write_lists(group, name, table[name].combine_chunks())


def about_column(table: pa.Table, name: str) -> dict[str, str]:
    """What is said of a column: its unit and its description, where there are some."""
    return {k.decode(): v.decode() for k, v in (table.schema.field(name).metadata or {}).items()}


def _write_lists(group: Any, name: str, values: pa.Array) -> None:
    """Lists as the values of all of them, one after the other, and where each begins; lists of lists likewise."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    group.create_dataset("offsets", data=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    if values.null_count:
        group.create_dataset("missing", data=np.asarray(values.is_null()))
    inner = values.flatten()
    if _is_list(inner.type):
        if pa.types.is_fixed_size_list(inner.type):
            inner = inner.cast(pa.list_(inner.type.value_type))
        _write_lists(group.create_group("values"), name, inner)
        return
    flat = inner.to_numpy(zero_copy_only=False)
    if flat.dtype.kind not in "biuf":
        raise UsageError(f"column {name!r} has lists of {inner.type}: only .parquet can hold it")
    group.create_dataset("values", data=flat, compression="gzip", shuffle=True)


def _csvw(table: pa.Table, name: str, words: Mapping[str, str], units: Mapping[str, str]) -> dict[str, Any]:
    """Description of a CSV file after https://www.w3.org/TR/tabular-metadata/; `notes` are the words of the table."""
    columns = []
    for column in table.schema:
        entry = {"name": column.name, "titles": column.name, "datatype": _csvw_type(column.type)}
        entry |= {"arrow": str(column.type)}
        entry |= {"unit": units[column.name]} if column.name in units else {}
        about = about_column(table, column.name).get("description")
        entry |= {"dc:description": about} if about else {}
        columns.append(entry)
    return {"@context": CSVW, "url": name, "tableSchema": {"columns": columns}, "notes": [dict(words)]}


def _csvw_type(kind: Any) -> str:
    import pyarrow as pa

    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_boolean(kind):
        return "boolean"
    return "double" if pa.types.is_floating(kind) else "string"


TABLE_FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".ecsv": "ecsv",
    ".vot": "votable",
    ".xml": "votable",
    ".fits": "fits",
    ".hdf5": "hdf5",
    ".h5": "hdf5",
}

_Writer = Callable[["pa.Table", Path, Mapping[str, str], Mapping[str, str]], None]
_WRITERS: dict[str, _Writer] = {
    "parquet": _parquet_file,
    "csv": _csv_file,
    "ecsv": _ecsv_file,
    "votable": _votable_file,
    "fits": _fits_file,
    "hdf5": _hdf5_file,
}
