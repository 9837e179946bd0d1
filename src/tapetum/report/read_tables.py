"""Tables as `tapetum.report.tables` writes them, read again with types, units and metadata."""

from __future__ import annotations

import gzip
import json
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tapetum.core.errors import FormatError, InputError, LimitError, UsageError
from tapetum.report.tables import (
    FITS_QUOTED,
    HDF5_LISTS,
    HDF5_TABLE,
    TABLE_FORMATS,
    about_column,
    sidecar_of,
    table_format,
)

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    import pyarrow as pa
    from astropy.table import Table

ASTROPY = {"ecsv": "ascii.ecsv", "votable": "votable", "fits": "fits", "hdf5": "hdf5"}  # its names of formats
READABLE = {**TABLE_FORMATS, ".fit": "fits", ".votable": "votable"}
"""Suffix -> format of what is read; all but Parquet and HDF5 may be gzipped (``.csv.gz``)."""
LARGEST_FILE = 4 * 2**30  # bytes of a file that is read as a whole by astropy, or unpacked
PIECE = 2**20  # bytes that are unpacked at a time
# what astropy's readers raise when a file is not what they thought
_DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, zlib.error)
_STRUCTURE = (
    "XTENSION", "BITPIX", "NAXIS", "PCOUNT", "GCOUNT", "TFIELDS", "EXTNAME", "CHECKSUM", "DATASUM", "THEAP", "HISTORY",
    "COMMENT", "comments",
)  # fmt: skip
_COLUMN_KEYS = (
    "TTYPE", "TFORM", "TUNIT", "TNULL", "TDISP", "TDIM", "TSCAL", "TZERO", "TCOMM", "NAXIS", "TBCOL",
)  # fmt: skip


def readable_format(path: str | Path) -> str:
    """The format that the suffix of a file says, without that of gzip.

    Raises
    ------
    UsageError
        Unknown suffix.
    """
    place = Path(path)
    suffix = place.suffix.lower()
    if suffix == ".gz":
        kind = READABLE.get(place.with_suffix("").suffix.lower(), "")
        if kind in ("", "parquet", "hdf5"):
            raise UsageError(f"{path}: unknown table suffix {''.join(place.suffixes[-2:])!r}")
        return kind
    return READABLE[suffix] if suffix in READABLE else table_format(str(path))


def read_table(
    path: str | Path, columns: Sequence[str] | None = None, *, names: Container[str] = ()
) -> pa.Table:
    """Read a table that `write_table` wrote, or another one of the same formats.

    Parameters
    ----------
    path
        Its suffix says the format (`READABLE`). Of an HDF5 file without our table, the one table at its root is taken.
    columns
        Only those of these that it has, in this order; None: all.
    names
        Columns, in lower case, that hold names, not numbers, so that 007 is not 7 where the file does not say what it
        is (CSV).

    Returns
    -------
    pyarrow.Table
        Words about the table in the metadata of its schema (`words_of`; JSON where they are not text), units and
        descriptions in those of its columns. What CSV, FITS or VOTable cannot say comes back as well as it can.

    Raises
    ------
    InputError
        The file is not there or cannot be read.
    FormatError
        It is not what its suffix says.
    LimitError
        It is too large to be read as a whole.
    UsageError
        Unknown suffix.
    """
    place = Path(path)
    kind = readable_format(path)
    if not place.is_file():
        raise InputError(f"{path}: no such file")
    if kind in ASTROPY and place.stat().st_size > LARGEST_FILE:
        raise LimitError(
            f"{path}: larger than {LARGEST_FILE >> 30} GiB; convert it to Parquet, which is read in pieces"
        )
    try:
        table = _read(place, kind, columns, names)
    except OSError as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror}") from None
    except FormatError as problem:
        raise FormatError(f"{path}: {problem}") from None
    if columns is None:
        return table
    return table.select([name for name in columns if name in table.column_names])


