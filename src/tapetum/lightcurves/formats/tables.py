"""Tables of the kinds that astronomers exchange, as Arrow tables with units, descriptions and metadata."""

from __future__ import annotations

import json
import warnings
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from tapetum.core.errors import FormatError, LimitError
from tapetum.lightcurves.formats.assemble import from_nested
from tapetum.lightcurves.formats.columns import Reading, recognise
from tapetum.lightcurves.formats.sources import Given, LongSource, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

FORMATS = {
    ".ecsv": "ascii.ecsv",
    ".fits": "fits",
    ".fit": "fits",
    ".vot": "votable",
    ".votable": "votable",
    ".xml": "votable",
    ".hdf5": "hdf5",
    ".h5": "hdf5",
}
"""Suffix -> what astropy calls it; all are read as a whole."""

BLOCK = 2**24  # bytes of CSV read at a time
LARGEST_FILE = 4 * 2**30  # bytes; such files are read as a whole
SHORTEST_ROW = 6  # bytes of a line of CSV: a bound on how many there are
DENSEST_GZIP = 20  # bytes of numbers per byte of gzip, at most
# what astropy's readers raise when a file is not what they thought
_DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, zlib.error)
_STRUCTURE = (
    "XTENSION",
    "BITPIX",
    "NAXIS",
    "PCOUNT",
    "GCOUNT",
    "TFIELDS",
    "EXTNAME",
    "CHECKSUM",
    "DATASUM",
    "THEAP",
)
_COLUMN_KEYS = (
    "TTYPE",
    "TFORM",
    "TUNIT",
    "TNULL",
    "TDISP",
    "TDIM",
    "TSCAL",
    "TZERO",
    "TCOMM",
    "NAXIS",
    "TBCOL",
)


def open_table(path: Path, kind: str, how: Reading) -> Source:
    """The light curves of a FITS, VOTable, ECSV or HDF5 table, one row per point or per curve.

    Raises
    ------
    FormatError
        Not such a file, or its columns are not those of light curves.
    LimitError
        Larger than is read as a whole.
    """
    table = read_table(path, kind)
    layout = recognise(table.schema, str(path), how)
    if layout.nested:
        return Given(str(path), from_nested(table, layout, how, str(path)))
    return LongSource(str(path), TableRows(path, kind, table.num_rows, table), layout, how)


def open_csv(path: Path, how: Reading) -> Source:
    """The light curves of a CSV file with one row per point; it may be larger than memory.

    Raises
    ------
    FormatError
        Not CSV, or its columns are not those of light curves.
    """
    schema = _csv_schema(path)
    layout = recognise(schema, str(path), how)
    types = {name: pa.float64() for name in layout.points.values()}
    for ours, theirs in layout.about.items():
        if ours in ("ra", "dec"):
            types[theirs] = pa.float64()
        elif ours in ("lc_id", "object_id", "survey"):
            types[theirs] = pa.string()
    # what has no value in the first block may have a text later
    types |= {
        entry.name: pa.string()
        for entry in schema
        if pa.types.is_null(entry.type) and entry.name not in types
    }
    types = {name: kind for name, kind in types.items() if name in layout.columns}
    size = path.stat().st_size * (DENSEST_GZIP if path.suffix.lower() == ".gz" else 1)
    return LongSource(str(path), CsvRows(path, size // SHORTEST_ROW, tuple(types.items())), layout, how)


@dataclass(frozen=True)
class TableRows:
    """The rows of a table that is read as a whole; another process reads it again instead of being sent it."""

    path: Path
    kind: str
    n_rows: int
    table: pa.Table | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "table": None}

    @property
    def name(self) -> str:
        """The file."""
        return str(self.path)

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """As `Rows.read`."""
        yield (self.table or read_table(self.path, self.kind)).select(list(columns))


@dataclass(frozen=True)
class CsvRows:
    """The rows of a CSV file, a block at a time.

    Attributes
    ----------
    n_rows
        At most so many.
    types
        Of columns, as pairs; others are guessed from the first block.
    """

    path: Path
    n_rows: int
    types: tuple[tuple[str, pa.DataType], ...]

    @property
    def name(self) -> str:
        """The file."""
        return str(self.path)

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """As `Rows.read`."""
        convert = pacsv.ConvertOptions(
            include_columns=list(columns), column_types=dict(self.types), strings_can_be_null=True
        )
        try:
            with _csv_reader(self.path, convert) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])
        except (pa.ArrowException, UnicodeDecodeError) as problem:
            raise FormatError(f"{self.path}: not a readable CSV table: {problem}") from None