def _read(path: Path, kind: str, columns: Sequence[str] | None, texts: Container[str]) -> pa.Table:
    import pyarrow as pa

    damage: tuple[type[BaseException], ...] = (pa.ArrowException, *_DAMAGE)
    if kind in ASTROPY:
        from astropy.io.fits import VerifyError
        from astropy.io.registry import IORegistryError

        damage = (*damage, VerifyError, IORegistryError)
    try:
        if kind == "parquet":
            return _read_parquet(path, columns)
        return _read_csv(path, texts) if kind == "csv" else _read_through_astropy(path, kind)
    except FormatError:
        raise
    except damage as problem:
        if isinstance(problem, OSError) and problem.errno is not None:
            raise
        raise FormatError(f"not a {kind} table: {_first_line(problem)}") from None


def _first_line(problem: BaseException) -> str:
    return str(problem).strip().partition("\n")[0] or type(problem).__name__


def words_of(table: pa.Table) -> dict[str, str]:
    """What is said of a whole table."""
    return {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}


def units_of(table: pa.Table) -> dict[str, str]:
    """Units of columns, by name; as `read_table` leaves them."""
    return {name: unit for name in table.column_names if (unit := about_column(table, name).get("unit"))}


def _read_parquet(path: Path, columns: Sequence[str] | None) -> pa.Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        return file.read(None if columns is None else [name for name in columns if name in names])


def _read_csv(path: Path, texts: Container[str]) -> pa.Table:
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
    content = _unpacked(path) if path.suffix.lower() == ".gz" else None
    table = pacsv.read_csv(path if content is None else pa.BufferReader(content), convert_options=options)
    again = {
        column.name: pa.string()
        for column in table.schema
        if column.name.lower() in texts and column.name not in types and pa.types.is_integer(column.type)
    }
    if again:
        options.column_types = types | again
        table = pacsv.read_csv(path if content is None else pa.BufferReader(content), convert_options=options)
    fields = []
    for column in table.schema:
        entry = columns.get(column.name, {})
        said = {"unit": entry.get("unit"), "description": entry.get("dc:description")}
        fields.append(column.with_metadata({key: text for key, text in said.items() if text}))
    notes = about.get("notes") or [{}]
    return table.cast(pa.schema(fields, metadata=_as_words(notes[0])))


def _unpacked(path: Path, *, keep: bool = True) -> bytes:
    """What is in a gzipped file, or only a look whether that is too much: a small file may hold any number of zeros."""
    content = bytearray()
    size = 0
    with gzip.open(path) as file:
        while piece := file.read(PIECE):
            size += len(piece)
            if size > LARGEST_FILE:
                raise LimitError(
                    f"{path}: larger than {LARGEST_FILE >> 30} GiB when it is unpacked; convert it to Parquet, which "
                    "is read in pieces"
                )
            if keep:
                content += piece
    return bytes(content)


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


def _read_through_astropy(path: Path, kind: str) -> pa.Table:
    from astropy.table import Table

    if path.suffix.lower() == ".gz":
        _unpacked(path, keep=False)
    options: dict[str, Any] = {}
    if kind == "hdf5":
        options = {"character_as_bytes": False}
        options |= {"path": HDF5_TABLE} if _has_our_table(path) else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd units and old VOTable versions are no reason to stop
        found = Table.read(path, format=ASTROPY[kind], **options)
        more = _extra_words(path, kind)
        short = {key.upper() for key in more} if kind == "fits" else set()  # as far as a card can say it
        words = {key: word for key, word in _words(found.meta, kind).items() if key not in short} | more
    found.meta.clear()
    table = from_astropy(found)
    table = table.replace_schema_metadata(_as_words(words))
    return _with_lists(table, path) if kind == "hdf5" else table