def _csv_schema(path: Path) -> pa.Schema:
    try:
        with _csv_reader(path, pacsv.ConvertOptions()) as reader:
            return reader.schema
    except (pa.ArrowException, UnicodeDecodeError) as problem:
        raise FormatError(f"{path}: not a readable CSV table: {problem}") from None


def _csv_reader(path: Path, convert: pacsv.ConvertOptions) -> pacsv.CSVStreamingReader:
    # one thread: the rows stay in their order, and other cores belong to other workers
    return pacsv.open_csv(
        path, pacsv.ReadOptions(use_threads=False, block_size=BLOCK), convert_options=convert
    )


# ---- through astropy -----------------------------------------------------------------------------------------------


def read_table(path: Path, kind: str) -> pa.Table:
    """A table with its metadata: that of the table as words (JSON where it is not text), units and descriptions.

    Parameters
    ----------
    kind
        Of `FORMATS`.

    Raises
    ------
    FormatError
        It is none, or damaged.
    LimitError
        It is too large to be read as a whole.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise LimitError(
            f"{path}: larger than {LARGEST_FILE >> 30} GiB; convert it to Parquet, which is read in pieces"
        )
    from astropy.io.fits import VerifyError
    from astropy.io.registry import IORegistryError
    from astropy.table import Table

    options = {"path": "table"} if kind == "hdf5" and _has_table(path) else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd units and old VOTable versions are no reason to stop
            table = (
                Table.read(path, format=kind, character_as_bytes=False, **options)
                if kind == "hdf5"
                else (Table.read(path, format=kind, **options))
            )
            words = {**{str(key): value for key, value in table.meta.items()}, **_extra_words(path, kind)}
            return _arrow(table, words)
    except FormatError as problem:
        raise FormatError(f"{path}: {problem}") from None
    except (*_DAMAGE, VerifyError, IORegistryError) as problem:
        raise FormatError(f"{path}: cannot be read as {kind}: {problem}") from None


def _has_table(path: Path) -> bool:
    import h5py

    try:
        with h5py.File(path) as file:
            return "table" in file
    except OSError as problem:
        raise FormatError(f"{path}: not an HDF5 file: {problem}") from None


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
        lines = [str(line).partition(" = ") for line in _history(header)]
        return {key: value for key, equals, value in lines if equals and " " not in key}
    return {}


def _history(header: Any) -> list[str]:
    """The lines of HISTORY; one that the header had to fold is put together again."""
    lines: list[str] = []
    for line in header.get("HISTORY", []):
        if lines and len(lines[-1]) % 72 == 0 and lines[-1] and " = " not in line:
            lines[-1] += line
        else:
            lines.append(line)
    return lines


def _arrow(table: Any, words: dict[str, Any]) -> pa.Table:
    fields, arrays = [], []
    for name in table.colnames:
        column = table[name]
        values = _array(name, column)
        about = {}
        if getattr(column, "unit", None) is not None:
            about["unit"] = str(column.unit)
        if getattr(column, "description", None):
            about["description"] = str(column.description)
        fields.append(pa.field(name, values.type, metadata=about or None))
        arrays.append(values)
    kept = {
        key: value if isinstance(value, str) else json.dumps(value, default=str)
        for key, value in words.items()
        if key not in (*_STRUCTURE, "comments", "HISTORY", "COMMENT") and not key.startswith(_COLUMN_KEYS)
    }
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=kept))


def _array(name: str, column: Any) -> pa.Array:
    """A column, which may hold an array per row, as Arrow array."""
    values: Any = np.ma.asarray(getattr(column, "value", column))
    if values.dtype.kind == "O":
        return _of_objects(name, values)
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if values.ndim > 2:
        raise FormatError(f"column {name} has {values.ndim} dimensions")
    if values.ndim == 2:
        flat = pa.array(np.ma.filled(values.astype(np.float64), np.nan).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    if values.dtype.kind == "S":
        values = np.char.decode(np.ma.filled(values, b""), "utf-8", "replace")
    if values.dtype.kind == "U":
        return pa.array(np.ma.filled(values, "").tolist(), pa.string(), mask=np.ma.getmaskarray(values))
    return pa.array(np.ma.getdata(values), mask=np.ma.getmaskarray(values))


def _of_objects(name: str, values: Any) -> pa.Array:
    """Texts, or arrays of different lengths."""
    items = [None if item is np.ma.masked else item for item in values]
    if all(item is None or isinstance(item, str | bytes) for item in items):
        return pa.array(
            [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in items]
        )
    try:
        return pa.array([None if item is None else np.asarray(item, np.float64) for item in items])
    except (ValueError, TypeError):
        raise FormatError(f"column {name} holds neither numbers nor text") from None