def _words(meta: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """What is said of a table, without what only says how a FITS file is built."""
    if kind not in ("fits", "ecsv"):
        return {str(key): value for key, value in meta.items()}
    if kind == "ecsv":
        return {str(key): value for key, value in meta.items() if key != "comments"}
    return {
        str(key): value
        for key, value in meta.items()
        if key not in _STRUCTURE and not str(key).startswith(_COLUMN_KEYS)
    }


def _extra_words(path: Path, kind: str) -> dict[str, Any]:
    """Words that astropy's reader leaves behind: INFO elements of a VOTable, long keywords of a FITS header."""
    if kind == "votable":
        from astropy.io.votable import parse

        return {
            info.name: info.value for part in parse(str(path)).resources for info in part.infos if info.value
        }
    if kind == "fits":
        from astropy.io import fits

        with fits.open(path) as parts:
            header = next(
                (part.header for part in parts if isinstance(part, fits.BinTableHDU)), fits.Header()
            )
        return _words_of_history([str(line) for line in header.get("HISTORY", [])])
    return {}


def _words_of_history(lines: Sequence[str]) -> dict[str, str]:
    """Words in the lines of HISTORY: ``key = value``, or percent-encoded in as many lines as they need."""
    words: dict[str, str] = {}
    rest = iter(lines)
    for line in rest:
        if not line.startswith(FITS_QUOTED):
            key, equals, value = line.partition(" = ")
            if equals and " " not in key:
                words[key] = value
            continue
        text = line
        while len(text) < 2 * len(FITS_QUOTED) or not text.endswith(FITS_QUOTED):
            more = next(rest, None)
            if more is None:
                break
            text += more
        key, _, value = text.removeprefix(FITS_QUOTED).removesuffix(FITS_QUOTED).partition("=")
        words[unquote(key)] = unquote(value)
    return words


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
    """A column; vectors become lists of one length, arrays of different lengths become lists."""
    import numpy as np
    import pyarrow as pa

    mask = getattr(column, "mask", None)
    missing = None if mask is None else np.broadcast_to(np.asarray(mask), column.shape)
    plain = np.asarray(getattr(column, "value", column))
    if plain.ndim > 1:
        return _vectors(plain, missing)
    if plain.dtype.kind == "S":
        plain = np.char.decode(plain, "utf-8", "replace")
    if plain.dtype.kind == "O":
        return _of_objects(str(column.info.name), plain, missing)
    if plain.dtype.kind == "U":
        return pa.array(plain.tolist(), pa.string(), mask=missing)
    return pa.array(plain.astype(plain.dtype.newbyteorder("=")), mask=missing)


def _vectors(plain: Any, missing: Any) -> pa.Array:
    """Rows of one length; numbers that are missing are NaN where they can be, else the whole row is missing."""
    import numpy as np
    import pyarrow as pa

    plain = plain.astype(plain.dtype.newbyteorder("="))
    hidden = missing is not None and missing.any()
    if hidden and plain.dtype.kind == "f":
        plain, hidden = np.where(missing, np.nan, plain).astype(plain.dtype), False
    flat = pa.array(plain.ravel())
    for size in reversed(plain.shape[1:]):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    if not hidden:
        return flat
    gone = np.atleast_1d(missing.reshape(len(plain), -1).all(axis=1))
    rows = [None if absent else item for item, absent in zip(flat.to_pylist(), gone, strict=True)]
    return pa.array(rows, flat.type)


def _of_objects(name: str, plain: Any, missing: Any) -> pa.Array:
    """Texts, or arrays of different lengths."""
    import numpy as np
    import pyarrow as pa

    absent = np.zeros(len(plain), np.bool_) if missing is None else missing
    items = [
        None if gone or item is None or item is np.ma.masked else item
        for item, gone in zip(plain, absent, strict=True)
    ]
    if all(item is None or isinstance(item, str | bytes) for item in items):
        return pa.array(
            [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in items],
            pa.string(),
        )
    try:
        lists = [
            None if item is None else np.ma.filled(np.ma.asarray(item, np.float64), np.nan) for item in items
        ]
        return pa.array(lists)
    except (ValueError, TypeError, pa.ArrowException):
        raise FormatError(f"column {name} holds neither numbers nor text") from None


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
